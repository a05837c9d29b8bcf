//! Well-formed Ethernet frames, described by what is in them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::extension::Extension;
use crate::scenario::Family;

pub const ETHERNET_LEN: usize = 14;

pub mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const IPV6: u16 = 0x86dd;
    pub const DOT1Q: u16 = 0x8100;
    pub const DOT1AD: u16 = 0x88a8;
    pub const QINQ: u16 = 0x9100;
    /// Everything that begins a VLAN tag.
    pub const TAGS: [u16; 3] = [DOT1Q, DOT1AD, QINQ];
}

/// Protocol numbers (IANA "Protocol Numbers").
pub mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const IPV4: u8 = 4;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const IPV6: u8 = 41;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const GRE: u8 = 47;
    pub const ESP: u8 = 50;
    pub const AUTHENTICATION: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const NO_NEXT_HEADER: u8 = 59;
    pub const DESTINATION: u8 = 60;
    pub const MOBILITY: u8 = 135;
    pub const HOST_IDENTITY: u8 = 139;
    pub const SHIM6: u8 = 140;
}

/// A place in a fragmented datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// In 8-byte units, 13 bits.
    pub offset: u16,
    pub more: bool,
}

impl Fragment {
    pub const FIRST: Self = Self { offset: 0, more: true };
    pub const MIDDLE: Self = Self { offset: 185, more: true };
    pub const LAST: Self = Self { offset: 370, more: false };

    /// RFC 8200, section 4.5.
    pub fn ipv6_header(self, next: u8) -> [u8; 8] {
        let [high, low] = (self.offset << 3 | u16::from(self.more)).to_be_bytes();
        [next, 0, high, low, 0xca, 0xfe, 0, 1]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp {
        source: u16,
        destination: u16,
    },
    /// A segment of TCP at a certain place.
    Segment {
        source: u16,
        destination: u16,
        sequence: u32,
        /// FIN, SYN, RST, PSH, ACK, URG from the lowest bit on.
        flags: u8,
    },
    Udp {
        source: u16,
        destination: u16,
    },
    /// Echo request, of ICMP or ICMPv6 as the address family asks.
    Icmp,
    Esp,
    /// The payload is an IP packet; see [`Frame::carries`].
    Tunnel(Tunnel, Family),
    None,
}

/// How an IP packet travels in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// Right behind the outer header (RFC 2003, RFC 2473, RFC 4213).
    Ip,
    /// RFC 2784, with the options of RFC 2890.
    Gre { checksum: bool, key: bool, sequence: bool },
}

impl Tunnel {
    /// The GRE header in front of a packet of `family`; nothing for [`Self::Ip`].
    fn header(self, family: Family) -> Vec<u8> {
        let Self::Gre { checksum, key, sequence } = self else { return Vec::new() };
        let flags = u16::from(checksum) << 15 | u16::from(key) << 13 | u16::from(sequence) << 12;
        let protocol = match family {
            Family::V4 => ethertype::IPV4,
            Family::V6 => ethertype::IPV6,
        };
        let options = usize::from(checksum) + usize::from(key) + usize::from(sequence);
        let mut header = [flags.to_be_bytes(), protocol.to_be_bytes()].concat();
        header.extend(std::iter::repeat_n([0xaa, 0xbb, 0xcc, 0xdd], options).flatten());
        header
    }
}

impl Transport {
    fn protocol(self, is_v6: bool) -> u8 {
        match self {
            Self::Tunnel(Tunnel::Gre { .. }, _) => protocol::GRE,
            Self::Tunnel(Tunnel::Ip, Family::V4) => protocol::IPV4,
            Self::Tunnel(Tunnel::Ip, Family::V6) => protocol::IPV6,
            Self::Tcp { .. } | Self::Segment { .. } => protocol::TCP,
            Self::Udp { .. } => protocol::UDP,
            Self::Icmp if is_v6 => protocol::ICMPV6,
            Self::Icmp => protocol::ICMP,
            Self::Esp => protocol::ESP,
            Self::None => protocol::NO_NEXT_HEADER,
        }
    }
}

/// A frame with one IP packet in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// EtherTypes of the VLAN tags, outermost first.
    pub tags: Vec<u16>,
    pub source: IpAddr,
    /// Of the source's family.
    pub destination: IpAddr,
    /// IPv4 only: at most 40 bytes, a multiple of 4.
    pub options: Vec<u8>,
    /// IPv4 only.
    pub dont_fragment: bool,
    /// IPv4 only; IPv6 has an extension header for it.
    pub fragment: Option<Fragment>,
    /// IPv6 only.
    pub extensions: Vec<Extension>,
    pub transport: Transport,
    /// TCP only: asks for a connection.
    pub opens: bool,
    pub payload: Vec<u8>,
}

