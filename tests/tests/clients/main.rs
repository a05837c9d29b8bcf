//! Real clients on many TLS libraries, through native XDP: each is known by the JA4 that its hello
//! has on the wire, found by a second implementation, and a block of that JA4 stops it and nobody
//! else.

mod stacks;

use std::process::Command;

use aya::maps::{HashMap, Map, MapData};
use portcullis_common::ABI_VERSION;
use portcullis_common::names::pinned;
use portcullis_common::net::{Addr, FlowInfo, FlowKey, TCP};
use portcullis_tests::agent::Agent;
use portcullis_tests::netns::{Host, INTERFACE};
use portcullis_tests::scenario::{Family, SOON, Scene};
use portcullis_tests::switch_port::{Echoes, PriorityTags};
use portcullis_tests::wire::{Sent, Wire};
use portcullis_tests::{ja4, wait};
use stacks::{Clients, Fared, Stack};

const PREFIX: &str = "pcx-clients";
const HOSTS: usize = 2;
const DROPPED: &str = "portcullis_packets_total{reason=\"drop_denied\"}";

/// A scene with its agent and a capture before it.
struct Watched<'a> {
    scene: &'a Scene,
    agent: Agent<'a>,
    clients: Clients,
    wire: Wire,
    _echoes: Echoes,
}

impl<'a> Watched<'a> {
    fn new(scene: &'a Scene) -> Self {
        scene.lab.clients().iter().for_each(send_segments_by_themselves);
        // Clients that are refused at once end at once.
        let echoes = Echoes::of_the_server(&scene.lab).expect("a program");
        let config = "kernel.attach = \"xdp-native\"\nenforce.answer = \"reset\"";
        Self {
            agent: scene.agent(config).expect("the agent"),
            clients: Clients::trusting(&scene.lab, &scene.nginx.certs().ca).expect("clients"),
            wire: Wire::to_the_server(&scene.lab).expect("a capture"),
            _echoes: echoes,
            scene,
        }
    }

    /// Lets a client ask; how it fared, and what it sent on each of its connections.
    fn ask(&mut self, stack: Stack, family: Family) -> (Fared, Vec<Sent>) {
        // On two hosts in turn: the kernel reports eight unknown hellos a second of one.
        let host = self.scene.lab.client(stack as usize % HOSTS);
        let server = self.scene.server(family);
        let fared = self.clients.ask(stack, host, server).expect("the client runs");
        let connections = self.wire.connections().expect("a capture");
        let to_the_server = connections.into_iter().filter(|sent| sent.server == server);
        (fared, to_the_server.filter(|sent| !sent.bytes().is_empty()).collect())
    }

    /// The JA4 of a client, which is served, by its hellos on the wire. The agent knows each of its
    /// connections by the same one.
    fn learn(&mut self, stack: Stack, family: Family) -> String {
        let (fared, connections) = self.ask(stack, family);
        assert!(fared.served, "{stack:?} {family:?}: {}", fared.said);
        let found: Vec<String> = connections.iter().map(|sent| self.known(stack, sent)).collect();
        found.into_iter().next().expect("a connection")
    }

    fn known(&self, stack: Stack, sent: &Sent) -> String {
        let bytes = sent.bytes();
        let by_the_wire = ja4::of(&bytes).expect("a hello");
        let what = format!("{stack:?} to be known as {by_the_wire}");
        let by_the_agent = wait::until(SOON, &what, || Ok(self.name_of(sent))).expect("a name");
        assert_eq!(by_the_agent, by_the_wire, "{stack:?}");

        let hello = 5 + usize::from(u16::from_be_bytes([bytes[3], bytes[4]]));
        let segments = sent.segments_of(hello);
        println!("{stack:?} {}: {hello} bytes, {segments} segments, {by_the_wire}", sent.client);
        if stack.is_post_quantum() {
            assert!(segments > 1, "{stack:?}");
        }
        by_the_wire
    }

