//! The connections that a client has open when it is blocked: are they closed at once, on both
//! sides, and nobody else's?

use std::collections::HashSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;
use portcullis::kernel::sockets::{
    CloseSockets, Closer, Closing, FindFingerprints, Fingerprints, Flow, Peers, Spared,
};
use portcullis_tests::client::Request;
use portcullis_tests::netns::{Host, Lab};
use portcullis_tests::scenario::{Family, SOON, Scene, event};
use portcullis_tests::wait;
use socket2::{Domain, Protocol, Socket, Type};

const PREFIX: &str = "pcx-open";

fn address(host: &Host, family: Family) -> IpAddr {
    match family {
        Family::V4 => host.v4().into(),
        Family::V6 => host.v6().into(),
    }
}

/// Sockets that a process has open.
fn sockets_of(pid: Pid) -> usize {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
    let targets = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
}

fn a_block_closes_the_clients_connections_and_no_others(family: Family) {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let mut agent = scene.agent("").expect("the agent");
    let worker = scene.nginx.workers()[0];
    let idle = sockets_of(worker);
    let server = scene.server(family);
    let connect = |host: &Host| {
        let mut connection = host.run(|| scene.client.connect(server)).expect("connected");
        let answer = connection.request(&Request::get("/tiny")).expect("answered");
        assert_eq!(answer.status, 200);
        connection
    };
    let mut blocked = [connect(scene.attacker()), connect(scene.attacker())];
    let mut innocent = connect(scene.innocent());
    assert_eq!(sockets_of(worker), idle + 3);

    let target = address(scene.attacker(), family).to_string();
    let block = agent.json("block", &[&target]).expect("a block");
    for connection in &mut blocked {
        // The client's time-out is longer than the test may take: a reset ends this, or nothing.
        let error = connection.receive().expect_err("nothing was asked");
        let error = error.downcast_ref::<std::io::Error>().expect("of the connection");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    wait::until(SOON, "NGINX to free its sockets", || {
        Ok((sockets_of(worker) == idle + 1).then_some(()))
    })
    .expect("freed");
    let answer = innocent.request(&Request::get("/tiny")).expect("answered as before");
    assert_eq!(answer.status, 200);

    let closed = agent.wait_for_event(SOON, "the closures", event("sockets_closed")).unwrap();
    assert_eq!((&closed["id"], &closed["closed"]), (&block["id"], &2.into()), "{closed}");
    let counted = agent.metric("portcullis_sockets_closed_total").expect("metrics");
    assert_eq!(counted, Some(2.0));
}

#[test]
fn an_ipv4_block_closes_the_clients_connections_and_no_others() {
    a_block_closes_the_clients_connections_and_no_others(Family::V4);
}

#[test]
fn an_ipv6_block_closes_the_clients_connections_and_no_others() {
    a_block_closes_the_clients_connections_and_no_others(Family::V6);
}

#[test]
fn a_detectors_decision_closes_connections_and_an_observed_one_does_not() {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let mut agent = scene.agent("mode = \"observe\"").expect("the agent");
    let mut kept = scene.connect(scene.attacker()).expect("a connection");
    let guesses = scene.guess(scene.attacker(), 30).expect("guesses");
    assert!(!guesses.stopped);
    agent.wait_for_event(SOON, "a decision", event("decision")).unwrap();
    assert_eq!(kept.request(&Request::get("/tiny")).expect("answered").status, 200);
    agent.stop().expect("stopped");

    let agent = scene.agent("enforce.close_sockets = false").expect("the agent");
    agent.json("block", &[&scene.attacker().v4().to_string()]).expect("a block");
    assert!(scene.is_cut_off(scene.attacker()));
    assert_eq!(agent.metric("portcullis_sockets_closed_total").expect("metrics"), Some(0.0));
    agent.json("unblock", &[&scene.attacker().v4().to_string()]).expect("unblocked");
    // TCP has kept the connection over the block.
    assert_eq!(kept.request(&Request::get("/tiny")).expect("answered").status, 200);
    agent.stop().expect("stopped");

    let agent = scene.agent("").expect("the agent");
    scene.guess_until_stopped(scene.attacker()).expect("stopped");
    let error = kept.receive().expect_err("nothing was asked");
    let error = error.downcast_ref::<std::io::Error>().expect("of the connection");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    agent
        .wait_for_metric(SOON, "portcullis_sockets_closed_total", |closed| closed >= 1.0)
        .expect("counted");
}

/// A connection with both of its ends in one namespace.
struct Pair {
    served: TcpStream,
    client: TcpStream,
}

/// A server whose connections the test looks at itself.
struct Server(TcpListener);

impl Server {
    fn listen(address: IpAddr) -> Self {
        let address = SocketAddr::new(address, 0);
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))
            .expect("a socket");
        if address.is_ipv6() {
            socket.set_only_v6(false).expect("both versions");
        }
        socket.bind(&address.into()).expect("bound");
        socket.listen(4_096).expect("listening");
        Self(socket.into())
    }

    fn port(&self) -> u16 {
        self.0.local_addr().expect("an address").port()
    }

    fn connect(&self, from: IpAddr, to: IpAddr) -> Pair {
        let to = SocketAddr::new(to, self.port());
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))
            .expect("a socket");
        socket.bind(&SocketAddr::new(from, 0).into()).expect("an address of this host");
        socket.connect(&to.into()).expect("connected");
        let (served, _) = self.0.accept().expect("accepted");
        Pair { served, client: socket.into() }
    }
}

