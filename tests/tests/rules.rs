//! Do limits, scopes, networks, lists and the decoy hold as operators, the configuration and the
//! detectors ask for them, through the real agent?

use std::fmt::Write as _;
use std::io::{ErrorKind, Read as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use portcullis_tests::agent::Agent;
use portcullis_tests::curl::curl;
use portcullis_tests::netns::{Host, Lab};
use portcullis_tests::scenario::{Family, MANY, SOON, Scene, block_of, event, host_net};
use serde_json::Value;

const PREFIX: &str = "pcx-rules";
/// Another port of the server than the shop's.
const OTHER_PORT: u16 = 8_090;

/// How many of `count` calls of curl one after the other were answered.
fn answered(scene: &Scene, host: &Host, count: usize) -> usize {
    let server = scene.server(Family::V4);
    let call = || {
        let ended =
            curl(host, &scene.nginx.certs().ca, server, "/", &["--connect-timeout", "0.5"], 5);
        ended.expect("curl runs").exit == 0
    };
    (0..count).filter(|_| call()).count()
}

#[test]
fn an_attacker_is_slowed_down() {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let agent = scene.agent("").expect("the agent");
    let target = scene.attacker().v4().to_string();
    assert_eq!(answered(&scene, scene.attacker(), 5), 5);
    let arguments =
        [target.as_str(), "--action", "rate-limit", "--rate", "1 connections/s", "--burst", "3"];
    let made = agent.json("block", &arguments).expect("a limit");
    assert_eq!(made["action"], "rate_limit");
    assert_eq!(made["rate"], serde_json::json!({"per_s": 1, "burst": 3, "unit": "connections"}));

    // All at once: the burst passes, and what a second allows for each second that it takes.
    let started = std::time::Instant::now();
    let connect = || {
        let sockets = (0..40).map(|_| connect_without_waiting(scene.server(Family::V4)));
        Ok(sockets.collect::<Vec<_>>())
    };
    let sockets = scene.attacker().run(connect).expect("a namespace");
    let passed = sockets.into_iter().filter(is_connected).count();
    let most = 3 + 1 + started.elapsed().as_secs() as usize;
    assert!((3..=most).contains(&passed), "{passed} of 40 connections in {:?}", started.elapsed());

    assert_eq!(answered(&scene, scene.innocent(), 5), 5);
    let block =
        block_of(&agent, &host_net(scene.attacker().v4().into())).unwrap().expect("a block");
    assert!(block["exceeded"].as_u64().expect("a number") >= 20, "{block}");
    assert!(agent.metric("portcullis_limit_exceeded_packets").unwrap() >= Some(20.0));
    assert_eq!(agent.metric("portcullis_rules{action=\"rate_limit\"}").unwrap(), Some(1.0));
    agent.json("unblock", &[&target]).expect("lifted");
    assert_eq!(answered(&scene, scene.attacker(), 5), 5);
}

/// A socket that has begun to connect.
fn connect_without_waiting(server: SocketAddr) -> socket2::Socket {
    let socket =
        socket2::Socket::new(socket2::Domain::for_address(server), socket2::Type::STREAM, None)
            .expect("a socket");
    socket.set_nonblocking(true).expect("a socket");
    let begun = socket.connect(&server.into());
    assert!(begun.is_err_and(|error| error.raw_os_error() == Some(libc::EINPROGRESS)));
    socket
}

/// Whether it connects before its first packet is sent again, one second after the first.
fn is_connected(socket: &socket2::Socket) -> bool {
    let mut poll = libc::pollfd {
        fd: std::os::fd::AsRawFd::as_raw_fd(socket),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one descriptor, which is open, and room for what comes of it.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 10) };
    ready == 1 && socket.take_error().is_ok_and(|error| error.is_none())
}

