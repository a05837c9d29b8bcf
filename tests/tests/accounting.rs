//! Is every request that clients sent either seen or among what is counted as lost?

use std::net::{IpAddr, SocketAddr};
use std::thread;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use portcullis_tests::agent::Agent;
use portcullis_tests::client::{Connection, Request};
use portcullis_tests::netns::Host;
use portcullis_tests::scenario::{Family, SOON, Scene};
use portcullis_tests::wait;

const PREFIX: &str = "pcx-count";
const TRANSACTIONS: &str = "portcullis_transactions_total";
const CLIENTS: u16 = 1_000;
/// Requests sent before the first answer is read.
const DEPTH: usize = 4;
const THREADS: usize = 8;

fn request() -> Request {
    Request::get("/tiny").header("User-Agent", "accounting")
}

/// Connections that are kept, each from an address of its own, half of them over IPv6.
fn connect(scene: &Scene, host: &Host, count: u16) -> Vec<Connection> {
    let ends = |n: u16| -> (IpAddr, SocketAddr) {
        match n % 2 {
            0 => (host.nth_v4(n / 2).into(), scene.server(Family::V4)),
            _ => (host.nth_v6(n / 2).into(), scene.server(Family::V6)),
        }
    };
    let connections = host.run(|| {
        (0..count)
            .map(|n| {
                let (from, to) = ends(n);
                scene.client.clone().from(from).connect(to)
            })
            .collect()
    });
    connections.expect("connections")
}

/// Each connection sends [`DEPTH`] requests at a time, `rounds` times; how many were sent and
/// answered.
fn pipeline(connections: &mut [Connection], rounds: usize) -> u64 {
    let requests = vec![request(); DEPTH];
    let share = connections.len().div_ceil(THREADS);
    let exchange = |connections: &mut [Connection]| {
        for _ in 0..rounds {
            for connection in &mut *connections {
                let answers = connection.pipeline(&requests).expect("answers");
                assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
            }
        }
    };
    thread::scope(|scope| {
        for connections in connections.chunks_mut(share) {
            scope.spawn(move || exchange(connections));
        }
    });
    (connections.len() * rounds * DEPTH) as u64
}

/// What the agent says of requests: those it saw, and those in the bytes that it lost.
#[derive(Debug, PartialEq, Eq)]
struct Account {
    seen: u64,
    lost: u64,
}

/// Waits until `sent` requests are accounted for.
fn settle(agent: &Agent<'_>, sent: u64) -> Account {
    let length = request().to_bytes().len() as u64;
    let metric =
        |name: &str| -> anyhow::Result<u64> { Ok(agent.metric(name)?.unwrap_or_default() as u64) };
    let mut last = None;
    let account = wait::until(SOON, "every request to be accounted for", || {
        let bytes = metric("portcullis_lost_bytes_total{loss=\"ring_full_read\"}")?;
        assert_eq!(bytes % length, 0, "whole requests are lost");
        let account = Account { seen: metric(TRANSACTIONS)?, lost: bytes / length };
        let complete = account.seen + account.lost >= sent;
        last = Some(account);
        Ok(if complete { last.take() } else { None })
    });
    account.unwrap_or_else(|error| {
        panic!("{error:#}: {sent} sent, {last:?}\n{}", agent.metrics().expect("metrics"))
    })
}

/// A thousand connections need more descriptors than some shells allow.
fn allow_many_files() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("limits");
}

#[test]
fn a_thousand_clients_that_pipeline_are_seen() {
    allow_many_files();
    let scene = Scene::new(PREFIX, 1).expect("a scene");
    let host = scene.lab.client(0);
    host.add_addresses(CLIENTS / 2).expect("addresses");
    let agent = scene.agent("").expect("the agent");
    let mut connections = connect(&scene, host, CLIENTS);
    let sent = pipeline(&mut connections, 5);
    assert_eq!(sent, 20_000);
    let account = settle(&agent, sent);
    assert_eq!(account.seen + account.lost, sent, "{account:?}");
    println!("{account:?}");

    let status = agent.json("status", &[]).expect("status");
    assert_eq!(status["connections"], u64::from(CLIENTS), "{status}");
    assert_eq!(status["actors"], u64::from(CLIENTS), "each address is a client: {status}");
    assert!(agent.events().unwrap().iter().all(|e| e["event"] != "finding"), "nobody is accused");
    drop(connections);
    agent
        .wait_for_metric(SOON, "portcullis_connections", |open| open == 0.0)
        .expect("closed connections are forgotten");
    assert_eq!(settle(&agent, sent), account, "nothing is counted twice");
}

#[test]
fn what_a_full_ring_buffer_loses_is_counted() {
    const CONNECTIONS: u16 = 40;
    let scene = Scene::new(PREFIX, 1).expect("a scene");
    let host = scene.lab.client(0);
    host.add_addresses(CONNECTIONS / 2).expect("addresses");
    // The clients here are few; what they send is not the matter.
    let config = "capture.ring_bytes = \"64KiB\"\ncapture.idle_timeout = \"1s\"\n\
                  detect.request_rate.enabled = false\n";
    let agent = scene.agent(config).expect("the agent");
    let mut connections = connect(&scene, host, CONNECTIONS);

    let mut sent = pipeline(&mut connections, 2);
    let before = settle(&agent, sent);
    assert_eq!(before.seen + before.lost, sent, "{before:?}");

    // An agent that does not get to run: nobody empties the ring buffer.
    agent.signal(Signal::SIGSTOP).expect("stopped");
    sent += pipeline(&mut connections, 25);
    agent.signal(Signal::SIGCONT).expect("goes on");
    let during = settle(&agent, sent);
    assert!(during.lost > before.lost + 1_000, "the ring buffer was full: {during:?}");
    assert_eq!(during.seen + during.lost, sent, "{during:?}");

    // Afterwards the same connections are read on.
    sent += pipeline(&mut connections, 2);
    let after = settle(&agent, sent);
    assert_eq!(after.seen + after.lost, sent, "{after:?}");
    assert!(after.seen > during.seen, "{during:?} {after:?}");
}
