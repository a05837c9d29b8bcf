//! What can no decision touch?

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use portcullis_tests::agent::Agent;
use portcullis_tests::netns::{Host, Lab};
use portcullis_tests::scenario::{Family, MANY, SOON, Scene, event, guess, host_net};
use serde_json::Value;

const PREFIX: &str = "pcx-guards";
const GUARDED: &str = "portcullis_decisions_guarded_total";

/// `portcullis block TARGET` fails with exit status 1 and this sentence, and blocks nothing.
fn refuses(agent: &Agent<'_>, target: IpAddr, sentence: &str) {
    let output = agent.command("block", &[&target.to_string()]).expect("the command runs");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{target}: {error}");
    assert!(error.contains(sentence), "{target}: {error}");
    assert_eq!(agent.json("blocks", &[]).expect("blocks"), serde_json::json!([]));
}

#[test]
fn who_is_on_the_allow_list_is_only_reported() {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let attacker = scene.attacker().v4();
    let config = format!("guards.allow = [\"{attacker}\"]");
    let mut agent = scene.agent(&config).expect("the agent");
    let guesses = scene.guess(scene.attacker(), MANY).expect("guesses");
    assert_eq!((guesses.answered, guesses.stopped), (MANY, false));
    let decision = agent.wait_for_event(SOON, "a decision", event("decision")).unwrap();
    assert_eq!((&decision["action"], &decision["mode"]), (&"alert".into(), &"enforce".into()));
    assert_eq!(decision["evidence"]["guard"], "allow_list");
    let guarded = agent.metric(&format!("{GUARDED}{{guard=\"allow_list\"}}")).expect("metrics");
    assert_eq!(guarded, Some(1.0));
    refuses(&agent, attacker.into(), &format!("{attacker} is on the allow list"));
    assert!(scene.is_served(scene.attacker()));
}

#[test]
fn the_allow_list_goes_before_a_block_in_the_kernel() {
    // The guard in the kernel itself: a block left by an earlier agent whose file allowed less.
    let scene = Scene::new(PREFIX, 1).expect("a scene");
    let attacker = scene.attacker().v4().to_string();
    let agent = scene.agent("").expect("the agent");
    agent.json("block", &[&attacker]).expect("a block");
    assert!(scene.is_cut_off(scene.attacker()));
    agent.kill().expect("killed");
    let agent =
        scene.agent(&format!("guards.allow = [\"{attacker}/32\"]")).expect("the next agent");
    assert!(scene.is_served(scene.attacker()));
    assert!(agent.log().contains("not taking over a block"), "{}", agent.log());
    assert_eq!(agent.json("blocks", &[]).expect("blocks"), serde_json::json!([]));
}

#[test]
fn behind_a_trusted_proxy_the_client_is_reported_and_the_proxy_stays() {
    const FORWARDED: &str = "X-Forwarded-For";
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let (proxy, direct) = (scene.lab.client(0), scene.lab.client(1));
    let config = format!("guards.trusted_proxies = [\"{}\"]", proxy.v4());
    let mut agent = scene.agent(&config).expect("the agent");
    let server = scene.server(Family::V4);
    let from = |host: &Host, client: &'static str| {
        guess(host, &scene.client, server, MANY, |request| request.header(FORWARDED, client))
            .expect("guesses")
    };

    let guesses = from(proxy, "203.0.113.66");
    assert_eq!((guesses.answered, guesses.stopped), (MANY, false));
    let decision = agent.wait_for_event(SOON, "a decision", event("decision")).unwrap();
    assert_eq!(decision["action"], "alert");
    assert_eq!(decision["subject"]["ip"], "203.0.113.66");
    assert_eq!(decision["evidence"]["via"], proxy.v4().to_string());
    refuses(&agent, proxy.v4().into(), &format!("{} is a trusted proxy", proxy.v4()));
    // Others behind it are served and not suspected.
    assert!(scene.is_served(proxy));
    assert_eq!(agent.events().unwrap().iter().filter(|e| event("finding")(e)).count(), 1);

    // From anybody else the field is a lie and protects nobody.
    let guesses = from(direct, "203.0.113.67");
    assert!(guesses.stopped, "{guesses:?}");
    let drop = |event: &Value| event["event"] == "decision" && event["action"] == "drop";
    let decision = agent.wait_for_event(SOON, "a decision", drop).unwrap();
    assert_eq!(decision["subject"]["ip"], direct.v4().to_string());
}

