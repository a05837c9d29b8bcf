//! The project's own programs, built beside the one that runs.

use std::path::PathBuf;

use anyhow::{Context, bail};

/// `portcullis` or one of this package's programs, from the same target directory and profile.
pub fn find(name: &str) -> anyhow::Result<PathBuf> {
    let me = std::env::current_exe().context("cannot tell which program this is")?;
    // Tests lie in `deps`, one level below the programs.
    let mut dirs = me.ancestors().skip(1).take(2);
    match dirs.find_map(|dir| Some(dir.join(name)).filter(|path| path.is_file())) {
        Some(path) => Ok(path),
        None => bail!(
            "there is no {name} beside {}: run this through `cargo xtask`, or `cargo xtask build` before it",
            me.display()
        ),
    }
}