impl Frame {
    /// TCP to port 443 with a short payload and nothing unusual.
    pub fn from(source: IpAddr) -> Self {
        Self {
            tags: Vec::new(),
            source,
            destination: match source {
                IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
                IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1).into(),
            },
            options: Vec::new(),
            dont_fragment: false,
            fragment: None,
            extensions: Vec::new(),
            transport: Transport::Tcp { source: 40_000, destination: 443 },
            opens: false,
            payload: b"portcullis".to_vec(),
        }
    }

    pub fn tags(mut self, tags: &[u16]) -> Self {
        self.tags = tags.to_vec();
        self
    }

    pub fn transport(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    pub fn to(mut self, destination: IpAddr) -> Self {
        assert_eq!(destination.is_ipv4(), self.source.is_ipv4(), "both ends of one family");
        self.destination = destination;
        self
    }

    /// A TCP segment that asks for a connection.
    pub fn opening(mut self) -> Self {
        self.opens = true;
        self
    }

    pub fn tcp(self, destination: u16) -> Self {
        self.transport(Transport::Tcp { source: 40_000, destination })
    }

    pub fn udp(self, destination: u16) -> Self {
        self.transport(Transport::Udp { source: 40_000, destination })
    }

    /// Record route, which leaves the options `words` 4-byte words long.
    pub fn options(mut self, words: usize) -> Self {
        let len = words * 4;
        assert!((4..=40).contains(&len), "IPv4 has room for 1 to 10 words of options");
        // Type 7, length, pointer to the first free slot, slots, end of options (RFC 791).
        self.options = vec![7, (len - 1) as u8, 4];
        self.options.resize(len, 0);
        self
    }

    pub fn dont_fragment(mut self) -> Self {
        self.dont_fragment = true;
        self
    }

    /// Makes it a fragment, in the way of its address family.
    pub fn fragment(mut self, fragment: Fragment) -> Self {
        match self.source {
            IpAddr::V4(_) => self.fragment = Some(fragment),
            IpAddr::V6(_) => self.extensions.push(Extension::Fragment(fragment)),
        }
        self
    }

    pub fn extensions(mut self, extensions: &[Extension]) -> Self {
        self.extensions.extend(extensions);
        self
    }

    pub fn payload(mut self, payload: Vec<u8>) -> Self {
        self.payload = payload;
        self
    }

    /// Puts the packet of `inner` in the place of transport and payload.
    pub fn carries(mut self, tunnel: Tunnel, inner: &Frame) -> Self {
        let family = if inner.source.is_ipv4() { Family::V4 } else { Family::V6 };
        self.transport = Transport::Tunnel(tunnel, family);
        self.payload = inner.bytes().split_off(inner.network_at());
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for (number, tag) in (1_u16..).zip(&self.tags) {
            bytes.extend(tag.to_be_bytes());
            bytes.extend(number.to_be_bytes());
        }
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                bytes.extend(ethertype::IPV4.to_be_bytes());
                bytes.extend(self.ipv4(source, destination));
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                bytes.extend(ethertype::IPV6.to_be_bytes());
                bytes.extend(self.ipv6(source, destination));
            }
            (source, destination) => panic!("{source} and {destination} are of two families"),
        }
        bytes
    }

    /// Where it goes.
    pub fn destination(&self) -> IpAddr {
        match self.source {
            IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
            IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1).into(),
        }
    }

    /// Where the IP header begins.
    pub fn network_at(&self) -> usize {
        ETHERNET_LEN + 4 * self.tags.len()
    }

    /// How many bytes of the frame it takes to know its source.
    pub fn source_end(&self) -> usize {
        self.network_at() + if self.source.is_ipv4() { 16 } else { 24 }
    }

    /// RFC 791, section 3.1.
    fn ipv4(&self, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
        let is_later = self.fragment.is_some_and(|fragment| fragment.offset > 0);
        let pseudo = [source.octets(), destination.octets()].concat();
        let body = self.body(is_later, self.transport.protocol(false), &pseudo);

        let header_len = 20 + self.options.len();
        let Fragment { offset, more } =
            self.fragment.unwrap_or(Fragment { offset: 0, more: false });
        let flags = u16::from(self.dont_fragment) << 14 | u16::from(more) << 13 | offset;
        let mut header = vec![0x40 | (header_len / 4) as u8, 0];
        header.extend(((header_len + body.len()) as u16).to_be_bytes());
        header.extend(0x1234_u16.to_be_bytes());
        header.extend(flags.to_be_bytes());
        header.extend([64, self.transport.protocol(false), 0, 0]);
        header.extend(source.octets());
        header.extend(destination.octets());
        header.extend(&self.options);
        let sum = checksum(&[&header]);
        header[10..12].copy_from_slice(&sum);
        [header, body].concat()
    }

    /// RFC 8200, section 3.
    fn ipv6(&self, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        let mut next = self.transport.protocol(true);
        let is_later = self.extensions.iter().any(|extension| extension.is_later_fragment());
        let pseudo = [source.octets(), destination.octets()].concat();
        let mut body = self.body(is_later, next, &pseudo);
        for extension in self.extensions.iter().rev() {
            body = [extension.bytes(next), body].concat();
            next = extension.protocol();
        }
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend([next, 64]);
        bytes.extend(source.octets());
        bytes.extend(destination.octets());
        bytes.extend(body);
        bytes
    }

    /// The transport header and the payload; a later fragment has only payload.
    fn body(&self, is_later_fragment: bool, protocol: u8, pseudo: &[u8]) -> Vec<u8> {
        if is_later_fragment {
            return self.payload.clone();
        }
        let (mut header, checksum_at) = match self.transport {
            Transport::Tcp { source, destination } => {
                (tcp(source, destination, 1_000, if self.opens { 0x02 } else { 0x18 }), Some(16))
            }
            Transport::Segment { source, destination, sequence, flags } => {
                (tcp(source, destination, sequence, flags), Some(16))
            }
            Transport::Udp { source, destination } => {
                (udp(source, destination, self.payload.len()), Some(6))
            }
            Transport::Icmp => {
                let kind = if protocol == protocol::ICMPV6 { 128 } else { 8 };
                (vec![kind, 0, 0, 0, 0x12, 0x34, 0, 1], Some(2))
            }
            // Security parameters index and sequence number (RFC 4303, section 2).
            Transport::Esp => (vec![0x0a, 0x0b, 0x0c, 0x0d, 0, 0, 0, 1], None),
            Transport::Tunnel(tunnel, family) => (tunnel.header(family), None),
            Transport::None => (Vec::new(), None),
        };
        if let Some(at) = checksum_at {
            let len = ((header.len() + self.payload.len()) as u32).to_be_bytes();
            let tail = [0, 0, 0, protocol];
            let sum = match protocol {
                protocol::ICMP => checksum(&[&header, &self.payload]),
                _ => checksum(&[pseudo, &len, &tail, &header, &self.payload]),
            };
            header[at..at + 2].copy_from_slice(&sum);
        }
        [header, self.payload.clone()].concat()
    }
}

