//! The configuration, as the commands need it.

use std::path::Path;

use super::failure::Failure;
use crate::config::{self, Config, Loaded, Purpose};

/// Reads the configuration; what its writer should look at goes to stderr.
///
/// # Errors
/// With every mistake printed, when there is one.
pub fn read(path: &Path, purpose: Purpose) -> Result<Config, Failure> {
    match config::load(path, purpose) {
        Ok(Loaded { config, warnings }) => {
            for warning in warnings {
                eprintln!("warning: {warning}");
            }
            Ok(config)
        }
        Err(invalid) => {
            eprintln!("{invalid}");
            Err(Failure::ToldWrong)
        }
    }
}

/// The configuration, or the defaults where it cannot be used: an operator must be able to reach
/// a running agent while its file is being edited, and to detach after it is gone.
pub fn read_or_default(path: &Path) -> Config {
    match config::load(path, Purpose::Replay) {
        Ok(loaded) => loaded.config,
        Err(_) => {
            if path.exists() {
                let path = path.display();
                eprintln!(
                    "warning: {path} can't be used (`portcullis check` says why), \
                     so the default paths are"
                );
            }
            Config::default()
        }
    }
}
