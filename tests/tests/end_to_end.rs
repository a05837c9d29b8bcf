//! The whole path: a real client attacks a real NGINX over TLS, the agent reads the plaintext,
//! recognises the attack, and the attacker's packets die at the interface, while an innocent
//! client keeps being served.

use std::net::SocketAddr;
use std::time::Duration;

use portcullis_tests::agent::Agent;
use portcullis_tests::client::{Client, Request};
use portcullis_tests::netns::{Host, Lab};
use portcullis_tests::nginx::{Nginx, Options};
use portcullis_tests::shop::{PASSWORD, Shop, USER};
use serde_json::Value;

const PREFIX: &str = "pcx-e2e";
const SOON: Duration = Duration::from_secs(10);
/// Far above what the default thresholds need.
const MOST_GUESSES: u32 = 200;

/// Guesses passwords until nothing comes back; how many were answered.
fn stuff(attacker: &Host, client: &Client, server: SocketAddr) -> u32 {
    let client = client.clone().timeout(Duration::from_secs(1));
    let answered = attacker.run(|| {
        let mut connection = client.connect(server)?;
        for guess in 0..MOST_GUESSES {
            let login = Request::login(&format!("user{guess}@example.com"), "hunter2");
            match connection.request(&login) {
                Ok(answer) => assert_eq!(answer.status, 401),
                Err(_) => return Ok(guess),
            }
        }
        panic!("{MOST_GUESSES} guesses were answered");
    });
    answered.expect("the attacker gets in at first")
}

fn is_served(host: &Host, client: &Client, server: SocketAddr) -> bool {
    let client = client.clone().timeout(Duration::from_secs(1));
    let login = host.run(|| client.connect(server)?.request(&Request::login(USER, PASSWORD)));
    login.is_ok_and(|answer| answer.status == 200)
}

fn event<'a>(kind: &'a str) -> impl Fn(&Value) -> bool + 'a {
    move |event| event["event"] == kind
}

fn attack_is_stopped(config: &str, hook: &str, v6: bool) {
    let lab = Lab::new(PREFIX, 2).expect("a laboratory");
    let _shop = Shop::start(&lab).expect("the shop");
    let nginx = Nginx::start(&lab, &Options::default()).expect("NGINX");
    let mut agent = Agent::start(&lab, config).expect("the agent");
    let client = Client::trusting(&nginx.certs().ca).expect("a client");
    let server = if v6 { nginx.address_v6() } else { nginx.address_v4() };
    let (attacker, innocent) = (lab.client(0), lab.client(1));

    let status = agent.json("status", &[]).expect("status");
    assert_eq!(status["interfaces"][0]["hook"], hook, "{}", agent.log());
    assert!(is_served(innocent, &client, server));

    let answered = stuff(attacker, &client, server);
    assert!(answered >= 10, "blocked before there was evidence: {answered} guesses answered");

    let decision = agent.wait_for_event(SOON, "a decision", event("decision")).unwrap();
    assert_eq!(decision["detector"], "credential_stuffing");
    assert_eq!(decision["owasp"], "API2:2023");
    assert_eq!((&decision["action"], &decision["mode"]), (&"drop".into(), &"enforce".into()));
    if v6 {
        assert!(decision["subject"]["cidr"].as_str().unwrap().ends_with("/64"), "{decision}");
    } else {
        assert_eq!(decision["subject"]["ip"], attacker.v4().to_string());
    }
    let drop = agent.wait_for_event(SOON, "the first drop", event("first_drop")).unwrap();
    assert_eq!(drop["id"], decision["id"]);

    let blocks = agent.json("blocks", &[]).expect("blocks");
    let block = &blocks[0];
    assert_eq!(block["id"], decision["id"], "{blocks}");
    assert!(block["packets"].as_u64().unwrap() > 0, "{blocks}");
    assert!(!is_served(attacker, &client, server));
    assert!(is_served(innocent, &client, server));
}

#[test]
fn native_xdp_stops_an_attack_over_ipv4() {
    attack_is_stopped("", "xdp-native", false);
}

/// The laboratory's hosts share a /64, so the innocent one must be told apart by the family.
#[test]
fn tcx_stops_an_attack_over_ipv4() {
    attack_is_stopped("[kernel]\nattach = \"tc\"\n", "tcx", false);
}
