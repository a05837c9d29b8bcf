//! Long headers of QUIC packets (RFC 8999, section 5.1; RFC 9000, section 17.2).

use super::keys::Version;
use crate::fingerprint::reader::Reader;

/// The longest connection id of versions 1 and 2 (RFC 9000, section 17.2).
pub const MAX_ID: usize = 20;

/// What a datagram goes on with.
#[derive(Clone, Copy, Debug)]
pub enum Next<'a> {
    Initial(Initial<'a>),
    /// A packet of another type, or one of a version that is not read.
    Other,
    Malformed,
}

/// An Initial packet, still protected.
#[derive(Clone, Copy, Debug)]
pub struct Initial<'a> {
    pub version: Version,
    pub destination: &'a [u8],
    /// The whole packet.
    pub bytes: &'a [u8],
    /// Where in `bytes` the packet number begins.
    pub number_at: usize,
}

/// Takes the next packet from the front of `datagram`; `None` at its end. What follows a packet
/// whose end is not known is taken with it.
pub fn next<'a>(datagram: &mut &'a [u8]) -> Option<Next<'a>> {
    let whole = *datagram;
    let first = *whole.first()?;
    *datagram = &[];
    // A short header, which ends the datagram; or padding behind the last packet, which some
    // clients send.
    if first & 0x80 == 0 {
        return Some(Next::Other);
    }
    let Some(long) = LongHeader::read(whole) else { return Some(Next::Malformed) };
    let Some(version) = Version::from_number(long.version) else { return Some(Next::Other) };
    if first & 0x40 == 0 {
        return Some(Next::Malformed);
    }
    let kind = version.packet_kind(first);
    match kind {
        Kind::Retry => return Some(Next::Other),
        Kind::Initial | Kind::ZeroRtt | Kind::Handshake => {}
    }
    let Some((bytes, number_at)) = long.extent(whole, kind == Kind::Initial) else {
        return Some(Next::Malformed);
    };
    *datagram = whole.get(bytes.len()..).unwrap_or_default();
    Some(match kind {
        Kind::Initial => {
            Next::Initial(Initial { version, destination: long.destination, bytes, number_at })
        }
        Kind::ZeroRtt | Kind::Handshake | Kind::Retry => Next::Other,
    })
}

/// Types of packets with a long header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Initial,
    ZeroRtt,
    Handshake,
    Retry,
}

/// What all versions have in common, and what follows.
struct LongHeader<'a> {
    version: u32,
    destination: &'a [u8],
    rest: Reader<'a>,
}

impl<'a> LongHeader<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = Reader::new(bytes);
        let _first = rest.u8()?;
        let version = rest.u32()?;
        let destination = rest.vector8()?.rest();
        let source = rest.vector8()?.rest();
        let plausible = destination.len() <= MAX_ID && source.len() <= MAX_ID;
        plausible.then_some(Self { version, destination, rest })
    }

    /// The bytes of the packet at the front of `whole`, and where its number begins.
    fn extent(&self, whole: &'a [u8], has_token: bool) -> Option<(&'a [u8], usize)> {
        let mut rest = self.rest;
        if has_token {
            let token = rest.varint()?;
            rest.take(usize::try_from(token).ok()?)?;
        }
        let length = usize::try_from(rest.varint()?).ok()?;
        let number_at = whole.len().checked_sub(rest.rest().len())?;
        let bytes = whole.get(..number_at.checked_add(length)?)?;
        Some((bytes, number_at))
    }
}
