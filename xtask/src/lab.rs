//! What runs on network namespaces: the demo and the benchmarks, programs of their own.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, bail};

use crate::setup::{self, BENCH, LAB};
use crate::{build, exec};

pub fn demo(args: &[String]) -> anyhow::Result<()> {
    exec::require_root("the demo (it makes network namespaces and loads eBPF programs)")?;
    setup::tools(&[LAB])?;
    run("portcullis-demo", args)
}

pub fn bench(args: &[String]) -> anyhow::Result<()> {
    exec::require_root("bench (it makes network namespaces and loads eBPF programs)")?;
    setup::tools(&[LAB, BENCH])?;
    run("portcullis-bench", args)
}

/// Replaces this process, so that signals and the exit status are the program's own.
fn run(program: &str, args: &[String]) -> anyhow::Result<()> {
    build::ebpf()?;
    let mut cargo = exec::cargo();
    // The programs start the agent and the laboratory's helpers, which lie beside them.
    cargo.args(["build", "--release", "--package", "portcullis", "--package", "portcullis-tests"]);
    exec::run(cargo.arg("--bins"))?;
    let path = exec::target_dir()?.join("release").join(program);
    if !path.is_file() {
        bail!("cargo built no {}", path.display());
    }
    let error = Command::new(&path).args(args).exec();
    Err(error).with_context(|| format!("cannot run {}", path.display()))
}