/// Greets whoever connects, on another port than the shop's.
fn greeter(scene: &Scene) -> (SocketAddr, std::thread::JoinHandle<()>) {
    let address = SocketAddr::new(scene.server(Family::V4).ip(), OTHER_PORT);
    let bind = || Ok(TcpListener::bind(address)?);
    let listener = scene.lab.server().run(bind).expect("a listener");
    // Ends with the connection that the test makes last.
    let serve = move || {
        for stream in listener.incoming().flatten() {
            let mut asked = [0];
            let sent = std::io::Write::write_all(&mut &stream, b"hello");
            let last = (&stream).read(&mut asked).is_ok_and(|length| length == 1);
            if last || sent.is_err() {
                return;
            }
        }
    };
    (address, std::thread::spawn(serve))
}

fn is_greeted(host: &Host, server: SocketAddr, last: bool) -> bool {
    let greeted = host.run(|| {
        let mut stream = TcpStream::connect_timeout(&server, Duration::from_millis(900))?;
        stream.set_read_timeout(Some(SOON))?;
        let mut greeting = [0; 5];
        stream.read_exact(&mut greeting)?;
        if last {
            std::io::Write::write_all(&mut stream, b"x")?;
        }
        Ok(greeting)
    });
    greeted.is_ok_and(|greeting| &greeting == b"hello")
}

/// The configuration of a service on the shop's port.
fn shop(scene: &Scene, more: &str) -> String {
    let port = scene.server(Family::V4).port();
    format!("[[service]]\nname = \"shop\"\nports = [{port}]\n{more}")
}

#[test]
fn a_block_on_a_service_leaves_other_ports_alone() {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let agent = scene.agent(&shop(&scene, "")).expect("the agent");
    let (other, greeter) = greeter(&scene);
    let target = scene.attacker().v4().to_string();
    let refused = agent.command("block", &[&target, "--service", "none"]).expect("runs");
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{error}");
    assert!(error.contains("there is no service none"), "{error}");

    let made = agent.json("block", &[&target, "--service", "shop"]).expect("a block");
    assert_eq!(made["service"], "shop");
    assert!(scene.is_cut_off(scene.attacker()));
    assert!(is_greeted(scene.attacker(), other, false));
    // Everywhere, beside it; and lifting the one leaves the other.
    agent.json("block", &[&target]).expect("a block");
    assert_eq!(agent.json("blocks", &[]).expect("blocks").as_array().map(Vec::len), Some(2));
    assert!(!is_greeted(scene.attacker(), other, false));
    agent.json("unblock", &[&target]).expect("lifted");
    assert!(scene.is_served(scene.attacker()));
    agent.json("block", &[&target, "--service", "shop"]).expect("a block");
    agent.json("block", &[&target]).expect("a block");
    agent.json("unblock", &[&target, "--service", "shop"]).expect("lifted");
    assert!(!is_greeted(scene.attacker(), other, false));
    agent.json("unblock", &[&target]).expect("lifted");
    assert!(is_greeted(scene.attacker(), other, true));
    greeter.join().expect("it ends");
}

#[test]
fn a_detector_blocks_on_its_service_alone() {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let mut agent = scene.agent(&shop(&scene, "scope = \"service\"\n")).expect("the agent");
    let (other, greeter) = greeter(&scene);
    scene.guess_until_stopped(scene.attacker()).expect("stopped");
    let decision = agent.wait_for_event(SOON, "a decision", event("decision")).unwrap();
    assert_eq!((&decision["scope"], &decision["service"]), (&"service".into(), &"shop".into()));
    assert!(scene.is_cut_off(scene.attacker()));
    assert!(is_greeted(scene.attacker(), other, true));
    greeter.join().expect("it ends");
}

#[test]
fn those_who_are_allowed_go_first_in_a_network_that_is_blocked() {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let config = format!("guards.allow = [\"{}\"]\n", scene.innocent().v4());
    let agent = scene.agent(&config).expect("the agent");
    let made = agent.json("block", &["0.0.0.0/0", "--reason", "maintenance"]).expect("a block");
    assert_eq!(made["target"], "0.0.0.0/0");
    assert!(scene.is_cut_off(scene.attacker()));
    assert!(scene.is_served(scene.innocent()));
    let refused = agent.command("block", &[&scene.innocent().v4().to_string()]).expect("runs");
    assert_eq!(refused.status.code(), Some(1));
    agent.json("unblock", &["0.0.0.0/0"]).expect("lifted");
    assert!(scene.is_served(scene.attacker()));
}

