//! Is each request its sender's where the program carries the ciphertext itself, between its
//! sockets and the TLS library, with many connections on one thread?

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::thread;

use portcullis_tests::agent::Agent;
use portcullis_tests::capture::Capture;
use portcullis_tests::certs::Certs;
use portcullis_tests::client::{Client, Connection, Request};
use portcullis_tests::netns::Lab;
use portcullis_tests::nginx::NAME;
use portcullis_tests::process::Process;
use portcullis_tests::scenario::{MANY, SOON, event, guess};
use portcullis_tests::script::{Language, serve};
use portcullis_tests::wait;

const PREFIX: &str = "pcx-carry";
const PORT: u16 = 8443;
/// Client hosts, each with as many addresses of either family.
const HOSTS: usize = 8;
const ADDRESSES: u16 = 40;
/// Connections of each host, and the requests on each.
const KEPT: (u16, usize) = (100, 10);
const SHORT: (u16, usize) = (260, 1);

const ASYNCIO: &str = r#"
import asyncio, socket, ssl, sys
port, cert, key = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(cert, key)
async def serve(reader, writer):
    try:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}\n")
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
        writer.close()
async def main():
    both = {"family": socket.AF_INET6, "dualstack_ipv6": True, "backlog": 500}
    listener = socket.create_server(("::", int(port)), **both)
    server = await asyncio.start_server(serve, sock=listener, ssl=context)
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"#;

#[test]
fn each_request_to_asyncio_is_its_senders() {
    each_request_is_its_senders(|lab, certs| serve(lab, Language::Python, ASYNCIO, PORT, certs));
}

const NODE: &str = r#"
const [port, cert, key] = process.argv.slice(1);
const read = require("fs").readFileSync;
const answer = (request, response) => response.end("{}\n");
const server = require("https").createServer({ cert: read(cert), key: read(key) }, answer);
server.listen({ port, host: "::", backlog: 500 }, () => console.log("ready"));
"#;

#[test]
fn each_request_to_node_is_its_senders() {
    each_request_is_its_senders(|lab, certs| serve(lab, Language::JavaScript, NODE, PORT, certs));
}

#[test]
fn a_node_server_is_protected() {
    let lab = Lab::new(PREFIX, 2).expect("a laboratory");
    let mut agent = Agent::start(&lab, "").expect("the agent");
    let certs = Certs::generate(lab.dir(), &[NAME], &[lab.server().v4().into()]);
    let certs = certs.expect("certificates");
    let script = NODE.replace("response.end", "response.writeHead(401).end");
    let node = serve(&lab, Language::JavaScript, &script, PORT, &certs);
    let client = Client::trusting(&certs.ca).expect("a client");
    let server = SocketAddr::new(lab.server().v4().into(), PORT);
    // The first ones may come before the probes.
    let stopped = wait::until(SOON, "the attacker to be stopped", || {
        let guesses = guess(lab.client(0), &client, server, MANY, |request| request)?;
        Ok(guesses.stopped.then_some(()))
    });
    stopped.unwrap_or_else(|error| panic!("{error}:\n{}", agent.log()));
    let decision = agent.wait_for_event(SOON, "a decision", event("decision")).unwrap();
    assert_eq!(decision["subject"]["ip"], lab.client(0).v4().to_string());
    let doctor = agent.json("doctor", &[]).expect("doctor");
    let node = format!("node ({})", node.pid());
    let checks = doctor.as_array().or_else(|| doctor["checks"].as_array()).expect("checks");
    let names_it = |check: &&serde_json::Value| check.to_string().contains(&node);
    assert!(checks.iter().find(names_it).is_some_and(|check| check["state"] == "ok"), "{doctor}");
}

