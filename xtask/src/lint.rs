//! Format, clippy, tidy: all are run, then all failures are told.

use anyhow::bail;

use crate::{build, exec, setup, tidy};

pub fn run() -> anyhow::Result<()> {
    setup::lint_components()?;
    let toolchain = setup::ebpf::toolchain_with_clippy()?;
    // The agent does not compile without it.
    build::ebpf()?;

    let steps: [(&str, anyhow::Result<()>); 4] = [
        ("rustfmt", exec::run(exec::cargo().args(["fmt", "--all", "--check"]))),
        ("clippy", clippy()),
        ("clippy of eBPF code", clippy_ebpf(&toolchain)),
        ("tidy", tidy::run()),
    ];
    let mut failed = Vec::new();
    for (name, result) in steps {
        match result {
            Ok(()) => eprintln!("xtask: {name}: ok"),
            Err(error) => {
                eprintln!("xtask: {name}: FAILED: {error:#}");
                failed.push(name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("lint failed: {}", failed.join(", "));
    }
    Ok(())
}

fn clippy() -> anyhow::Result<()> {
    let mut cargo = exec::cargo();
    cargo.args(["clippy", "--workspace", "--exclude", "portcullis-ebpf", "--all-targets"]);
    exec::run(cargo.args(["--", "--deny", "warnings"]))
}

fn clippy_ebpf(toolchain: &setup::ebpf::Toolchain) -> anyhow::Result<()> {
    let mut cargo = toolchain.cargo("clippy", &build::ebpf_target_dir())?;
    exec::run(cargo.args(["--", "--deny", "warnings"]))
}
