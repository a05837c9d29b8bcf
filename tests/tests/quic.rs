//! Fingerprints of QUIC clients: their first packets reach the agent, which learns what they are.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;

use aya::maps::{HashMap, Map, MapData};
use portcullis::fingerprint::{ClientHello, Ja4, Transport};
use portcullis_common::ABI_VERSION;
use portcullis_common::names::pinned;
use portcullis_common::net::{FlowInfo, FlowKey, UDP};
use portcullis_tests::agent::Agent;
use portcullis_tests::netns::{Host, Lab};
use portcullis_tests::quic::QuicClient;
use portcullis_tests::scenario::SOON;
use portcullis_tests::wait;
use rustls::quic::Version;

const PREFIX: &str = "pcx-quic";
const PORT: u16 = 443;

/// Sends datagrams to the server; the port they come from.
fn send(client: &Host, server: &Host, datagrams: &[Vec<u8>]) -> u16 {
    client
        .run(|| {
            let socket = UdpSocket::bind((client.v4(), 0))?;
            for datagram in datagrams {
                // One after the other may be told that nobody listens.
                while socket.send_to(datagram, (server.v4(), PORT)).is_err() {}
            }
            Ok(socket.local_addr()?.port())
        })
        .expect("datagrams are sent")
}

fn pinned_map(lab: &Lab, name: &str, make: fn(MapData) -> Map) -> Map {
    let dir: PathBuf = lab.pin_dir().join(format!("maps-v{ABI_VERSION}"));
    make(MapData::from_pin(dir.join(name)).expect("it is pinned"))
}

fn kind(kind: &str) -> String {
    format!("portcullis_fingerprints_total{{kind=\"{kind}\"}}")
}

fn clients_are_learned(attach: &str) {
    let lab = Lab::new(PREFIX, 2).expect("a laboratory");
    let agent = Agent::start(&lab, &format!("kernel.attach = \"{attach}\"")).expect("the agent");
    let (server, client) = (lab.server(), lab.client(0));

    // In two datagrams, the second half first, as a long hello may come.
    let first =
        QuicClient::new(Version::V1, *b"\x83\x94\xc8\xf0\x3e\x51\x57\x08").expect("a hello");
    let halves = [(0, 100, first.message.len()), (1, 0, 100)];
    let datagrams = halves.map(|(n, from, to)| first.datagram(n, from, to).expect("a packet"));
    let port = send(client, server, &datagrams);
    agent.wait_for_metric(SOON, &kind("quic_hellos"), |n| n == 1.0).expect("a hello");

    let second =
        QuicClient::new(Version::V2, *b"\x01\x02\x03\x04\x05\x06\x07\x08").expect("a hello");
    let whole = second.datagram(0, 0, second.message.len()).expect("a packet");
    send(lab.client(1), server, &[whole]);
    agent.wait_for_metric(SOON, &kind("quic_hellos"), |n| n == 2.0).expect("another");

    let ja4 = |client: &QuicClient| {
        let hello = ClientHello::from_handshake(&client.message).expect("a hello");
        Ja4::new(&hello, Transport::Quic).hashed()
    };
    assert_eq!(ja4(&first), ja4(&second), "the same software");
    assert_eq!(agent.metric(&kind("learned")).unwrap(), Some(1.0));
    assert_eq!(agent.metric(&kind("quic_datagrams")).unwrap(), Some(3.0));

    let flows = pinned_map(&lab, pinned::FLOWS, Map::LruHashMap);
    let flows = HashMap::<_, FlowKey, FlowInfo>::try_from(flows).expect("flows");
    let flow = flows
        .iter()
        .filter_map(Result::ok)
        .find(|(flow, _)| (flow.remote_port, flow.protocol) == (port, UDP));
    let (flow, info) = flow.expect("the flow is there");
    assert_eq!(flow.local_port, PORT);
    let known = pinned_map(&lab, pinned::KNOWN, Map::HashMap);
    let known = HashMap::<_, u64, [[u8; 8]; 5]>::try_from(known).expect("what is known");
    let name = known.get(&info.fingerprint, 0).expect("its fingerprint is known");
    let name = String::from_utf8(name.concat()).expect("text");
    assert_eq!(name.trim_end_matches('\0'), ja4(&first));
}

#[test]
fn by_xdp() {
    clients_are_learned("xdp-native");
}

#[test]
fn by_tc() {
    clients_are_learned("tc");
}

/// A port of the server where somebody listens, and the packets dropped before they get there.
struct Listener<'lab> {
    agent: &'lab Agent<'lab>,
    socket: UdpSocket,
}

