#![no_main]

use portcullis_common::fingerprint::{self, Parser, Progress, Refusal, Seed, Transport};

const SEED: Seed = Seed([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]);

// The first byte is the length of the pieces in which the others come. The key must be the same
// however they come, and the same once more in other records.
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&piece, bytes)) = input.split_first() else { return };
    let whole = fingerprint::key(bytes, Transport::Tcp, SEED);
    let (came, consumed) = in_pieces(bytes, usize::from(piece) + 1);
    assert_eq!(whole, came);
    if let Ok(key) = whole {
        assert_ne!(key, fingerprint::NO_KEY);
        assert!(consumed <= fingerprint::MAX_HELLO);
        let end = consumed as usize;
        assert_eq!(fingerprint::key(&bytes[..end], Transport::Tcp, SEED), whole);
        let short = fingerprint::key(&bytes[..end - 1], Transport::Tcp, SEED);
        assert_eq!(short, Err(Refusal::Incomplete));
        let again = in_records(&message(&bytes[..end]), usize::from(piece) + 1);
        match fingerprint::key(&again, Transport::Tcp, SEED) {
            // More records may be more than the bounds allow.
            Err(Refusal::TooLong) => {}
            other => assert_eq!(other, whole),
        }
    }
    let _ = fingerprint::key(bytes, Transport::Quic, SEED);
});

/// The result, and how many bytes it took.
fn in_pieces(bytes: &[u8], len: usize) -> (Result<u64, Refusal>, u32) {
    let mut parser = Parser::new(Transport::Tcp);
    let mut there = 0;
    loop {
        let progress = parser.step(&&bytes[..there], SEED);
        let result = match progress {
            Progress::Going => continue,
            Progress::Waiting if there < bytes.len() => {
                there = bytes.len().min(there + len);
                continue;
            }
            Progress::Waiting => Err(Refusal::Incomplete),
            Progress::Done => Ok(parser.key(Transport::Tcp, SEED)),
            Progress::Refused(refusal) => Err(refusal),
        };
        return (result, parser.consumed());
    }
}

/// The handshake message in records, the last of which may go on.
fn message(mut records: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    while let Some((header, rest)) = records.split_first_chunk::<5>() {
        let len = usize::from(u16::from_be_bytes([header[3], header[4]])).min(rest.len());
        message.extend(&rest[..len]);
        records = &rest[len..];
    }
    message
}

fn in_records(message: &[u8], len: usize) -> Vec<u8> {
    let record =
        |piece: &[u8]| [&[22, 3, 1][..], &(piece.len() as u16).to_be_bytes(), piece].concat();
    message.chunks(len).flat_map(record).collect()
}
