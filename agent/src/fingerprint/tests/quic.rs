//! Hellos out of QUIC packets.

use std::sync::Arc;

use portcullis_common::net::FlowKey;
use proptest::prelude::*;
use rustls::crypto::ring::{cipher_suite::TLS13_AES_128_GCM_SHA256, default_provider};
use rustls::quic::{ClientConnection, Version as TlsVersion};
use rustls::{ClientConfig, RootCertStore, Side};

use super::spec::{Spec, hex, list};
use crate::fingerprint::quic::fuzz::Plain;
use crate::fingerprint::quic::{Counter, Initials, Settings, Version};
use crate::fingerprint::{ClientHello, Ja4, Transport};
use crate::time::Timestamp;

const ID: &[u8] = &[0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];
const SERVERS_ID: &[u8] = &[0xf0, 0x67, 0xa5, 0x50, 0x2a, 0x42, 0x62, 0xb5];
const VERSIONS: [Version; 2] = [Version::V1, Version::V2];

fn initials() -> Initials {
    Initials::new(Settings::default())
}

fn flow(port: u16) -> FlowKey {
    FlowKey { remote_port: port, ..FlowKey::default() }
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_nanos(1_700_000_000_000_000_000 + seconds * 1_000_000_000)
}

fn read(
    initials: &mut Initials,
    flow: FlowKey,
    payload: &[u8],
    now: Timestamp,
) -> Option<ClientHello> {
    let done = initials.datagram(flow, payload, now)?;
    assert_eq!(ClientHello::from_handshake(&done.message).as_ref(), Ok(&done.hello));
    Some(done.hello)
}

/// A number of variable length, in two bytes.
fn varint(number: usize) -> [u8; 2] {
    (u16::try_from(number).unwrap() | 0x4000).to_be_bytes()
}

fn crypto(offset: usize, data: &[u8]) -> Vec<u8> {
    [&[6], &varint(offset)[..], &varint(data.len()), data].concat()
}

fn plain(version: Version, number: u32, frames: &[u8]) -> Plain<'_> {
    Plain { version, original: ID, destination: ID, token: &[], number, number_length: 1, frames }
}

fn packet(version: Version, number: u32, frames: &[u8]) -> Vec<u8> {
    plain(version, number, frames).protect().unwrap()
}

/// A hello of a client with a post-quantum key share would have: longer than a datagram.
fn long_message() -> Vec<u8> {
    let extensions = [list("0000,0010,000d,002b,0033,0039"), (0x8000..0x8180).collect()].concat();
    Spec { ciphers: list("1301,1302"), extensions, ..Spec::default() }.message()
}

