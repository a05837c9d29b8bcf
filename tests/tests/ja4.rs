//! Blocks of TLS clients by their JA4, with real clients: the block holds from the next hello on, for
//! every address or for one network, and for no other client; it closes what the client has open, and
//! the very first connection of one that the kernel does not know yet.

use std::fs;
use std::net::IpAddr;
use std::thread;

use aya::maps::{HashMap, Map, MapData};
use portcullis_common::ABI_VERSION;
use portcullis_common::names::{capacity, pinned};
use portcullis_common::net::{Addr, FlowInfo, FlowKey};
use portcullis_tests::agent::Agent;
use portcullis_tests::client::Request;
use portcullis_tests::curl::{Curled, curl};
use portcullis_tests::netns::Host;
use portcullis_tests::nginx::Options;
use portcullis_tests::scenario::{Family, SOON, Scene, event};
use portcullis_tests::wait;

const PREFIX: &str = "pcx-ja4";
const LEARNED: &str = "portcullis_fingerprints_total{kind=\"learned\"}";
const HELLOS: &str = "portcullis_fingerprints_total{kind=\"hello_fingerprinted\"}";
const NO_ROOM: &str = "portcullis_fingerprints_total{kind=\"no_room\"}";
const CLOSED: &str = "portcullis_sockets_closed_total";
/// Its statuses when the connection is reset: in the handshake, on sending, on receiving.
const RESET: [i32; 3] = [35, 55, 56];

/// curl's exit status.
fn asks(scene: &Scene, host: &Host, family: Family) -> i32 {
    let ca = &scene.nginx.certs().ca;
    curl(host, ca, scene.server(family), "/api/items", &[], 2).expect("curl runs").exit
}

fn pinned_map(scene: &Scene, name: &str) -> MapData {
    let dir = scene.lab.pin_dir().join(format!("maps-v{ABI_VERSION}"));
    MapData::from_pin(dir.join(name)).expect("it is pinned")
}

/// The only JA4 that the agent has learned.
fn learned(scene: &Scene) -> String {
    let known = Map::HashMap(pinned_map(scene, pinned::KNOWN));
    let known = HashMap::<_, u64, [[u8; 8]; 5]>::try_from(known).expect("what is known");
    let mut names: Vec<_> = known.iter().map(|entry| entry.expect("an entry").1).collect();
    assert_eq!(names.len(), 1, "one client has come");
    let name = names.pop().expect("one").concat();
    String::from_utf8(name).expect("text").trim_end_matches('\0').to_owned()
}

