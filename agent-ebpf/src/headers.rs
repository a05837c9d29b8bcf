//! The header walk: link → VLAN tags → IPv4 or IPv6 with options, extension headers and
//! fragments → transport or tunnel. All of it comes before any decision.

use core::mem;

use portcullis_common::{
    net::{Addr, FlowKey, flow_hash},
    policy::Reason,
    settings::{MAX_EXTENSION_HEADERS, MAX_VLAN_TAGS},
};

use crate::packet::Bytes;

pub const ETHERNET_LEN: usize = 14;
pub const ETHERTYPE_AT: usize = 12;
pub const VLAN_LEN: usize = 4;

pub const ETH_P_IP: u16 = 0x0800;
pub const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;
/// What 802.1ad used before it had a number of its own.
const ETH_P_QINQ1: u16 = 0x9100;

pub const IPPROTO_TCP: u8 = 6;
pub const IPPROTO_UDP: u8 = 17;
pub const IPPROTO_ICMP: u8 = 1;
pub const IPPROTO_ICMPV6: u8 = 58;
/// IPv4 in IP (RFC 2003, RFC 2473).
const IPPROTO_IPIP: u8 = 4;
/// IPv6 in IP (RFC 4213, RFC 2473).
const IPPROTO_IPV6: u8 = 41;
const IPPROTO_GRE: u8 = 47;

/// What the first two bytes of a GRE header say (RFC 2784, section 2.1; RFC 2890, section 2).
mod gre {
    pub const CHECKSUM: u16 = 0x8000;
    pub const KEY: u16 = 0x2000;
    pub const SEQUENCE: u16 = 0x1000;
    /// Routing, which RFC 2784 took out of RFC 1701, and the version, which is 0.
    pub const OTHER: u16 = 0x4007;
}

/// RFC 768.
const UDP_LEN: usize = 8;

/// Extension headers (RFC 8200 section 4, RFC 6275, RFC 7401, RFC 5533).
mod extension {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const DESTINATION: u8 = 60;
    pub const MOBILITY: u8 = 135;
    pub const HOST_IDENTITY: u8 = 139;
    pub const SHIM6: u8 = 140;
}

/// An address by words, each with its bytes as the packet has them. An array of bytes the
/// compiler would build byte by byte, on the stack, with calls of `memset`.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Address([u32; 4]);

/// Bytes 8 to 11 of an IPv4-mapped address (RFC 4291, section 2.5.5.2).
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

impl Address {
    #[inline(always)]
    pub fn from_v4(address: [u8; 4]) -> Self {
        Self([0, 0, MAPPED, u32::from_ne_bytes(address)])
    }

    /// Of words that have their bytes as a packet has them.
    #[inline(always)]
    pub fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    #[inline(always)]
    fn from_v6(address: [[u8; 4]; 4]) -> Self {
        Self(address.map(u32::from_ne_bytes))
    }

    /// Whether it is IPv4 in mapped form, as both are one key.
    #[inline(always)]
    pub fn is_v4(self) -> bool {
        let [first, second, third, _] = self.0;
        (first | second | (third ^ MAPPED)) == 0
    }

    /// The IPv4 address, as a number.
    #[inline(always)]
    pub fn v4(self) -> u32 {
        u32::from_be(self.0[3])
    }

    /// The first 32 bits, as a number.
    #[inline(always)]
    pub fn first_word(self) -> u32 {
        u32::from_be(self.0[0])
    }

    /// First and last 64 bits, as numbers.
    #[inline(always)]
    pub fn halves(self) -> [u64; 2] {
        let [a, b, c, d] = self.0.map(|word| u64::from(u32::from_be(word)));
        [a << 32 | b, c << 32 | d]
    }

    /// [`Addr::raw_halves`].
    #[inline(always)]
    pub fn raw_halves(self) -> [u64; 2] {
        let [a, b, c, d] = self.0.map(u64::from);
        if cfg!(target_endian = "little") {
            [a | b << 32, c | d << 32]
        } else {
            [a << 32 | b, c << 32 | d]
        }
    }