/// Answers each connection on `port` of `host` with a line, until the test ends.
fn greet(host: &Host, port: u16) {
    let listener = host.run(|| Ok(TcpListener::bind(("0.0.0.0", port))?)).expect("a listener");
    // Ends with the process of the test.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream: TcpStream = stream;
            let _ = stream.write_all(b"hello\n");
        }
    });
}

fn is_greeted(host: &Host, server: SocketAddr) -> bool {
    let greeting = host.run(|| {
        let mut stream = TcpStream::connect_timeout(&server, std::time::Duration::from_secs(2))?;
        let mut greeting = String::new();
        stream.read_to_string(&mut greeting)?;
        Ok(greeting)
    });
    greeting.is_ok_and(|greeting| greeting == "hello\n")
}

#[test]
fn failsafe_ports_stay_open_for_who_is_blocked() {
    let scene = Scene::new(PREFIX, 1).expect("a scene");
    let agent = scene.agent("").expect("the agent");
    let server: IpAddr = scene.lab.server().v4().into();
    for port in [22, 2222] {
        greet(scene.lab.server(), port);
        assert!(is_greeted(scene.attacker(), SocketAddr::new(server, port)));
    }
    scene.guess_until_stopped(scene.attacker()).expect("stopped");
    assert!(is_greeted(scene.attacker(), SocketAddr::new(server, 22)));
    assert!(!is_greeted(scene.attacker(), SocketAddr::new(server, 2222)));
    assert!(scene.is_cut_off(scene.attacker()));
    let passed = agent.metric("portcullis_packets_total{reason=\"pass_failsafe\"}");
    assert!(passed.expect("metrics").expect("a metric") > 0.0);
}

#[test]
fn the_host_its_gateway_and_its_resolver_cannot_be_blocked() {
    let lab = Lab::new(PREFIX, 2).expect("a laboratory");
    let (gateway, resolver) = (lab.client(0).v4(), lab.client(1).v4());
    let mut route = Command::new("ip");
    route.args(["route", "add", "192.0.2.0/24", "via", &gateway.to_string()]);
    assert!(lab.server().output(route).expect("ip runs").status.success());
    let resolv = lab.dir().join("resolv.conf");
    fs::write(&resolv, format!("nameserver {resolver}\n")).expect("written");
    let mounts = format!("mount --bind {} /etc/resolv.conf", resolv.display());
    let agent = Agent::start_with_mounts(&lab, "", &mounts).expect("the agent");

    let server = lab.server();
    for own in [IpAddr::from(server.v4()), server.v6().into()] {
        refuses(&agent, own, &format!("{own} is an address of this host"));
    }
    refuses(&agent, gateway.into(), &format!("{gateway} is this host's gateway"));
    refuses(&agent, resolver.into(), &format!("{resolver} is this host's DNS resolver"));
    refuses(&agent, "127.0.0.1".parse().expect("an address"), "is this host's loopback");
    // Its /64 can be blocked: within it, the host goes first in the kernel.
    let [a, b, c, d, ..] = server.v6().segments();
    let net: ipnet::IpNet = format!("{a:x}:{b:x}:{c:x}:{d:x}::/64").parse().expect("a network");
    let net = net.to_string();
    assert_eq!(agent.json("block", &[&net]).expect("a block")["target"], net);

    // The kernel lets them through, whatever its rules say.
    let allowed = agent.json("allow", &["list"]).expect("the allow list");
    let guarded = [server.v4().into(), server.v6().into(), gateway.into(), resolver.into()];
    for ip in guarded {
        let entry = |entry: &Value| entry["target"] == host_net(ip) && entry["origin"] == "host";
        assert!(allowed.as_array().expect("a list").iter().any(entry), "{ip}: {allowed}");
    }
}
