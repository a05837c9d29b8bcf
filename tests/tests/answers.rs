//! Answers in the place of silence: are they what the RFCs ask for, byte by byte; do real clients
//! understand them; and is everything that must not be answered met with silence?

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use aya::programs::{SchedClassifier, Xdp, XdpMode};
use aya::{TestRun as _, TestRunOptions};
use portcullis::config::Answer;
use portcullis_common::names::program;
use portcullis_tests::netns::{Host, in_namespace};
use portcullis_tests::packet::extension::Extension;
use portcullis_tests::packet::frame::{Fragment, Frame, Transport, ethertype};
use portcullis_tests::packet::harness::{Hook, Kernel};
use portcullis_tests::scenario::{Family, SOON, Scene};

const PREFIX: &str = "pcx-answer";
const V4: &str = "203.0.113.9";
const V6: &str = "2001:db8::9";

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

fn answering(per_second: u32) -> Kernel {
    let kernel = Kernel::with(|config| {
        config.enforce.answer = Answer::Reset;
        config.enforce.answers_per_second = per_second;
    });
    let mut kernel = kernel.expect("the programs load");
    kernel.block(V4).expect("blocked");
    kernel.block(V6).expect("blocked");
    kernel
}

fn from(source: &str) -> Frame {
    Frame::from(source.parse().expect("an address"))
}

/// The frame that goes back; `None` when the program drops it.
fn answer(kernel: &Kernel, hook: Hook, frame: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0; 4_096];
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.data_out = Some(&mut out);
    let named = |name| kernel.loaded.ebpf.program(name).expect("there is one");
    let (result, back, dropped) = match hook {
        Hook::Xdp => {
            let xdp = <&Xdp>::try_from(named(program::XDP)).expect("XDP");
            // XDP_TX, XDP_DROP
            (xdp.test_run(options), 3, 1)
        }
        Hook::Tc | Hook::TcL3 => {
            let name = if hook == Hook::Tc { program::TC } else { program::TC_L3 };
            let tc = <&SchedClassifier>::try_from(named(name)).expect("TC");
            // TC_ACT_REDIRECT, TC_ACT_SHOT
            (tc.test_run(options), 7, 2)
        }
    };
    let result = result.expect("it runs");
    assert!([back, dropped].contains(&result.return_value), "{hook:?}: {}", result.return_value);
    let len = result.data_size_out as usize;
    (result.return_value == back).then(|| out.get(..len).expect("it fits").to_vec())
}

/// RFC 1071: over all pieces with a right checksum among them, zero.
fn sum(pieces: &[&[u8]]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| low.into());
    let mut sum: u32 = pieces.iter().flat_map(|piece| piece.chunks(2)).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// What the IP packet at `network_at` of an answer carries, its header checked against that of
/// the frame it answers.
fn carried<'a>(reply: &'a [u8], asked: &[u8], network_at: usize, protocol: u8) -> &'a [u8] {
    assert_eq!(reply[..6], asked[6..12]);
    assert_eq!(reply[6..12], asked[..6]);
    assert_eq!(reply[12..network_at], asked[12..network_at], "tags and all");
    let (packet, asked) = (&reply[network_at..], &asked[network_at..]);
    if packet[0] >> 4 == 4 {
        assert_eq!(packet[0], 0x45);
        assert_eq!(sum(&[&packet[..20]]), 0);
        assert_eq!(usize::from(packet[2]) << 8 | usize::from(packet[3]), packet.len());
        assert_eq!((packet[8], packet[9]), (64, protocol));
        assert_eq!((&packet[12..16], &packet[16..20]), (&asked[16..20], &asked[12..16]));
        &packet[20..]
    } else {
        assert_eq!(packet[0], 0x60);
        assert_eq!(usize::from(packet[4]) << 8 | usize::from(packet[5]), packet.len() - 40);
        assert_eq!((packet[6], packet[7]), (protocol, 64));
        assert_eq!((&packet[8..24], &packet[24..40]), (&asked[24..40], &asked[8..24]));
        &packet[40..]
    }
}

/// Addresses, protocol and length, as checksums cover them.
fn pseudo(reply: &[u8], network_at: usize, protocol: u8, len: usize) -> Vec<u8> {
    let packet = &reply[network_at..];
    let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
    [addresses, &(len as u32).to_be_bytes(), &[0, 0, 0, protocol]].concat()
}

/// Frames with no VLAN tag up to four.
fn with_tags(frame: &Frame) -> Vec<Frame> {
    let tags = [ethertype::DOT1AD, ethertype::DOT1Q, ethertype::QINQ, ethertype::DOT1Q];
    (0..=4).map(|count| frame.clone().tags(&tags[..count])).collect()
}

