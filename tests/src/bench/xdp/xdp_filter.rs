//! xdp-filter (Debian's xdp-tools) on an interface of a laboratory.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use aya::programs::{Xdp, loaded_programs};
use aya_obj::programs::XdpAttachType;
use serde_json::Value;

use crate::netns::{Host, INTERFACE};

/// Its maps, of which there is one set on a host.
const PINS: &str = "/sys/fs/bpf/xdp-filter";

/// Where xdp-filter's loader pins dispatchers. It leaves the directory behind.
const DISPATCHERS: &str = "/sys/fs/bpf/xdp";

/// Where its program runs.
#[derive(Clone, Copy)]
pub enum Mode {
    /// In the network stack.
    Generic,
    /// In the driver.
    Native,
}

/// Loaded until dropped.
pub struct XdpFilter<'a> {
    host: &'a Host,
}

impl<'a> XdpFilter<'a> {
    /// With all of its features, and a policy that lets pass what no rule names.
    pub fn load(host: &'a Host, mode: Mode) -> Result<Self> {
        ensure!(
            !Path::new(PINS).exists(),
            "this host has xdp-filter in use ({PINS} is there); `xdp-filter unload --all` removes it"
        );
        let this = Self { host };
        let mode = match mode {
            Mode::Generic => "skb",
            Mode::Native => "native",
        };
        this.call(&["load", "--mode", mode, "--features", "all", INTERFACE])?;
        Ok(this)
    }

    pub fn deny_source(&self, address: IpAddr) -> Result<()> {
        self.call(&["ip", "--mode", "src", &address.to_string()])
    }

    /// The program that the interface runs: the dispatcher, with xdp-filter's program in it.
    pub fn program(&self) -> Result<Xdp> {
        let mut ip = Command::new("ip");
        ip.args(["-json", "link", "show", "dev", INTERFACE]);
        let output = self.host.output(ip)?;
        let links: Value = serde_json::from_slice(&output.stdout).context("ip printed no JSON")?;
        let id = links[0]["xdp"]["prog"]["id"].as_u64().context("no XDP program attached")?;
        let info = loaded_programs()
            .filter_map(Result::ok)
            .find(|info| u64::from(info.id()) == id)
            .with_context(|| format!("program {id} is gone"))?;
        Ok(Xdp::from_program_info(info, "xdp_dispatcher".into(), XdpAttachType::Interface)?)
    }

    fn call(&self, args: &[&str]) -> Result<()> {
        let mut command = Command::new("xdp-filter");
        command.args(args);
        let output = self.host.output(command)?;
        ensure!(
            output.status.success(),
            "xdp-filter {}: {}: {}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }
}

impl Drop for XdpFilter<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.call(&["unload", INTERFACE]) {
            eprintln!("xdp-filter is left on {}: {error:#}", self.host.namespace());
        }
        // Goes only when it is empty, that is, when no other dispatcher is there.
        let _ = fs::remove_dir(DISPATCHERS);
    }
}
