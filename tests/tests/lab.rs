//! The laboratory itself: what every other test stands on.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use portcullis_tests::client::{Client, Request};
use portcullis_tests::curl::curl;
use portcullis_tests::netns::{Lab, processes_in};
use portcullis_tests::nginx::{Nginx, Options};
use portcullis_tests::process::Process;
use portcullis_tests::shop::{PASSWORD, Shop, USER};
use portcullis_tests::wait;

const PREFIX: &str = "pcx-lab";
const SOON: Duration = Duration::from_secs(10);

fn lab(clients: usize) -> Lab {
    Lab::new(PREFIX, clients).expect("a laboratory")
}

#[test]
fn two_clients_reach_nginx_and_the_shop_over_both_families() {
    let lab = lab(2);
    let _shop = Shop::start(&lab).expect("the shop");
    let nginx = Nginx::start(&lab, &Options::default()).expect("NGINX");
    let client = Client::trusting(&nginx.certs().ca).expect("a client");
    for host in lab.clients() {
        for server in [nginx.address_v4(), nginx.address_v6()] {
            let mut connection = host.run(|| client.connect(server)).expect("connected");
            let source = connection.local_address().expect("an address").ip();
            assert!(source == host.v4() || source == host.v6(), "from {source}");

            let tiny = connection.request(&Request::get("/tiny")).expect("an answer");
            assert_eq!((tiny.status, tiny.body.as_slice()), (200, &b"tiny\n"[..]));
            let login = connection.request(&Request::login(USER, PASSWORD)).expect("an answer");
            assert_eq!(login.status, 200);
            let login = connection.request(&Request::login(USER, "guess")).expect("an answer");
            assert_eq!(login.status, 401);
            let kettle = connection.request(&Request::get("/api/products/1")).expect("an answer");
            assert_eq!(kettle.json().expect("JSON")["name"], "kettle");
            connection.close().expect("closed");
        }
    }
}

#[test]
fn pipelined_answers_come_in_order() {
    let lab = lab(1);
    let _shop = Shop::start(&lab).expect("the shop");
    let nginx = Nginx::start(&lab, &Options::default()).expect("NGINX");
    let client = Client::trusting(&nginx.certs().ca).expect("a client");
    let server = nginx.address_v4();
    let mut connection = lab.client(0).run(|| client.connect(server)).expect("connected");
    let requests = [
        Request::get("/api/products/2"),
        Request::new("HEAD", "/tiny"),
        Request::get("/nowhere"),
        Request::get("/tiny"),
    ];
    let answers = connection.pipeline(&requests).expect("answers");
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200, 200, 404, 200]);
    assert_eq!(answers[0].json().expect("JSON")["name"], "teapot");
}

#[test]
fn one_host_has_many_source_addresses() {
    let lab = lab(1);
    let nginx = Nginx::start(&lab, &Options::default()).expect("NGINX");
    let host = lab.client(0);
    host.add_addresses(300).expect("addresses");
    let client = Client::trusting(&nginx.certs().ca).expect("a client");
    for (source, server) in [
        (host.nth_v4(299).into(), nginx.address_v4()),
        (host.nth_v6(299).into(), nginx.address_v6()),
    ] {
        let client = client.clone().from(source);
        let mut connection = host.run(|| client.connect(server)).expect("connected");
        assert_eq!(connection.local_address().expect("an address").ip(), source);
        let tiny = connection.request(&Request::get("/tiny")).expect("an answer");
        assert_eq!(tiny.status, 200);
    }
    let foreign = client.clone().from("192.0.2.1".parse().expect("an address"));
    assert!(host.run(|| foreign.connect(nginx.address_v4())).is_err());
}

#[test]
fn real_curl_logs_in() {
    let lab = lab(1);
    let _shop = Shop::start(&lab).expect("the shop");
    let nginx = Nginx::start(&lab, &Options::default()).expect("NGINX");
    let body = format!("{{\"username\":\"{USER}\",\"password\":\"{PASSWORD}\"}}");
    for server in [nginx.address_v4(), nginx.address_v6()] {
        let arguments = ["--json", &body];
        let curled = curl(lab.client(0), &nginx.certs().ca, server, "/api/login", &arguments, 10);
        let curled = curled.expect("curl ran");
        assert_eq!((curled.exit, curled.status), (0, 200), "{curled:?}");
        assert!(curled.body.contains("token"));
    }
}

