//! Keys against the raw form of JA4, on hellos that are made from a description.

extern crate std;

use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const SEED: Seed = Seed([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]);

/// A hello by its parts, GREASE among them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hello {
    legacy_version: u16,
    session: u8,
    ciphers: Vec<u16>,
    /// Types in their order. Those that matter have the content below.
    extensions: Vec<u16>,
    versions: Vec<u16>,
    alpn: Vec<Vec<u8>>,
    signatures: Vec<u16>,
    /// Bytes in each of the other extensions.
    padding: usize,
    /// Whether the block of extensions is there at all when it is empty.
    has_block: bool,
}

fn is_grease(value: u16) -> bool {
    value >> 8 == value & 0xff && value & 0x0f == 0x0a
}

fn without_grease(values: &[u16]) -> Vec<u16> {
    values.iter().copied().filter(|value| !is_grease(*value)).collect()
}

fn listed(values: &[u16]) -> String {
    values.iter().map(|value| format!("{value:04x}")).collect::<Vec<_>>().join(",")
}

impl Hello {
    fn has(&self, extension: u16) -> bool {
        self.extensions.contains(&extension)
    }

    fn content(&self, extension: u16) -> Vec<u8> {
        let words = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect();
        match extension {
            13 => with_len_16(words(&self.signatures)),
            16 => {
                with_len_16(self.alpn.iter().flat_map(|value| with_len_8(value.clone())).collect())
            }
            43 => with_len_8(words(&self.versions)),
            _ => vec![0x0a; self.padding],
        }
    }

    fn message(&self) -> Vec<u8> {
        let mut body = self.legacy_version.to_be_bytes().to_vec();
        body.extend([0x16; 32]);
        body.extend(with_len_8(vec![0x16; self.session.into()]));
        body.extend(with_len_16(self.ciphers.iter().flat_map(|c| c.to_be_bytes()).collect()));
        body.extend([1, 0]);
        if self.has_block || !self.extensions.is_empty() {
            let mut block = Vec::new();
            for extension in &self.extensions {
                block.extend(extension.to_be_bytes());
                block.extend(with_len_16(self.content(*extension)));
            }
            body.extend(with_len_16(block));
        }
        let len = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[1], &len[1..], &body].concat()
    }

    /// The records of the hello, cut into pieces of these lengths in turn.
    fn records(&self, lengths: &[usize]) -> Vec<u8> {
        in_records(&self.message(), lengths)
    }

    fn key(&self) -> u64 {
        key(&self.records(&[usize::MAX]), Transport::Tcp, SEED).expect("a hello")
    }

    /// `JA4_r`, written from its specification.
    fn raw(&self) -> String {
        let highest = match self.has(43) {
            true => without_grease(&self.versions).into_iter().max(),
            false => Some(self.legacy_version),
        };
        let version = match highest {
            Some(0x0304) => "13",
            Some(0x0303) => "12",
            Some(0x0302) => "11",
            Some(0x0301) => "10",
            Some(0x0300) => "s3",
            Some(0x0002) => "s2",
            Some(0xfeff) => "d1",
            Some(0xfefd) => "d2",
            Some(0xfefc) => "d3",
            _ => "00",
        };
        let alpn = match self.alpn.first() {
            Some(value) if self.has(16) && !value.is_empty() => first_and_last(value),
            _ => "00".into(),
        };
        let mut ciphers = without_grease(&self.ciphers);
        ciphers.sort();
        let mut extensions = without_grease(&self.extensions);
        let counts = format!("{:02}{:02}", ciphers.len().min(99), extensions.len().min(99));
        extensions.retain(|extension| ![0, 16].contains(extension));
        extensions.sort();
        let name = if self.has(0) { 'd' } else { 'i' };
        let signatures = if self.has(13) { without_grease(&self.signatures) } else { Vec::new() };
        let signatures =
            if signatures.is_empty() { String::new() } else { format!("_{}", listed(&signatures)) };
        let (ciphers, extensions) = (listed(&ciphers), listed(&extensions));
        format!("t{version}{name}{counts}{alpn}_{ciphers}_{extensions}{signatures}")
    }
}

