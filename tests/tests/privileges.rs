//! The agent does its whole work with the capabilities of agent/packaging/portcullis.service and
//! without root, and says what is missing when one of those that matter is.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use portcullis_tests::agent::Agent;
use portcullis_tests::client::{Client, Request};
use portcullis_tests::netns::{Host, Lab};
use portcullis_tests::nginx::{Nginx, Options};
use portcullis_tests::process::Process;
use portcullis_tests::shop::{PASSWORD, Shop, USER};
use portcullis_tests::{programs, wait};
use serde_json::Value;

const UNIT: &str = include_str!("../../agent/packaging/portcullis.service");
const PREFIX: &str = "pcx-priv";
const SOON: Duration = Duration::from_secs(10);
/// Far above what the default thresholds need.
const MOST_GUESSES: u32 = 200;
/// Nobody's, so nothing on the machine is open to it in particular.
const USER_ID: u32 = 61_184;

/// What the unit grants, as setpriv(1) names it.
fn granted() -> BTreeSet<String> {
    let line = UNIT.lines().find_map(|line| line.strip_prefix("AmbientCapabilities="));
    let names = line.expect("the unit grants capabilities").split_whitespace();
    names.map(|name| name.strip_prefix("CAP_").expect("a capability").to_lowercase()).collect()
}

/// `setpriv … AGENT`: as an unprivileged user that has `capabilities` and can get no others.
fn unprivileged(lab: &Lab, capabilities: &BTreeSet<String>) -> Command {
    prepare(lab);
    for dir in [lab.pin_dir(), lab.dir()] {
        chown(dir, Some(USER_ID), Some(USER_ID)).expect("this is root");
    }
    let added = added(capabilities);
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={USER_ID}")).arg(format!("--regid={USER_ID}"));
    command.args(["--clear-groups", "--no-new-privs"]);
    for set in ["bounding-set", "inh-caps", "ambient-caps"] {
        command.arg(format!("--{set}=-all{added}"));
    }
    command.arg("--").arg(agent_in(lab.dir()));
    command
}

/// As root with no other `capabilities`: what the DaemonSet does.
fn bounded_root(lab: &Lab, capabilities: &BTreeSet<String>) -> Command {
    prepare(lab);
    let mut command = Command::new("setpriv");
    command.arg("--clear-groups");
    for set in ["bounding-set", "inh-caps"] {
        command.arg(format!("--{set}=-all{}", added(capabilities)));
    }
    command.arg("--").arg(agent_in(lab.dir()));
    command
}

fn added(capabilities: &BTreeSet<String>) -> String {
    capabilities.iter().map(|name| format!(",+{name}")).collect()
}

/// Makes the directories that the unit makes, and a program that the user can reach: the one
/// that was built may lie in somebody's home.
fn prepare(lab: &Lab) {
    fs::create_dir_all(lab.pin_dir()).expect("a BPF file system");
    fs::set_permissions(lab.pin_dir(), fs::Permissions::from_mode(0o700)).expect("it is root's");
    let built = programs::find("portcullis").expect("the agent has been built");
    fs::copy(built, agent_in(lab.dir())).expect("there is room for it");
}

fn agent_in(dir: &Path) -> PathBuf {
    dir.join("portcullis")
}

/// A line of /proc/PID/status.
fn status_of(agent: &Agent<'_>, key: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("it runs");
    let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    value.expect("the kernel tells").trim().to_owned()
}

fn without(missing: &[&str]) -> BTreeSet<String> {
    let mut capabilities = granted();
    for name in missing {
        assert!(capabilities.remove(*name), "the unit does not grant {name}");
    }
    capabilities
}

/// Guesses passwords until nothing comes back; how many were answered.
fn stuff(attacker: &Host, client: &Client, nginx: &Nginx) -> u32 {
    let client = client.clone().timeout(Duration::from_secs(1));
    let answered = attacker.run(|| {
        let mut connection = client.connect(nginx.address_v4())?;
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

fn is_served(host: &Host, client: &Client, nginx: &Nginx) -> bool {
    let client = client.clone().timeout(Duration::from_secs(1));
    let login = Request::login(USER, PASSWORD);
    let answer = host.run(|| client.connect(nginx.address_v4())?.request(&login));
    answer.is_ok_and(|answer| answer.status == 200)
}

fn event<'a>(kind: &'a str) -> impl Fn(&Value) -> bool + 'a {
    move |event| event["event"] == kind
}

/// A process of another user that maps a copy of the TLS library in a directory closed to others.
struct Hidden {
    _process: Process,
    told_as: String,
}

impl Hidden {
    fn start(lab: &Lab, nginx: &Nginx) -> Self {
        let dir = lab.dir().join("closed");
        fs::create_dir(&dir).expect("a new directory");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).expect("it is root's");
        let library = dir.join("libssl.so.3");
        fs::copy(library_of(nginx), &library).expect("NGINX's library can be copied");
        let mut command = Command::new("sleep");
        command.arg("infinity").env("LD_PRELOAD", &library);
        let process = lab.spawn(lab.server(), command, "hidden").expect("sleep");
        let maps = format!("/proc/{}/maps", process.pid());
        let name = library.display().to_string();
        wait::until(SOON, "the library to be mapped", || {
            Ok(fs::read_to_string(&maps)?.contains(&name).then_some(()))
        })
        .expect("the dynamic loader takes it");
        Self { _process: process, told_as: format!("reading TLS in {name}") }
    }
}

