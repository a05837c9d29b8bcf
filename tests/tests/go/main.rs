//! Are connections of programs in Go read, whose TLS is linked in: of a server from its first
//! request on, whatever the linker left of its symbols, each by the right address?

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use portcullis_tests::agent::Agent;
use portcullis_tests::certs::Certs;
use portcullis_tests::client::{Client, Connection, Request};
use portcullis_tests::netns::{Host, Lab};
use portcullis_tests::nginx::NAME;
use portcullis_tests::process::Process;
use portcullis_tests::python::PythonServer;
use portcullis_tests::scenario::{MANY, SOON, event, guess};
use portcullis_tests::{programs, wait};

const PREFIX: &str = "pcx-go";
const PORT: u16 = 8443;
const TRANSACTIONS: &str = "portcullis_transactions_total";
const REFUSED: &str = "portcullis_losses_total{loss=\"libraries_refused\"}";
/// Addresses of clients, half of them of IPv6.
const CLIENTS: u16 = 500;
/// Requests of each on one connection; two of those that ask too often.
const REQUESTS: usize = 20;
/// One in so many asks too often.
const GREEDY: u16 = 50;
const THREADS: usize = 8;

/// A program in Go on the server host, from its file's place in the laboratory.
struct GoServer {
    path: PathBuf,
    process: Process,
}

impl GoServer {
    /// Starts it, and waits until it accepts connections.
    fn start(lab: &Lab, certs: &Certs, path: PathBuf, mode: &str) -> Self {
        let mut command = Command::new(&path);
        command.args([mode, &format!(":{PORT}")]).arg(&certs.cert).arg(&certs.key);
        let mut process = lab.spawn(lab.server(), command, "go").expect("Go runs");
        process.wait_until_it_accepts(SOON, lab.server(), v4(lab)).expect("it listens");
        Self { path, process }
    }

    fn wait_until_read(&self, agent: &Agent<'_>) {
        let said = format!("reading TLS in {}", self.path.display());
        let is_read = || Ok(agent.log().contains(&said).then_some(()));
        wait::until(SOON, "the agent to find the program", is_read)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    }
}

/// Of servers on the server host, and a client that trusts them.
fn certs(lab: &Lab) -> (Certs, Client) {
    let addresses = [lab.server().v4().into(), lab.server().v6().into()];
    let certs = Certs::generate(lab.dir(), &[NAME], &addresses).expect("certificates");
    let client = Client::trusting(&certs.ca).expect("a client");
    (certs, client)
}

fn v4(lab: &Lab) -> SocketAddr {
    SocketAddr::new(lab.server().v4().into(), PORT)
}

fn v6(lab: &Lab) -> SocketAddr {
    SocketAddr::new(lab.server().v6().into(), PORT)
}

/// A copy of a program, a file that no probe is in yet.
fn copy(lab: &Lab, program: &str) -> PathBuf {
    let path = lab.dir().join(program);
    fs::copy(programs::find(program).expect("a program in Go"), &path).expect("copied");
    path
}

fn source(host: &Host, n: u16) -> IpAddr {
    if n.is_multiple_of(2) { host.nth_v4(n / 2).into() } else { host.nth_v6(n / 2).into() }
}

fn is_greedy(n: u16) -> bool {
    n.is_multiple_of(GREEDY) || n % GREEDY == 1
}

