//! Frames at random: well-formed ones in every arrangement of headers, and what mutation makes
//! of them. The same seed gives the same frames.

use std::net::IpAddr;

use fastrand::Rng;
use portcullis::enforce::Flow;

use super::extension::Extension;
use super::frame::{Fragment, Frame, Transport, Tunnel, ethertype, protocol};

const EXTENSION_PROTOCOLS: [u8; 6] = [
    protocol::HOP_BY_HOP,
    protocol::ROUTING,
    protocol::DESTINATION,
    protocol::MOBILITY,
    protocol::HOST_IDENTITY,
    protocol::SHIM6,
];

/// Makes frames whose sources and ports are often among those that a policy names.
pub struct Frames {
    rng: Rng,
    pub sources: Vec<IpAddr>,
    pub ports: Vec<u16>,
    /// Beside the usual one of each family.
    pub destinations: Vec<IpAddr>,
    /// A part of the frames belongs to these.
    pub flows: Vec<Flow>,
    /// No frame is longer, in bytes.
    pub max_len: usize,
}

impl Frames {
    pub fn new(seed: u64, sources: Vec<IpAddr>, ports: Vec<u16>, max_len: usize) -> Self {
        let (destinations, flows) = (Vec::new(), Vec::new());
        Self { rng: Rng::with_seed(seed), sources, ports, destinations, flows, max_len }
    }

    /// Half of the frames are mutated.
    pub fn next_frame(&mut self) -> Vec<u8> {
        let mut bytes = self.maybe_in_tunnels().bytes();
        if self.rng.bool() {
            for _ in 0..self.rng.usize(1..=4) {
                self.mutate(&mut bytes);
            }
        }
        bytes.truncate(self.max_len);
        bytes
    }

    /// How much of a frame of `len` bytes to lay in the first buffer.
    pub fn linear(&mut self, len: usize) -> Option<usize> {
        match self.rng.u8(0..4) {
            0 => Some(self.rng.usize(0..=len.min(100))),
            _ => None,
        }
    }

    /// A quarter are tunnels, and some of those carry tunnels.
    fn maybe_in_tunnels(&mut self) -> Frame {
        let mut frame = self.well_formed();
        while self.rng.u8(0..4) == 0 {
            let tunnel = match self.rng.bool() {
                true => Tunnel::Ip,
                false => Tunnel::Gre {
                    checksum: self.rng.bool(),
                    key: self.rng.bool(),
                    sequence: self.rng.bool(),
                },
            };
            frame = self.well_formed().carries(tunnel, &frame);
        }
        frame
    }

    fn well_formed(&mut self) -> Frame {
        let flow =
            if self.rng.u8(0..4) == 0 { self.rng.choice(&self.flows).copied() } else { None };
        let source = flow.map_or_else(|| self.source(), |flow| flow.client.ip());
        let mut frame = Frame::from(source);
        frame.tags = (0..self.tag_count()).map(|_| self.pick(&ethertype::TAGS)).collect();
        frame.transport = self.transport();
        frame.opens = self.rng.bool();
        let same_family = |one: &&IpAddr| one.is_ipv4() == source.is_ipv4();
        let destinations: Vec<_> = self.destinations.iter().filter(same_family).collect();
        if self.rng.bool() {
            frame.destination = self.rng.choice(destinations).copied().unwrap_or(frame.destination);
        }
        if let Some(flow) = flow {
            frame = of_flow(frame, &flow);
        }
        frame.payload = vec![0xa5; self.payload_len()];
        if source.is_ipv4() {
            if self.rng.u8(0..3) == 0 {
                frame = frame.options(self.rng.usize(1..=10));
            }
            frame.dont_fragment = self.rng.bool();
            frame.fragment = (self.rng.u8(0..4) == 0).then(|| self.fragment());
        } else if self.rng.bool() {
            frame.extensions = (0..self.rng.usize(1..=10)).map(|_| self.extension()).collect();
        }
        frame
    }

    fn tag_count(&mut self) -> usize {
        if self.rng.bool() { 0 } else { self.rng.usize(0..=6) }
    }

    fn source(&mut self) -> IpAddr {
        match self.rng.u8(0..8) {
            0 => IpAddr::from(self.rng.u32(..).to_be_bytes()),
            1 => IpAddr::from(self.rng.u128(..).to_be_bytes()),
            _ => {
                let source = self.sources[self.rng.usize(..self.sources.len())];
                if self.rng.u8(0..4) == 0 { self.neighbour(source) } else { source }
            }
        }
    }

    /// An address that differs in one bit.
    fn neighbour(&mut self, address: IpAddr) -> IpAddr {
        match address {
            IpAddr::V4(v4) => IpAddr::from((v4.to_bits() ^ 1 << self.rng.u32(0..32)).to_be_bytes()),
            IpAddr::V6(v6) => {
                IpAddr::from((v6.to_bits() ^ 1 << self.rng.u32(0..128)).to_be_bytes())
            }
        }
    }

    fn transport(&mut self) -> Transport {
        let (source, destination) = (self.port(), self.port());
        match self.rng.u8(0..8) {
            0..3 => Transport::Tcp { source, destination },
            3..6 => Transport::Udp { source, destination },
            6 => Transport::Icmp,
            _ => self.pick(&[Transport::Esp, Transport::None]),
        }
    }

    fn port(&mut self) -> u16 {
        if self.rng.bool() {
            self.rng.u16(..)
        } else {
            self.ports[self.rng.usize(..self.ports.len())]
        }
    }

    fn payload_len(&mut self) -> usize {
        match self.rng.u8(0..16) {
            0 => self.rng.usize(0..9_000),
            1..4 => self.rng.usize(0..1_400),
            _ => self.rng.usize(0..32),
        }
    }

    fn fragment(&mut self) -> Fragment {
        let offset = if self.rng.bool() { 0 } else { self.rng.u16(0..0x2000) };
        Fragment { offset, more: self.rng.bool() }
    }

    fn extension(&mut self) -> Extension {
        match self.rng.u8(0..16) {
            0..2 => Extension::Fragment(self.fragment()),
            2..4 => Extension::Authentication { icv_words: self.rng.u8(0..=20) },
            4..6 => {
                let units = self.rng.u8(..);
                Extension::Padded { protocol: self.pick(&EXTENSION_PROTOCOLS), units }
            }
            _ => self.pick(&Extension::KINDS).1,
        }
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        // Most of what is decided on lies in front.
        let front = bytes.len().min(if self.rng.bool() { 80 } else { usize::MAX });
        let at = self.rng.usize(..front.max(1));
        match self.rng.u8(0..7) {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << self.rng.u8(0..8),
            2 => bytes[at] = self.rng.u8(..),
            3 => bytes[at] = self.pick(&EXTENSION_PROTOCOLS),
            4 => bytes.insert(at, self.rng.u8(..)),
            5 => drop(bytes.remove(at)),
            _ => {
                let end = (at + self.rng.usize(1..=16)).min(bytes.len());
                self.rng.fill(&mut bytes[at..end]);
            }
        }
        // The kernel runs no program on less than an Ethernet header.
        if bytes.len() < 14 {
            bytes.resize(14, 0);
        }
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.usize(..from.len())]
    }
}

fn of_flow(frame: Frame, flow: &Flow) -> Frame {
    let (source, destination) = (flow.client.port(), flow.server.port());
    frame.to(flow.server.ip()).transport(match flow.is_udp {
        true => Transport::Udp { source, destination },
        false => Transport::Tcp { source, destination },
    })
}