/// The file of the TLS library that NGINX uses.
fn library_of(nginx: &Nginx) -> PathBuf {
    let worker = nginx.workers().first().copied().expect("a worker");
    let maps = fs::read_to_string(format!("/proc/{worker}/maps")).expect("it runs");
    let mut paths = maps.lines().filter_map(|line| Some(line.split_once('/')?.1));
    let path = paths.find(|path| path.contains("libssl.so")).expect("NGINX has a libssl");
    Path::new("/").join(path)
}

#[test]
fn the_units_capabilities_are_enough() {
    let lab = Lab::new(PREFIX, 2).expect("a laboratory");
    let _shop = Shop::start(&lab).expect("the shop");
    let nginx = Nginx::start(&lab, &Options::default()).expect("NGINX");
    let hidden = Hidden::start(&lab, &nginx);
    let mut agent = Agent::start_by(&lab, unprivileged(&lab, &granted()), "").expect("the agent");
    let (attacker, innocent) = (lab.client(0), lab.client(1));
    let client = Client::trusting(&nginx.certs().ca).expect("a client");

    assert_eq!(status_of(&agent, "Uid"), [USER_ID.to_string().as_str(); 4].join("\t"));
    assert_eq!(status_of(&agent, "NoNewPrivs"), "1");
    let effective = status_of(&agent, "CapEff");
    let bits = u64::from_str_radix(&effective, 16).expect("a bit mask").count_ones();
    assert_eq!(bits as usize, granted().len(), "CapEff is {effective}");
    assert_eq!(status_of(&agent, "CapBnd"), effective, "more could be gained");
    assert!(!agent.log().contains("WARN"), "{}", agent.log());
    assert!(agent.log().contains(&hidden.told_as), "{}", agent.log());

    let status = agent.json("status", &[]).expect("status");
    assert_eq!(status["interfaces"][0]["hook"], "xdp-native", "{}", agent.log());
    assert!(is_served(innocent, &client, &nginx));
    let answered = stuff(attacker, &client, &nginx);
    // The tenth answer may be lost with the connection, which the block closes.
    assert!(answered >= 9, "blocked before there was evidence: {answered} guesses answered");
    let decision = agent.wait_for_event(SOON, "a decision", event("decision")).unwrap();
    assert_eq!(decision["subject"]["ip"], attacker.v4().to_string());
    // On the closed connection it has nothing more to send.
    assert!(!is_served(attacker, &client, &nginx));
    let drop = agent.wait_for_event(SOON, "the first drop", event("first_drop")).unwrap();
    assert_eq!(drop["id"], decision["id"]);
    assert!(is_served(innocent, &client, &nginx));
}

#[test]
fn root_needs_no_other_capabilities() {
    let lab = Lab::new(PREFIX, 0).expect("a laboratory");
    let _shop = Shop::start(&lab).expect("the shop");
    let nginx = Nginx::start(&lab, &Options::default()).expect("NGINX");
    let hidden = Hidden::start(&lab, &nginx);
    let agent = Agent::start_by(&lab, bounded_root(&lab, &granted()), "").expect("the agent");
    let effective = status_of(&agent, "CapEff");
    let bits = u64::from_str_radix(&effective, 16).expect("a bit mask").count_ones();
    assert_eq!(bits as usize, granted().len(), "CapEff is {effective}");
    assert!(!agent.log().contains("WARN"), "{}", agent.log());
    assert!(agent.log().contains(&hidden.told_as), "{}", agent.log());
    agent.json("block", &["203.0.113.7"]).expect("blocked");
}

