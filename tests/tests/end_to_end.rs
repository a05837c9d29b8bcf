//! The whole path: a real client attacks a real NGINX over TLS, the agent reads the plaintext,
//! recognises the attack, and the attacker's packets die at the interface, while an innocent
//! client keeps being served.

use portcullis_tests::client::Request;
use portcullis_tests::scenario::{Family, MANY, SOON, Scene, event, guess, is_cut_off, is_served};

const PREFIX: &str = "pcx-e2e";

fn attack_is_stopped(attach: &str, hook: &str, family: Family) {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let config = format!("kernel.attach = \"{attach}\"");
    let mut agent = scene.agent(&config).expect("the agent");
    let (client, server) = (&scene.client, scene.server(family));
    let (attacker, innocent) = (scene.attacker(), scene.innocent());

    let status = agent.json("status", &[]).expect("status");
    assert_eq!(status["interfaces"][0]["hook"], hook, "{}", agent.log());
    assert!(is_served(innocent, client, server));

    let guesses = guess(attacker, client, server, MANY, |request| request).expect("guesses");
    assert!(guesses.stopped, "{guesses:?}");
    // The tenth answer may be lost with the connection, which the block closes.
    assert!(guesses.answered >= 9, "blocked before there was evidence: {guesses:?}");

    let decision = agent.wait_for_event(SOON, "a decision", event("decision")).unwrap();
    assert_eq!(decision["detector"], "credential_stuffing");
    assert_eq!(decision["owasp"], "API2:2023");
    assert_eq!((&decision["action"], &decision["mode"]), (&"drop".into(), &"enforce".into()));
    match family {
        Family::V4 => assert_eq!(decision["subject"]["ip"], attacker.v4().to_string()),
        Family::V6 => {
            let [a, b, c, d, ..] = attacker.v6().segments();
            let net = format!("{a:x}:{b:x}:{c:x}:{d:x}::/64");
            let net: ipnet::IpNet = net.parse().expect("a network");
            assert_eq!(decision["subject"]["cidr"], net.to_string());
        }
    }
    let drop = agent.wait_for_event(SOON, "the first drop", event("first_drop")).unwrap();
    assert_eq!(drop["id"], decision["id"]);

    let blocks = agent.json("blocks", &[]).expect("blocks");
    let block = &blocks[0];
    assert_eq!(block["id"], decision["id"], "{blocks}");
    assert!(block["packets"].as_u64().unwrap() > 0, "{blocks}");
    assert!(is_cut_off(attacker, server));
    assert!(is_served(innocent, client, server));
}

#[test]
fn native_xdp_stops_an_attack_over_ipv4() {
    attack_is_stopped("auto", "xdp-native", Family::V4);
}

#[test]
fn native_xdp_stops_an_attack_over_ipv6() {
    attack_is_stopped("xdp-native", "xdp-native", Family::V6);
}

#[test]
fn generic_xdp_stops_an_attack_over_ipv4() {
    attack_is_stopped("xdp-generic", "xdp-generic", Family::V4);
}

#[test]
fn generic_xdp_stops_an_attack_over_ipv6() {
    attack_is_stopped("xdp-generic", "xdp-generic", Family::V6);
}

#[test]
fn tcx_stops_an_attack_over_ipv4() {
    attack_is_stopped("tc", "tcx", Family::V4);
}

#[test]
fn tcx_stops_an_attack_over_ipv6() {
    attack_is_stopped("tc", "tcx", Family::V6);
}

#[test]
fn clsact_stops_an_attack_over_ipv4() {
    attack_is_stopped("clsact", "clsact", Family::V4);
}

#[test]
fn clsact_stops_an_attack_over_ipv6() {
    attack_is_stopped("clsact", "clsact", Family::V6);
}

#[test]
fn too_many_requests_are_stopped() {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let config = "[detect.request_rate]\nrequests = 50\nwindow = \"10s\"";
    let mut agent = scene.agent(config).expect("the agent");
    let mut answered = 0;
    let mut connection = scene.connect(scene.attacker()).expect("a connection");
    while answered < 1_000 && connection.request(&Request::get("/tiny")).is_ok() {
        answered += 1;
    }
    assert!((49..1_000).contains(&answered), "{answered} requests were answered");
    let decision = agent.wait_for_event(SOON, "a decision", event("decision")).unwrap();
    assert_eq!(decision["detector"], "request_rate");
    assert_eq!(decision["owasp"], "API4:2023");
    assert_eq!(decision["subject"]["ip"], scene.attacker().v4().to_string());
    assert!(scene.is_cut_off(scene.attacker()));
    assert!(scene.is_served(scene.innocent()));
}