#[test]
fn a_flow_is_blocked_and_no_other() {
    let scene = Scene::new(PREFIX, 1).expect("a scene");
    let agent = scene.agent("").expect("the agent");
    let server = scene.server(Family::V4);
    let connect = || Ok(TcpStream::connect_timeout(&server, SOON)?);
    let mut stream = scene.attacker().run(connect).expect("a connection");
    let flow = format!("{}>{server}", stream.local_addr().expect("connected"));
    let made = agent.json("block", &[&flow]).expect("a block");
    assert_eq!(made["target"], flow);
    // Its socket is closed on the server, so that NGINX forgets it; nothing gets through anyhow.
    stream.set_read_timeout(Some(SOON)).expect("a socket");
    let ended = std::io::Write::write_all(&mut stream, b"GET / HTTP/1.0\r\n\r\n")
        .and_then(|()| stream.read(&mut [0; 16]));
    assert!(!ended.as_ref().is_ok_and(|length| *length > 0), "{ended:?}");
    assert!(scene.is_served(scene.attacker()));
    agent.json("unblock", &[&flow]).expect("lifted");
    assert_eq!(agent.json("blocks", &[]).expect("blocks"), serde_json::json!([]));
}

/// A hundred thousand networks that no test uses, and those of `hosts`.
fn write_list(lab: &Lab, hosts: &[&Host], salt: u32) -> PathBuf {
    let path = lab.dir().join("list.txt");
    let mut text = String::from("# networks of the test\n");
    for n in 0..100_000_u32 {
        let net = Ipv4Addr::from_bits(0xf000_0000 | (n + salt * 100_000) << 6);
        writeln!(text, "{net}/26").expect("a string");
    }
    for host in hosts {
        writeln!(text, "{} # {}", host.v4(), host.namespace()).expect("a string");
    }
    text.push_str("not a network\n");
    let next = path.with_extension("next");
    std::fs::write(&next, text).expect("written");
    std::fs::rename(&next, &path).expect("renamed");
    path
}

fn list_config(path: &Path) -> String {
    format!("[[list]]\nname = \"test\"\nfile = \"{}\"\n", path.display())
}

#[test]
fn a_list_is_replaced_while_it_holds() {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let path = write_list(&scene.lab, &[scene.attacker()], 0);
    let config = list_config(&path);
    let mut agent = scene.agent(&config).expect("the agent");
    assert!(agent.log().contains("list.txt:100003: `not a network`"), "{}", agent.log());
    assert_eq!(agent.metric("portcullis_list_networks{list=\"test\"}").unwrap(), Some(100_001.0));
    assert_eq!(agent.metric("portcullis_list_bad_lines{list=\"test\"}").unwrap(), Some(1.0));
    assert!(scene.is_cut_off(scene.attacker()));
    assert!(scene.is_served(scene.innocent()));

    // The attacker is on both lists, so that it never gets through while one replaces the other.
    let server = scene.server(Family::V4);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|threads| {
        let attempts = threads.spawn(|| {
            let attack = || {
                let mut attempts = 0_u32;
                while !stop.load(relaxed) {
                    let tried = TcpStream::connect_timeout(&server, Duration::from_millis(2));
                    assert_eq!(tried.expect_err("on the list").kind(), ErrorKind::TimedOut);
                    attempts += 1;
                }
                Ok(attempts)
            };
            scene.attacker().run(attack).expect("a namespace")
        });
        for round in 1..=3 {
            write_list(&scene.lab, &[scene.attacker()], round);
            agent.reload(&config).expect("signalled");
            let done = |event: &Value| event["event"] == "reload";
            portcullis_tests::wait::until(SOON * 3, "the reload", || {
                let reloads = agent.events()?.into_iter().filter(done).count();
                Ok((reloads == round as usize).then_some(()))
            })
            .expect("reloaded");
            assert!(scene.is_served(scene.innocent()));
        }
        stop.store(true, relaxed);
        assert!(attempts.join().expect("never through") > 100);
    });

    write_list(&scene.lab, &[], 4);
    agent.reload(&config).expect("signalled");
    portcullis_tests::wait::until(SOON * 3, "the list without the attacker", || {
        Ok(scene.is_served(scene.attacker()).then_some(()))
    })
    .expect("served");
    // A list that is gone changes nothing.
    std::fs::remove_file(&path).expect("removed");
    agent.reload(&config).expect("signalled");
    let failed = agent
        .wait_for_event(SOON, "the reload that fails", |event| {
            event["event"] == "reload" && event["ok"] == false
        })
        .unwrap();
    assert!(failed["messages"][0].as_str().expect("text").contains("list.txt"), "{failed}");
}

