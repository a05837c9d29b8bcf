//! HTTP/2: is every request of real clients seen once, and does abuse end in a block as it does
//! over HTTP/1?

use std::fs;
use std::process::Command;
use std::time::Duration;

use portcullis_tests::agent::Agent;
use portcullis_tests::curl::curl;
use portcullis_tests::nginx::Options;
use portcullis_tests::scenario::{Family, MANY, SOON, Scene, event};
use portcullis_tests::wait;

const PREFIX: &str = "pcx-http2";
const TRANSACTIONS: &str = "portcullis_transactions_total";
/// Beside what NGINX and the shop serve: 1 MiB, so that frames are cut by reads and writes.
const BIG: &str = "location = /big { alias /usr/sbin/nginx; }";

fn scene(clients: usize) -> Scene {
    let server_lines = BIG.to_owned();
    let options = Options { http2: true, server_lines, ..Options::default() };
    Scene::with(PREFIX, clients, &options).expect("a scene")
}

/// A call of h2load for these paths.
fn h2load(scene: &Scene, arguments: &[&str], paths: &[&str]) -> Command {
    let mut command = Command::new("h2load");
    let server = scene.server(Family::V4);
    command.args(arguments).args(paths.iter().map(|path| format!("https://{server}{path}")));
    command
}

/// Runs h2load on the attacker's host; all its requests must be answered.
fn load(scene: &Scene, arguments: &[&str], paths: &[&str]) {
    let output = scene.attacker().output(h2load(scene, arguments, paths)).expect("h2load ran");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains(" 0 failed, 0 errored"), "{said}");
}

fn http(agent: &Agent<'_>, kind: &str) -> f64 {
    let name = format!("portcullis_http_total{{kind=\"{kind}\"}}");
    agent.metric(&name).expect("metrics").expect("a kind")
}

/// What must not happen where nothing is lost.
const MISHAPS: &[&str] = &[
    "unanswered_requests",
    "unpaired_requests",
    "incomplete_requests",
    "responses_without_request",
    "pipeline_overflow",
    "malformed_request",
    "malformed_response",
    "request_frame",
    "response_frame",
    "request_compression",
    "response_compression",
    "unknown_fields",
    "gap_bytes",
    "not_http",
    "joined_midway",
];

fn assert_no_mishap(agent: &Agent<'_>) {
    for kind in MISHAPS {
        assert_eq!(http(agent, kind), 0.0, "{kind}");
    }
}

#[test]
fn each_request_of_many_streams_is_seen_once_with_its_address() {
    let scene = scene(2);
    // The finding is due at the last request of the attacker's, and not before.
    let config = "mode = \"observe\"\n[detect.request_rate]\nrequests = 1999";
    let mut agent = scene.agent(config).expect("the agent");
    for _ in 0..20 {
        let (ca, server) = (&scene.nginx.certs().ca, scene.server(Family::V4));
        let curled = curl(scene.innocent(), ca, server, "/api/products", &["--http2"], 10);
        let curled = curled.expect("curl ran");
        assert_eq!((curled.exit, curled.status), (0, 200), "{curled:?}");
    }
    let seen = agent.wait_for_metric(SOON, TRANSACTIONS, |seen| seen >= 20.0).expect("seen");
    assert_eq!(seen, 20.0);

    load(&scene, &["-n", "1999", "-c", "4", "-m", "50"], &["/tiny", "/api/products?page=1"]);
    let seen = agent.wait_for_metric(SOON, TRANSACTIONS, |seen| seen >= 2_019.0).expect("seen");
    assert_eq!(seen, 2_019.0, "each request once");
    assert!(!agent.events().expect("events").iter().any(event("finding")), "too early");
    load(&scene, &["-n", "1", "-c", "1"], &["/tiny"]);
    let finding = agent.wait_for_event(SOON, "a finding", event("finding")).unwrap();
    assert_eq!(finding["detector"], "request_rate");
    assert_eq!(finding["actor"]["ip"], scene.attacker().v4().to_string());
    assert_eq!(http(&agent, "http2_connection"), 25.0);
    assert_no_mishap(&agent);
}