impl Pair {
    /// What each side hears; `None` when the connection is as before.
    fn ended(&mut self) -> Option<(ErrorKind, ErrorKind)> {
        let heard = |stream: &mut TcpStream| {
            stream.set_nonblocking(true).expect("a socket");
            match stream.read(&mut [0; 16]) {
                Ok(length) => panic!("{length} bytes that nobody sent"),
                Err(error) => (error.kind() != ErrorKind::WouldBlock).then_some(error.kind()),
            }
        };
        match (heard(&mut self.served), heard(&mut self.client)) {
            (None, None) => None,
            (Some(served), Some(client)) => Some((served, client)),
            other => panic!("only one side heard of it: {other:?}"),
        }
    }

    /// As the server has it.
    fn flow(&self) -> Flow {
        let end = |end: std::io::Result<SocketAddr>| {
            let end = end.expect("connected");
            SocketAddr::new(end.ip().to_canonical(), end.port())
        };
        Flow { local: end(self.served.local_addr()), remote: end(self.served.peer_addr()) }
    }

    fn is_alive(&mut self) -> bool {
        let alive = self.ended().is_none();
        alive && self.client.write_all(b"x").is_ok() && {
            self.served.set_nonblocking(false).expect("a socket");
            self.served.read_exact(&mut [0]).is_ok()
        }
    }
}

const ENDED: Option<(ErrorKind, ErrorKind)> =
    Some((ErrorKind::ConnectionAborted, ErrorKind::ConnectionReset));

fn closing(peers: Peers) -> Closing {
    let (local_ports, local_addresses) = (Vec::new(), Vec::new());
    Closing { rule_id: 1, peers, local_ports, local_addresses, spared: Arc::default() }
}

fn network(text: &str) -> Peers {
    Peers::Network(text.parse::<IpNet>().expect("a network"))
}

/// Closes in the namespace of this thread; how many connections that were.
fn close(closings: impl IntoIterator<Item = Closing>) -> u64 {
    close_where(Fingerprints::new(), closings)
}

/// The same where connections have fingerprints.
fn close_where(known: Fingerprints, closings: impl IntoIterator<Item = Closing>) -> u64 {
    let known = Box::new(Known(known));
    let mut closer = Closer::start(&[], known).expect("this kernel closes sockets");
    for closing in closings {
        closer.close(closing);
    }
    finished(&mut closer)
}

/// What the kernel would know.
struct Known(Fingerprints);

impl Known {
    fn nothing() -> Box<Self> {
        Box::new(Self(Fingerprints::new()))
    }
}

impl FindFingerprints for Known {
    fn find(&self, keys: &HashSet<u64>) -> anyhow::Result<Fingerprints> {
        Ok(self.0.iter().filter(|(_, key)| keys.contains(key)).map(|(a, b)| (*a, *b)).collect())
    }
}

/// Waits for what was asked of it.
fn finished(closer: &mut Closer) -> u64 {
    closer.finish();
    let counts = closer.counts();
    assert_eq!((counts.failed, counts.unfinished, counts.queue_full), (0, 0, 0));
    counts.closed
}

fn loopback(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, last).into()
}

