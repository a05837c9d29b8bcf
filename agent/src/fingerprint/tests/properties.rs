//! What holds for all hellos.

use portcullis_common::fingerprint as kernel;
use proptest::prelude::*;

use super::spec::Spec;
use crate::fingerprint::fuzz;
use crate::fingerprint::{ClientHello, Ja4, Transport};

const SEED: kernel::Seed = kernel::Seed([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]);

/// Few enough values that equal lists come up, GREASE and extensions with content among them.
fn number() -> impl Strategy<Value = u16> {
    prop_oneof![
        4 => prop::sample::select(vec![0, 5, 10, 11, 13, 16, 23, 43, 51, 0x1301, 0xff01]),
        1 => prop::sample::select(vec![0x0a0a, 0x1a1a, 0xfafa]),
        1 => any::<u16>(),
    ]
}

fn numbers(most: usize) -> impl Strategy<Value = Vec<u16>> {
    prop::collection::vec(number(), 0..most)
}

pub fn spec() -> impl Strategy<Value = Spec> {
    let version = prop::sample::select(vec![0x0301, 0x0303, 0x0304, 0x1a1a, 0xfeff, 0x9999]);
    let protocol = prop::sample::select(vec![&b"h2"[..], b"h3", b"", b"\x0a\x0a", b"x", b"h\xff2"]);
    let protocols = prop::collection::vec(protocol.prop_map(<[u8]>::to_vec), 0..3);
    let versions = prop::collection::vec(version.clone(), 0..4);
    (version, numbers(120), numbers(120), versions, protocols, numbers(8), numbers(4)).prop_map(
        |(legacy_version, ciphers, extensions, versions, protocols, signatures, groups)| Spec {
            legacy_version,
            ciphers,
            extensions,
            versions,
            protocols,
            signatures,
            groups,
            formats: vec![0, 1],
        },
    )
}

proptest! {
    #[test]
    fn everything_that_was_sent_is_read(spec in spec()) {
        let hello = spec.hello();
        prop_assert_eq!(hello.legacy_version, spec.legacy_version);
        prop_assert_eq!(&hello.cipher_suites, &spec.ciphers);
        prop_assert_eq!(&hello.extensions, &spec.extensions);
        let has = |kind| spec.extensions.contains(&kind);
        prop_assert_eq!(hello.supported_versions.as_ref(), has(43).then_some(&spec.versions));
        prop_assert_eq!(hello.signature_algorithms.is_empty(), !has(13) || spec.signatures.is_empty());
        let first = spec.protocols.first().filter(|_| has(16)).cloned().unwrap_or_default();
        prop_assert_eq!(&hello.first_protocol, &first);
        fuzz::client_hello(&spec.message());
    }

    /// The order of ciphers and extensions does not matter, that of signature algorithms does.
    #[test]
    fn what_the_order_means(
        (spec, mixed) in spec().prop_flat_map(|spec| {
            let lists = (Just(spec.ciphers.clone()).prop_shuffle(), Just(spec.extensions.clone()).prop_shuffle());
            (Just(spec), lists)
        }),
    ) {
        let other = Spec { ciphers: mixed.0, extensions: mixed.1, ..spec.clone() };
        prop_assert_eq!(spec.ja4(), other.ja4());
        let mut reversed = spec.clone();
        reversed.signatures.reverse();
        let told = |spec: &Spec| {
            let signatures = spec.hello().signature_algorithms;
            signatures.into_iter().filter(|&n| !crate::fingerprint::is_grease(n)).collect::<Vec<_>>()
        };
        prop_assert_eq!(spec.ja4() == reversed.ja4(), told(&spec) == told(&reversed));
    }

    #[test]
    fn equal_parts_are_equal_texts(a in spec(), b in spec()) {
        prop_assert_eq!(a.ja4() == b.ja4(), a.ja4().raw() == b.ja4().raw());
    }

    #[test]
    fn no_bytes_panic(
        mut message in spec().prop_map(|spec| spec.message()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
    ) {
        for (at, byte) in changes {
            *at.get_mut(&mut message) = byte;
        }
        fuzz::client_hello(&message);
        if let Ok(hello) = ClientHello::from_handshake(&message) {
            prop_assert_eq!(Ja4::new(&hello, Transport::Tcp).hashed().len(), 36);
        }
    }

    #[test]
    fn no_random_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        fuzz::client_hello(&bytes);
        crate::fingerprint::quic::fuzz::quic(&bytes);
    }

    /// The kernel's key stands for exactly what the raw form says: hellos have equal keys if their
    /// raw forms are equal, and else do not, and bytes have a key if they have names.
    #[test]
    fn the_kernels_key_is_the_raw_form(
        (a, ciphers, extensions) in spec().prop_flat_map(|spec| {
            let ciphers = Just(spec.ciphers.clone()).prop_shuffle();
            let extensions = Just(spec.extensions.clone()).prop_shuffle();
            (Just(spec), ciphers, extensions)
        }),
        other in spec(),
        which in 0..8,
    ) {
        // Close to the first, so that both outcomes come up.
        let mut b = Spec { ciphers, extensions, ..a.clone() };
        match which {
            0 => b.legacy_version = other.legacy_version,
            1 => b.versions = other.versions,
            2 => b.protocols = other.protocols,
            3 => b.signatures = other.signatures,
            4 => b.ciphers.push(0x2a2a),
            5 => b.extensions.push(0),
            6 => b = other,
            _ => {}
        }
        for (transport, name) in [(kernel::Transport::Tcp, Transport::Tcp), (kernel::Transport::Quic, Transport::Quic)] {
            let key = |spec: &Spec| {
                let message = spec.message();
                let bytes = match transport {
                    kernel::Transport::Tcp => fuzz::records(&message, 1 << 14),
                    kernel::Transport::Quic => message,
                };
                kernel::key(&bytes, transport, SEED).unwrap()
            };
            let raw = |spec: &Spec| Ja4::new(&spec.hello(), name).raw();
            prop_assert_eq!(key(&a) == key(&b), raw(&a) == raw(&b));
        }
    }

    /// Both sides read the same bytes, however damaged they are.
    #[test]
    fn what_has_a_key_has_names(
        mut message in spec().prop_map(|spec| spec.message()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        size in 1usize..600,
    ) {
        for (at, byte) in changes {
            *at.get_mut(&mut message) = byte;
        }
        let records = fuzz::records(&message, size);
        let over_tcp = kernel::key(&records, kernel::Transport::Tcp, SEED);
        prop_assert_eq!(over_tcp.is_ok(), ClientHello::from_records(&records).is_ok());
        let over_quic = kernel::key(&message, kernel::Transport::Quic, SEED);
        prop_assert_eq!(over_quic.is_ok(), ClientHello::from_handshake(&message).is_ok());
    }
}
