//! What the machine must have, and how it gets there.

mod apt;
pub mod ebpf;
pub mod go;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

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
    tool("h2load", "nghttp2-client", "is one of HTTP/2, with many streams"),
    tool("/usr/bin/python3", "python3", "is a second server on OpenSSL"),
];

/// The clients whose TLS fingerprints the tests compare, and what puts them on their way.
pub const CLIENTS: &[Tool] = &[
    tool("openssl", "openssl", "is a client on OpenSSL"),
    tool("gnutls-cli", "gnutls-bin", "is a client on GnuTLS"),
    tool("tstclnt", "libnss3-tools", "is a client on NSS"),
    tool("node", "nodejs", "is a client on OpenSSL as Node.js has it"),
    tool("chromium-headless-shell", "chromium-headless-shell", "is a browser (100 MB)"),
    tool("ethtool", "ethtool", "has VLAN tags put into frames"),
];

/// What the benchmarks need beside the laboratory.
pub const BENCH: &[Tool] = &[
    tool("wrk", "wrk", "loads the server"),
    tool("xdp-filter", "xdp-tools", "is the peer that XDP is compared with"),
    tool("nft", "nftables", "is the other"),
];

/// What the tests on other kernels need beside the laboratory.
pub const KERNELS: &[Tool] = &[
    tool("qemu-system-x86_64", "qemu-system-x86", "runs other kernels"),
    tool("modprobe", "kmod", "loads their modules"),
    tool("xz", "xz-utils", "unpacks their modules"),
];

/// Everything that any command needs, but for the tests on other kernels.
pub fn everything() -> anyhow::Result<()> {
    ebpf::toolchain_with_clippy()?;
    tools(&[LAB, CLIENTS, BENCH])?;
    go::compiler()?;
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

/// Where what is built or downloaded once is kept: outside of the checkout, so that a fresh clone
/// need not do it again.
pub fn cache_dir() -> anyhow::Result<PathBuf> {
    let home = cache_home(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"))
        .context("neither XDG_CACHE_HOME nor HOME says where to keep what set-up makes")?;
    Ok(home.join("portcullis"))
}

/// The user's cache directory by the XDG Base Directory Specification: a relative path is
/// ignored.
fn cache_home(xdg: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let xdg = xdg.map(PathBuf::from).filter(|path| path.is_absolute());
    xdg.or_else(|| home.filter(|home| !home.is_empty()).map(|home| Path::new(&home).join(".cache")))
}

fn exists(path: &str) -> bool {
    Path::new(path).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_follows_the_xdg_specification() {
        let home = || Some(OsString::from("/home-of-user"));
        assert_eq!(cache_home(Some("/c".into()), home()), Some("/c".into()));
        assert_eq!(cache_home(Some("c".into()), home()), Some("/home-of-user/.cache".into()));
        assert_eq!(cache_home(None, home()), Some("/home-of-user/.cache".into()));
        assert_eq!(cache_home(None, Some("".into())), None);
    }
}