fn first_and_last(value: &[u8]) -> String {
    let (first, last) = (value[0], value[value.len() - 1]);
    if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() {
        [char::from(first), char::from(last)].iter().collect()
    } else {
        let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}{}", &hex[..1], &hex[hex.len() - 1..])
    }
}

fn with_len_8(bytes: Vec<u8>) -> Vec<u8> {
    [vec![u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

fn with_len_16(bytes: Vec<u8>) -> Vec<u8> {
    [u16::try_from(bytes.len()).unwrap().to_be_bytes().to_vec(), bytes].concat()
}

fn in_records(message: &[u8], lengths: &[usize]) -> Vec<u8> {
    let mut lengths = lengths.iter().cycle();
    let mut rest = message;
    let mut records = Vec::new();
    while !rest.is_empty() {
        let len = (*lengths.next().unwrap()).min(rest.len()).min(1 << 14);
        let (piece, after) = rest.split_at(len);
        records.extend([22, 3, 1]);
        records.extend(with_len_16(piece.to_vec()));
        rest = after;
    }
    records
}

/// What Chromium sends, less its order.
fn chromium() -> Hello {
    Hello {
        legacy_version: 0x0303,
        session: 32,
        ciphers: vec![
            0x3a3a, 0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013,
            0xc014, 0x009c, 0x009d, 0x002f, 0x0035,
        ],
        extensions: vec![
            0x2a2a, 0x001b, 0x0000, 0x0033, 0x0010, 0x4469, 0x0017, 0x002d, 0x000d, 0x0005, 0x0023,
            0x0012, 0x002b, 0xff01, 0x000b, 0x000a, 0x6a6a, 0x0015,
        ],
        versions: vec![0x7a7a, 0x0304, 0x0303],
        alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        signatures: vec![0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601],
        padding: 9,
        has_block: true,
    }
}

#[test]
fn the_description_gives_the_published_raw_form() {
    let published = "t13d1516h2_002f,0035,009c,009d,1301,1302,1303,c013,c014,c02b,c02c,c02f,c030,\
                     cca8,cca9_0005,000a,000b,000d,0012,0015,0017,001b,0023,002b,002d,0033,4469,\
                     ff01_0403,0804,0401,0503,0805,0501,0806,0601";
    assert_eq!(chromium().raw(), published);
}

/// Hellos beside [`chromium`] that have another raw form, each by one thing.
fn others() -> Vec<(&'static str, Hello)> {
    let mut others = Vec::new();
    let mut other = |what, change: fn(&mut Hello)| {
        let mut hello = chromium();
        change(&mut hello);
        others.push((what, hello));
    };
    other("a lower version", |hello| hello.versions = vec![0x0303]);
    other("only GREASE versions", |hello| hello.versions = vec![0x7a7a]);
    other("no supported_versions", |hello| hello.extensions.retain(|e| *e != 43));
    other("no server_name", |hello| hello.extensions.retain(|e| *e != 0));
    other("two server_names", |hello| hello.extensions.push(0));
    other("no ALPN", |hello| hello.extensions.retain(|e| *e != 16));
    other("no ALPN value", |hello| hello.alpn.clear());
    other("another first byte of ALPN", |hello| hello.alpn[0] = b"x2".to_vec());
    other("another last byte of ALPN", |hello| hello.alpn[0] = b"h3".to_vec());
    other("ALPN of one byte", |hello| hello.alpn[0] = b"h".to_vec());
    other("an ALPN byte without a letter", |hello| hello.alpn[0] = vec![b'h', 0xab]);
    other("another cipher", |hello| hello.ciphers[3] ^= 1);
    other("one cipher less", |hello| hello.ciphers.truncate(15));
    other("a cipher twice", |hello| hello.ciphers.push(0x1301));
    other("a cipher in place of an extension", |hello| {
        hello.ciphers[15] = 0xff01;
        hello.extensions[13] = 0x0035;
    });
    other("another extension", |hello| hello.extensions[1] = 0x1b01);
    other("an extension twice", |hello| hello.extensions.push(0x0017));
    other("signatures in another order", |hello| hello.signatures.swap(2, 3));
    other("another signature", |hello| hello.signatures[0] = 0x0404);
    other("no signature", |hello| hello.signatures.clear());
    others
}

#[test]
fn every_item_changes_the_key() {
    let mut keys = vec![("chromium", chromium().raw(), chromium().key())];
    for (what, hello) in others() {
        keys.push((what, hello.raw(), hello.key()));
    }
    for (at, (what, raw, key)) in keys.iter().enumerate() {
        for (other, other_raw, other_key) in &keys[..at] {
            assert_ne!(raw, other_raw, "{what}, {other}");
            assert_ne!(key, other_key, "{what}, {other}");
        }
    }
}

#[test]
fn transport_and_seed_change_the_key() {
    let message = chromium().message();
    let tcp = chromium().key();
    let quic = key(&message, Transport::Quic, SEED).unwrap();
    let other_seed = |seed| key(&chromium().records(&[99]), Transport::Tcp, Seed(seed)).unwrap();
    let Seed([first, second]) = SEED;
    let keys = [tcp, quic, other_seed([first ^ 1, second]), other_seed([first, second ^ 1 << 63])];
    for (at, key) in keys.iter().enumerate() {
        assert!(!keys[..at].contains(key), "{keys:x?}");
    }
    assert_eq!(other_seed([first, second]), tcp);
}

#[test]
fn what_ja4_ignores_does_not_change_the_key() {
    let mut hello = chromium();
    hello.legacy_version = 0x0301;
    hello.session = 0;
    hello.padding = 0;
    hello.alpn.truncate(1);
    hello.alpn[0] = b"hxxx2".to_vec();
    hello.ciphers.retain(|value| !is_grease(*value));
    hello.extensions.retain(|value| !is_grease(*value));
    hello.versions = vec![0x0302, 0x0304];
    hello.signatures.insert(0, 0xfafa);
    hello.extensions.reverse();
    hello.ciphers.reverse();
    assert_eq!((hello.raw(), hello.key()), (chromium().raw(), chromium().key()));
}

#[test]
fn an_empty_alpn_value_is_none() {
    let empty = Hello { alpn: vec![Vec::new(), b"h2".to_vec()], ..chromium() };
    let none = Hello { alpn: Vec::new(), ..chromium() };
    assert_eq!((empty.raw(), empty.key()), (none.raw(), none.key()));
}

#[test]
fn counts_end_at_99() {
    let mut hello = chromium();
    // Unlike a further cipher, further server_names change only the count.
    hello.extensions.extend([0; 99]);
    let mut one_more = hello.clone();
    one_more.extensions.push(0);
    assert_eq!((hello.raw(), hello.key()), (one_more.raw(), one_more.key()));
}

#[test]
fn the_first_of_two_extensions_counts() {
    let hello = chromium();
    let mut bytes = hello.message();
    // A second supported_versions, with TLS 1.0 alone, behind the others.
    let second = [0, 43, 0, 3, 2, 3, 1];
    let block_at = bytes.len()
        - hello.extensions.iter().map(|e| 4 + hello.content(*e).len()).sum::<usize>()
        - 2;
    let block = u16::from_be_bytes([bytes[block_at], bytes[block_at + 1]]) + second.len() as u16;
    bytes[block_at..block_at + 2].copy_from_slice(&block.to_be_bytes());
    bytes.extend(second);
    let len = (bytes.len() as u32 - 4).to_be_bytes();
    bytes[1..4].copy_from_slice(&len[1..]);
    let mut described = chromium();
    described.extensions.insert(3, 43);
    assert_eq!(key(&in_records(&bytes, &[usize::MAX]), Transport::Tcp, SEED), Ok(described.key()));
}

#[test]
fn a_hello_without_extensions_has_a_key() {
    let bare = Hello { extensions: Vec::new(), ..chromium() };
    let without_block = Hello { has_block: false, ..bare.clone() };
    assert_eq!(bare.raw(), without_block.raw());
    assert_eq!(bare.key(), without_block.key());
    let nothing = Hello { ciphers: Vec::new(), ..without_block };
    assert_ne!(nothing.key(), bare.key());
}

#[test]
fn bounds_are_those_documented() {
    let refusal =
        |hello: &Hello, lengths: &[usize]| key(&hello.records(lengths), Transport::Tcp, SEED).err();
    // Extensions, versions and signatures are items as well.
    let others = 18 + 3 + 8;
    let most = usize::try_from(MAX_ITEMS).unwrap() - others;
    let mut hello = Hello { ciphers: vec![0x1301; most], ..chromium() };
    assert_eq!(refusal(&hello, &[usize::MAX]), None);
    hello.ciphers.push(0x1301);
    assert_eq!(refusal(&hello, &[usize::MAX]), Some(Refusal::TooMany));

    let len = |hello: &Hello| hello.records(&[usize::MAX]).len();
    let mut hello = Hello { session: 0, ..chromium() };
    while len(&hello) < MAX_HELLO as usize - 32 {
        hello.padding += 1;
    }
    hello.session = u8::try_from(MAX_HELLO as usize - len(&hello)).unwrap();
    assert_eq!((len(&hello), refusal(&hello, &[usize::MAX])), (MAX_HELLO as usize, None));
    hello.session += 1;
    assert_eq!(refusal(&hello, &[usize::MAX]), Some(Refusal::TooLong));

    let mut hello = chromium();
    while hello.message().len() <= MAX_RECORDS as usize {
        hello.padding += 1;
    }
    assert_eq!(refusal(&hello, &[1]), Some(Refusal::TooLong));
    hello.padding -= 1;
    assert_eq!(refusal(&hello, &[1]), None);
}

#[test]
fn what_is_no_hello_is_malformed() {
    let good = chromium().records(&[usize::MAX]);
    let refused = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        key(&bytes, Transport::Tcp, SEED).err()
    };
    for (at, value) in [(0, 23), (0, 0), (1, 2), (1, 4), (5, 2), (8, 4)] {
        assert_eq!(refused(at, value), Some(Refusal::Malformed), "byte {at} is {value}");
    }
    // An odd length of ciphers, and a record of no bytes.
    assert_eq!(refused(77, 31), Some(Refusal::Malformed));
    assert_eq!(key(&[22, 3, 1, 0, 0, 22, 3, 1], Transport::Tcp, SEED), Err(Refusal::Malformed));
    assert_eq!(key(b"GET / HTTP/1.1\r\n\r\n", Transport::Tcp, SEED), Err(Refusal::Malformed));
    assert_eq!(key(b"", Transport::Tcp, SEED), Err(Refusal::Incomplete));
}

fn wire_value() -> impl Strategy<Value = u16> {
    prop_oneof![
        1 => (0_u16..16).prop_map(|n| 0x0a0a + n * 0x1010),
        4 => 0_u16..50,
        2 => any::<u16>(),
    ]
}

fn hello() -> impl Strategy<Value = Hello> {
    let value = proptest::collection::vec(any::<u8>(), 0..4);
    let list = |most| proptest::collection::vec(wire_value(), 0..most);
    let versions = prop_oneof![Just(0x0304), Just(0x0303), Just(0x0301), wire_value()];
    (
        (any::<u16>(), 0_u8..=32, list(40), list(40), any::<bool>()),
        (
            proptest::collection::vec(versions, 0..5),
            proptest::collection::vec(value, 0..3),
            list(12),
            0_usize..20,
        ),
    )
        .prop_map(|((legacy_version, session, ciphers, extensions, has_block), rest)| {
            let (versions, alpn, signatures, padding) = rest;
            Hello {
                legacy_version,
                session,
                ciphers,
                extensions,
                versions,
                alpn,
                signatures,
                padding,
                has_block,
            }
        })
}

/// Two hellos, often the same but for their order, GREASE or one value.
fn pair() -> impl Strategy<Value = (Hello, Hello)> {
    (hello(), any::<[prop::sample::Index; 3]>(), 0_u8..8, wire_value()).prop_flat_map(
        |(hello, [at, to, which], change, value)| {
            let mut other = hello.clone();
            let list = match which.index(4) {
                0 => &mut other.ciphers,
                1 => &mut other.extensions,
                2 => &mut other.versions,
                _ => &mut other.signatures,
            };
            if !list.is_empty() {
                let (at, to) = (at.index(list.len()), to.index(list.len()));
                match change {
                    0..3 => list.swap(at, to),
                    3 => list.insert(at, 0xdada),
                    4 => list[at] = value,
                    5 => list.push(value),
                    6 => drop(list.remove(at)),
                    _ => list.reverse(),
                }
            }
            (Just(hello), Just(other))
        },
    )
}

proptest! {
    #[test]
    fn keys_are_the_same_exactly_if_raw_forms_are((one, other) in pair()) {
        prop_assert_eq!(one.raw() == other.raw(), one.key() == other.key());
    }

    #[test]
    fn order_and_grease_do_not_matter(hello in hello().prop_flat_map(|hello| {
        let (ciphers, extensions) = (hello.ciphers.clone(), hello.extensions.clone());
        (Just(hello), Just(ciphers).prop_shuffle(), Just(extensions).prop_shuffle())
    })) {
        let (hello, mut ciphers, mut extensions) = hello;
        ciphers.insert(0, 0xbaba);
        extensions.push(0x1a1a);
        let shuffled = Hello { ciphers, extensions, ..hello.clone() };
        prop_assert_eq!(hello.key(), shuffled.key());
    }

    #[test]
    fn records_and_pieces_do_not_matter(
        hello in hello(),
        // Of one byte each, the longest of these hellos would have too many.
        lengths in proptest::collection::vec(2_usize..200, 1..5),
        pieces in proptest::collection::vec(1_usize..200, 1..5),
    ) {
        let bytes = hello.records(&lengths);
        let expected = hello.key();
        prop_assert_eq!(key(&bytes, Transport::Tcp, SEED), Ok(expected));
        prop_assert_eq!(in_pieces(&bytes, &pieces), Ok((expected, bytes.len() as u32)));
        prop_assert_eq!(key(&bytes[..bytes.len() - 1], Transport::Tcp, SEED), Err(Refusal::Incomplete));
    }

    #[test]
    fn what_follows_does_not_matter(hello in hello(), more in any::<[u8; 9]>()) {
        let bytes = [&hello.records(&[700])[..], &more].concat();
        prop_assert_eq!(key(&bytes, Transport::Tcp, SEED), Ok(hello.key()));
    }

    #[test]
    fn damaged_hellos_are_read_or_refused(
        hello in hello(),
        damages in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        pieces in proptest::collection::vec(1_usize..200, 1..5),
    ) {
        let mut bytes = hello.records(&[300]);
        for (at, value) in damages {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        prop_assert_eq!(
            key(&bytes, Transport::Tcp, SEED),
            in_pieces(&bytes, &pieces).map(|(key, _)| key)
        );
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = key(&bytes, Transport::Tcp, SEED);
        let _ = key(&bytes, Transport::Quic, SEED);
        let framed = in_records(&[&[1, 0, 1, 20], &bytes[..]].concat(), &[100]);
        let _ = key(&framed, Transport::Tcp, SEED);
    }
}

/// The key, and how many bytes it took, of bytes that arrive in pieces of these lengths.
fn in_pieces(bytes: &[u8], lengths: &[usize]) -> Result<(u64, u32), Refusal> {
    let mut parser = Parser::new(Transport::Tcp);
    let mut there = 0;
    let mut lengths = lengths.iter().cycle();
    loop {
        match parser.step(&&bytes[..there], SEED) {
            Progress::Going => {}
            Progress::Done => return Ok((parser.key(Transport::Tcp, SEED), parser.consumed())),
            Progress::Refused(refusal) => return Err(refusal),
            Progress::Waiting if there == bytes.len() => return Err(Refusal::Incomplete),
            Progress::Waiting => there = (there + lengths.next().unwrap()).min(bytes.len()),
        }
    }
}
