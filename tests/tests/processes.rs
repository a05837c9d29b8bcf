//! Are processes seen that start after the agent, whatever file they have the TLS library from,
//! and on both sides of a connection?

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use portcullis_tests::agent::Agent;
use portcullis_tests::certs::Certs;
use portcullis_tests::client::{Client, Request};
use portcullis_tests::curl::curl;
use portcullis_tests::netns::Lab;
use portcullis_tests::nginx::{NAME, Nginx, Options};
use portcullis_tests::python::PythonServer;
use portcullis_tests::scenario::{Family, MANY, SOON, Scene, event, guess, is_served};
use portcullis_tests::shop::Shop;
use portcullis_tests::wait;

const PREFIX: &str = "pcx-procs";
const TRANSACTIONS: &str = "portcullis_transactions_total";
/// A file that no process maps is noticed by the second rescan; they are 10 s apart.
const THREE_RESCANS: Duration = Duration::from_secs(30);
const LIBRARIES: &str = "portcullis_tls_libraries_attached";

#[test]
fn a_server_that_starts_after_the_agent_is_protected_from_its_first_request() {
    let lab = Lab::new(PREFIX, 2).expect("a laboratory");
    let _shop = Shop::start(&lab).expect("the shop");
    let agent = Agent::start(&lab, "").expect("the agent");
    for round in 1..=2 {
        let nginx = Nginx::start(&lab, &Options::default()).expect("NGINX");
        let client = Client::trusting(&nginx.certs().ca).expect("a client");
        let server = nginx.address_v4();
        assert!(is_served(lab.client(1), &client, server));
        let seen = agent.wait_for_metric(SOON, TRANSACTIONS, |seen| seen >= f64::from(round));
        assert_eq!(seen.expect("seen"), f64::from(round), "each request once");
        if round == 2 {
            let guesses = guess(lab.client(0), &client, server, MANY, |request| request);
            assert!(guesses.expect("guesses").stopped);
        }
        nginx.stop().expect("stopped");
    }
}

#[test]
fn a_python_server_is_protected() {
    let lab = Lab::new(PREFIX, 2).expect("a laboratory");
    let mut agent = Agent::start(&lab, "").expect("the agent");
    let certs = certs(&lab, lab.server().v4());
    let python = PythonServer::start(&lab, lab.server(), &certs).expect("Python");
    let client = Client::trusting(&certs.ca).expect("a client");
    let server = python.address();
    let guesses = guess(lab.client(0), &client, server, MANY, |request| request);
    let guesses = guesses.expect("guesses");
    // The tenth answer may be lost with the connection, which the block closes.
    assert!(guesses.stopped && guesses.answered >= 9, "{guesses:?}");
    let decision = agent.wait_for_event(SOON, "a decision", event("decision")).unwrap();
    assert_eq!(decision["subject"]["ip"], lab.client(0).v4().to_string());
    let answer = lab.client(1).run(|| client.connect(server)?.request(&Request::get("/")));
    assert_eq!(answer.expect("an answer").status, 200);
}

#[test]
fn requests_that_the_host_itself_sends_are_seen_and_not_judged() {
    let lab = Lab::new(PREFIX, 1).expect("a laboratory");
    let agent = Agent::start(&lab, "").expect("the agent");
    let certs = certs(&lab, lab.client(0).v4());
    // Elsewhere: this agent does not read what the server reads.
    let python = PythonServer::start(&lab, lab.client(0), &certs).expect("Python");
    for sent in 1..=15 {
        let login = format!("{{\"username\":\"user{sent}\",\"password\":\"hunter2\"}}");
        let arguments = ["--http1.1", "--json", &login];
        let curled = curl(lab.server(), &certs.ca, python.address(), "/login", &arguments, 10);
        let curled = curled.expect("curl ran");
        assert_eq!((curled.exit, curled.status), (0, 401), "{curled:?}");
        let seen = agent.wait_for_metric(SOON, TRANSACTIONS, |seen| seen >= f64::from(sent));
        assert_eq!(seen.expect("seen"), f64::from(sent));
    }
    // A client of this host with as many failures would have been found.
    let events = agent.events().expect("events");
    assert!(!events.iter().any(event("finding")), "{events:?}");
}

