//! Published fingerprints: the examples of FoxIO's description of JA4, and clients in its public
//! captures with the fingerprints that its own programs and Wireshark (JA3) print for them.

use super::spec::{Spec, list};
use crate::fingerprint::{ClientHello, HelloError, Ja3, Ja4, Transport};

/// The example that the description goes through.
fn example() -> Spec {
    Spec {
        ciphers: list("1301,1302,1303,c02b,c02f,c02c,c030,cca9,cca8,c013,c014,009c,009d,002f,0035"),
        extensions: list(
            "001b,0000,0033,0010,4469,0017,002d,000d,0005,0023,0012,002b,ff01,000b,000a,0015",
        ),
        signatures: list("0403,0804,0401,0503,0805,0501,0806,0601"),
        ..Spec::default()
    }
}

#[test]
fn the_example_of_the_description() {
    let ja4 = example().ja4();
    assert_eq!(ja4.hashed(), "t13d1516h2_8daaf6152771_e5627efa2ab1");
    let raw = "t13d1516h2_002f,0035,009c,009d,1301,1302,1303,c013,c014,c02b,c02c,c02f,c030,cca8,\
        cca9_0005,000a,000b,000d,0012,0015,0017,001b,0023,002b,002d,0033,4469,ff01_0403,0804,0401,\
        0503,0805,0501,0806,0601";
    assert_eq!(ja4.raw(), raw);
    let unsigned = Spec { signatures: Vec::new(), ..example() }.ja4();
    assert_eq!(unsigned.hashed(), "t13d1516h2_8daaf6152771_6d807ffa2a79");
    assert_eq!(Some(unsigned.raw().as_str()), raw.rsplit_once('_').map(|(before, _)| before));
    let quic = Ja4::new(&example().hello(), Transport::Quic);
    assert_eq!(quic.hashed(), "q13d1516h2_8daaf6152771_e5627efa2ab1");
}

/// JA3's text, which has the lists in their order, and its hash; what JA3 leaves out; JA4.
struct Client {
    ja3: (&'static str, &'static str),
    versions: &'static [u16],
    protocol: &'static str,
    signatures: &'static str,
    ja4: &'static str,
}

