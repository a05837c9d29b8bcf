//! `portcullis check`

use serde_json::json;

use super::args::Global;
use super::failure::Failure;
use super::output;
use crate::config::{self, Purpose};

pub fn run(global: &Global) -> Result<(), Failure> {
    let loaded = config::load(&global.config, Purpose::Run);
    let (problems, warnings) = match &loaded {
        Ok(loaded) => (&[][..], &loaded.warnings[..]),
        Err(invalid) => (&invalid.problems[..], &[][..]),
    };
    if global.json {
        let ok = problems.is_empty();
        output::json(&json!({"ok": ok, "problems": problems, "warnings": warnings}))?;
    } else {
        for warning in warnings {
            eprintln!("warning: {warning}");
        }
        for problem in problems {
            eprintln!("{problem}");
        }
        if problems.is_empty() {
            output::print(&format!("{}: no mistakes\n", global.config.display()))?;
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Failure::ToldWrong) }
}
