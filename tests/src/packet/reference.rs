//! The policy once more, in plain Rust and from the RFCs: what the programs have to say of a
//! frame.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use portcullis_common::policy::Reason;
use portcullis_common::settings::{MAX_EXTENSION_HEADERS, MAX_VLAN_TAGS};

use super::frame::{ethertype, protocol};

/// What a block does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Drop,
    CountOnly,
    Expired,
}

#[derive(Clone, Debug, Default)]
pub struct Policy {
    pub denied: Vec<(IpNet, Rule)>,
    pub allowed: Vec<IpNet>,
    pub failsafe_tcp: Vec<u16>,
    pub failsafe_udp: Vec<u16>,
}

impl Policy {
    /// The order of policy: allow list and failsafe ports, then the deny list. The reason is
    /// that of the strongest block on the packet, and an expired block is the weakest.
    pub fn judge(&self, frame: &[u8]) -> Reason {
        let packet = match Packet::of(frame) {
            Ok(packet) => packet,
            Err(reason) => return reason,
        };
        let matching = self.denied.iter().filter(|(net, _)| packet.is_from(net));
        let rules: Vec<Rule> = matching.map(|(_, rule)| *rule).collect();
        if rules.is_empty() {
            Reason::PassNoMatch
        } else if rules.iter().all(|rule| *rule == Rule::Expired) {
            Reason::PassExpired
        } else if self.allowed.iter().any(|net| packet.is_from(net)) {
            Reason::PassAllowed
        } else if self.is_failsafe(packet.port) {
            Reason::PassFailsafe
        } else if rules.contains(&Rule::Drop) {
            Reason::DropDenied
        } else {
            Reason::PassCountOnly
        }
    }

    fn is_failsafe(&self, port: Option<Port>) -> bool {
        match port {
            Some(Port::Tcp(port)) => self.failsafe_tcp.contains(&port),
            Some(Port::Udp(port)) => self.failsafe_udp.contains(&port),
            None => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    Tcp(u16),
    Udp(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packet {
    source: IpAddr,
    /// Where it goes, when the frame shows that.
    port: Option<Port>,
}

impl Packet {
    fn of(frame: &[u8]) -> Result<Self, Reason> {
        let mut rest = Reader(frame);
        rest.skip(12).ok_or(Reason::PassTruncated)?;
        let mut tags = 0;
        loop {
            match rest.u16().ok_or(Reason::PassTruncated)? {
                ethertype::IPV4 => return Self::v4(rest).ok_or(Reason::PassTruncated),
                ethertype::IPV6 => return Self::v6(rest).ok_or(Reason::PassTruncated),
                ethertype::DOT1Q | ethertype::DOT1AD | ethertype::QINQ => {
                    tags += 1;
                    if tags > MAX_VLAN_TAGS {
                        return Err(Reason::PassTooManyTags);
                    }
                    // Priority, drop eligibility and VLAN identifier (IEEE 802.1Q, 9.6).
                    rest.skip(2).ok_or(Reason::PassTruncated)?;
                }
                _ => return Err(Reason::PassNotIp),
            }
        }
    }

    /// RFC 791, section 3.1; `None` when the source address is not all there.
    fn v4(packet: Reader) -> Option<Self> {
        let mut rest = packet;
        let header_words = usize::from(rest.u8()? & 0x0f);
        rest.skip(5)?;
        let fragment_offset = rest.u16()? & 0x1fff;
        rest.skip(1)?;
        let next = rest.u8()?;
        rest.skip(2)?;
        let source = IpAddr::V4(Ipv4Addr::from(rest.array::<4>()?));

        let mut transport = packet;
        let is_whole_header = header_words >= 5 && transport.skip(header_words * 4).is_some();
        let port =
            if is_whole_header && fragment_offset == 0 { Port::of(next, transport) } else { None };
        Some(Self { source, port })
    }

    /// RFC 8200, section 3; `None` when the source address is not all there.
    fn v6(mut rest: Reader) -> Option<Self> {
        rest.skip(6)?;
        let next = rest.u8()?;
        rest.skip(1)?;
        let source = IpAddr::V6(Ipv6Addr::from(rest.array::<16>()?));
        let port = rest.skip(16).and_then(|()| Port::behind_extensions(next, rest));
        Some(Self { source, port })
    }

    /// Networks of IPv4 hold IPv4-mapped addresses as well (RFC 4291, section 2.5.5.2), as
    /// both are one key. An IPv6 network holds no IPv4 address.
    fn is_from(&self, net: &IpNet) -> bool {
        match (net, self.source) {
            (IpNet::V4(net), source) => match source.to_canonical() {
                IpAddr::V4(v4) => net.contains(&v4),
                IpAddr::V6(_) => false,
            },
            (IpNet::V6(net), IpAddr::V6(source)) => net.contains(&source),
            (IpNet::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl Port {
    /// RFC 9293, section 3.1, and RFC 768: both begin with source and destination port.
    fn of(next: u8, mut rest: Reader) -> Option<Self> {
        rest.skip(2)?;
        let port = rest.u16()?;
        match next {
            protocol::TCP => Some(Self::Tcp(port)),
            protocol::UDP => Some(Self::Udp(port)),
            _ => None,
        }
    }

    fn behind_extensions(mut next: u8, mut rest: Reader) -> Option<Self> {
        for _ in 0..MAX_EXTENSION_HEADERS {
            let mut header = rest;
            let len = match next {
                protocol::FRAGMENT => {
                    next = header.u8()?;
                    header.skip(1)?;
                    if header.u16()? >> 3 != 0 {
                        return None;
                    }
                    8
                }
                // RFC 4302, section 2.2.
                protocol::AUTHENTICATION => {
                    next = header.u8()?;
                    4 * (usize::from(header.u8()?) + 2)
                }
                // RFC 8200, section 4; RFC 6275, 6.1.1; RFC 7401, 5.1; RFC 5533, 5.1.
                protocol::HOP_BY_HOP
                | protocol::ROUTING
                | protocol::DESTINATION
                | protocol::MOBILITY
                | protocol::HOST_IDENTITY
                | protocol::SHIM6 => {
                    next = header.u8()?;
                    8 * (usize::from(header.u8()?) + 1)
                }
                _ => break,
            };
            rest.skip(len)?;
        }
        Self::of(next, rest)
    }
}

/// What is left of a frame.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn skip(&mut self, len: usize) -> Option<()> {
        self.0 = self.0.get(len..)?;
        Some(())
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }
}
