//! A laboratory's server under a flood that a program on this machine sends.
//!
//! The packets go straight from a program into the driver of the server's interface, by
//! BPF_PROG_TEST_RUN with live frames, and the processor that sends one also receives it. So nearly
//! all the time goes into receiving.

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::driver::sender;
use super::policy::DENIED;
use crate::assembled::Program;
use crate::netns::{INTERFACE, Lab, in_namespace};
use crate::packet::frame::Frame;

/// No service has it.
const PORT: u16 = 9_999;

/// A flood that can be let go.
pub struct Flood {
    /// The network namespace to send from.
    namespace: String,
    program: Program,
    frame: Vec<u8>,
}

impl Flood {
    /// UDP from [`DENIED`] to the server.
    pub fn prepare(lab: &Lab) -> Result<Self> {
        let namespace = lab.switch();
        let port = link(&namespace, lab.switch_port())?;
        let index = port["ifindex"].as_u64().context("an interface without a number")?;
        let program = sender(u32::try_from(index)?)?;
        let server = link(lab.server().namespace(), INTERFACE)?;
        let mac = server["address"].as_str().context("an interface without an address")?;
        let frame = frame(mac, lab.server().v4())?;
        // Without it, the driver takes packets only from the network stack while no XDP program is there.
        lab.server().run(|| super::nftables::turn_gro_on(INTERFACE))?;
        Ok(Self { namespace, program, frame })
    }

    pub fn frame(&self) -> &[u8] {
        &self.frame
    }

    /// Runs `work` where it can send; see [`Self::send`].
    pub fn run_here<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        in_namespace(&self.namespace, work)?
    }

    /// Sends `count` packets, from within [`Self::run_here`].
    pub fn send(&self, count: u32) -> Result<()> {
        self.program.send(&self.frame, count).context("can't send")
    }
}

/// Packets that the server's interface has received.
pub fn received(lab: &Lab) -> Result<u64> {
    let link = link(lab.server().namespace(), INTERFACE)?;
    link["stats64"]["rx"]["packets"].as_u64().context("an interface that does not count")
}

fn link(namespace: &str, name: &str) -> Result<Value> {
    let mut ip = Command::new("ip");
    ip.args(["-netns", namespace, "-json", "-statistics", "link", "show", "dev", name]);
    let output = ip.output().context("cannot run ip")?;
    ensure!(output.status.success(), "ip: {}", String::from_utf8_lossy(&output.stderr));
    let links: Value = serde_json::from_slice(&output.stdout).context("ip printed no JSON")?;
    Ok(links[0].clone())
}

/// A datagram that the server's stack would take.
fn frame(mac: &str, server: Ipv4Addr) -> Result<Vec<u8>> {
    const IP: usize = 14;
    const UDP: usize = IP + 20;
    let mut frame = Frame::from(DENIED).udp(PORT).bytes();
    for (byte, text) in frame.iter_mut().zip(mac.split(':')) {
        *byte = u8::from_str_radix(text, 16).context("an odd hardware address")?;
    }
    frame[IP + 16..UDP].copy_from_slice(&server.octets());
    // RFC 791: the sum of the header's words and its complement is all ones.
    frame[IP + 10..IP + 12].fill(0);
    let words =
        frame[IP..UDP].chunks_exact(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[IP + 10..IP + 12].copy_from_slice(&(!sum as u16).to_be_bytes());
    // RFC 768: none was computed.
    frame[UDP + 6..UDP + 8].fill(0);
    Ok(frame)
}