#[test]
fn mapped_addresses_are_ipv4_clients() {
    let lab = Lab::new(PREFIX, 0).expect("a laboratory");
    lab.server()
        .run(|| {
            let server = Server::listen(Ipv6Addr::UNSPECIFIED.into());
            let mut blocked = server.connect(loopback(2), loopback(1));
            let mut other = server.connect(loopback(3), loopback(1));
            let v6 = Ipv6Addr::LOCALHOST.into();
            let mut ipv6 = server.connect(v6, v6);
            assert_eq!(close([closing(network("127.0.0.2/32"))]), 1);
            assert_eq!(blocked.ended(), ENDED);
            assert!(other.is_alive() && ipv6.is_alive());
            // Closing one end of the connection within ::1 is the end of the other.
            assert_eq!(close([closing(network("::1/128")), closing(network("127.0.0.3/32"))]), 2);
            assert_eq!(other.ended(), ENDED);
            assert!(ipv6.ended().is_some());
            Ok(())
        })
        .expect("as expected");
}

#[test]
fn ports_flows_and_those_to_be_spared_are_told_apart() {
    let lab = Lab::new(PREFIX, 0).expect("a laboratory");
    lab.server()
        .run(|| {
            let [shop, admin] = [loopback(1); 2].map(Server::listen);
            let connect = |server: &Server, last| server.connect(loopback(last), loopback(1));

            let mut scoped = [connect(&shop, 2), connect(&admin, 2)];
            let local_ports = vec![shop.port()];
            let only_shop = Closing { local_ports, ..closing(network("127.0.0.2/32")) };
            assert_eq!(close([only_shop]), 1);
            assert_eq!(scoped[0].ended(), ENDED);
            assert!(scoped[1].is_alive());

            let mut flows = [connect(&shop, 3), connect(&shop, 3)];
            let local = flows[0].served.local_addr()?;
            let remote = flows[0].served.peer_addr()?;
            assert_eq!(close([closing(Peers::Flow(Flow { local, remote }))]), 1);
            assert_eq!(flows[0].ended(), ENDED);
            assert!(flows[1].is_alive());

            let mut failsafe = [connect(&shop, 4), connect(&admin, 4)];
            let mut allowed = [connect(&shop, 5), connect(&shop, 6)];
            let spared = Arc::new(Spared {
                // The server's own end of each connection is a client's to the other.
                networks: ["127.0.0.1/32", "127.0.0.6/32"].map(|net| net.parse().unwrap()).into(),
                local_ports: vec![admin.port()],
            });
            let guarded = Closing { spared, ..closing(network("127.0.0.4/30")) };
            assert_eq!(close([guarded]), 2);
            assert_eq!((failsafe[0].ended(), allowed[0].ended()), (ENDED, ENDED));
            assert!(failsafe[1].is_alive() && allowed[1].is_alive());
            Ok(())
        })
        .expect("as expected");
}

#[test]
fn fingerprints_are_told_apart_and_looked_for_within_networks_and_services() {
    let lab = Lab::new(PREFIX, 0).expect("a laboratory");
    lab.server()
        .run(|| {
            let [shop, admin] = [Ipv6Addr::UNSPECIFIED.into(), loopback(1)].map(Server::listen);
            let connect = |server: &Server, last| server.connect(loopback(last), loopback(1));
            let v6 = Ipv6Addr::LOCALHOST.into();
            let mut pairs = [
                connect(&shop, 2),
                connect(&shop, 3),
                connect(&admin, 2),
                connect(&shop, 2),
                shop.connect(v6, v6),
            ];
            // The fourth is another client's.
            let keys = [7, 8, 7, 9, 7];
            let known: Fingerprints = pairs.iter().map(Pair::flow).zip(keys).collect();
            let of = |keys: &[u64], net: Option<&str>| Peers::Fingerprint {
                keys: keys.to_vec(),
                net: net.map(|net| net.parse().expect("a network")),
            };
            assert_eq!(close_where(known.clone(), [closing(of(&[1], None))]), 0);
            let elsewhere = of(&[7, 8], Some("127.0.0.4/30"));
            assert_eq!(close_where(known.clone(), [closing(elsewhere)]), 0);

            let local_ports = vec![admin.port()];
            let on_admin = Closing { local_ports, ..closing(of(&[7, 8], None)) };
            assert_eq!(close_where(known.clone(), [on_admin]), 1);
            assert_eq!(pairs[2].ended(), ENDED);

            let network = Some("127.0.0.2/31");
            let spared = Arc::new(Spared {
                networks: vec!["127.0.0.3/32".parse().expect("a network")],
                local_ports: Vec::new(),
            });
            let guarded = Closing { spared, ..closing(of(&[7, 8], network)) };
            assert_eq!(close_where(known.clone(), [guarded]), 1);
            assert_eq!(pairs[0].ended(), ENDED);
            assert!(pairs[1].is_alive() && pairs[4].is_alive());

            // All in one look; one is asked for twice.
            let rest = [of(&[8], None), of(&[7], None), of(&[8], network)].map(closing);
            assert_eq!(close_where(known.clone(), rest), 2);
            assert_eq!((pairs[1].ended(), pairs[4].ended()), (ENDED, ENDED));
            assert!(pairs[3].is_alive(), "another client on the same address");
            Ok(())
        })
        .expect("as expected");
}