/// The sample packets of RFC 9001, appendix A.2 and RFC 9369, appendix A.2: one hello, protected
/// for each version. Whoever makes them makes the packets' first and last bytes as they are there.
#[test]
fn the_samples_of_the_rfcs() {
    let frame = hex("060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e868
        04fe3a47f06a2b69484c00000413011302010000c000000010000e00000b6578
        616d706c652e636f6dff01000100000a00080006001d00170018001000070005
        04616c706e000500050100000000003300260024001d00209370b2c9caa47fba
        baf4559fedba753de171fa71f50f1ce15d43e994ec74d748002b000302030400
        0d0010000e0403050306030203080408050806002d00020101001c0002400100
        3900320408ffffffffffffffff05048000ffff07048000ffff08011001048000
        75300901100f088394c8f03e51570806048000ffff");
    let mut frames = frame.clone();
    frames.resize(1162, 0);
    let samples = [
        (
            Version::V1,
            "c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11d242b123dc9bd8ba",
            "e221af44860018ab0856972e194cd934",
        ),
        (
            Version::V2,
            "d76b3343cf088394c8f03e5157080000449ea0c95e82ffe67b6abcdb4298b485dd04de806071bf03",
            "a18b2faa745b6fe189cf772a9f84cbfc",
        ),
    ];
    for (version, start, tag) in samples {
        let plain = Plain { number_length: 4, ..plain(version, 2, &frames) };
        let packet = plain.protect().unwrap();
        assert_eq!(packet.len(), 1200);
        assert!(packet.starts_with(&hex(start)) && packet.ends_with(&hex(tag)), "{version:?}");
        let mut initials = initials();
        let hello = read(&mut initials, flow(1), &packet, at(0)).unwrap();
        assert_eq!(Ok(&hello), ClientHello::from_handshake(&frame[4..]).as_ref());
        assert_eq!(
            Ja4::new(&hello, Transport::Quic).raw(),
            "q13d0211an_1301,1302_0005,000a,000d,001c,002b,002d,0033,0039,ff01_\
                0403,0503,0603,0203,0804,0805,0806"
        );
        assert_eq!(initials.counts().get(Counter::Hellos), 1);
    }
}

/// The server's packets of the same samples are not protected with the client's keys.
#[test]
fn packets_of_servers_are_not_opened() {
    let packet = hex("cf000000010008f067a5502a4262b5004075c0d95a482cd0991cd25b0aac406a
        5816b6394100f37a1c69797554780bb38cc5a99f5ede4cf73c3ec2493a1839b3
        dbcba3f6ea46c5b7684df3548e7ddeb9c3bf9c73cc3f3bded74b562bfb19fb84
        022f8ef4cdd93795d77d06edbb7aaf2f58891850abbdca3d20398c276456cbc4
        2158407dd074ee");
    let mut initials = initials();
    assert_eq!(read(&mut initials, flow(1), &packet, at(0)), None);
    assert_eq!((initials.counts().get(Counter::Undecryptable), initials.flows()), (1, 0));
}

/// Packets that another implementation of TLS made: both the hello and the protection.
#[test]
fn hellos_of_rustls() {
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    for (version, tls_version) in VERSIONS.into_iter().zip([TlsVersion::V1, TlsVersion::V2]) {
        let name = "shop.example".try_into().unwrap();
        let mut client =
            ClientConnection::new(Arc::new(config.clone()), tls_version, name, vec![4, 2, 0x40, 0])
                .unwrap();
        let mut message = Vec::new();
        client.write_hs(&mut message);
        let frames = [crypto(0, &message), vec![0; 900]].concat();
        let packet = protect_by_rustls(version, tls_version, &frames);
        let hello = read(&mut initials(), flow(1), &packet, at(0)).unwrap();
        assert_eq!(Ok(&hello), ClientHello::from_handshake(&message).as_ref());
        let ja4 = Ja4::new(&hello, Transport::Quic).hashed();
        assert!(ja4.starts_with("q13d03"), "{ja4}");
    }
}

fn protect_by_rustls(version: Version, tls_version: TlsVersion, frames: &[u8]) -> Vec<u8> {
    let suite = TLS13_AES_128_GCM_SHA256.tls13().unwrap().quic_suite().unwrap();
    let keys = suite.keys(ID, Side::Client, tls_version).local;
    let (first, number): (u8, [u8; 4]) = match version {
        Version::V1 => (0xc2, [0, 0, 0, 1]),
        Version::V2 => (0xd2, [0x6b, 0x33, 0x43, 0xcf]),
    };
    let length = varint(3 + frames.len() + 16);
    let mut packet = [&[first], &number[..], &[8], ID, &[3, 1, 2, 3, 2, 9, 9], &length].concat();
    let number_at = packet.len();
    packet.extend([0, 1, 7]);
    let mut payload = frames.to_vec();
    let tag = keys.packet.encrypt_in_place(0x107, &packet, &mut payload).unwrap();
    packet.extend_from_slice(&payload);
    packet.extend_from_slice(tag.as_ref());
    let (header, rest) = packet.split_at_mut(number_at);
    let (number, payload) = rest.split_at_mut(4);
    keys.header.encrypt_in_place(&payload[..16], &mut header[0], &mut number[..3]).unwrap();
    packet
}

#[test]
fn a_hello_in_two_datagrams_in_any_order() {
    let message = long_message();
    let (first, second) = message.split_at(1_000);
    for version in VERSIONS {
        let packets =
            [packet(version, 0, &crypto(0, first)), packet(version, 1, &crypto(1_000, second))];
        for order in [[0, 1], [1, 0]] {
            let mut initials = initials();
            assert_eq!(read(&mut initials, flow(1), &packets[order[0]], at(0)), None);
            assert_eq!(
                read(&mut initials, flow(2), &packets[order[1]], at(0)),
                None,
                "another flow"
            );
            assert!(initials.buffered_bytes() > 0);
            let hello = read(&mut initials, flow(1), &packets[order[1]], at(1));
            assert_eq!(hello.as_ref(), ClientHello::from_handshake(&message).as_ref().ok());
            // What is sent again says nothing new.
            assert_eq!(read(&mut initials, flow(1), &packets[0], at(2)), None);
            assert_eq!(initials.counts().get(Counter::Malformed), 0);
        }
    }
}

#[test]
fn coalesced_packets_are_all_read() {
    let message = long_message();
    let (first, second) = message.split_at(700);
    let initial = |number, offset, data: &[u8]| packet(Version::V1, number, &crypto(offset, data));
    let of_another =
        Plain { original: SERVERS_ID, destination: SERVERS_ID, ..plain(Version::V1, 0, &[1; 9]) };
    let zero_rtt = [&[0xd0, 0, 0, 0, 1, 8], ID, &[0, 4, 1, 2, 3, 4]].concat();
    let datagram = [
        initial(0, 700, second),
        zero_rtt,
        of_another.protect().unwrap(),
        initial(1, 0, first),
        vec![0; 30],
    ]
    .concat();
    let mut initials = initials();
    let hello = read(&mut initials, flow(1), &datagram, at(0));
    assert_eq!(hello, ClientHello::from_handshake(&message).ok());
    assert_eq!((initials.flows(), initials.buffered_bytes()), (1, 0));
    assert_eq!(initials.counts().get(Counter::Undecryptable), 0);
}

/// When the first part was acknowledged and the second was lost, the client sends the second to
/// the id that the server chose, with the keys of before.
#[test]
fn the_server_may_choose_another_id() {
    let message = long_message();
    let (first, second) = message.split_at(900);
    let mut initials = initials();
    assert_eq!(
        read(&mut initials, flow(1), &packet(Version::V1, 0, &crypto(0, first)), at(0)),
        None
    );
    let ack = [2, 0, 0, 0, 0];
    let frames = [&ack[..], &crypto(900, second)].concat();
    let later = Plain { destination: SERVERS_ID, ..plain(Version::V1, 1, &frames) }.protect();
    let hello = read(&mut initials, flow(1), &later.unwrap(), at(1));
    assert_eq!(hello, ClientHello::from_handshake(&message).ok());
}

/// After a Retry, the keys follow from the id that the server chose, and there is a token.
#[test]
fn a_retry_begins_anew() {
    let message = long_message();
    let frames = crypto(0, &message);
    let mut initials = initials();
    let before = packet(Version::V1, 0, &frames);
    assert!(read(&mut initials, flow(1), &before[..before.len() - 1], at(0)).is_none());
    let retried = Plain {
        original: SERVERS_ID,
        destination: SERVERS_ID,
        token: &[7; 90],
        ..plain(Version::V1, 1, &frames)
    };
    assert!(read(&mut initials, flow(1), &retried.protect().unwrap(), at(0)).is_some());
    // And so does a client that gives up and uses its port again.
    let again = Plain { original: &[5; 9], destination: &[5; 9], ..plain(Version::V2, 0, &frames) };
    assert!(read(&mut initials, flow(1), &again.protect().unwrap(), at(0)).is_some());
}

#[test]
fn frames_other_than_crypto_are_passed_over() {
    let message = Spec { ciphers: list("1301"), ..Spec::default() }.message();
    let close = [0x1c, 0, 6, 3, b'b', b'y', b'e'];
    let ack_ecn = [3, 0x40, 9, 0, 1, 0, 0, 0, 1, 2, 3];
    let frames =
        [&[0, 0, 1][..], &ack_ecn, &crypto(0, &message), &[2, 1, 0, 0, 1], &close, &[0; 9]]
            .concat();
    let mut initials = initials();
    assert!(read(&mut initials, flow(1), &packet(Version::V1, 0, &frames), at(0)).is_some());
    // A STREAM frame belongs to no Initial packet.
    assert!(read(&mut initials, flow(2), &packet(Version::V1, 0, &[8; 40]), at(0)).is_none());
    assert_eq!(initials.counts().get(Counter::Malformed), 1);
}

#[test]
fn tables_are_bounded_and_forget() {
    let settings = Settings { max_flows: 3, ..Settings::default() };
    let mut initials = Initials::new(settings);
    let part = packet(Version::V1, 0, &crypto(0, &long_message()[..500]));
    for port in 0..10 {
        assert_eq!(read(&mut initials, flow(port), &part, at(u64::from(port))), None);
    }
    assert_eq!((initials.flows(), initials.counts().get(Counter::Evicted)), (3, 7));
    initials.expire(at(23));
    assert_eq!((initials.flows(), initials.counts().get(Counter::Incomplete)), (1, 2));
    let settings = Settings { max_buffered_bytes: 1_200, ..Settings::default() };
    let mut initials = Initials::new(settings);
    for port in 0..10 {
        read(&mut initials, flow(port), &part, at(0));
    }
    assert_eq!((initials.flows(), initials.buffered_bytes()), (2, 1_000));
    // Neither far ahead nor in too many pieces.
    let mut initials = self::initials();
    read(&mut initials, flow(1), &packet(Version::V1, 0, &crypto(8_190, b"abc")), at(0));
    assert_eq!(initials.counts().get(Counter::TooLong), 1);
    let dust: Vec<u8> = (1..200).flat_map(|i| crypto(2 * i, b"x")).collect();
    let more: Vec<u8> = (200..400).flat_map(|i| crypto(2 * i, b"x")).collect();
    read(&mut initials, flow(1), &packet(Version::V1, 1, &dust), at(0));
    read(&mut initials, flow(1), &packet(Version::V1, 2, &more), at(0));
    assert_eq!((initials.counts().get(Counter::TooLong), initials.buffered_bytes()), (2, 256));
}

#[test]
fn what_is_not_read() {
    let good = packet(Version::V1, 0, &crypto(0, &long_message()));
    let changed = |at: usize, byte: u8| {
        let mut packet = good.clone();
        packet[at] = byte;
        packet
    };
    let mut initials = initials();
    // A short header; version 3; no fixed bit; an id of 21 bytes; a token beyond the end.
    let packets =
        [changed(0, 0x40), changed(4, 3), changed(0, 0x80), changed(5, 21), changed(15, 0x3f)];
    for packet in packets {
        assert_eq!(read(&mut initials, flow(1), &packet, at(0)), None);
    }
    for length in 0..good.len() {
        assert_eq!(read(&mut initials, flow(1), &good[..length], at(0)), None);
    }
    assert_eq!((initials.flows(), initials.counts().get(Counter::Hellos)), (0, 0));
}

proptest! {
    /// A hello arrives however it is cut, ordered, repeated and spread over packets, and never
    /// before its last byte.
    #[test]
    fn hellos_arrive_in_any_pieces(
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        extra in 0usize..40,
        is_v2 in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let message = long_message();
        let version = if is_v2 { Version::V2 } else { Version::V1 };
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(message.len())).collect();
        ends.extend([0, message.len()]);
        ends.sort_unstable();
        // Each piece reaches into the next one.
        let mut pieces: Vec<(usize, usize)> = ends
            .windows(2)
            .map(|pair| (pair[0], (pair[1] + extra).min(message.len())))
            .filter(|(begin, end)| begin < end)
            .collect();
        let mut rng = seed;
        pieces.sort_by_key(|(begin, _)| {
            rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (rng >> 33) ^ *begin as u64
        });
        let mut initials = initials();
        let mut known = vec![false; message.len()];
        let mut arrived = None;
        for (number, (begin, end)) in (0..).zip(pieces) {
            let frames = crypto(begin, &message[begin..end]);
            let hello = read(&mut initials, flow(1), &packet(version, number, &frames), at(0));
            known[begin..end].fill(true);
            if arrived.is_none() {
                prop_assert_eq!(hello.is_some(), known.iter().all(|known| *known));
                arrived = hello;
            } else {
                prop_assert_eq!(hello, None);
            }
        }
        prop_assert_eq!(arrived, ClientHello::from_handshake(&message).ok());
    }

    #[test]
    fn no_frames_panic(frames in prop::collection::vec(any::<u8>(), 4..300), is_v2 in any::<bool>()) {
        let version = if is_v2 { Version::V2 } else { Version::V1 };
        let mut initials = initials();
        read(&mut initials, flow(1), &packet(version, 0, &frames), at(0));
        prop_assert_eq!(initials.counts().get(Counter::Undecryptable), 0);
    }
}
