//! The project's commands: `cargo xtask <command>`.
//!
//! Exit status: 0 done, 1 the thing asked for failed, 2 the call is wrong or the machine lacks
//! something only its user can give (root, a compiler).

mod build;
mod cli;
mod exec;
mod fuzz;
mod lab;
mod lint;
mod setup;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::run(cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            if error.is::<exec::UserMustAct>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}
