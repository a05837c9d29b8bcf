//! The agent and its command line in one program.

use std::process::ExitCode;

fn main() -> ExitCode {
    portcullis::cli::main()
}
