//! What the fuzzer and the replay of its seeds run on QUIC packets, and the packets themselves.
//!
//! The input is a list of packets. Each begins with a control byte: bit 0 the version; bit 1: the
//! bytes are the datagram, otherwise the frames of an Initial packet, which is protected here;
//! bits 2 and 3 the flow; bit 4: the connection id is another; bit 5: … but the keys are those of
//! the first; bit 6: the next packet follows in the same datagram; bit 7: ten seconds pass before
//! it. Then the length (two bytes) and the bytes.

use std::time::Duration;

use aes_gcm::aead::AeadInOut as _;
use portcullis_common::net::FlowKey;

use super::keys::{ClientKeys, Version};
use super::{Counter, Initials, Settings};
use crate::fingerprint::reader::Reader;
use crate::fingerprint::{Ja4, Transport};
use crate::time::Timestamp;

/// An Initial packet of a client, unprotected.
#[derive(Clone, Copy, Debug)]
pub struct Plain<'a> {
    pub version: Version,
    /// The connection id that the keys follow from.
    pub original: &'a [u8],
    /// The connection id in the header.
    pub destination: &'a [u8],
    pub token: &'a [u8],
    pub number: u32,
    /// Bytes that the number is sent in: 1 to 4.
    pub number_length: usize,
    pub frames: &'a [u8],
}

impl Plain<'_> {
    /// The packet as it is sent; `None` when a part of it has no room in a packet.
    pub fn protect(&self) -> Option<Vec<u8>> {
        let mut packet = self.header()?;
        let number_at = packet.len();
        let number = self.number.to_be_bytes();
        packet.extend_from_slice(number.get(4usize.checked_sub(self.number_length)?..)?);
        let keys = ClientKeys::new(self.version, self.original)?;
        let mut sealed = self.frames.to_vec();
        let nonce = keys.nonce(self.number);
        let buffer = sealed.as_mut_slice().into();
        let tag = keys.packet.encrypt_inout_detached(&nonce, &packet, buffer).ok()?;
        packet.extend_from_slice(&sealed);
        packet.extend_from_slice(&tag);
        let mask = keys.mask(packet.get(number_at + 4..)?.first_chunk()?);
        let [mask_first, mask_number @ ..] = mask;
        *packet.first_mut()? ^= mask_first & 0x0f;
        let number = packet.get_mut(number_at..)?.get_mut(..self.number_length)?;
        number.iter_mut().zip(mask_number).for_each(|(byte, mask)| *byte ^= mask);
        Some(packet)
    }

    /// All before the packet number.
    fn header(&self) -> Option<Vec<u8>> {
        let (kind, version) = match self.version {
            Version::V1 => (0xc0, 0x0000_0001u32),
            Version::V2 => (0xd0, 0x6b33_43cf),
        };
        let first = kind | u8::try_from(self.number_length.checked_sub(1)?).ok()?;
        let mut header = [&[first], &version.to_be_bytes()[..]].concat();
        header.push(u8::try_from(self.destination.len()).ok()?);
        header.extend_from_slice(self.destination);
        // No source connection id.
        header.push(0);
        if self.token.is_empty() {
            header.push(0);
        } else {
            header.extend_from_slice(&short_varint(self.token.len())?);
            header.extend_from_slice(self.token);
        }
        let length = self.number_length.checked_add(self.frames.len())?.checked_add(16)?;
        header.extend_from_slice(&short_varint(length)?);
        Some(header)
    }
}

/// A number of at most 14 bits, in two bytes.
fn short_varint(number: usize) -> Option<[u8; 2]> {
    let number = u16::try_from(number).ok().filter(|number| number >> 14 == 0)?;
    Some((number | 0x4000).to_be_bytes())
}

const FIRST_ID: &[u8] = &[0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];
const OTHER_ID: &[u8] = &[0xf0, 0x67, 0xa5, 0x50, 0x2a, 0x42, 0x62, 0xb5, 0xff];

struct Record<'a> {
    control: u8,
    bytes: &'a [u8],
}

impl<'a> Record<'a> {
    fn take(input: &mut Reader<'a>) -> Option<Self> {
        let (control, length) = (input.u8()?, usize::from(input.u16()?));
        let bytes = input.take(length.min(input.rest().len()))?;
        Some(Self { control, bytes })
    }

    fn has(&self, bit: u8) -> bool {
        self.control & bit != 0
    }

    fn packet(&self, number: u32) -> Vec<u8> {
        if self.has(2) {
            return self.bytes.to_vec();
        }
        let destination = if self.has(16) { OTHER_ID } else { FIRST_ID };
        let plain = Plain {
            version: if self.has(1) { Version::V2 } else { Version::V1 },
            original: if self.has(32) { FIRST_ID } else { destination },
            destination,
            token: &[],
            number,
            number_length: 1 + usize::from(self.control >> 2 & 3),
            frames: self.bytes,
        };
        plain.protect().unwrap_or_default()
    }
}

/// Small bounds, so that short inputs reach them.
fn settings() -> Settings {
    Settings { max_flows: 2, max_buffered_bytes: 2_048, idle_timeout: Duration::from_secs(15) }
}

/// Reads packets from `input`.
///
/// # Panics
///
/// If a bound does not hold, a hello is not as documented, or the counts do not add up.
pub fn quic(input: &[u8]) {
    let mut reader = Reader::new(input);
    let mut initials = Initials::new(settings());
    let mut now = Timestamp::from_nanos(1_700_000_000_000_000_000);
    let (mut datagram, mut datagrams, mut hellos) = (Vec::new(), 0, 0);
    for number in 0.. {
        let Some(record) = Record::take(&mut reader) else { break };
        if record.has(128) {
            now = now.saturating_add(Duration::from_secs(10));
            initials.expire(now);
        }
        datagram.extend_from_slice(&record.packet(number));
        if record.has(64) {
            continue;
        }
        let flow =
            FlowKey { remote_port: u16::from(record.control >> 2 & 3), ..FlowKey::default() };
        if let Some(done) = initials.datagram(flow, &datagram, now) {
            assert_eq!(Ja4::new(&done.hello, Transport::Quic).hashed().len(), 36);
            hellos += 1;
        }
        datagrams += 1;
        datagram.clear();
        assert!(initials.flows() <= settings().max_flows);
        assert!(initials.buffered_bytes() <= settings().max_buffered_bytes);
    }
    assert_eq!(initials.counts().get(Counter::Datagrams), datagrams);
    assert!(initials.counts().get(Counter::Hellos) >= hellos);
    initials.expire(now.saturating_add(Duration::from_secs(3_600)));
    assert_eq!((initials.flows(), initials.buffered_bytes()), (0, 0));
}
