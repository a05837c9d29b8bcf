//! `portcullis replay`

use std::io;
use std::path::Path;

use super::args::{DEFAULT_CONFIG, Global, Replay};
use super::config_file;
use super::failure::Failure;
use super::output;
use crate::config::{Config, Purpose};
use crate::replay::{self, Outputs};

pub fn run(global: &Global, args: &Replay) -> Result<(), Failure> {
    // A host that only replays needs no configuration.
    let config = if global.config == Path::new(DEFAULT_CONFIG) && !global.config.exists() {
        Config::default()
    } else {
        config_file::read(&global.config, Purpose::Replay)?
    };
    let outputs = Outputs { decisions: args.decisions.clone(), findings: args.findings.clone() };
    let summary = replay::run(&config, &args.inputs, outputs, &mut io::stderr().lock())?;
    if global.json {
        return Ok(output::json(&summary)?);
    }
    Ok(output::print(&format!("{summary}\n"))?)
}
