//! Fuzz targets of `tests/fuzz`, run by cargo-fuzz.

use std::process::Command;

use anyhow::{Context, bail};

use crate::exec::{self, UserMustAct};

const DIR: &str = "tests/fuzz";

/// Runs `target`, or every target in turn, for `seconds` each.
pub fn run(target: Option<&str>, seconds: u32) -> anyhow::Result<()> {
    let manifest = exec::root().join(DIR).join("Cargo.toml");
    if !manifest.is_file() {
        bail!("there are no fuzz targets: {DIR}/Cargo.toml does not exist");
    }
    install()?;
    let all = exec::output(&mut cargo_fuzz("list")).context("`cargo fuzz list` failed")?;
    for target in choose(target, &all)? {
        eprintln!("xtask: fuzzing {target} for {seconds} s");
        let mut fuzz = cargo_fuzz("run");
        fuzz.arg(target).arg("--").arg(format!("-max_total_time={seconds}"));
        exec::run(&mut fuzz)?;
    }
    Ok(())
}

fn choose<'a>(wanted: Option<&'a str>, all: &'a str) -> Result<Vec<&'a str>, UserMustAct> {
    let all: Vec<&str> = all.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match wanted {
        None => Ok(all),
        Some(name) if all.contains(&name) => Ok(vec![name]),
        Some(name) => Err(UserMustAct(format!(
            "there is no fuzz target {name}; there are: {}",
            all.join(", ")
        ))),
    }
}

fn cargo_fuzz(subcommand: &str) -> Command {
    let mut command = exec::other_toolchain("cargo");
    command.args(["+nightly", "fuzz", subcommand, "--fuzz-dir", DIR]);
    command
}

fn install() -> anyhow::Result<()> {
    let mut nightly = exec::other_toolchain("cargo");
    nightly.env("RUSTUP_AUTO_INSTALL", "0").args(["+nightly", "--version"]);
    if exec::output(&mut nightly).is_none() {
        let advice = "run `rustup toolchain install nightly --profile minimal`";
        return Err(UserMustAct(format!("fuzzing needs nightly Rust: {advice}")).into());
    }
    if exec::find_program("cargo-fuzz").is_some() {
        return Ok(());
    }
    eprintln!("xtask: installing cargo-fuzz, which runs the fuzz targets (once, about a minute)");
    exec::run(exec::cargo().args(["install", "cargo-fuzz", "--locked"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_target_names_the_right_ones() {
        let all = "http\nconfig\n";
        assert_eq!(choose(None, all).expect("all"), ["http", "config"]);
        assert_eq!(choose(Some("config"), all).expect("known"), ["config"]);
        let error = choose(Some("htp"), all).expect_err("unknown").to_string();
        assert!(error.contains("http, config"), "{error}");
    }
}
