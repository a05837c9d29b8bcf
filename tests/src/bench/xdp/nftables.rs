//! nftables on the server's interface, as early as it can drop: a set of addresses in a chain of the
//! ingress hook.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use serde_json::Value;
use std::os::fd::AsRawFd as _;

use crate::netns::{Host, INTERFACE, Lab};

const TABLE: &str = "portcullis_bench";
/// As many as xdp-filter has room for.
const ENTRIES: u32 = 10_000;

/// In place until dropped.
pub struct Nftables<'a> {
    host: &'a Host,
}

impl<'a> Nftables<'a> {
    /// Drops what comes from `denied` and from 9,999 others.
    pub fn load(lab: &'a Lab, denied: IpAddr) -> Result<Self> {
        let others = (1..ENTRIES)
            .map(|number| Ipv4Addr::from_bits(Ipv4Addr::new(11, 0, 0, 0).to_bits() + number * 7));
        let mut elements = denied.to_string();
        for other in others {
            elements.push_str(&format!(",{other}"));
        }
        let rules = format!(
            "table netdev {TABLE} {{
                set denied {{ type ipv4_addr; elements = {{ {elements} }} }}
                counter dropped {{ }}
                chain early {{
                    type filter hook ingress device \"{INTERFACE}\" priority 0; policy accept;
                    ip saddr @denied counter name dropped drop
                }}
            }}\n"
        );
        let file = lab.dir().join("nft.conf");
        fs::write(&file, rules)?;
        let this = Self { host: lab.server() };
        let path = file.to_str().context("an odd path")?;
        this.call(&["-f", path])?;
        Ok(this)
    }

    /// Packets dropped so far.
    pub fn dropped(&self) -> Result<u64> {
        let text = self.call(&["-j", "list", "counter", "netdev", TABLE, "dropped"])?;
        let json: Value = serde_json::from_str(&text).context("nft printed no JSON")?;
        let objects = json["nftables"].as_array().context("nft listed nothing")?;
        let packets = objects.iter().find_map(|object| object["counter"]["packets"].as_u64());
        packets.context("nft listed no counter")
    }

    fn call(&self, args: &[&str]) -> Result<String> {
        let mut nft = Command::new("nft");
        nft.args(args);
        let output = self.host.output(nft)?;
        ensure!(
            output.status.success(),
            "nft: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Nftables<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.call(&["delete", "table", "netdev", TABLE]) {
            eprintln!("nftables' rules are left in {}: {error:#}", self.host.namespace());
        }
    }
}

/// Turns generic receive offload on for an interface of this thread's network namespace
/// (linux/ethtool.h).
pub fn turn_gro_on(interface: &str) -> Result<()> {
    const SET_GRO: u32 = 0x2c;
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut value = Value { command: SET_GRO, data: 1 };
    // SAFETY: integers, an array of them, and a union of addresses and integers, of which all zeros
    // are values.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    ensure!(interface.len() < request.ifr_name.len(), "{interface} is too long a name");
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request names an interface, and `value`, which outlives the call, is what this
    // command reads.
    let result =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    ensure!(result == 0, "can't turn offload on: {}", std::io::Error::last_os_error());
    Ok(())
}