const CLIENTS: [Client; 8] = [
    Client {
        ja3: (
            "771,49200-49196-49192-49188-49172-49162-165-163-161-159-107-106-105-104-57-56-55-54-\
            136-135-134-133-49202-49198-49194-49190-49167-49157-157-61-53-132-49199-49195-49191-\
            49187-49171-49161-164-162-160-158-103-64-63-62-51-50-49-48-154-153-152-151-69-68-67-\
            66-49201-49197-49193-49189-49166-49156-156-60-47-150-65-49170-49160-22-19-16-13-49165-\
            49155-10-7-49169-49159-49164-49154-5-4-255,11-10-35-13-15,23-25-24-22,0-1-2",
            "b288289af2999820648eb3ca4d8304c5",
        ),
        versions: &[],
        protocol: "",
        signatures: "0601,0602,0603,0501,0502,0503,0401,0402,0403,0301,0302,0303,0201,0202,0203",
        ja4: "t12i860500_e18388e7f3a3_a1e935682795",
    },
    Client {
        ja3: (
            "769,57-56-53-22-19-10-51-50-47-154-153-150-5-4-21-18-9-20-17-8-6-3-255,0,,",
            "06a92bf69b367389d2feb0d70501ddfe",
        ),
        versions: &[],
        protocol: "",
        signatures: "",
        ja4: "t10d230100_6a57a6f57151_000000000000",
    },
    Client {
        ja3: (
            "771,4865-4866-4867-49196-49195-49188-49187-49162-49161-52393-49200-49199-49192-49191-\
            49172-49171-52392-157-156-61-60-53-47-49160-49170-10,65281-0-23-13-5-18-16-11-51-45-\
            43-10-21,29-23-24-25,0",
            "6fa3244afc6bb6f9fad207b6b52af26b",
        ),
        versions: &[0x0304, 0x0303, 0x0302, 0x0301],
        protocol: "h2",
        signatures: "0403,0804,0401,0503,0203,0805,0805,0501,0806,0601,0201",
        ja4: "t13d2613h2_2802a3db6c62_845d286b0d67",
    },
    Client {
        ja3: (
            "771,4865-4866-4867-49195-49199-49196-49200-52393-52392-49171-49172-156-157-47-53-10,\
            0-23-65281-10-11-35-16-5-13-18-51-45-43-27-21,29-23-24,0",
            "66918128f1b9b03303d77c6f2eefd128",
        ),
        versions: &[0x2a2a, 0x0304, 0x0303, 0x0302, 0x0301],
        protocol: "h2",
        signatures: "0403,0804,0401,0503,0805,0501,0806,0601,0201",
        ja4: "t13d1615h2_46e7e9700bed_45f260be83e2",
    },
    Client {
        ja3: (
            "771,4865-4867-4866-49195-49199-52393-52392-49196-49200-49162-49161-49171-49172-156-\
            157-47-53,0-23-65281-10-11-35-16-5-34-51-43-13-45-28-21,29-23-24-25-256-257,0",
            "579ccef312d18482fc42e2b822ca2430",
        ),
        versions: &[0x0304, 0x0303],
        protocol: "h2",
        signatures: "0403,0503,0603,0804,0805,0806,0401,0501,0601,0203,0201",
        ja4: "t13d1715h2_5b57614c22b0_3d5424432f57",
    },
    Client {
        ja3: (
            "771,49196-49195-49200-49199-49188-49187-49192-49191-49162-49161-49172-49171-157-156-\
            61-60-53-47-10,0-5-10-11-13-35-16-23-65281,29-23-24,0",
            "28a2c9bd18a11de089ef85a160da29e4",
        ),
        versions: &[],
        protocol: "h2",
        signatures: "0804,0805,0806,0401,0501,0201,0403,0503,0203,0202,0601,0603",
        ja4: "t12d1909h2_d83cc789557e_7af1ed941c26",
    },
    Client {
        ja3: (
            "771,4865-4866-4867,17513-57-0-13-43-10-27-51-16-42-45-41,29-23-24,",
            "520f70ad3da22c0f1fca381c5716a209",
        ),
        versions: &[0x0304],
        protocol: "h3",
        signatures: "0403,0804,0401,0503,0805,0501,0806,0601,0201",
        ja4: "q13d0312h3_55b375c5d22e_73e2d9e6cde6",
    },
    Client {
        ja3: (
            "771,4865-4866-4867,45-27-17513-13-43-0-10-57-16-51,29-23-24,",
            "0cda1bd7f270e894ed5de2af2f06cb80",
        ),
        versions: &[0x0304],
        protocol: "h3",
        signatures: "0403,0804,0401,0503,0805,0501,0806,0601,0201",
        ja4: "q13d0310h3_55b375c5d22e_cd85d2d88918",
    },
];

#[test]
fn clients_in_public_captures() {
    for client in CLIENTS {
        let (text, hash) = client.ja3;
        let hello = Spec {
            versions: client.versions.to_vec(),
            protocols: vec![client.protocol.into()],
            signatures: list(client.signatures),
            ..Spec::of_ja3(text)
        }
        .hello();
        let ja3 = Ja3::new(&hello);
        assert_eq!((ja3.text(), ja3.hashed().as_str()), (text, hash));
        let is_quic = client.ja4.starts_with('q');
        let transport = if is_quic { Transport::Quic } else { Transport::Tcp };
        assert_eq!(Ja4::new(&hello, transport).hashed(), client.ja4);
    }
}

fn head(spec: &Spec) -> String {
    let hashed = spec.ja4().hashed();
    hashed.split('_').next().unwrap().to_owned()
}

#[test]
fn the_protocol_is_told_by_its_ends() {
    // The description's own examples, and the rules around them.
    let examples: [(&[u8], &str); 13] = [
        (b"h2", "h2"),
        (b"http/1.1", "h1"),
        (b"x", "xx"),
        (b"", "00"),
        (&[0xab], "ab"),
        (&[0x20], "20"),
        (&[0xab, 0xcd], "ad"),
        (&[0x20, 0x61], "21"),
        (&[0x30, 0xab], "3b"),
        (&[0x61, 0x20], "60"),
        (&[0x30, 0x31, 0xab, 0xcd], "3d"),
        (&[0x30, 0xab, 0xcd, 0x31], "01"),
        // GREASE is no number of two bytes here.
        (&[0x0a, 0x0a], "0a"),
    ];
    for (protocol, ends) in examples {
        let protocols = vec![protocol.to_vec(), b"other".to_vec()];
        let spec = Spec { protocols, extensions: list("0010,002b"), ..Spec::default() };
        assert_eq!(head(&spec), format!("t13i0002{ends}"), "{protocol:x?}");
    }
    let none = Spec { protocols: Vec::new(), extensions: list("0010,002b"), ..Spec::default() };
    assert_eq!(head(&none), "t13i000200");
    let absent = Spec { extensions: list("002b"), ..Spec::default() };
    assert_eq!(head(&absent), "t13i000100");
}