#[test]
fn a_library_in_another_place_is_found_when_a_process_maps_it() {
    let lab = Lab::new(PREFIX, 2).expect("a laboratory");
    let library_path = copy_libraries(&lab);
    let shop = Shop::start(&lab).expect("the shop");
    let agent = Agent::start(&lab, "").expect("the agent");
    let before = agent.metric(LIBRARIES).expect("metrics").expect("a metric");

    let options = Options { library_path: Some(library_path.clone()), ..Options::default() };
    let nginx = Nginx::start(&lab, &options).expect("NGINX");
    let maps = fs::read_to_string(format!("/proc/{}/maps", nginx.workers()[0])).expect("maps");
    assert!(maps.contains(&library_path.join("libssl.so.3").display().to_string()), "{maps}");
    agent.wait_for_metric(SOON, LIBRARIES, |count| count > before).expect("found");
    let found = format!("reading TLS in {}", library_path.display());
    assert!(agent.log().contains(&found));

    let client = Client::trusting(&nginx.certs().ca).expect("a client");
    let guesses = guess(lab.client(0), &client, nginx.address_v4(), MANY, |request| request);
    assert!(guesses.expect("guesses").stopped);
    assert!(is_served(lab.client(1), &client, nginx.address_v4()));

    // Without a process that maps it, the file gives its place to others; and it comes back.
    nginx.stop().expect("stopped");
    let forgotten = format!("nothing uses {}", library_path.display());
    let is_forgotten = || Ok(agent.log().contains(&forgotten).then_some(()));
    wait::until(THREE_RESCANS, "the probes to be taken off", is_forgotten).expect("forgotten");
    let nginx = Nginx::start(&lab, &options).expect("NGINX");
    let is_found = || Ok((agent.log().matches(&found).count() == 2).then_some(()));
    wait::until(SOON, "the library to be found again", is_found).expect("found");
    let client = Client::trusting(&nginx.certs().ca).expect("a client");
    let guesses = guess(lab.client(1), &client, nginx.address_v4(), MANY, |request| request);
    assert!(guesses.expect("guesses").stopped);
    drop(shop);
}

#[test]
fn a_connection_from_before_the_agent_is_read_from_its_next_request() {
    let scene = Scene::new(PREFIX, 1).expect("a scene");
    let mut connection = scene.connect(scene.attacker()).expect("a connection");
    connection.request(&Request::get("/tiny")).expect("an answer");
    let agent = scene.agent("").expect("the agent");
    for _ in 0..5 {
        connection.request(&Request::get("/tiny")).expect("an answer");
    }
    let seen = agent.wait_for_metric(SOON, TRANSACTIONS, |seen| seen >= 5.0);
    assert_eq!(seen.expect("seen"), 5.0);
    // NGINX has OpenSSL use the socket, and must not pay for programs that do it themselves.
    let log = agent.log();
    for worker in scene.nginx.workers() {
        assert!(!log.contains(&format!("process {worker} carries ciphertext")), "{log}");
    }
    assert!(is_served(scene.attacker(), &scene.client, scene.server(Family::V4)));
}

/// Certificates for a server at `address`, and for the shop's name.
fn certs(lab: &Lab, address: std::net::Ipv4Addr) -> Certs {
    Certs::generate(lab.dir(), &[NAME], &[address.into()]).expect("certificates")
}

/// Copies of the system's TLS libraries, files that no probe is in yet.
fn copy_libraries(lab: &Lab) -> PathBuf {
    let dir = lab.dir().join("libraries");
    fs::create_dir(&dir).expect("a directory");
    for name in ["libssl.so.3", "libcrypto.so.3"] {
        let places = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"];
        let mut files = places.iter().map(|place| Path::new(place).join(name));
        let file = files.find(|file| file.exists()).expect("OpenSSL 3 is installed");
        fs::copy(file, dir.join(name)).expect("copied");
    }
    dir
}
