//! Do steered clients, and only those, meet the decoy on the very address and port of the
//! service; through restarts of the decoy and of the agent; and does `detach` end it?

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::time::Duration;

use aya_obj::generated::{bpf_attach_type, bpf_cmd};
use portcullis_tests::agent::Agent;
use portcullis_tests::netns::{Host, Lab};
use portcullis_tests::process::Process;
use portcullis_tests::scenario::{Family, SOON, Scene};
use portcullis_tests::wait;

const PREFIX: &str = "pcx-decoy";
const TARPIT: &str = "decoy.enabled = true";
const NAMED: &str = "decoy = { enabled = true, listener = \"127.0.0.1:8081\" }";
/// What the named decoy answers with.
const LURE: &str = "nothing to see here";

fn address(host: &Host, family: Family) -> IpAddr {
    match family {
        Family::V4 => host.v4().into(),
        Family::V6 => host.v6().into(),
    }
}

/// What a client without TLS hears from the service's port. NGINX answers such a request with
/// status 400 and says why.
fn ask(host: &Host, server: SocketAddr) -> std::io::Result<String> {
    let answer = host.run(|| {
        Ok(TcpStream::connect_timeout(&server, SOON).and_then(|mut stream| {
            stream.set_read_timeout(Some(SOON))?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        }))
    });
    answer.expect("the client's namespace is there")
}

fn meets_service(host: &Host, server: SocketAddr) -> bool {
    ask(host, server).is_ok_and(|answer| answer.contains("plain HTTP request was sent to HTTPS"))
}

fn meets_lure(host: &Host, server: SocketAddr) -> bool {
    ask(host, server).is_ok_and(|answer| answer.contains(LURE))
}

fn is_refused(host: &Host, server: SocketAddr) -> bool {
    ask(host, server).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// A web server on an address that only this host has.
fn named_decoy(lab: &Lab) -> Process {
    let dir = lab.dir().join("decoy");
    std::fs::create_dir_all(&dir).expect("a directory");
    std::fs::write(dir.join("index.html"), LURE).expect("a page");
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-m", "http.server", "8081", "--bind", "127.0.0.1", "--directory"]).arg(&dir);
    let mut process = lab.spawn(lab.server(), command, "decoy").expect("python");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 8081));
    process.wait_until_it_accepts(SOON, lab.server(), address).expect("it listens");
    process
}