    /// What the agent calls the fingerprint that the kernel has for a connection.
    fn name_of(&self, sent: &Sent) -> Option<String> {
        let flows = Map::LruHashMap(self.pinned(pinned::FLOWS));
        let flows = HashMap::<_, FlowKey, FlowInfo>::try_from(flows).expect("flows");
        let known = Map::HashMap(self.pinned(pinned::KNOWN));
        let known = HashMap::<_, u64, [[u8; 8]; 5]>::try_from(known).expect("what is known");
        let key = flows.get(&flow_of(sent), 0).ok()?.fingerprint;
        let name = known.get(&key, 0).ok()?.concat();
        Some(String::from_utf8(name).expect("text").trim_end_matches('\0').to_owned())
    }

    fn pinned(&self, map: &str) -> MapData {
        let maps = self.scene.lab.pin_dir().join(format!("maps-v{ABI_VERSION}"));
        MapData::from_pin(maps.join(map)).expect("it is pinned")
    }

    fn dropped(&self) -> f64 {
        self.agent.metric(DROPPED).expect("metrics").expect("a metric")
    }
}

/// Else the kernel hands a hello of two segments from host to host in one piece.
fn send_segments_by_themselves(host: &Host) {
    let mut command = Command::new("ip");
    command.args(["link", "set", "dev", INTERFACE, "gso_max_segs", "1"]);
    assert!(host.output(command).expect("ip runs").status.success());
}

/// Whether there are connections, and all began with a hello of this JA4.
fn all_have(connections: &[Sent], ja4: &str) -> bool {
    let has = |sent: &Sent| ja4::of(&sent.bytes()).is_ok_and(|found| found == ja4);
    !connections.is_empty() && connections.iter().all(has)
}

fn flow_of(sent: &Sent) -> FlowKey {
    let address = |ip| match ip {
        std::net::IpAddr::V4(v4) => Addr::from_v4(v4.octets()),
        std::net::IpAddr::V6(v6) => Addr(v6.octets()),
    };
    FlowKey {
        local: address(sent.server.ip()),
        remote: address(sent.client.ip()),
        local_port: sent.server.port(),
        remote_port: sent.client.port(),
        protocol: TCP,
    }
}

#[test]
fn each_is_known_and_blocked_by_its_ja4_over_ipv4_and_ipv6() {
    let scene = Scene::new(PREFIX, HOSTS).expect("a scene");
    let mut watched = Watched::new(&scene);
    let ja4s = Stack::ALL.map(|stack| {
        let [v4, v6] = [Family::V4, Family::V6].map(|family| watched.learn(stack, family));
        assert_eq!(v4, v6, "{stack:?}");
        v4
    });
    for (index, (stack, ja4)) in Stack::ALL.into_iter().zip(&ja4s).enumerate() {
        watched.agent.json("block", &[ja4]).expect("a block");
        for family in [Family::V4, Family::V6] {
            let before = watched.dropped();
            let (fared, connections) = watched.ask(stack, family);
            assert!(!fared.served, "{stack:?} {family:?}: {}", fared.said);
            assert!(all_have(&connections, ja4), "{stack:?} {family:?}: {connections:?}");
            assert!(watched.dropped() > before, "{stack:?} {family:?}");
        }
        // The next one that goes by another name, whose own block has not been or is over.
        let mut others = (1..Stack::ALL.len()).map(|step| (index + step) % Stack::ALL.len());
        let other = others.find(|other| ja4s[*other] != *ja4).expect("another client");
        let (fared, _) = watched.ask(Stack::ALL[other], Family::V4);
        assert!(fared.served, "{:?}: {}", Stack::ALL[other], fared.said);
        watched.agent.command("unblock", &[ja4]).expect("the command runs");
    }
}

#[test]
fn each_is_known_and_blocked_behind_a_vlan_tag() {
    let scene = Scene::new(PREFIX, HOSTS).expect("a scene");
    let mut watched = Watched::new(&scene);
    let _tags = PriorityTags::on_the_way_to_the_server(&scene.lab).expect("tags");
    for stack in Stack::ALL {
        let ja4 = watched.learn(stack, Family::V4);
        watched.agent.json("block", &[&ja4]).expect("a block");
        let (fared, connections) = watched.ask(stack, Family::V4);
        assert!(!fared.served, "{stack:?}: {}", fared.said);
        assert!(all_have(&connections, &ja4), "{stack:?}: {connections:?}");
        assert!(connections.iter().all(|sent| sent.tagged), "{stack:?}");
        watched.agent.command("unblock", &[&ja4]).expect("the command runs");
    }
}
