//! `portcullis-demo [--keep]`, run by `cargo xtask demo`.
//!
//! Exit status: 0 the attackers were stopped and the innocent was served, 1 not so, 2 the call is
//! wrong, 128 + n after signal n.

use std::process::ExitCode;

use portcullis_tests::demo;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let keep = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--keep"] => true,
        _ => {
            eprintln!("usage: portcullis-demo [--keep]");
            return ExitCode::from(2);
        }
    };
    match demo::run(keep) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("portcullis-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