fn tarpit_holds_the_steered_client_alone(family: Family) {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let agent = scene.agent(TARPIT).expect("the agent");
    let server = scene.server(family);
    assert!(meets_service(scene.attacker(), server));
    steer(&agent, address(scene.attacker(), family));

    let mut held = scene
        .attacker()
        .run(|| Ok(TcpStream::connect_timeout(&server, SOON)?))
        .expect("the tarpit takes it");
    assert_eq!(held.peer_addr().expect("connected"), server);
    held.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
    held.set_read_timeout(Some(2 * SOON)).expect("a socket");
    let mut answer = [0; 2];
    held.read_exact(&mut answer).expect("two turns");
    assert_eq!(&answer, b"HT", "byte by byte");
    assert!(meets_service(scene.innocent(), server));

    let metric = |name| agent.metric(name).expect("metrics").expect("there is one");
    assert_eq!(metric("portcullis_steered_connections_total{result=\"decoy\"}"), 1.0);
    assert_eq!(metric("portcullis_tarpit_connections_held"), 1.0);
    assert!(metric("portcullis_tarpit_bytes_total{direction=\"written\"}") >= 2.0);
    // Of many bytes few are taken, and the client cannot even send the rest.
    held.set_write_timeout(Some(Duration::from_millis(200))).expect("a socket");
    let mut sent = 0;
    let flood = [b'x'; 64 * 1024];
    let error = loop {
        match held.write(&flood) {
            Ok(length) => sent += length,
            Err(error) => break error,
        }
        assert!(sent < 64 * 1024 * 1024, "the tarpit reads without end");
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    drop(held);
    agent
        .wait_for_metric(SOON, "portcullis_tarpit_connections_held", |held| held == 0.0)
        .expect("it sees that the client has gone");
    unsteer(&agent, address(scene.attacker(), family));
    assert!(meets_service(scene.attacker(), server));
}

#[test]
fn the_tarpit_holds_a_steered_ipv4_client_alone() {
    tarpit_holds_the_steered_client_alone(Family::V4);
}

#[test]
fn the_tarpit_holds_a_steered_ipv6_client_alone() {
    tarpit_holds_the_steered_client_alone(Family::V6);
}

/// A line of /proc/PID/status, in KiB.
fn memory(agent: &Agent<'_>) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("told");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Processor time that it has used, in ticks of 10 ms.
fn ticks(agent: &Agent<'_>) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.pid())).expect("it runs");
    let (_, fields) = stat.rsplit_once(')').expect("its name in brackets");
    let fields: Vec<&str> = fields.split_whitespace().collect();
    // utime and stime (proc_pid_stat(5)).
    [11, 12].map(|at: usize| fields[at].parse::<u64>().expect("a number")).iter().sum()
}

#[test]
fn thousands_in_the_tarpit_cost_next_to_nothing() {
    const CLIENTS: usize = 4_096;
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let agent = scene.agent(TARPIT).expect("the agent");
    let server = scene.server(Family::V4);
    steer(&agent, scene.attacker().v4().into());
    let before = memory(&agent);
    let connect = || -> anyhow::Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&server, SOON)?;
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
        Ok(stream)
    };
    let connect_all = || (0..CLIENTS).map(|_| connect()).collect::<anyhow::Result<Vec<_>>>();
    let mut held = scene.attacker().run(connect_all).expect("all are taken");
    // Nobody asks the agent for anything in between: that would cost more than this.
    let mut turn = || {
        for stream in &mut held {
            stream.set_read_timeout(Some(2 * SOON)).expect("a socket");
            stream.read_exact(&mut [0]).expect("everyone's turn");
        }
    };
    turn();
    let (grown, used) = (memory(&agent).saturating_sub(before), ticks(&agent));
    turn();
    let used = ticks(&agent) - used;
    println!("{CLIENTS} connections held: {grown} KiB, {used}0 ms of processor time a turn");
    assert!(grown < 16 * 1024, "{grown} KiB");
    // A turn takes 5 s.
    assert!(used < 100, "{used}0 ms");

    // One more than there is room for.
    let newest = scene.attacker().run(connect).expect("taken");
    let evicted = "portcullis_tarpit_connections_total{result=\"evicted\"}";
    agent.wait_for_metric(SOON, evicted, |evicted| evicted == 1.0).expect("the oldest goes");
    let oldest = held.first_mut().expect("there are many");
    oldest.set_read_timeout(Some(SOON)).expect("a socket");
    assert!(oldest.read_to_end(&mut Vec::new()).is_ok_and(|length| length <= 1));
    drop(newest);
}

#[test]
fn any_local_port_can_be_the_decoy_and_may_come_and_go() {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let server = scene.server(Family::V4);
    let agent = scene.agent(NAMED).expect("the agent");
    let problem = || agent.json("status", &[]).expect("status")["decoy"]["problem"].clone();
    let told = "nothing listens on 127.0.0.1:8081";
    assert!(problem().as_str().expect("a sentence").contains(told), "{}", problem());
    assert!(agent.log().contains(told), "{}", agent.log());
    steer(&agent, scene.attacker().v4().into());
    // Better refused than served.
    assert!(is_refused(scene.attacker(), server));
    assert!(meets_service(scene.innocent(), server));

    for _ in 0..2 {
        let decoy = named_decoy(&scene.lab);
        wait::until(SOON, "the agent to find the decoy", || Ok(problem().is_null().then_some(())))
            .expect("found");
        assert!(meets_lure(scene.attacker(), server));
        assert!(meets_service(scene.innocent(), server));
        drop(decoy);
        // Its socket is out of the map before anyone looks.
        assert!(is_refused(scene.attacker(), server));
        wait::until(SOON, "the agent to miss the decoy", || {
            Ok(problem().is_string().then_some(()))
        })
        .expect("missed");
    }
    let refused = "portcullis_steered_connections_total{result=\"refused\"}";
    assert_eq!(agent.metric(refused).expect("metrics"), Some(3.0));
}