/// RFC 9293, section 3.1.
fn tcp(source: u16, destination: u16, sequence: u32, flags: u8) -> Vec<u8> {
    let mut header = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    header.extend(sequence.to_be_bytes());
    header.extend(2_000_u32.to_be_bytes());
    header.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    header
}

/// RFC 768.
fn udp(source: u16, destination: u16, payload_len: usize) -> Vec<u8> {
    let len = (8 + payload_len) as u16;
    [source.to_be_bytes(), destination.to_be_bytes(), len.to_be_bytes(), [0, 0]].concat()
}

/// RFC 1071, over pieces of which only the last may have an odd length.
fn checksum(pieces: &[&[u8]]) -> [u8; 2] {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| low.into());
    let mut sum: u32 = pieces.iter().flat_map(|piece| piece.chunks(2)).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!sum as u16).to_be_bytes()
}

/// An ARP request, behind VLAN tags.
pub fn arp(tags: &[u16]) -> Vec<u8> {
    let mut bytes = vec![0xff; 6];
    bytes.extend([2, 0, 0, 0, 0, 2]);
    for tag in tags {
        bytes.extend(tag.to_be_bytes());
        bytes.extend([0, 7]);
    }
    bytes.extend(ethertype::ARP.to_be_bytes());
    // Ethernet and IPv4, their address lengths, request (RFC 826).
    bytes.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    bytes.extend([2, 0, 0, 0, 0, 2, 203, 0, 113, 9]);
    bytes.extend([0, 0, 0, 0, 0, 0, 192, 0, 2, 1]);
    bytes
}