#[test]
fn tcp_is_reset_by_the_rules() {
    let kernel = answering(1_000_000);
    // Flags and length of the data; flags, sequence and acknowledgement of the reset.
    let segments = [
        (SYN, 0, RST | ACK, 0, 1_001),
        (SYN, 10, RST | ACK, 0, 1_011),
        (FIN, 3, RST | ACK, 0, 1_004),
        (0, 1_200, RST | ACK, 0, 2_200),
        (ACK, 10, RST, 2_000, 0),
        (SYN | ACK, 0, RST, 2_000, 0),
        (FIN | ACK, 0, RST, 2_000, 0),
    ];
    for source in [V4, V6] {
        for (flags, data, reset, sequence, acknowledgement) in segments {
            for frame in with_tags(&from(source).payload(vec![7; data])) {
                let at = frame.network_at();
                let mut asked = frame.bytes();
                let tcp_at = at + if frame.source.is_ipv4() { 20 } else { 40 };
                asked[tcp_at + 13] = flags;
                for hook in Hook::ALL {
                    let reply = answer(&kernel, hook, &asked).expect("an answer");
                    let tcp = carried(&reply, &asked, at, 6);
                    assert_eq!(tcp.len(), 20);
                    assert_eq!((&tcp[..2], &tcp[2..4]), (&[1, 187][..], &[156, 64][..]));
                    let number =
                        |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
                    assert_eq!((number(4), number(8)), (sequence, acknowledgement), "{flags:x}");
                    assert_eq!((tcp[12], tcp[13]), (0x50, reset));
                    assert_eq!(sum(&[&pseudo(&reply, at, 6, 20), tcp]), 0, "{hook:?}");
                }
            }
        }
    }
}

