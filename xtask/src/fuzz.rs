//! Fuzzing: the targets of `tests/fuzz`, run by cargo-fuzz, and the policy of the packet programs
//! against its plain reference, which takes root and no nightly Rust.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};

use crate::exec::{self, UserMustAct};
use crate::{build, setup};

const DIR: &str = "tests/fuzz";
/// The target that cargo-fuzz does not know.
const POLICY: &str = "policy";
/// Frames that the packet programs judge, however long that takes.
const FRAMES: u64 = 10_000_000;

/// What to fuzz, and how long.
pub struct Plan<'a> {
    /// All targets, one after the other, when left out.
    pub target: Option<&'a str>,
    /// For each target; that of the policy goes on until it has judged [`FRAMES`] too.
    pub seconds: u32,
    /// Of the policy's frames; at random when left out.
    pub seed: Option<u64>,
}

pub fn run(plan: &Plan) -> anyhow::Result<()> {
    if plan.target == Some(POLICY) {
        return policy(plan);
    }
    let manifest = exec::root().join(DIR).join("Cargo.toml");
    if !manifest.is_file() {
        bail!("there are no fuzz targets: {DIR}/Cargo.toml does not exist");
    }
    install()?;
    let all = exec::output(&mut cargo_fuzz("list")).context("`cargo fuzz list` failed")?;
    for target in choose(plan.target, &all)? {
        coverage_guided(target, plan.seconds)?;
    }
    if plan.target.is_none() { policy(plan) } else { Ok(()) }
}

/// Goes on with the corpus of earlier runs.
fn coverage_guided(target: &str, seconds: u32) -> anyhow::Result<()> {
    eprintln!("xtask: fuzzing {target} for {seconds} s");
    let mut fuzz = cargo_fuzz("run");
    fuzz.arg(target);
    for dir in ["corpus", "seeds", "regressions"] {
        let dir = format!("{DIR}/{dir}/{target}");
        std::fs::create_dir_all(exec::root().join(&dir))?;
        fuzz.arg(dir);
    }
    fuzz.arg("--").arg(format!("-max_total_time={seconds}"));
    exec::run(&mut fuzz)
}

/// A test, because it is one: only longer.
fn policy(plan: &Plan) -> anyhow::Result<()> {
    exec::require_root("fuzzing the policy (it loads eBPF programs)")?;
    setup::ebpf::toolchain()?;
    build::ebpf()?;
    let seed = plan.seed.map_or_else(random_seed, Ok)?;
    eprintln!("xtask: fuzzing {POLICY} for {} s and {FRAMES} frames, seed {seed}", plan.seconds);
    let mut cargo = exec::cargo();
    cargo
        .args(["test", "--release", "--package", "portcullis-tests"])
        .args(["--test", "policy_differential", "--"])
        .args(["--ignored", "--nocapture", "--exact", "long_run"])
        .env("PORTCULLIS_FUZZ_SEED", seed.to_string())
        .env("PORTCULLIS_FUZZ_FRAMES", FRAMES.to_string())
        .env("PORTCULLIS_FUZZ_SECONDS", plan.seconds.to_string());
    exec::run(&mut cargo).with_context(|| {
        format!(
            "`cargo xtask fuzz {POLICY} --seed {seed}` repeats it; a frame that made it fail is in \
             {DIR}/regressions/{POLICY}: commit it with what mends it"
        )
    })
}

fn random_seed() -> anyhow::Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    // One that is easily typed again.
    Ok(u64::from(now.subsec_nanos()))
}

fn choose<'a>(wanted: Option<&'a str>, all: &'a str) -> Result<Vec<&'a str>, UserMustAct> {
    let all: Vec<&str> = all.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match wanted {
        None => Ok(all),
        Some(name) if all.contains(&name) => Ok(vec![name]),
        Some(name) => Err(UserMustAct(format!(
            "there is no fuzz target {name}; there are: {}, {POLICY}",
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
        assert!(error.contains("http, config, policy"), "{error}");
    }
}