#[test]
fn twelve_thousand_sockets_of_others_stay() {
    // Each has two sockets in this namespace, and as many descriptors in this process.
    const OTHERS: usize = 6_000;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("up to the hard limit");
    let lab = Lab::new(PREFIX, 0).expect("a laboratory");
    lab.server()
        .run(|| {
            let server = Server::listen(loopback(1));
            let mut others: Vec<Pair> =
                (0..OTHERS).map(|_| server.connect(loopback(3), loopback(1))).collect();
            let mut blocked: Vec<Pair> =
                (0..3).map(|_| server.connect(loopback(2), loopback(1))).collect();
            let mut closer = Closer::start(&[], Known::nothing())?;
            let begin = Instant::now();
            closer.close(closing(network("127.0.0.2/32")));
            assert_eq!(finished(&mut closer), 3);
            let took = begin.elapsed();
            println!("closed 3 connections beside {} sockets of others in {took:?}", 2 * OTHERS);
            assert!(took < Duration::from_secs(2), "{took:?}");
            assert!(blocked.iter_mut().all(|pair| pair.ended() == ENDED));
            assert_eq!(others.iter_mut().filter_map(Pair::ended).count(), 0);
            assert!(others[0].is_alive() && others[OTHERS - 1].is_alive());

            let named: Vec<Pair> =
                (0..3).map(|_| server.connect(loopback(3), loopback(1))).collect();
            let keyed = |pairs: &[Pair], key| -> Vec<(Flow, u64)> {
                pairs.iter().map(|pair| (pair.flow(), key)).collect()
            };
            let known = [keyed(&others, 1), keyed(&named, 7)].concat().into_iter().collect();
            let begin = Instant::now();
            let fingerprint = Peers::Fingerprint { keys: vec![7], net: None };
            assert_eq!(close_where(known, [closing(fingerprint)]), 3);
            println!(
                "closed 3 of a fingerprint on the port of the others in {:?}",
                begin.elapsed()
            );
            assert_eq!(others.iter_mut().filter_map(Pair::ended).count(), 0);

            // All of them, in the look that finds them.
            let mut closer = Closer::start(&[], Known::nothing())?;
            let begin = Instant::now();
            closer.close(closing(network("127.0.0.3/32")));
            assert_eq!(finished(&mut closer), OTHERS as u64);
            println!("closed {OTHERS} connections in {:?}", begin.elapsed());
            assert!(others.iter_mut().all(|pair| pair.ended() == ENDED));
            Ok(())
        })
        .expect("as expected");
}

#[test]
fn other_namespaces_are_reached_by_their_path_as_they_come_and_go() {
    let lab = Lab::new(PREFIX, 2).expect("a laboratory");
    let connect = || {
        let server = Server::listen(loopback(1));
        Ok(server.connect(loopback(2), loopback(1)))
    };
    let connected = |host: &Host| host.run(connect).expect("a connection");
    let path = lab.dir().join("namespace");
    let becomes = |host: &Host| {
        let _ = fs::remove_file(&path);
        let namespace = std::path::Path::new("/run/netns").join(host.namespace());
        std::os::unix::fs::symlink(namespace, &path).expect("a link");
    };
    let mut closer = lab
        .server()
        .run(|| Closer::start(std::slice::from_ref(&path), Known::nothing()))
        .expect("the namespace need not be there");
    let mut close_in = |most: u64| {
        closer.close(closing(network("127.0.0.2/32")));
        wait::until(SOON, "connections to be closed", || {
            let counts = closer.counts();
            assert_eq!(counts.failed, 0);
            Ok((counts.closed >= most).then_some(counts.closed))
        })
        .expect("closed")
    };
    let mut here = connected(lab.server());
    assert_eq!(close_in(1), 1, "in its own");
    assert_eq!(here.ended(), ENDED);

    for (host, closed) in [(lab.client(0), 2), (lab.client(1), 3)] {
        becomes(host);
        let mut there = connected(host);
        assert_eq!(close_in(closed), closed, "in {}", host.namespace());
        assert_eq!(there.ended(), ENDED);
    }
}
