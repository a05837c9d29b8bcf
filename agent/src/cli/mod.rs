//! The command line: parses, asks whoever knows, prints. Decides nothing.

mod agent;
mod args;
mod check;
mod config_file;
mod doctor;
mod failure;
mod output;
mod replay;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use serde_json::json;
use tracing_subscriber::EnvFilter;

use crate::config::Purpose;
use crate::{kernel, runtime};
use args::{Cli, Command, Global};
use failure::Failure;

/// The agent's version, as the crate has it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs the command that the process was called with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = log_to_stderr(&cli).and_then(|()| execute(&cli));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn execute(cli: &Cli) -> Result<(), Failure> {
    let global = &cli.global;
    match &cli.command {
        Command::Run => run(global),
        Command::Check => check::run(global),
        Command::Doctor => doctor::run(global),
        Command::Replay(args) => replay::run(global, args),
        Command::Status => agent::status(global),
        Command::Block(args) => agent::block(global, args),
        Command::Unblock(args) => agent::unblock(global, args),
        Command::Blocks => agent::blocks(global),
        Command::Allow { change } => agent::allow(global, change.as_ref()),
        Command::Decisions(args) => agent::decisions(global, args.limit),
        Command::Findings(args) => agent::findings(global, args.limit),
        Command::Detach => detach(global),
        Command::Version => version(global),
    }
}

fn run(global: &Global) -> Result<(), Failure> {
    let config = config_file::read(&global.config, Purpose::Run)?;
    doctor::warn_of_absent_capabilities();
    Ok(runtime::run(&global.config, config)?)
}

fn detach(global: &Global) -> Result<(), Failure> {
    let config = config_file::read_or_default(&global.config);
    let namespaces: Vec<_> = config.namespaces.into_iter().map(|one| one.path).collect();
    let detached = kernel::detach(&config.kernel.pin_dir, &namespaces)?;
    if global.json {
        return Ok(output::json(&detached)?);
    }
    let mut text = String::new();
    for link in &detached.links {
        text.push_str(&format!("detached {}\n", output::printable(link)));
    }
    for map in &detached.maps {
        text.push_str(&format!("removed map {}\n", output::printable(map)));
    }
    if text.is_empty() {
        text.push_str("nothing was attached\n");
    }
    Ok(output::print(&text)?)
}

fn version(global: &Global) -> Result<(), Failure> {
    let abi = portcullis_common::ABI_VERSION;
    if global.json {
        return Ok(output::json(&json!({"version": VERSION, "abi": abi}))?);
    }
    Ok(output::print(&format!("portcullis {VERSION} (kernel ABI {abi})\n"))?)
}

/// `--log-level`, else `RUST_LOG`, else what suits the command.
fn log_to_stderr(cli: &Cli) -> Result<(), Failure> {
    let usual = if matches!(cli.command, Command::Run) { "info" } else { "warn" };
    let from_env = || std::env::var(EnvFilter::DEFAULT_ENV).ok();
    let directives =
        cli.global.log_level.clone().or_else(from_env).unwrap_or_else(|| usual.to_owned());
    let filter = EnvFilter::builder()
        .parse(&directives)
        .with_context(|| format!("`{directives}` is not a log level or filter"))
        .map_err(Failure::Wrong)?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // The journal has a time of its own for each line (systemd.exec(5)).
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().init();
    } else {
        log.init();
    }
    Ok(())
}