#[test]
fn the_rest_hears_that_it_is_prohibited() {
    let kernel = answering(1_000_000);
    for source in [V4, V6] {
        let is_v4 = source == V4;
        for transport in [Transport::Udp { source: 40_000, destination: 443 }, Transport::Icmp] {
            for payload in [0, 1_200] {
                let plain = from(source).transport(transport).payload(vec![7; payload]);
                for frame in with_tags(&plain) {
                    let (at, asked) = (frame.network_at(), frame.bytes());
                    for hook in Hook::ALL {
                        let reply = answer(&kernel, hook, &asked).expect("an answer");
                        let protocol = if is_v4 { 1 } else { 58 };
                        let icmp = carried(&reply, &asked, at, protocol);
                        let (kind, quoted) = if is_v4 { ([3, 13], 28) } else { ([1, 1], 48) };
                        assert_eq!(icmp[..2], kind);
                        assert_eq!(icmp[4..8], [0; 4]);
                        assert_eq!(icmp[8..], asked[at..at + quoted]);
                        let pseudo = pseudo(&reply, at, protocol, icmp.len());
                        let covered = if is_v4 { sum(&[icmp]) } else { sum(&[&pseudo, icmp]) };
                        assert_eq!(covered, 0, "{hook:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_must_not_be_answered_is_not() {
    let kernel = answering(1_000_000);
    let silent = |what: &str, asked: &[u8]| {
        for hook in Hook::ALL {
            assert_eq!(answer(&kernel, hook, asked), None, "{hook:?}: {what}");
        }
    };
    let changed = |frame: &Frame, at: usize, value: u8| {
        let mut bytes = frame.bytes();
        bytes[at] = value;
        bytes
    };
    for source in [V4, V6] {
        let tcp = from(source);
        let transport_at = 14 + if source == V4 { 20 } else { 40 };
        for flags in [RST, RST | ACK] {
            silent("a reset", &changed(&tcp, transport_at + 13, flags));
        }
        silent("a header that is too short", &changed(&tcp, transport_at + 12, 4 << 4));
        silent("a header past the end", &changed(&tcp, transport_at + 12, 15 << 4));
        silent("to a group", &changed(&tcp, 0, 0x33));
        silent("from a group", &changed(&tcp, 6, 0x33));
        let icmp = tcp.clone().transport(Transport::Icmp);
        for kind in [0, 3, 11, 1, 135, 136] {
            silent("other ICMP", &changed(&icmp, transport_at, kind));
        }
        silent("ESP", &tcp.clone().transport(Transport::Esp).bytes());
        for fragment in [Fragment::FIRST, Fragment::MIDDLE, Fragment::LAST] {
            silent("a fragment", &tcp.clone().fragment(fragment).bytes());
        }
    }
    silent("options", &from(V4).options(2).bytes());
    silent("an extension", &from(V6).extensions(&[Extension::HopByHop]).bytes());
    silent("to a group of hosts", &changed(&from(V4), 30, 224));
    silent("to everybody", &changed(&from(V4), 30, 255));
    silent("to a group of hosts", &changed(&from(V6), 38, 0xff));
    let counts = kernel.loaded.answers.all().expect("counted");
    assert!(counts.iter().all(|(name, count)| *name == "silent" || *count == 0), "{counts:?}");
}

#[test]
fn there_are_not_more_answers_than_configured() {
    let kernel = answering(1);
    let asked = from(V4).bytes();
    // A burst of 100, and perhaps one for each second that this takes.
    let begin = Instant::now();
    let answers = (0..1_000).filter(|_| answer(&kernel, Hook::Xdp, &asked).is_some()).count();
    let most = 102 + begin.elapsed().as_secs() as usize;
    // The kernel may move the test to its other processors.
    let processors = std::thread::available_parallelism().expect("known").get();
    assert!((100..=most * processors).contains(&answers), "{answers}");
    let counts = kernel.loaded.answers.all().expect("counted");
    let of = |wanted| counts.iter().find(|(name, _)| *name == wanted).expect("there is one").1;
    assert_eq!((of("reset"), of("limited")), (answers as u64, 1_000 - answers as u64));
}

#[test]
fn silence_is_what_is_configured_unless_otherwise() {
    let mut kernel = Kernel::new().expect("the programs load");
    kernel.block(V4).expect("blocked");
    for hook in Hook::ALL {
        assert_eq!(answer(&kernel, hook, &from(V4).bytes()), None);
    }
    assert!(kernel.loaded.answers.all().expect("counted").iter().all(|(_, count)| *count == 0));
}

/// There is none to put addresses of interfaces into.
#[test]
fn packets_without_a_link_header_get_no_answer() {
    let kernel = answering(1_000);
    for source in [V4, V6] {
        let frame = from(source).tcp(443).bytes();
        assert_eq!(answer(&kernel, Hook::TcL3, &frame), None);
        assert!(answer(&kernel, Hook::Tc, &frame).is_some());
    }
}

fn address(host: &Host, family: Family) -> IpAddr {
    match family {
        Family::V4 => host.v4().into(),
        Family::V6 => host.v6().into(),
    }
}

/// How a real client's connection attempt and its datagram fail, and that they do so at once.
fn clients_hear_at_once<T>(attach: &str, prepare: impl FnOnce(&Scene) -> T) -> Scene {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let _prepared = prepare(&scene);
    let config = format!("kernel.attach = \"{attach}\"\nenforce.answer = \"reset\"");
    let agent = scene.agent(&config).expect("the agent");
    for family in [Family::V4, Family::V6] {
        let server = scene.server(family);
        // The hosts on one Ethernet know each other: of a blocked neighbour nothing is heard, its
        // questions for addresses included.
        let greet = || Ok(TcpStream::connect_timeout(&server, SOON)?);
        drop(scene.attacker().run(greet).expect("not blocked yet"));
        agent.json("block", &[&address(scene.attacker(), family).to_string()]).expect("blocked");
        let begin = Instant::now();
        let connected = scene.attacker().run(|| Ok(TcpStream::connect_timeout(&server, SOON)));
        let error = connected.expect("a namespace").expect_err("blocked");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{attach} {family:?}");
        assert!(begin.elapsed() < Duration::from_millis(900), "{:?}", begin.elapsed());

        let datagram = || {
            let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any)?;
            socket.connect(SocketAddr::new(server.ip(), 4_433))?;
            socket.set_read_timeout(Some(SOON))?;
            socket.send(b"hello")?;
            Ok(socket.recv(&mut [0]).map_err(|error| error.raw_os_error()))
        };
        let prohibited = match family {
            Family::V4 => libc::EHOSTUNREACH,
            Family::V6 => libc::EACCES,
        };
        let heard = scene.attacker().run(datagram).expect("a namespace");
        assert_eq!(heard, Err(Some(prohibited)), "{attach} {family:?}");
        assert!(scene.is_served(scene.innocent()));
    }
    let metric = |name: &str| agent.metric(name).expect("metrics").expect("there is one");
    assert!(metric("portcullis_answers_total{answer=\"reset\"}") >= 2.0);
    assert_eq!(metric("portcullis_answers_total{answer=\"unreachable\"}"), 2.0);
    agent.stop().expect("stopped");
    scene
}

/// A program that lets everything pass, on the other end of the server's interface.
fn program_of_peer(scene: &Scene) -> Kernel {
    let mut kernel = Kernel::new().expect("the programs load");
    let switch = format!("{}-sw", scene.lab.name());
    in_namespace(&switch, || {
        let program = kernel.loaded.ebpf.program_mut(program::XDP).expect("there is one");
        let xdp = <&mut Xdp>::try_from(program).expect("XDP");
        xdp.attach("srv", XdpMode::Driver).expect("the peer takes it");
    })
    .expect("the switch is there");
    kernel
}

#[test]
fn clients_hear_from_native_xdp_at_once() {
    clients_hear_at_once("xdp-native", program_of_peer);
}

/// A veth interface loses what native XDP sends back, unless its peer has such a program too.
#[test]
fn on_veth_another_hook_answers() {
    let scene = clients_hear_at_once("auto", |_| ());
    let log = std::fs::read_to_string(scene.lab.dir().join("portcullis.log")).expect("a log");
    assert!(log.contains("not xdp-native: enforce.answer is \"reset\""), "{log}");
    assert!(log.contains("attached to eth0 by xdp-generic"), "{log}");
}

#[test]
fn clients_hear_from_tc_at_once() {
    clients_hear_at_once("tc", |_| ());
}

#[test]
fn clients_hear_from_generic_xdp_at_once() {
    clients_hear_at_once("xdp-generic", |_| ());
}