#[test]
fn there_is_no_way_out() {
    let lab = lab(1);
    for host in lab.clients().iter().chain([lab.server()]) {
        for outside in ["192.0.2.1:443", "[2001:db8::1]:443"] {
            let outside: SocketAddr = outside.parse().expect("an address");
            let result = host.run(|| Ok(TcpStream::connect_timeout(&outside, SOON)?));
            let error = result.expect_err("no route").downcast::<std::io::Error>().expect("IO");
            assert_eq!(error.kind(), std::io::ErrorKind::NetworkUnreachable, "{outside}");
        }
    }
}

#[test]
fn nothing_is_left_of_a_laboratory() {
    let lab = lab(2);
    let nginx = Nginx::start(&lab, &Options::default()).expect("NGINX");
    let sleeper = lab.spawn(lab.client(0), sleep(), "sleep").expect("sleep");
    let mut pids = vec![sleeper.pid(), nginx.master().expect("a master")];
    pids.extend(nginx.workers());
    assert!(pids.len() >= 3, "a worker too: {pids:?}");
    assert_eq!(namespaces_of(lab.name()).len(), 4, "two clients, the server and the switch");
    let dir = lab.dir().to_owned();
    assert!(dir.exists());

    // Also what the laboratory started and nobody stopped.
    std::mem::forget(nginx);
    std::mem::forget(sleeper);
    let name = lab.name().to_owned();
    drop(lab);
    assert_eq!(namespaces_of(&name), [""; 0]);
    assert!(!dir.exists());
    for pid in pids {
        wait::until(SOON, "the process to be gone", || Ok(has_ended(pid).then_some(())))
            .expect("killed");
    }
}

#[test]
fn stopping_nginx_stops_its_workers() {
    let lab = lab(0);
    let nginx = Nginx::start(&lab, &Options { workers: 2, ..Options::default() }).expect("NGINX");
    let workers = nginx.workers();
    assert_eq!(workers.len(), 2);
    nginx.stop().expect("stopped");
    for pid in workers {
        assert!(has_ended(pid), "worker {pid} runs");
    }
}

#[test]
fn after_sigkill_nothing_runs_and_the_next_laboratory_sweeps() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (mut victim, name) = laboratory_of_its_own(dir.path());
    let processes = processes_of(&name);
    assert!(processes.len() >= 3, "the shop, an NGINX master and a worker: {processes:?}");
    victim.kill().expect("killed");
    for pid in processes {
        wait::until(SOON, "the process to be gone", || Ok(has_ended(pid).then_some(())))
            .expect("killed by the kernel");
    }
    assert_eq!(namespaces_of(&name).len(), 3);
    let _next = lab(0);
    assert_eq!(namespaces_of(&name), [""; 0]);
}

#[test]
fn a_signal_removes_the_laboratory_and_others_stay() {
    let ours = lab(0);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (mut other, name) = laboratory_of_its_own(dir.path());
    other.signal(Signal::SIGTERM).expect("signalled");
    let status = other.wait(SOON).expect("ended");
    assert_eq!(status.code(), Some(128 + Signal::SIGTERM as i32));
    assert_eq!(namespaces_of(&name), [""; 0]);
    assert_eq!(namespaces_of(ours.name()).len(), 2);
}

/// `portcullis-lab` with one client, when it is ready; and the laboratory's name.
fn laboratory_of_its_own(dir: &Path) -> (Process, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis-lab"));
    command.args(["1", PREFIX]);
    let mut process = Process::spawn(command, &dir.join("log")).expect("started");
    let name = wait::until(SOON, "the laboratory", || {
        process.must_run()?;
        let log = process.log();
        let line = log.lines().find_map(|line| line.strip_prefix("laboratory "));
        Ok(line.and_then(|line| line.split_once(" is ready")).map(|(name, _)| name.to_owned()))
    });
    (process, name.expect("ready"))
}

fn sleep() -> Command {
    let mut command = Command::new("sleep");
    command.arg("1000");
    command
}

fn namespaces_of(lab: &str) -> Vec<String> {
    let entries = fs::read_dir("/run/netns").expect("namespaces");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string());
    names
        .map(|name| name.expect("text"))
        .filter(|name| name.starts_with(&format!("{lab}-")))
        .collect()
}

fn processes_of(lab: &str) -> Vec<Pid> {
    namespaces_of(lab).iter().flat_map(|name| processes_in(name)).collect()
}

/// Gone, or only waiting for its parent to notice.
fn has_ended(pid: Pid) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')),
        Err(_) => true,
    }
}
