//! The header walk: link → VLAN tags → IPv4 or IPv6 with options, extension headers and
//! fragments → transport. All of it comes before any decision.

use core::mem;

use portcullis_common::{
    net::Addr,
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

/// A source address by words, each with its bytes as the packet has them. An array of bytes the
/// compiler would build byte by byte, on the stack, with calls of `memset`.
#[derive(Clone, Copy)]
pub struct Source([u32; 4]);

impl Source {
    #[inline(always)]
    fn from_v4(address: [u8; 4]) -> Self {
        Self([0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), u32::from_ne_bytes(address)])
    }

    #[inline(always)]
    fn from_v6(address: [[u8; 4]; 4]) -> Self {
        Self(address.map(u32::from_ne_bytes))
    }

    #[inline(always)]
    pub fn addr(self) -> Addr {
        // SAFETY: both are 16 bytes, and any bytes are an `Addr`.
        unsafe { mem::transmute::<[u32; 4], Addr>(self.0) }
    }

    /// The first 64 bits, the others zero.
    #[inline(always)]
    pub fn prefix64(self) -> Self {
        let [first, second, ..] = self.0;
        Self([first, second, 0, 0])
    }
}

/// What the policy needs of a packet.
#[derive(Clone, Copy)]
pub struct Packet {
    pub source: Source,
    pub is_v6: bool,
    pub destination: Port,
}

/// A transport protocol and a port in host byte order, in one register: the verifier follows
/// that where it loses an `Option` of two fields.
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

    #[inline(always)]
    pub fn protocol(self) -> u8 {
        (self.0 >> 16) as u8
    }

    #[inline(always)]
    pub fn number(self) -> u16 {
        self.0 as u16
    }
}

/// The packet of a frame, or the reason to pass the frame that has none.
#[inline(always)]
pub fn walk(bytes: &impl Bytes) -> Result<Packet, Reason> {
    let mut ethertype = read_u16(bytes, ETHERTYPE_AT).ok_or(Reason::PassTruncated)?;
    let mut offset = ETHERNET_LEN;
    for _ in 0..MAX_VLAN_TAGS {
        if !is_vlan(ethertype) {
            break;
        }
        // A tag is its control information, then the next EtherType.
        ethertype = read_u16(bytes, offset + 2).ok_or(Reason::PassTruncated)?;
        offset += VLAN_LEN;
    }
    match ethertype {
        ETH_P_IP => ipv4(bytes, offset),
        ETH_P_IPV6 => ipv6(bytes, offset),
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
fn ipv4(bytes: &impl Bytes, offset: usize) -> Result<Packet, Reason> {
    // The header up to and with the source address, so that no shorter part of it passes.
    let header: [u8; 16] = bytes.read(offset).ok_or(Reason::PassTruncated)?;
    let source = Source::from_v4([header[12], header[13], header[14], header[15]]);
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    let destination = if fragment_offset == 0 && header_len >= 20 {
        port(bytes, header[9], offset + header_len)
    } else {
        Port::NONE
    };
    Ok(Packet { source, is_v6: false, destination })
}

/// RFC 8200, section 3.
#[inline(always)]
fn ipv6(bytes: &impl Bytes, offset: usize) -> Result<Packet, Reason> {
    let protocol: [u8; 1] = bytes.read(offset + 6).ok_or(Reason::PassTruncated)?;
    let source: [[u8; 4]; 4] = bytes.read(offset + 8).ok_or(Reason::PassTruncated)?;
    let destination = extensions(bytes, protocol[0], offset + 40);
    Ok(Packet { source: Source::from_v6(source), is_v6: true, destination })
}

/// Follows the chain of extension headers to the transport header.
#[inline(always)]
fn extensions(bytes: &impl Bytes, mut protocol: u8, mut offset: usize) -> Port {
    for _ in 0..MAX_EXTENSION_HEADERS {
        match protocol {
            extension::HOP_BY_HOP
            | extension::ROUTING
            | extension::DESTINATION
            | extension::MOBILITY
            | extension::HOST_IDENTITY
            | extension::SHIM6 => {
                let Some([next, len]) = bytes.read::<[u8; 2]>(offset) else {
                    return Port::OUT_OF_REACH;
                };
                protocol = next;
                offset += (usize::from(len) + 1) * 8;
            }
            extension::AUTHENTICATION => {
                // RFC 4302, section 2.2: in 4-byte units, minus 2.
                let Some([next, len]) = bytes.read::<[u8; 2]>(offset) else {
                    return Port::OUT_OF_REACH;
                };
                protocol = next;
                offset += (usize::from(len) + 2) * 4;
            }
            extension::FRAGMENT => {
                let Some([next, _, high, low]) = bytes.read::<[u8; 4]>(offset) else {
                    return Port::OUT_OF_REACH;
                };
                if u16::from_be_bytes([high, low]) & 0xfff8 != 0 {
                    return Port::NONE;
                }
                protocol = next;
                offset += 8;
            }
            _ => return port(bytes, protocol, offset),
        }
    }
    port(bytes, protocol, offset)
}

/// Destination port: RFC 9293 section 3.1, RFC 768.
#[inline(always)]
fn port(bytes: &impl Bytes, protocol: u8, offset: usize) -> Port {
    if protocol != IPPROTO_TCP && protocol != IPPROTO_UDP {
        return Port::NONE;
    }
    match read_u16(bytes, offset + 2) {
        Some(number) => Port::new(protocol, number),
        None => Port::OUT_OF_REACH,
    }
}

#[inline(always)]
pub fn read_u16(bytes: &impl Bytes, offset: usize) -> Option<u16> {
    bytes.read(offset).map(u16::from_be_bytes)
}