    #[inline(always)]
    pub fn from_halves(halves: [u64; 2]) -> Self {
        let [first, second] = halves;
        Self([
            ((first >> 32) as u32).to_be(),
            (first as u32).to_be(),
            ((second >> 32) as u32).to_be(),
            (second as u32).to_be(),
        ])
    }

    #[inline(always)]
    pub fn addr(self) -> Addr {
        // SAFETY: both are 16 bytes, and any bytes are an `Addr`.
        unsafe { mem::transmute::<[u32; 4], Addr>(self.0) }
    }
}

/// What the policy needs of a packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Packet {
    pub source: Address,
    pub destination: Address,
    pub port: Port,
    /// In host byte order; means nothing where `port` is none.
    pub source_port: u32,
    pub tcp: Tcp,
    /// Offset in the frame of what a UDP datagram carries; 0 for everything else.
    pub udp_payload_at: u32,
    pub inner: Inner,
}

/// Where the headers of a frame begin.
#[derive(Clone, Copy)]
pub enum Start {
    Ethernet,
    /// With an IP header, if its EtherType is one.
    Network(u16),
}

/// An IP packet in a frame, or in a tunnel: its offset in the frame, and whether it is IPv6. In one register,
/// as [`Port`] is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Inner(u32);

impl Inner {
    pub const NONE: Self = Self(0);
    const V6: u32 = 1 << 16;

    #[inline(always)]
    fn v4(offset: usize) -> Self {
        Self(offset as u32)
    }

    #[inline(always)]
    fn v6(offset: usize) -> Self {
        Self(offset as u32 | Self::V6)
    }

    #[inline(always)]
    fn is_v4(self) -> bool {
        self.0 & Self::V6 == 0
    }

    #[inline(always)]
    fn offset(self) -> usize {
        (self.0 & (Self::V6 - 1)) as usize
    }
}

impl Packet {
    /// The flow it belongs to; means nothing where `port` is none.
    #[inline(always)]
    pub fn flow(&self) -> FlowKey {
        FlowKey {
            local: self.destination.addr(),
            remote: self.source.addr(),
            local_port: self.port.number(),
            remote_port: self.source_port as u16,
            protocol: u32::from(self.port.protocol()),
        }
    }

    /// [`FlowKey::hash`] of that.
    #[inline(always)]
    pub fn flow_hash(&self, seed: [u64; 2]) -> u64 {
        let ports = u64::from(self.source_port) << 48
            | u64::from(self.port.number()) << 32
            | u64::from(self.port.protocol());
        flow_hash(self.source.raw_halves(), self.destination.raw_halves(), ports, seed)
    }

    /// From here on no more can be known.
    #[inline(always)]
    fn end_with(&mut self, port: Port) {
        self.port = port;
        self.source_port = 0;
        self.tcp = Tcp::NONE;
        self.udp_payload_at = 0;
        self.inner = Inner::NONE;
    }

    /// The same offset, of which the verifier has forgotten what it was: it would follow each way that
    /// led to it apart.
    #[inline(always)]
    fn forgotten(&mut self, offset: usize) -> usize {
        let place = &raw mut self.udp_payload_at;
        // SAFETY: a field that is written again once the packet is known.
        unsafe {
            place.write_volatile(offset as u32);
            place.read_volatile() as usize
        }
    }

    /// It carries another packet.
    #[inline(always)]
    fn end_with_inner(&mut self, inner: Inner) {
        self.end_with(Port::NONE);
        self.inner = inner;
    }
}

/// Of a TCP segment (RFC 9293, section 3.1); all zero for everything else.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tcp {
    /// FIN, SYN, RST, PSH, ACK, URG from the lowest bit on.
    pub flags: u32,
    pub sequence: u32,
    /// Offset in the frame.
    pub payload_at: u32,
    /// By the IP header's length, which a frame's padding does not count in.
    pub payload_len: u32,
}

impl Tcp {
    pub const SYN: u32 = 0x02;
    pub const ACK: u32 = 0x10;

    const NONE: Self = Self { flags: 0, sequence: 0, payload_at: 0, payload_len: 0 };