#[test]
fn versions_have_two_characters() {
    let legacy = |version| head(&Spec { legacy_version: version, ..Spec::default() });
    for (version, name) in [
        (0x0304, "13"),
        (0x0303, "12"),
        (0x0302, "11"),
        (0x0301, "10"),
        (0x0300, "s3"),
        (0x0002, "s2"),
        (0x0305, "00"),
    ] {
        assert_eq!(legacy(version), format!("t{name}i000000"), "{version:x}");
    }
    let offered = |versions: &[u16]| {
        let versions = versions.to_vec();
        head(&Spec { versions, extensions: list("002b"), ..Spec::default() })
    };
    assert_eq!(offered(&[0x0301, 0x0304, 0x0303]), "t13i000100");
    assert_eq!(offered(&[0xfafa, 0x0303]), "t12i000100");
    assert_eq!(offered(&[0x7a7a]), "t00i000100");
    assert_eq!(offered(&[0x7f1c, 0x0303]), "t00i000100", "a draft is the highest");
}

#[test]
fn counts_end_at_99_and_lists_do_not() {
    let spec = |n: u16| Spec {
        ciphers: (0..n).map(|i| 0x1300 + i).collect(),
        extensions: (100..100 + n).collect(),
        ..Spec::default()
    };
    let heads = [99, 100, 200].map(|n| head(&spec(n)));
    assert_eq!(heads, ["t12i999900", "t12i999900", "t12i999900"]);
    assert_ne!(spec(100).ja4().hashed(), spec(200).ja4().hashed());
    assert!(spec(100).ja4().raw().contains("1363"));
}

#[test]
fn empty_lists_are_zeros() {
    assert_eq!(Spec::default().ja4().hashed(), "t12i000000_000000000000_000000000000");
    assert_eq!(Spec::default().ja4().raw(), "t12i000000__");
    let known_from_the_head = Spec { extensions: list("0000,0010"), ..Spec::default() };
    assert_eq!(known_from_the_head.ja4().hashed(), "t12d0002h2_000000000000_000000000000");
}

#[test]
fn grease_is_left_out_everywhere() {
    let mut greased = example();
    greased.ciphers.insert(0, 0x2a2a);
    greased.extensions.insert(0, 0x8a8a);
    greased.extensions.push(0x1a1a);
    greased.signatures.insert(3, 0x5a5a);
    greased.versions.insert(0, 0xeaea);
    greased.groups.insert(0, 0xcaca);
    assert_eq!(greased.ja4(), example().ja4());
    assert_eq!(Ja3::new(&greased.hello()), Ja3::new(&example().hello()));
    // Two bytes that differ are no GREASE.
    greased.ciphers.push(0x0a1a);
    assert_ne!(greased.ja4(), example().ja4());
}

#[test]
fn what_is_no_hello() {
    let message = example().message();
    for at in 0..message.len() {
        let short = ClientHello::from_handshake(&message[..at]);
        assert_eq!(short, Err(HelloError::Incomplete), "{at}");
    }
    assert_eq!(ClientHello::from_handshake(&[2, 0, 0, 0]), Err(HelloError::NotHello));
    assert_eq!(ClientHello::from_handshake(&[1, 0, 0, 0]), Err(HelloError::Malformed));
    assert_eq!(ClientHello::from_handshake(&[1, 1, 0, 0]), Err(HelloError::Malformed));
    assert_eq!(ClientHello::from_records(b"GET / HTTP/1.1\r\n"), Err(HelloError::NotHello));
    assert_eq!(ClientHello::from_records(&[22, 3, 1, 0, 0]), Err(HelloError::Malformed));
    assert_eq!(ClientHello::from_records(&[22, 3, 1, 0x40, 1]), Err(HelloError::Malformed));
}
