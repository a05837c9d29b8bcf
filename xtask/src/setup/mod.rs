//! What the machine must have, and how it gets there.

mod apt;
pub mod ebpf;

use std::path::Path;

use anyhow::bail;

use crate::exec;

/// A program that a command runs, and the Debian package that brings it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool {
    pub program: &'static str,
    pub package: &'static str,
    pub why: &'static str,
}

const fn tool(program: &'static str, package: &'static str, why: &'static str) -> Tool {
    Tool { program, package, why }
}

/// The laboratory of the tests that need root, the demo and the benchmarks.
pub const LAB: &[Tool] = &[
    tool("ip", "iproute2", "makes network namespaces"),
    tool("nginx", "nginx", "is the server under attack"),
    tool("curl", "curl", "is a real client"),
    tool("/usr/bin/python3", "python3", "is a second server on OpenSSL"),
];

/// What the benchmarks need beside the laboratory.
pub const BENCH: &[Tool] = &[
    tool("wrk", "wrk", "loads the server"),
    tool("xdp-filter", "xdp-tools", "is the peer that XDP is compared with"),
];

/// Everything that any command needs.
pub fn everything() -> anyhow::Result<()> {
    ebpf::toolchain_with_clippy()?;
    tools(&[LAB, BENCH])?;
    lint_components()?;
    println!("everything is installed");
    Ok(())
}

/// Installs the packages of those tools that are not there.
pub fn tools(sets: &[&[Tool]]) -> anyhow::Result<()> {
    let missing: Vec<Tool> = sets
        .iter()
        .flat_map(|set| set.iter().copied())
        .filter(|tool| exec::find_program(tool.program).is_none())
        .collect();
    let wanted: Vec<apt::Wanted> =
        missing.iter().map(|tool| apt::Wanted { package: tool.package, why: tool.why }).collect();
    apt::install(&wanted)?;
    match missing.iter().find(|tool| exec::find_program(tool.program).is_none()) {
        None => Ok(()),
        Some(tool) => {
            bail!("{} is installed, but there is no program {}", tool.package, tool.program)
        }
    }
}

/// rustfmt and clippy, which rustup's minimal profile leaves out.
pub fn lint_components() -> anyhow::Result<()> {
    for component in ["rustfmt", "clippy"] {
        let subcommand = if component == "rustfmt" { "fmt" } else { component };
        if exec::output(exec::cargo().args([subcommand, "--version"])).is_some() {
            continue;
        }
        if exec::find_program("rustup").is_none() {
            return Err(
                exec::UserMustAct(format!("install {component} for your Rust toolchain")).into()
            );
        }
        eprintln!("xtask: installing {component}, for `cargo xtask lint`");
        exec::run(std::process::Command::new("rustup").args(["component", "add", component]))?;
    }
    Ok(())
}

fn exists(path: &str) -> bool {
    Path::new(path).exists()
}