    /// Whether the segment asks for a connection.
    #[inline(always)]
    pub fn opens(self) -> bool {
        self.flags & (Self::SYN | Self::ACK) == Self::SYN
    }
}

/// A transport protocol and a port in host byte order, in one register: the verifier follows
/// that where it loses an `Option` of two fields.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Port(u32);

impl Port {
    /// That of a later fragment, and of a packet whose transport is another or none.
    pub const NONE: Self = Self(0);
    /// The packet may have a port, but this reader could not read as far.
    pub const OUT_OF_REACH: Self = Self(1);

    #[inline(always)]
    pub fn new(protocol: u8, number: u16) -> Self {
        Self(u32::from(protocol) << 16 | u32::from(number))
    }

    /// Whether there is one.
    #[inline(always)]
    pub fn is_known(self) -> bool {
        self.0 > Self::OUT_OF_REACH.0
    }

    #[inline(always)]
    pub fn protocol(self) -> u8 {
        (self.0 >> 16) as u8
    }

    #[inline(always)]
    pub fn number(self) -> u16 {
        self.0 as u16
    }
}

/// Writes the packet of a frame, or returns the reason to pass the frame that has none.
#[inline(always)]
pub fn walk(bytes: &impl Bytes, start: Start, packet: &mut Packet) -> Result<(), Reason> {
    walk_inner(bytes, find(bytes, start)?, packet)
}

/// The IP packet of a frame, or the reason to pass the frame that has none.
#[inline(always)]
pub fn find(bytes: &impl Bytes, start: Start) -> Result<Inner, Reason> {
    match start {
        Start::Ethernet => ethernet::<MAX_VLAN_TAGS>(bytes),
        Start::Network(ETH_P_IP) => Ok(Inner::v4(0)),
        Start::Network(ETH_P_IPV6) => Ok(Inner::v6(0)),
        Start::Network(_) => Err(Reason::PassNotIp),
    }
}

/// Writes the packet there; [`Reason::PassTruncated`] when not all of its source is.
#[inline(always)]
pub fn walk_inner(bytes: &impl Bytes, inner: Inner, packet: &mut Packet) -> Result<(), Reason> {
    let offset = inner.offset();
    if inner.is_v4() { ipv4(bytes, offset, packet) } else { ipv6(bytes, offset, packet) }
}

/// IEEE 802.1ad.
const USUAL_TAGS: usize = 2;