/// Asks from all addresses, each on a connection of its own; how many requests were answered.
fn ask_from_everywhere(lab: &Lab, client: &Client) -> usize {
    let host = lab.client(0);
    let ask = |n: u16| -> anyhow::Result<usize> {
        let server = if n.is_multiple_of(2) { v4(lab) } else { v6(lab) };
        let mut connection: Connection = client.clone().from(source(host, n)).connect(server)?;
        let count = if is_greedy(n) { 2 * REQUESTS } else { REQUESTS };
        for _ in 0..count {
            assert_eq!(connection.request(&Request::get("/"))?.status, 200);
        }
        Ok(count)
    };
    let all: Vec<u16> = (0..CLIENTS).collect();
    thread::scope(|scope| {
        let threads: Vec<_> = all
            .chunks(all.len().div_ceil(THREADS))
            .map(|share| {
                scope.spawn(|| {
                    host.run(|| share.iter().map(|n| ask(*n)).sum::<anyhow::Result<usize>>())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap().expect("answers")).sum()
    })
}

/// A client as findings name it: of IPv6, by its /64.
fn actor(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => (u128::from(v6) >> 64 << 64).to_be_bytes().into(),
    }
}

/// Every request is seen, and by the address that sent it: those that ask too often are found, and
/// nobody else is.
fn everyone_is_known(program: &str, mode: &str) {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("limits");
    let lab = Lab::new(PREFIX, 1).expect("a laboratory");
    lab.client(0).add_addresses(CLIENTS / 2).expect("addresses");
    let config = format!(
        "mode = \"observe\"\n[detect.request_rate]\nrequests = {}\nwindow = \"1h\"",
        REQUESTS + REQUESTS / 2
    );
    let agent = Agent::start(&lab, &config).expect("the agent");
    let (certs, client) = certs(&lab);
    let server = GoServer::start(&lab, &certs, copy(&lab, program), mode);
    server.wait_until_read(&agent);
    let sent = ask_from_everywhere(&lab, &client);
    assert!(sent >= 10_000);

    let all = |seen| seen >= sent as f64;
    let seen = agent.wait_for_metric(SOON, TRANSACTIONS, all).unwrap_or_else(|error| {
        panic!("{error:#}: {sent} sent\n{}", agent.metrics().expect("metrics"))
    });
    assert_eq!(seen, sent as f64);
    let status = agent.json("status", &[]).expect("status");
    assert_eq!(status["actors"], u64::from(CLIENTS), "each address is a client: {status}");
    let host = lab.client(0);
    let greedy: BTreeSet<IpAddr> =
        (0..CLIENTS).filter(|n| is_greedy(*n)).map(|n| actor(source(host, n))).collect();
    let events = agent.events().expect("events");
    let found: BTreeSet<IpAddr> = events
        .iter()
        .filter(|found| event("finding")(found))
        .map(|finding| finding["actor"]["ip"].as_str().and_then(|ip| ip.parse().ok()))
        .map(|address| address.expect("an address"))
        .collect();
    assert_eq!(found, greedy);
    let open = |open| open == 0.0;
    agent.wait_for_metric(SOON, "portcullis_connections", open).expect("closed ones are forgotten");
}

#[test]
fn a_program_with_symbols_is_read() {
    everyone_is_known("portcullis-lab-go", "http");
}

#[test]
fn a_stripped_program_is_read() {
    everyone_is_known("portcullis-lab-go-stripped", "http");
}

#[test]
fn a_stripped_program_that_can_be_loaded_anywhere_is_read() {
    everyone_is_known("portcullis-lab-go-pie", "http");
}

#[test]
fn what_lies_on_a_stack_that_moves_is_read() {
    everyone_is_known("portcullis-lab-go-stripped", "stack");
}

#[test]
fn a_server_in_go_is_protected() {
    let lab = Lab::new(PREFIX, 2).expect("a laboratory");
    let mut agent = Agent::start(&lab, "").expect("the agent");
    let (certs, client) = certs(&lab);
    let server = GoServer::start(&lab, &certs, copy(&lab, "portcullis-lab-go-stripped"), "http");
    server.wait_until_read(&agent);
    let guesses = guess(lab.client(0), &client, v4(&lab), MANY, |request| request);
    let guesses = guesses.expect("guesses");
    // The tenth answer may be lost with the connection, which the block closes.
    assert!(guesses.stopped && guesses.answered >= 9, "{guesses:?}");
    let decision = agent.wait_for_event(SOON, "a decision", event("decision")).unwrap();
    assert_eq!(decision["subject"]["ip"], lab.client(0).v4().to_string());
    let answer = lab.client(1).run(|| client.connect(v4(&lab))?.request(&Request::get("/")));
    assert_eq!(answer.expect("an answer").status, 200);
}

#[test]
fn requests_that_a_program_in_go_sends_are_seen() {
    let lab = Lab::new(PREFIX, 1).expect("a laboratory");
    let path = copy(&lab, "portcullis-lab-go-stripped");
    // Its probes are there before it runs.
    let config = format!("[capture]\nlibraries = [{path:?}]");
    let agent = Agent::start(&lab, &config).expect("the agent");
    let address = lab.client(0).v4();
    let certs = Certs::generate(lab.dir(), &[NAME], &[address.into()]).expect("certificates");
    // Elsewhere: this agent does not read what the server reads.
    let python = PythonServer::start(&lab, lab.client(0), &certs).expect("Python");
    let mut command = Command::new(&path);
    command.args(["get", &format!("https://{}/", python.address())]).arg(&certs.ca).arg("30");
    let output = lab.run_in(lab.server(), command).expect("Go runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let seen = agent.wait_for_metric(SOON, TRANSACTIONS, |seen| seen >= 30.0);
    assert_eq!(seen.expect("seen"), 30.0);
}

/// As `cp` does: a breakpoint of the earlier program in the midst of the new one crashes it, so the
/// probes go when the file is written to.
#[test]
fn a_program_that_is_written_over_in_place_works_and_is_read() {
    let lab = Lab::new(PREFIX, 1).expect("a laboratory");
    let agent = Agent::start(&lab, "").expect("the agent");
    let (certs, client) = certs(&lab);
    let path = copy(&lab, "portcullis-lab-go-stripped");
    let mut sent = 0.0;
    for round in 0..3 {
        let program = ["portcullis-lab-go-pie", "portcullis-lab-go-stripped"][round % 2];
        let mut server = GoServer::start(&lab, &certs, path.clone(), "http");
        let said = format!("reading TLS in {}", path.display());
        let is_read = || Ok((agent.log().matches(&said).count() > round).then_some(()));
        wait::until(SOON, "the agent to find the program", is_read).expect("found");
        let answers = lab.client(0).run(|| {
            let mut connection = client.connect(v4(&lab))?;
            (0..20).map(|_| Ok(connection.request(&Request::get("/"))?.status)).collect()
        });
        let answers: Vec<u16> = answers.expect("answers");
        assert_eq!(answers, [200; 20]);
        sent += 20.0;
        agent.wait_for_metric(SOON, TRANSACTIONS, |seen| seen == sent).expect("seen");
        server.process.stop().expect("stopped");
        fs::copy(programs::find(program).expect("a program in Go"), &path).expect("written over");
        let said = format!("{} is written to: its probes are off", path.display());
        let are_off = || Ok((agent.log().matches(&said).count() > round).then_some(()));
        wait::until(SOON, "the probes to be taken off", are_off).expect("off");
    }
}

/// Gives the handshakes names that no Go has given them yet, which the program does not notice.
fn rename_handshakes(path: &Path) {
    let mut bytes = fs::read(path).expect("the program");
    for name in ["crypto/tls.(*Conn).clientHandshake\0", "crypto/tls.(*Conn).serverHandshake\0"] {
        let mut places = bytes.windows(name.len()).enumerate();
        let (at, _) = places.find(|(_, found)| *found == name.as_bytes()).expect("a function");
        bytes[at + name.len() - 2] = b'!';
    }
    fs::write(path, bytes).expect("written");
}

#[test]
fn a_program_that_is_not_understood_is_refused_by_name() {
    let lab = Lab::new(PREFIX, 1).expect("a laboratory");
    let path = copy(&lab, "portcullis-lab-go-stripped");
    rename_handshakes(&path);
    let agent = Agent::start(&lab, "").expect("the agent");
    let (certs, client) = certs(&lab);
    let server = GoServer::start(&lab, &certs, path, "http");
    agent.wait_for_metric(SOON, REFUSED, |refused| refused >= 1.0).expect("refused");
    let name = server.path.display().to_string();
    let doctor = agent.command("doctor", &[]).expect("doctor");
    let doctor = String::from_utf8_lossy(&doctor.stdout);
    let line = doctor.lines().find(|line| line.contains(&name));
    assert!(line.is_some_and(|line| line.contains("Go: it has no handshake")), "{doctor}");
    // It serves as before, and nothing is seen of it.
    let answer = lab.client(0).run(|| client.connect(v4(&lab))?.request(&Request::get("/")));
    assert_eq!(answer.expect("an answer").status, 200);
    assert!(agent.log().contains("can't read TLS in"), "{}", agent.log());
    assert_eq!(agent.metric(TRANSACTIONS).expect("metrics"), Some(0.0));
}
