//! IPv6 extension headers.

use super::frame::{Fragment, protocol};

/// One header of the chain between the IPv6 header and the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    HopByHop,
    Destination,
    /// RFC 6554, the type that routers within one network use.
    Routing,
    /// RFC 6275, section 6.1.
    Mobility,
    /// RFC 7401, section 5.1.
    HostIdentity,
    /// RFC 5533, section 5.2.
    Shim6,
    /// RFC 4302, with this many 4-byte words of integrity check value.
    Authentication {
        icv_words: u8,
    },
    Fragment(Fragment),
    /// Any header of the common format, `units` 8-byte units longer than its least.
    Padded {
        protocol: u8,
        units: u8,
    },
}

impl Extension {
    /// One of each kind that does not make a fragment.
    pub const KINDS: [(&'static str, Self); 7] = [
        ("hop-by-hop", Self::HopByHop),
        ("destination", Self::Destination),
        ("routing", Self::Routing),
        ("mobility", Self::Mobility),
        ("host identity", Self::HostIdentity),
        ("shim6", Self::Shim6),
        ("authentication", Self::Authentication { icv_words: 3 }),
    ];

    /// What the header before it calls it.
    pub fn protocol(self) -> u8 {
        match self {
            Self::HopByHop => protocol::HOP_BY_HOP,
            Self::Destination => protocol::DESTINATION,
            Self::Routing => protocol::ROUTING,
            Self::Mobility => protocol::MOBILITY,
            Self::HostIdentity => protocol::HOST_IDENTITY,
            Self::Shim6 => protocol::SHIM6,
            Self::Authentication { .. } => protocol::AUTHENTICATION,
            Self::Fragment(_) => protocol::FRAGMENT,
            Self::Padded { protocol, .. } => protocol,
        }
    }

    pub fn is_later_fragment(self) -> bool {
        matches!(self, Self::Fragment(fragment) if fragment.offset > 0)
    }

    /// The header's bytes, naming `next` as what follows.
    pub fn bytes(self, next: u8) -> Vec<u8> {
        match self {
            Self::HopByHop | Self::Destination => padded(next, 0),
            // Type 3, no segments left, nothing compressed, no addresses.
            Self::Routing => vec![next, 0, 3, 0, 0, 0, 0, 0],
            Self::Padded { units, .. } => padded(next, units),
            // Binding refresh request: type 0, checksum, reserved.
            Self::Mobility => vec![next, 0, 0, 0, 0, 0, 0, 0],
            // Both begin with a control packet's type and are at least this long.
            Self::HostIdentity => filled(next, 4),
            Self::Shim6 => filled(next, 0),
            Self::Authentication { icv_words } => authentication(next, icv_words),
            Self::Fragment(fragment) => fragment.ipv6_header(next).to_vec(),
        }
    }
}

/// A header of options, all of it padding (RFC 8200, section 4.2).
fn padded(next: u8, units: u8) -> Vec<u8> {
    let mut bytes = vec![next, units];
    let mut left = 6 + usize::from(units) * 8;
    while left > 0 {
        let option = left.min(257);
        match option {
            1 => bytes.push(0),
            // PadN: type 1, length of what follows, zeros.
            _ => {
                bytes.extend([1, (option - 2) as u8]);
                bytes.resize(bytes.len() + option - 2, 0);
            }
        }
        left -= option;
    }
    bytes
}

fn filled(next: u8, units: u8) -> Vec<u8> {
    let mut bytes = vec![next, units];
    bytes.resize(8 + usize::from(units) * 8, 1);
    bytes
}

/// The payload length is in 4-byte words, minus 2 (RFC 4302, section 2.2).
fn authentication(next: u8, icv_words: u8) -> Vec<u8> {
    let mut bytes = vec![next, 1 + icv_words, 0, 0];
    bytes.extend(0x0a0b_0c0d_u32.to_be_bytes()); // security parameters index
    bytes.extend(1_u32.to_be_bytes()); // sequence number
    bytes.resize(bytes.len() + usize::from(icv_words) * 4, 0x5a);
    bytes
}