#[test]
fn a_detected_attacker_is_deceived() {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let config = "decoy.enabled = true\ndecide.action = \"deceive\"\n";
    let mut agent = scene.agent(config).expect("the agent");
    let guesses = scene.guess(scene.attacker(), MANY).expect("guesses");
    assert!(guesses.answered < MANY, "its connection is closed");
    let decision = agent.wait_for_event(SOON, "a decision", event("decision")).unwrap();
    assert_eq!(decision["action"], "deceive");
    // The decoy takes the connection, and never speaks TLS.
    assert!(!scene.is_cut_off(scene.attacker()));
    assert!(!scene.is_served(scene.attacker()));
    assert!(scene.is_served(scene.innocent()));
    let steered = "portcullis_steered_connections_total{result=\"decoy\"}";
    assert!(agent.metric(steered).unwrap() >= Some(1.0));
}

#[test]
fn all_kinds_of_blocks_outlive_the_agent() {
    const JA4: &str = "t13d1516h2_8daaf6152771_e5627efa2ab1";
    let scene = Scene::new(PREFIX, 1).expect("a scene");
    let config = format!("decoy.enabled = true\n{}", shop(&scene, ""));
    let agent = scene.agent(&config).expect("the agent");
    let flow = "203.0.113.7:50000>192.0.2.1:443";
    let limit = ["2001:db8::/32", "--action", "rate-limit", "--rate", "10MiB/s", "--each"];
    for arguments in [
        &["198.51.100.0/24", "--service", "shop"][..],
        &["198.51.100.0/24", "--action", "count"],
        &limit,
        &["203.0.113.9", "--action", "deceive", "--ttl", "1h"],
        &[flow],
    ] {
        agent.json("block", arguments).expect("a block");
    }
    let summary = |agent: &Agent<'_>| -> Vec<Value> {
        let blocks = agent.json("blocks", &[]).expect("blocks");
        let blocks = blocks.as_array().expect("a list").clone();
        let keys = ["target", "action", "rate", "service", "id"];
        blocks.iter().map(|block| keys.map(|key| block[key].clone()).to_vec().into()).collect()
    };
    let before = summary(&agent);
    assert_eq!(before.len(), 5);
    agent.kill().expect("killed");
    let agent = scene.agent(&config).expect("the next agent");
    assert_eq!(summary(&agent), before);
    for target in ["198.51.100.0/24", "2001:db8::/32", "203.0.113.9", flow] {
        agent.json("unblock", &[target]).expect("lifted");
    }
    assert_eq!(summary(&agent), Vec::<Value>::new());
    // A fingerprint that nobody has shown yet is blocked from the first time it is seen.
    agent.json("block", &[JA4]).expect("a block");
    assert_eq!(agent.json("blocks", &[]).expect("blocks")[0]["target"], JA4);
    agent.json("unblock", &[JA4]).expect("lifted");
}
