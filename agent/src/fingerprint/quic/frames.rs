//! Frames of Initial packets (RFC 9000, sections 12.4 and 19).

use crate::fingerprint::reader::Reader;

mod kind {
    pub const PADDING: u64 = 0x00;
    pub const PING: u64 = 0x01;
    pub const ACK: u64 = 0x02;
    pub const ACK_ECN: u64 = 0x03;
    pub const CRYPTO: u64 = 0x06;
    pub const CONNECTION_CLOSE: u64 = 0x1c;
}

/// A piece of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crypto<'a> {
    pub offset: u64,
    pub data: &'a [u8],
}

/// Calls `take` with each CRYPTO frame in turn. `None` if something there is no frame that an
/// Initial packet may have; what came before has been taken.
pub fn each_crypto<'a>(frames: &'a [u8], mut take: impl FnMut(Crypto<'a>)) -> Option<()> {
    let mut reader = Reader::new(frames);
    while !reader.is_empty() {
        match reader.varint()? {
            kind::PADDING | kind::PING => {}
            kind @ (kind::ACK | kind::ACK_ECN) => skip_ack(&mut reader, kind == kind::ACK_ECN)?,
            kind::CRYPTO => {
                let offset = reader.varint()?;
                let length = usize::try_from(reader.varint()?).ok()?;
                take(Crypto { offset, data: reader.take(length)? });
            }
            kind::CONNECTION_CLOSE => skip_close(&mut reader)?,
            _ => return None,
        }
    }
    Some(())
}

fn skip_ack(reader: &mut Reader<'_>, has_ecn: bool) -> Option<()> {
    let _largest = reader.varint()?;
    let _delay = reader.varint()?;
    let ranges = reader.varint()?;
    let _first_range = reader.varint()?;
    // Ends with the packet at the latest, whatever number it says.
    for _ in 0..ranges {
        let _gap = reader.varint()?;
        let _length = reader.varint()?;
    }
    if has_ecn {
        for _ in 0..3 {
            reader.varint()?;
        }
    }
    Some(())
}

fn skip_close(reader: &mut Reader<'_>) -> Option<()> {
    let _error = reader.varint()?;
    let _frame = reader.varint()?;
    let reason = usize::try_from(reader.varint()?).ok()?;
    reader.take(reason).map(drop)
}