/// Writes the packet of a frame, and returns the offset of the IP packet's end, if what stands before the
/// transport header is of the usual kinds and all of it can be read: what almost all frames are, at
/// a fraction of what [`walk`] takes. `None` says nothing about the frame.
#[inline(always)]
pub fn usual(bytes: &impl Bytes, packet: &mut Packet) -> Option<usize> {
    let found = ethernet::<USUAL_TAGS>(bytes).ok()?;
    let offset = found.offset();
    let (end, protocol, transport_at) = if found.is_v4() {
        let header: [u8; 20] = bytes.read(offset)?;
        let [_, _, _, _, _, _, _, _, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = header;
        let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
        if header[0] & 0x0f != 5 {
            return None;
        }
        let end = offset + usize::from(u16::from_be_bytes([header[2], header[3]]));
        packet.source = Address::from_v4([s0, s1, s2, s3]);
        packet.destination = Address::from_v4([d0, d1, d2, d3]);
        if fragment_offset != 0 {
            packet.end_with(Port::NONE);
            return Some(end);
        }
        (end, protocol, offset + 20)
    } else {
        let [high, low, protocol]: [u8; 3] = bytes.read(offset + 4)?;
        packet.source = Address::from_v6(bytes.read(offset + 8)?);
        packet.destination = Address::from_v6(bytes.read(offset + 24)?);
        let end = offset + 40 + usize::from(u16::from_be_bytes([high, low]));
        (end, protocol, offset + 40)
    };
    if !matches!(protocol, IPPROTO_TCP | IPPROTO_UDP | IPPROTO_ICMP | IPPROTO_ICMPV6) {
        return None;
    }
    transport(bytes, protocol, transport_at, end, packet);
    (packet.port != Port::OUT_OF_REACH).then_some(end)
}

/// The IP packet behind at most `TAGS` tags.
#[inline(always)]
fn ethernet<const TAGS: usize>(bytes: &impl Bytes) -> Result<Inner, Reason> {
    let mut ethertype = read_u16(bytes, ETHERTYPE_AT).ok_or(Reason::PassTruncated)?;
    let mut offset = ETHERNET_LEN;
    for _ in 0..TAGS {
        if !is_vlan(ethertype) {
            break;
        }
        // A tag is its control information, then the next EtherType.
        ethertype = read_u16(bytes, offset + 2).ok_or(Reason::PassTruncated)?;
        offset += VLAN_LEN;
    }
    match ethertype {
        ETH_P_IP => Ok(Inner::v4(offset)),
        ETH_P_IPV6 => Ok(Inner::v6(offset)),
        other if is_vlan(other) => Err(Reason::PassTooManyTags),
        _ => Err(Reason::PassNotIp),
    }
}

#[inline(always)]
pub fn is_vlan(ethertype: u16) -> bool {
    matches!(ethertype, ETH_P_8021Q | ETH_P_8021AD | ETH_P_QINQ1)
}

/// RFC 791, section 3.1.
#[inline(always)]
fn ipv4(bytes: &impl Bytes, offset: usize, packet: &mut Packet) -> Result<(), Reason> {
    // The header up to and with the source address, so that no shorter part of it passes.
    let header: [u8; 16] = bytes.read(offset).ok_or(Reason::PassTruncated)?;
    packet.source = Address::from_v4([header[12], header[13], header[14], header[15]]);
    let destination = bytes.read::<[u8; 4]>(offset + 16).map(Address::from_v4);
    packet.destination = or_truncated(bytes, destination)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let end = offset + usize::from(u16::from_be_bytes([header[2], header[3]]));
    let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    if fragment_offset == 0 && header_len >= 20 {
        transport(bytes, header[9], offset + header_len, end, packet);
    } else {
        packet.end_with(Port::NONE);
    }
    Ok(())
}

/// RFC 8200, section 3.
#[inline(always)]
fn ipv6(bytes: &impl Bytes, offset: usize, packet: &mut Packet) -> Result<(), Reason> {
    let [high, low, protocol]: [u8; 3] = bytes.read(offset + 4).ok_or(Reason::PassTruncated)?;
    packet.source = Address::from_v6(bytes.read(offset + 8).ok_or(Reason::PassTruncated)?);
    let destination = bytes.read::<[[u8; 4]; 4]>(offset + 24).map(Address::from_v6);
    packet.destination = or_truncated(bytes, destination)?;
    let end = offset + 40 + usize::from(u16::from_be_bytes([high, low]));
    extensions(bytes, protocol, offset + 40, end, packet);
    Ok(())
}

/// A packet that ends before its destination goes nowhere, and is judged by its source alone.
#[inline(always)]
fn or_truncated<B: Bytes>(_: &B, destination: Option<Address>) -> Result<Address, Reason> {
    match destination {
        Some(destination) => Ok(destination),
        None if B::SEES_ALL => Ok(Address([0; 4])),
        None => Err(Reason::PassTruncated),
    }
}

/// Follows the chain of extension headers to the transport header.
#[inline(always)]
fn extensions(
    bytes: &impl Bytes,
    mut protocol: u8,
    mut offset: usize,
    end: usize,
    packet: &mut Packet,
) {
    for _ in 0..MAX_EXTENSION_HEADERS {
        offset = packet.forgotten(offset);
        match protocol {
            extension::HOP_BY_HOP
            | extension::ROUTING
            | extension::DESTINATION
            | extension::MOBILITY
            | extension::HOST_IDENTITY
            | extension::SHIM6 => {
                let Some([next, len]) = bytes.read::<[u8; 2]>(offset) else {
                    return packet.end_with(Port::OUT_OF_REACH);
                };
                protocol = next;
                offset += (usize::from(len) + 1) * 8;
            }
            extension::AUTHENTICATION => {
                // RFC 4302, section 2.2: in 4-byte units, minus 2.
                let Some([next, len]) = bytes.read::<[u8; 2]>(offset) else {
                    return packet.end_with(Port::OUT_OF_REACH);
                };
                protocol = next;
                offset += (usize::from(len) + 2) * 4;
            }
            extension::FRAGMENT => {
                let Some([next, _, high, low]) = bytes.read::<[u8; 4]>(offset) else {
                    return packet.end_with(Port::OUT_OF_REACH);
                };
                if u16::from_be_bytes([high, low]) & 0xfff8 != 0 {
                    return packet.end_with(Port::NONE);
                }
                protocol = next;
                offset += 8;
            }
            _ => return transport(bytes, protocol, offset, end, packet),
        }
    }
    transport(bytes, protocol, offset, end, packet);
}

/// Ports, and for TCP the rest of what is needed: RFC 9293 section 3.1, RFC 768.
#[inline(always)]
fn transport<B: Bytes>(bytes: &B, protocol: u8, offset: usize, end: usize, packet: &mut Packet) {
    match protocol {
        IPPROTO_TCP | IPPROTO_UDP => {}
        IPPROTO_IPIP => return packet.end_with_inner(Inner::v4(offset)),
        IPPROTO_IPV6 => return packet.end_with_inner(Inner::v6(offset)),
        IPPROTO_GRE => return gre(bytes, offset, packet),
        _ => return packet.end_with(Port::NONE),
    }
    let Some([a, b, c, d]) = bytes.read::<[u8; 4]>(offset) else {
        return packet.end_with(Port::OUT_OF_REACH);
    };
    let tcp = if protocol != IPPROTO_TCP {
        Tcp::NONE
    } else if let Some(tcp) = segment(bytes, offset, end) {
        tcp
    } else if B::SEES_ALL {
        Tcp::NONE
    } else {
        return packet.end_with(Port::OUT_OF_REACH);
    };
    packet.port = Port::new(protocol, u16::from_be_bytes([c, d]));
    packet.source_port = u32::from(u16::from_be_bytes([a, b]));
    packet.tcp = tcp;
    packet.udp_payload_at = if protocol == IPPROTO_UDP { (offset + UDP_LEN) as u32 } else { 0 };
    packet.inner = Inner::NONE;
}

#[inline(always)]
fn gre(bytes: &impl Bytes, offset: usize, packet: &mut Packet) {
    let Some([high, low, t, y]) = bytes.read::<[u8; 4]>(offset) else {
        return packet.end_with(Port::OUT_OF_REACH);
    };
    let flags = u16::from_be_bytes([high, low]);
    if flags & gre::OTHER != 0 {
        return packet.end_with(Port::NONE);
    }
    let options = [gre::CHECKSUM, gre::KEY, gre::SEQUENCE].map(|flag| flags & flag != 0);
    let inner = offset + 4 + 4 * options.map(usize::from).iter().sum::<usize>();
    match u16::from_be_bytes([t, y]) {
        ETH_P_IP => packet.end_with_inner(Inner::v4(inner)),
        ETH_P_IPV6 => packet.end_with_inner(Inner::v6(inner)),
        _ => packet.end_with(Port::NONE),
    }
}

#[inline(always)]
fn segment(bytes: &impl Bytes, offset: usize, end: usize) -> Option<Tcp> {
    let [s, e, q, n, _, _, _, _, words, flags]: [u8; 10] = bytes.read(offset + 4)?;
    let payload_at = offset + usize::from(words >> 4) * 4;
    Some(Tcp {
        flags: u32::from(flags & 0x3f),
        sequence: u32::from_be_bytes([s, e, q, n]),
        payload_at: payload_at as u32,
        payload_len: end.saturating_sub(payload_at) as u32,
    })
}

#[inline(always)]
pub fn read_u16(bytes: &impl Bytes, offset: usize) -> Option<u16> {
    bytes.read(offset).map(u16::from_be_bytes)
}