/// The next agent of the same user takes over pins and blocks, by a hook that takes netlink too.
#[test]
fn an_unprivileged_agent_takes_over_and_changes_hooks() {
    let lab = Lab::new(PREFIX, 1).expect("a laboratory");
    let start = |config: &str| {
        Agent::start_by(&lab, unprivileged(&lab, &granted()), config).expect("the agent")
    };
    let agent = start("");
    let target = "203.0.113.7";
    let block = |agent: &Agent| agent.json("blocks", &[]).expect("blocks")[0]["target"].clone();
    agent.json("block", &[target]).expect("blocked");
    agent.kill().expect("killed");
    for (attach, hook) in [("tc", "tcx"), ("clsact", "clsact")] {
        let agent = start(&format!("[kernel]\nattach = \"{attach}\"\n"));
        let status = agent.json("status", &[]).expect("status");
        assert_eq!(status["interfaces"][0]["hook"], hook, "{}", agent.log());
        assert_eq!(block(&agent), format!("{target}/32"), "{}", agent.log());
        assert!(agent.stop().expect("it ends").success());
    }
}

/// Both reach into what belongs to others: sockets, and the descriptors of another process.
#[test]
fn an_unprivileged_agent_closes_connections_and_finds_a_decoy() {
    let lab = Lab::new(PREFIX, 1).expect("a laboratory");
    let serve = |port: &str| {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-m", "http.server", port]);
        lab.spawn(lab.server(), command, port).expect("python")
    };
    let _running = [serve("8080"), serve("8081")];
    let server = SocketAddr::from((lab.server().v4(), 8080));
    let connect = || Ok(TcpStream::connect(server).ok());
    let mut connection = lab
        .client(0)
        .run(|| wait::until(SOON, "the server to listen", connect))
        .expect("it listens");
    let config = "decoy = { enabled = true, listener = \"127.0.0.1:8081\" }";
    let agent = Agent::start_by(&lab, unprivileged(&lab, &granted()), config).expect("the agent");
    wait::until(SOON, "the decoy to be found", || {
        Ok(agent.json("status", &[])?["decoy"]["problem"].is_null().then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));

    agent.json("block", &[&lab.client(0).v4().to_string()]).expect("blocked");
    connection.set_read_timeout(Some(SOON)).expect("a socket");
    let error = connection.read(&mut [0]).expect_err("nothing was asked");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{}", agent.log());
    assert!(!agent.log().contains("ERROR"), "{}", agent.log());
}

/// `CAP_SYS_ADMIN` includes these, so it is taken away with each.
#[test]
fn without_an_essential_capability_the_agent_ends_and_names_it() {
    let lab = Lab::new(PREFIX, 0).expect("a laboratory");
    for missing in ["bpf", "perfmon", "net_admin"] {
        let command = unprivileged(&lab, &without(&[missing, "sys_admin"]));
        let error = match Agent::start_by(&lab, command, "") {
            Ok(agent) => panic!("works without {missing}: {}", agent.log()),
            Err(error) => format!("{error:#}"),
        };
        let told = format!("CAP_{} is absent: ", missing.to_uppercase());
        assert!(error.contains("exit status: 1") && error.contains(&told), "{error}");
    }
}

#[test]
fn without_others_the_agent_sees_less_and_says_so() {
    let lab = Lab::new(PREFIX, 0).expect("a laboratory");
    let _shop = Shop::start(&lab).expect("the shop");
    let nginx = Nginx::start(&lab, &Options::default()).expect("NGINX");
    let hidden = Hidden::start(&lab, &nginx);
    let agent = Agent::start_by(&lab, unprivileged(&lab, &without(&["sys_ptrace"])), "");
    let log = agent.expect("it works without").log();
    assert!(log.contains("CAP_SYS_PTRACE is absent: "), "{log}");
    assert!(!log.contains(&hidden.told_as), "{log}");

    // Whether it gets as far as its pins is up to who mounted the BPF file system, and how.
    let agent = Agent::start_by(&lab, unprivileged(&lab, &without(&["dac_read_search"])), "");
    let log = agent.map_or_else(|error| format!("{error:#}"), |agent| agent.log());
    assert!(log.contains("CAP_DAC_READ_SEARCH is absent: "), "{log}");
    assert!(!log.contains(&hidden.told_as), "{log}");

    let agent = Agent::start_by(&lab, unprivileged(&lab, &without(&["sys_admin"])), "");
    let agent = agent.expect("it works without");
    let log = agent.log();
    assert!(log.contains("CAP_SYS_ADMIN is absent: "), "{log}");
    // Kernels without the fix of CVE-2025-38466 let it attach all the same.
    let status = agent.json("status", &[]).expect("status");
    let blind = status["libraries_attached"] == 0;
    assert_eq!(blind, log.contains("can't attach to "), "{log}");
}