#[test]
fn steering_outlives_the_agent_and_the_next_takes_it_over() {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let server = scene.server(Family::V4);
    let _decoy = named_decoy(&scene.lab);
    let agent = scene.agent(NAMED).expect("the agent");
    steer(&agent, scene.attacker().v4().into());
    assert!(meets_lure(scene.attacker(), server));
    agent.kill().expect("killed");
    assert!(meets_lure(scene.attacker(), server), "nobody is needed for it");
    let agent = scene.agent(NAMED).expect("the next agent");
    assert!(agent.log().contains("took over the steering"), "{}", agent.log());
    assert!(meets_lure(scene.attacker(), server));
    // One program, not two behind each other.
    let counted = "portcullis_steered_connections_total{result=\"decoy\"}";
    assert_eq!(agent.metric(counted).expect("metrics"), Some(1.0));
    ends_but_for(&scene.lab, 1);

    // The tarpit ends with its agent: then the client is refused, not served.
    agent.stop().expect("stopped");
    let agent = scene.agent(TARPIT).expect("an agent with the tarpit");
    let connect = || {
        let connect = || Ok(TcpStream::connect_timeout(&server, SOON).map(drop));
        scene.attacker().run(connect).expect("a namespace")
    };
    connect().expect("the tarpit takes it");
    agent.kill().expect("killed");
    assert_eq!(connect().expect_err("nobody").kind(), ErrorKind::ConnectionRefused);
    let agent = scene.agent(TARPIT).expect("the next agent");
    connect().expect("the tarpit takes it");

    agent.stop().expect("stopped");
    let output = Agent::command_of(&scene.lab, "detach", &["--json"]).expect("detach runs");
    assert!(output.status.success(), "{output:?}");
    let detached: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let links = detached["links"].as_array().expect("a list");
    assert!(links.contains(&"steering sk-lookup".into()), "{detached}");
    assert!(!scene.lab.pin_dir().exists());
    ends(&scene.lab);
    assert!(meets_service(scene.attacker(), server));
}

#[test]
fn an_agent_without_decoy_ends_the_steering_of_an_earlier_one() {
    let scene = Scene::new(PREFIX, 1).expect("a scene");
    let agent = scene.agent(TARPIT).expect("the agent");
    assert_eq!(steering_programs(&scene.lab), 1);
    agent.kill().expect("killed");
    let agent = scene.agent("").expect("the next agent");
    ends(&scene.lab);
    assert!(agent.log().contains("no longer steered"), "{}", agent.log());
}

/// Waits for the kernel to take off what nothing holds any more.
fn ends_but_for(lab: &Lab, left: usize) {
    wait::until(SOON, "steering to end", || Ok((steering_programs(lab) == left).then_some(())))
        .expect("it ends");
}

fn ends(lab: &Lab) {
    ends_but_for(lab, 0);
}

/// `query` of `union bpf_attr`, as far as it is needed.
#[repr(C)]
struct Query {
    target: u32,
    attach_type: u32,
    flags: [u32; 2],
    ids: u64,
    count: u32,
    padding: u32,
}

/// Programs that choose sockets in the server's network namespace.
fn steering_programs(lab: &Lab) -> usize {
    lab.server()
        .run(|| {
            let namespace = std::fs::File::open("/proc/thread-self/ns/net")?;
            let mut ids = [0_u32; 64];
            let mut query = Query {
                target: namespace.as_raw_fd() as u32,
                attach_type: bpf_attach_type::BPF_SK_LOOKUP as u32,
                flags: [0; 2],
                ids: ids.as_mut_ptr() as u64,
                count: ids.len() as u32,
                padding: 0,
            };
            let command = bpf_cmd::BPF_PROG_QUERY as i64;
            // SAFETY: the attributes are of the size given, and `ids` has room for as many
            // numbers as they say.
            let status = unsafe {
                libc::syscall(libc::SYS_bpf, command, &raw mut query, size_of::<Query>())
            };
            anyhow::ensure!(status == 0, std::io::Error::last_os_error());
            Ok(query.count as usize)
        })
        .expect("the kernel tells")
}

fn steer(agent: &Agent<'_>, client: IpAddr) {
    agent.json("block", &[&client.to_string(), "--action", "deceive"]).expect("steered");
}

fn unsteer(agent: &Agent<'_>, client: IpAddr) {
    agent.json("unblock", &[&client.to_string()]).expect("no longer steered");
}