impl Listener<'_> {
    fn dropped(&self) -> f64 {
        let dropped = self.agent.metric("portcullis_packets_total{reason=\"drop_denied\"}");
        dropped.expect("metrics").expect("a metric")
    }

    /// Whether a datagram from that port gets here.
    fn hears(&self, from: &UdpSocket) -> bool {
        let before = self.dropped();
        from.send(b"anything").expect("it is sent");
        wait::until(SOON, "a datagram to arrive or to be dropped", || {
            match self.socket.recv(&mut [0; 16]) {
                Ok(_) => Ok(Some(true)),
                Err(_) => Ok((self.dropped() > before).then_some(false)),
            }
        })
        .expect("one of both")
    }
}

/// Rules that were there before a QUIC client's hello hold for its flow once the hello is learned, and
/// later ones for the flows that are known by then.
#[test]
fn rules_hold_for_the_flows_of_hellos_that_are_learned() {
    let lab = Lab::new(PREFIX, 2).expect("a laboratory");
    let agent = Agent::start(&lab, "").expect("the agent");
    let server = SocketAddr::from((lab.server().v4(), PORT));
    let socket = lab.server().run(|| Ok(UdpSocket::bind(server)?)).expect("a port");
    socket.set_nonblocking(true).expect("a socket");
    let listener = Listener { agent: &agent, socket };
    let [blocked, other] = [0, 1].map(|at| lab.client(at));
    let from = |host: &Host| {
        let connected = host.run(|| {
            let socket = UdpSocket::bind((host.v4(), 0))?;
            socket.connect(server)?;
            Ok(socket)
        });
        connected.expect("a port")
    };

    let quic = QuicClient::new(Version::V1, [7; 8]).expect("a hello");
    let hello = ClientHello::from_handshake(&quic.message).expect("a hello");
    let ja4 = Ja4::new(&hello, Transport::Quic).hashed();
    agent.json("block", &[&blocked.v4().to_string(), "--ja4", &ja4]).expect("a block");

    let (here, elsewhere, no_quic) = (from(blocked), from(other), from(blocked));
    let first = quic.datagram(0, 0, quic.message.len()).expect("a packet");
    for (flow, hellos) in [(&here, 1.0), (&elsewhere, 2.0)] {
        flow.send(&first).expect("it is sent");
        agent.wait_for_metric(SOON, &kind("quic_hellos"), |n| n == hellos).expect("a hello");
        // The kernel can't read the first packet: it gets through.
        wait::until(SOON, "the hello", || Ok(listener.socket.recv(&mut [0; 2_048]).ok()))
            .expect("it arrives");
    }
    assert!(!listener.hears(&here), "the address and the JA4");
    assert!(listener.hears(&elsewhere), "the JA4 from another address");
    assert!(listener.hears(&no_quic), "the address without the JA4");

    agent.json("block", &[&ja4]).expect("a block");
    assert!(!listener.hears(&elsewhere), "the JA4 from anywhere");
    agent.json("unblock", &[&ja4]).expect("unblocked");
    assert!(listener.hears(&elsewhere) && !listener.hears(&here));

    let ends = (elsewhere.local_addr().expect("a port"), server);
    agent.json("block", &[&format!("{}>{}/udp", ends.0, ends.1)]).expect("a block");
    assert!(!listener.hears(&elsewhere), "the flow");
    assert!(listener.hears(&from(other)), "another flow from there");
    // There are no sockets to close.
    let failed = agent.metric("portcullis_socket_close_failures_total").expect("metrics");
    assert_eq!(failed, Some(0.0));
}

/// What only looks like QUIC costs nothing but a count, and more of it than the budget is left out.
#[test]
fn floods_are_bounded() {
    let lab = Lab::new(PREFIX, 1).expect("a laboratory");
    let agent = Agent::start(&lab, "").expect("the agent");
    let client = QuicClient::new(Version::V1, [9; 8]).expect("a hello");
    let mut packet = client.datagram(0, 0, client.message.len()).expect("a packet");
    // Protected with other keys than its connection id leads to.
    packet[8] ^= 1;
    send(lab.client(0), lab.server(), &vec![packet; 20_000]);
    let left_out = "portcullis_losses_total{loss=\"quic_unsampled\"}";
    agent.wait_for_metric(SOON, left_out, |n| n > 0.0).expect("a bound");
    let undecryptable = kind("quic_undecryptable");
    agent.wait_for_metric(SOON, &undecryptable, |n| n > 0.0).expect("some are looked at");
    assert_eq!(agent.metric(&kind("quic_hellos")).unwrap(), Some(0.0));
}