#[test]
fn bodies_larger_than_a_call_of_the_library_keep_every_stream() {
    let scene = scene(1);
    // Room for all that is said, however slow the agent is.
    let config = "mode = \"observe\"\n[capture]\nring_bytes = \"128MiB\"";
    let agent = scene.agent(config).expect("the agent");
    load(&scene, &["-n", "40", "-c", "2", "-m", "10"], &["/tiny", "/big"]);
    let seen = agent.wait_for_metric(SOON, TRANSACTIONS, |seen| seen >= 40.0).expect("seen");
    assert_eq!(seen, 40.0);

    let body = scene.lab.dir().join("body");
    let padded = format!("{{\"product\":1,\"quantity\":2,\"note\":\"{}\"}}", "x".repeat(60_000));
    fs::write(&body, padded).expect("a file");
    let upload = ["-n", "100", "-c", "2", "-m", "10", "-d", body.to_str().expect("UTF-8")];
    load(&scene, &upload, &["/api/cart"]);
    let seen = agent.wait_for_metric(SOON, TRANSACTIONS, |seen| seen >= 140.0).expect("seen");
    assert_eq!(seen, 140.0);
    assert_no_mishap(&agent);
}

#[test]
fn failed_logins_over_http_2_are_stopped() {
    let scene = scene(2);
    let mut agent = scene.agent("").expect("the agent");
    let guess = |n: u32| {
        let login = format!("{{\"username\":\"user{n}\",\"password\":\"hunter2\"}}");
        let (ca, server) = (&scene.nginx.certs().ca, scene.server(Family::V4));
        let arguments = ["--http2", "--json", &login];
        curl(scene.attacker(), ca, server, "/api/login", &arguments, 2).expect("curl ran")
    };
    let answered = (0..MANY).take_while(|n| guess(*n).status == 401).count();
    // The tenth answer may be lost with the connection, which the block closes.
    assert!((9..MANY as usize).contains(&answered), "{answered} guesses were answered");
    let decision = agent.wait_for_event(SOON, "a decision", event("decision")).unwrap();
    assert_eq!(decision["detector"], "credential_stuffing");
    assert_eq!(decision["evidence"]["rule"], "distinct_users");
    assert_eq!(decision["subject"]["ip"], scene.attacker().v4().to_string());
    agent.wait_for_event(SOON, "the first drop", event("first_drop")).unwrap();
    assert!(scene.is_cut_off(scene.attacker()) && scene.is_served(scene.innocent()));
    assert!(http(&agent, "http2_connection") >= 9.0);
}

#[test]
fn a_connection_from_before_the_agent_is_read_from_its_next_frames() {
    let scene = scene(1);
    // More than it gets through before the laboratory ends.
    let endless = ["-n", "100000", "-c", "1", "-m", "1", "--rps", "200"];
    let command = h2load(&scene, &endless, &["/tiny", "/api/products?page=1"]);
    let host = scene.attacker();
    let mut load = scene.lab.spawn(host, command, "h2load").expect("h2load");
    let connected = || Ok(load.log().contains("Application protocol: h2").then_some(()));
    wait::until(SOON, "the connection", connected).expect("connected");
    let agent = scene.agent("mode = \"observe\"").expect("the agent");
    let seen = agent.wait_for_metric(Duration::from_secs(30), TRANSACTIONS, |seen| seen >= 500.0);
    assert!(seen.expect("seen") >= 500.0);
    load.must_run().expect("the same connection");
    assert_eq!(http(&agent, "http2_connection"), 1.0);
    assert_eq!(http(&agent, "joined_midway"), 1.0);
    assert_eq!((http(&agent, "not_http"), http(&agent, "gap_desync")), (0.0, 0.0));
}