fn each_request_is_its_senders(serve: impl Fn(&Lab, &Certs) -> Process) {
    let lab = Lab::new(PREFIX, HOSTS).expect("a laboratory");
    for host in 0..HOSTS {
        lab.client(host).add_addresses(ADDRESSES).expect("addresses");
    }
    let certs = Certs::generate(lab.dir(), &[NAME], &[lab.server().v4().into()]);
    let certs = certs.expect("certificates");
    let _server = serve(&lab, &certs);
    let scene = Scene { lab: &lab, client: Client::trusting(&certs.ca).expect("a client") };

    // Opened before the probes are there.
    let mut early = lab.client(0).run(|| scene.connect(0, 0)).expect("a connection");
    scene.ask(&mut early).expect("an answer");
    let capture = Capture::start(&lab).expect("the probes");
    let mut asked = 0;
    let found = wait::until(SOON, "the connection to be known", || {
        scene.ask(&mut early)?;
        asked += 1;
        Ok((!scene.seen(&capture).is_empty()).then_some(()))
    });
    found.expect("known from one of its next records on");
    let unknown = capture.without_socket().expect("counters");
    assert!(unknown > 0, "{asked} requests");

    let scene = &scene;
    let sent: usize = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..HOSTS).map(|host| scope.spawn(move || scene.ask_all(host))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread")).sum()
    });
    assert!(sent >= 10_000);
    let all = sent + scene.seen(&capture).iter().filter(|seen| is_early(seen, &early)).count();
    let complete =
        wait::until(
            SOON,
            "every request",
            || Ok((scene.seen(&capture).len() >= all).then_some(())),
        );
    let seen = scene.seen(&capture);
    let wrong: Vec<_> = seen.iter().filter(|(said, asked_by)| said != asked_by).collect();
    assert_eq!(wrong, Vec::<&(SocketAddr, SocketAddr)>::new());
    let lost = (capture.without_socket().expect("counters") - unknown, capture.lost().unwrap());
    complete.unwrap_or_else(|error| panic!("{error}: {} of {all}, lost {lost:?}", seen.len()));
    assert_eq!(seen.len(), all, "none twice");
    let clients: HashSet<IpAddr> = seen.iter().map(|(said, _)| said.ip()).collect();
    assert_eq!(clients.len(), HOSTS * usize::from(ADDRESSES) * 2);
}

fn is_early((_, asked_by): &(SocketAddr, SocketAddr), early: &Connection) -> bool {
    early.local_address().is_ok_and(|address| address == *asked_by)
}

struct Scene<'lab> {
    lab: &'lab Lab,
    client: Client,
}

impl Scene<'_> {
    /// From the address of that number, over IPv4 where it is even.
    fn connect(&self, host: usize, number: u16) -> anyhow::Result<Connection> {
        let (server, host) = (self.lab.server(), self.lab.client(host));
        let (to, from): (IpAddr, IpAddr) = match number % 2 {
            0 => (server.v4().into(), host.nth_v4(number / 2 % ADDRESSES).into()),
            _ => (server.v6().into(), host.nth_v6(number / 2 % ADDRESSES).into()),
        };
        self.client.clone().from(from).connect(SocketAddr::new(to, PORT))
    }

    /// A request that says where it comes from.
    fn ask(&self, connection: &mut Connection) -> anyhow::Result<()> {
        let path = format!("/{}", connection.local_address()?);
        let answer = connection.request(&Request::get(&path))?;
        anyhow::ensure!(answer.status == 200, "{}", answer.status);
        Ok(())
    }

    /// How many requests were answered.
    fn ask_all(&self, host: usize) -> usize {
        let asked = self.lab.client(host).run(|| {
            let mut asked = 0;
            for (connections, requests) in [KEPT, SHORT] {
                for number in 0..connections {
                    let mut connection = self.connect(host, number)?;
                    for _ in 0..requests {
                        self.ask(&mut connection)?;
                        asked += 1;
                    }
                }
            }
            Ok(asked)
        });
        asked.expect("answers")
    }

    /// Whom each request that was seen is said to be from, and whom it is from.
    fn seen(&self, capture: &Capture) -> Vec<(SocketAddr, SocketAddr)> {
        let server = self.lab.server();
        let addresses: [IpAddr; 2] = [server.v4().into(), server.v6().into()];
        let reads = addresses.map(|address| capture.reads(SocketAddr::new(address, PORT))).concat();
        reads.iter().filter_map(|read| Some((read.client, read.sender()?))).collect()
    }
}
