//! What the fuzzer and the replay of its seeds run on bytes that claim to be a ClientHello.

use super::client_hello::{ClientHello, HelloError, MAX_HELLO};
use super::{Ja3, Ja4, Transport};

/// Reads `input` as a handshake message and as records.
///
/// # Panics
///
/// If fingerprints are not as documented, or the same message gives others when it is cut into
/// records elsewhere, followed by something, or not whole.
pub fn client_hello(input: &[u8]) {
    if let Ok(hello) = ClientHello::from_records(input) {
        check(&hello);
    }
    let hello = match ClientHello::from_handshake(input) {
        Ok(hello) => hello,
        Err(HelloError::Incomplete) => {
            assert!(input.len() < MAX_HELLO);
            return;
        }
        Err(error @ (HelloError::NotHello | HelloError::Malformed)) => {
            let followed = [input, b"\0"].concat();
            assert_eq!(ClientHello::from_handshake(&followed), Err(error));
            return;
        }
    };
    check(&hello);
    for size in [7, 1 << 14] {
        let records = records(input, size);
        if records.len() <= MAX_HELLO {
            assert_eq!(ClientHello::from_records(&records).as_ref(), Ok(&hello));
        }
    }
    let followed = [input, b"\x16"].concat();
    assert_eq!(ClientHello::from_handshake(&followed).as_ref(), Ok(&hello));
    let length = input
        .get(1..4)
        .map_or(0, |bytes| bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)));
    let short = input.get(..length + 3).unwrap_or_default();
    assert_eq!(ClientHello::from_handshake(short), Err(HelloError::Incomplete));
}

/// `message` in records of at most `size` bytes each.
pub(super) fn records(message: &[u8], size: usize) -> Vec<u8> {
    let record = |fragment: &[u8]| {
        let [.., high, low] = fragment.len().to_be_bytes();
        [&[22, 3, 1, high, low], fragment].concat()
    };
    message.chunks(size).flat_map(record).collect()
}

/// Fingerprints have their shape, and do not depend on what they leave out.
fn check(hello: &ClientHello) {
    for transport in [Transport::Tcp, Transport::Quic] {
        let ja4 = Ja4::new(hello, transport);
        let (hashed, raw) = (ja4.hashed(), ja4.raw());
        assert_eq!(hashed.len(), 36);
        assert!(hashed.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'));
        assert_eq!(hashed.split_once('_').map(|(head, _)| head), raw.get(..10));
        let mut other = hello.clone();
        other.cipher_suites.reverse();
        other.extensions.reverse();
        other.cipher_suites.push(0x3a3a);
        other.extensions.insert(0, 0xfafa);
        other.signature_algorithms.push(0x0a0a);
        other.supported_groups.clear();
        assert_eq!(Ja4::new(&other, transport), ja4);
    }
    let ja3 = Ja3::new(hello);
    assert_eq!((ja3.hashed().len(), ja3.text().split(',').count()), (32, 5));
}