/// The scene, its agent, and what curl is called.
fn with_curls_ja4<T>(attach: &str, test: impl FnOnce(&Scene, &Agent<'_>, &str) -> T) -> T {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let agent = scene.agent(&format!("kernel.attach = \"{attach}\"")).expect("the agent");
    assert_eq!(asks(&scene, scene.attacker(), Family::V4), 0);
    agent.wait_for_metric(SOON, LEARNED, |n| n == 1.0).expect("curl is learned");
    let ja4 = learned(&scene);
    test(&scene, &agent, &ja4)
}

fn a_block_holds_for_one_client_wherever_it_is(attach: &str) {
    with_curls_ja4(attach, |scene, agent, ja4| {
        agent.json("block", &[ja4]).expect("a block");
        for host in [scene.attacker(), scene.innocent()] {
            for family in [Family::V4, Family::V6] {
                assert!(RESET.contains(&asks(scene, host, family)), "{family:?}");
            }
            assert!(scene.is_served(host), "another client on the same address");
        }
        let dropped = agent.metric("portcullis_packets_total{reason=\"drop_denied\"}");
        assert!(dropped.expect("metrics").expect("a metric") > 0.0);
        agent.command("unblock", &[ja4]).expect("the command runs");
        assert_eq!(asks(scene, scene.attacker(), Family::V4), 0);
    });
}

#[test]
fn by_xdp() {
    a_block_holds_for_one_client_wherever_it_is("xdp-native");
}

#[test]
fn by_tc() {
    a_block_holds_for_one_client_wherever_it_is("tc");
}

#[test]
fn with_a_network_it_holds_there_alone() {
    with_curls_ja4("auto", |scene, agent, ja4| {
        let attacker = scene.attacker().v4().to_string();
        agent.json("block", &[&attacker, "--ja4", ja4]).expect("a block");
        assert!(RESET.contains(&asks(scene, scene.attacker(), Family::V4)));
        assert!(scene.is_served(scene.attacker()));
        assert_eq!(asks(scene, scene.innocent(), Family::V4), 0);
    });
}

/// What is answered after some seconds: who gets all of it was not cut off meanwhile.
const SLOW: &str = "/slow";
/// What is answered after an hour: who gets it was cut off.
const ENDLESS: &str = "/endless";

fn slow_scene() -> Scene {
    let body = "x".repeat(3_600);
    let location =
        |path, rate| format!("location = {path} {{ limit_rate {rate}; return 200 {body}; }}\n");
    let server_lines = location(SLOW, 900) + &location(ENDLESS, 1);
    let options = Options { server_lines, ..Options::default() };
    Scene::with(PREFIX, 2, &options).expect("a scene")
}

/// How curl fares with `path`, and for how many seconds it was connected.
fn stays(scene: &Scene, host: &Host, family: Family, path: &str) -> (Curled, f64) {
    let ca = &scene.nginx.certs().ca;
    let times = "%{stderr}%{time_connect} %{time_total}%{stdout}\n%{http_code}";
    let arguments = ["--write-out", times];
    let ended = curl(host, ca, scene.server(family), path, &arguments, 30).expect("curl runs");
    let times = ended.error.lines().last().and_then(|line| line.split_once(' '));
    let (connected, total) = times.expect("two times");
    let second = |text: &str| text.parse::<f64>().expect("a time");
    let open = second(total) - second(connected);
    (ended, open)
}

/// What curl is called, which the kernel does not know any more afterwards.
fn curls_ja4(scene: &Scene) -> String {
    let agent = scene.agent("").expect("the agent");
    assert_eq!(asks(scene, scene.innocent(), Family::V4), 0);
    agent.wait_for_metric(SOON, LEARNED, |n| n == 1.0).expect("curl is learned");
    let ja4 = learned(scene);
    agent.stop().expect("stopped");
    let detached = Agent::command_of(&scene.lab, "detach", &[]).expect("the command runs");
    assert!(detached.status.success(), "{detached:?}");
    ja4
}

/// Connections that NGINX has open.
fn served(scene: &Scene) -> usize {
    let worker = scene.nginx.workers()[0];
    let entries = fs::read_dir(format!("/proc/{worker}/fd")).expect("it runs");
    let targets = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
}

/// The first connection of a client whose JA4 was blocked before the kernel knew it; `block` is for
/// that JA4 and the attacker's address.
fn a_first_connection_is_closed(
    attach: &str,
    family: Family,
    block: impl Fn(&str, IpAddr) -> String,
) {
    let scene = slow_scene();
    let ja4 = curls_ja4(&scene);
    let address = match family {
        Family::V4 => IpAddr::from(scene.attacker().v4()),
        Family::V6 => scene.attacker().v6().into(),
    };
    let config = format!("kernel.attach = \"{attach}\"\nblock = [{}]", block(&ja4, address));
    let mut agent = scene.agent(&config).expect("the agent");
    let blocks = agent.json("blocks", &[]).expect("blocks");
    let mut other = scene.connect(scene.attacker()).expect("another client on the same address");
    assert_eq!(other.request(&Request::get("/tiny")).expect("answered").status, 200);
    let before = served(&scene);

    let (ended, open) = stays(&scene, scene.attacker(), family, ENDLESS);
    assert!(RESET.contains(&ended.exit), "{ended:?}");
    println!("{attach}: a first connection was closed {:.1} ms after it began", open * 1e3);
    wait::until(SOON, "NGINX to free its socket", || Ok((served(&scene) == before).then_some(())))
        .expect("freed");
    let closed = agent.wait_for_event(SOON, "the closure", event("sockets_closed")).unwrap();
    assert_eq!((&closed["id"], &closed["closed"]), (&blocks[0]["id"], &1.into()), "{closed}");
    assert_eq!(agent.metric(CLOSED).expect("metrics"), Some(1.0));

    // From the second one on no hello gets through, and the connection is closed all the same.
    assert!(RESET.contains(&asks(&scene, scene.attacker(), family)));
    agent.wait_for_metric(SOON, CLOSED, |n| n == 2.0).expect("closed too");
    assert_eq!(other.request(&Request::get("/tiny")).expect("answered as before").status, 200);
}

#[test]
fn a_first_connection_is_closed_by_its_ja4_and_xdp() {
    a_first_connection_is_closed("xdp-native", Family::V4, |ja4, _| format!("\"{ja4}\""));
}

#[test]
fn a_first_connection_is_closed_by_its_ja4_and_tc() {
    a_first_connection_is_closed("tc", Family::V6, |ja4, _| format!("\"{ja4}\""));
}

#[test]
fn a_first_connection_is_closed_by_its_ja4_within_a_network() {
    a_first_connection_is_closed("auto", Family::V4, |ja4, address| {
        format!("{{ target = \"{address}\", ja4 = \"{ja4}\" }}")
    });
}

/// Neither of a client elsewhere, nor of one that is allowed, nor on a failsafe port, nor by a rule
/// that counts.
#[test]
fn a_first_connection_stays_where_nothing_drops_it() {
    let scene = slow_scene();
    let ja4 = curls_ja4(&scene);
    let (attacker, innocent) = (scene.attacker().v4(), scene.innocent().v4());
    for config in [
        format!("block = [{{ target = \"{innocent}\", ja4 = \"{ja4}\" }}]"),
        format!("block = [\"{ja4}\"]\nguards.allow = [\"{attacker}\"]"),
        format!("block = [\"{ja4}\"]\nguards.failsafe_tcp_ports = [443]"),
        format!("block = [{{ target = \"{ja4}\", action = \"count\" }}]"),
    ] {
        let agent = scene.agent(&config).expect("the agent");
        let (ended, _) = stays(&scene, scene.attacker(), Family::V4, SLOW);
        assert_eq!((ended.exit, ended.status), (0, 200), "{config}: {ended:?}");
        assert_eq!(agent.metric(LEARNED).expect("metrics"), Some(1.0), "{config}");
        assert_eq!(agent.metric(CLOSED).expect("metrics"), Some(0.0), "{config}");
        agent.stop().expect("stopped");
        Agent::command_of(&scene.lab, "detach", &[]).expect("the command runs");
    }
}

/// Two curls are connected, the attacker's and one that asks for `innocents`, when what `target` makes
/// of curl's JA4 is blocked: how both fare.
fn blocked_while_open(
    innocents: &str,
    target: impl Fn(&Scene, String) -> Vec<String>,
) -> [Curled; 2] {
    let scene = slow_scene();
    let mut agent = scene.agent("").expect("the agent");
    assert_eq!(asks(&scene, scene.attacker(), Family::V4), 0);
    agent.wait_for_metric(SOON, LEARNED, |n| n == 1.0).expect("curl is learned");
    let ja4 = learned(&scene);
    let mut other = scene.connect(scene.attacker()).expect("another client on the same address");
    assert_eq!(other.request(&Request::get("/tiny")).expect("answered").status, 200);

    let connect = |host, family, path| stays(&scene, host, family, path).0;
    let (block, ended) = thread::scope(|scope| {
        let curls = [
            scope.spawn(|| connect(scene.attacker(), Family::V4, ENDLESS)),
            scope.spawn(|| connect(scene.innocent(), Family::V6, innocents)),
        ];
        agent.wait_for_metric(SOON, HELLOS, |n| n == 4.0).expect("two more hellos");
        let target = target(&scene, ja4);
        let target: Vec<&str> = target.iter().map(String::as_str).collect();
        let block = agent.json("block", &target).expect("a block");
        (block, curls.map(|curl| curl.join().expect("curl runs")))
    });
    let closed = ended.iter().filter(|curl| RESET.contains(&curl.exit)).count();
    let told = agent.wait_for_event(SOON, "the closures", event("sockets_closed")).unwrap();
    assert_eq!((&told["id"], &told["closed"]), (&block["id"], &closed.into()), "{told}");
    assert_eq!(agent.metric(CLOSED).expect("metrics"), Some(closed as f64));
    assert_eq!(other.request(&Request::get("/tiny")).expect("answered as before").status, 200);
    ended
}

#[test]
fn a_block_closes_what_the_ja4_has_open_wherever_it_is() {
    let ended = blocked_while_open(ENDLESS, |_, ja4| vec![ja4]);
    assert!(ended.iter().all(|curl| RESET.contains(&curl.exit)), "{ended:?}");
}

#[test]
fn a_block_within_a_network_closes_what_the_ja4_has_open_there() {
    let [attacker, innocent] = blocked_while_open(SLOW, |scene, ja4| {
        vec![scene.attacker().v4().to_string(), "--ja4".to_owned(), ja4]
    });
    assert!(RESET.contains(&attacker.exit), "{attacker:?}");
    assert_eq!((innocent.exit, innocent.status), (0, 200), "{innocent:?}");
}

/// Where the kernel's table has no room for a hello's JA4, its packets can't be dropped by it: each of its
/// connections is closed instead.
#[test]
fn a_hello_without_room_closes_its_connection() {
    let scene = slow_scene();
    let ja4 = curls_ja4(&scene);
    let agent = scene.agent(&format!("block = [\"{ja4}\"]")).expect("the agent");
    let mut known = Map::HashMap(pinned_map(&scene, pinned::KNOWN));
    let mut known = HashMap::<_, u64, [[u8; 8]; 5]>::try_from(&mut known).expect("what is known");
    let others = (1..=u64::from(capacity::KNOWN))
        .filter(|key| known.insert(key, [*b"others  "; 5], 0).is_ok());
    assert_eq!(others.count(), capacity::KNOWN as usize - 1, "beside the one of the block");
    for closed in [1.0, 2.0] {
        let (ended, _) = stays(&scene, scene.attacker(), Family::V4, ENDLESS);
        assert!(RESET.contains(&ended.exit), "{ended:?}");
        assert_eq!(agent.metric(NO_ROOM).expect("metrics"), Some(closed));
        assert_eq!(agent.metric(CLOSED).expect("metrics"), Some(closed));
    }
}

/// A connection whose hello nobody heard of, because no agent ran, is closed as soon as another hello
/// tells what it is.
#[test]
fn a_hello_closes_what_others_like_it_have_open() {
    let scene = slow_scene();
    let ja4 = curls_ja4(&scene);
    scene.agent("").expect("the agent").stop().expect("stopped");
    let ended = thread::scope(|scope| {
        let earlier = scope.spawn(|| stays(&scene, scene.attacker(), Family::V4, ENDLESS).0);
        let address = Addr::from_v4(scene.attacker().v4().octets());
        wait::until(SOON, "the hello", || {
            let flows = Map::LruHashMap(pinned_map(&scene, pinned::FLOWS));
            let flows = HashMap::<_, FlowKey, FlowInfo>::try_from(flows)?;
            Ok(flows.keys().flatten().any(|flow| flow.remote == address).then_some(()))
        })
        .expect("the kernel saw it");
        let agent = scene.agent(&format!("block = [\"{ja4}\"]")).expect("the agent");
        assert_eq!(agent.metric(LEARNED).expect("metrics"), Some(0.0));
        let later = stays(&scene, scene.innocent(), Family::V4, ENDLESS).0;
        let ended = [earlier.join().expect("curl runs"), later];
        assert_eq!(agent.metric(CLOSED).expect("metrics"), Some(2.0));
        ended
    });
    assert!(ended.iter().all(|curl| RESET.contains(&curl.exit)), "{ended:?}");
}

/// Whom a detector finds is told with the JA4 of its requests, as NGINX served them.
#[test]
fn findings_and_decisions_tell_the_ja4() {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let config = "[detect.request_rate]\nrequests = 3\nwindow = \"1m\"";
    let mut agent = scene.agent(config).expect("the agent");
    // Its first hello is the first that the kernel sees: the JA4 is there with the first request.
    let all = ["one", "two", "three"].map(|path| format!("https://shop.test/{path}"));
    let more: Vec<&str> = all.iter().map(String::as_str).collect();
    let ca = &scene.nginx.certs().ca;
    curl(scene.attacker(), ca, scene.server(Family::V4), "/four", &more, 5).expect("curl runs");
    let finding = agent.wait_for_event(SOON, "a finding", event("finding")).unwrap();
    let decision = agent.wait_for_event(SOON, "a decision", event("decision")).unwrap();
    let ja4 = learned(&scene);
    for told in [finding, decision] {
        assert_eq!(told["evidence"]["requests"], 4, "{told}");
        assert_eq!(told["evidence"]["ja4"], *ja4, "{told}");
    }
    let shown = agent.json("findings", &[]).expect("findings");
    assert_eq!(shown["evidence"]["ja4"], *ja4, "{shown}");
}
