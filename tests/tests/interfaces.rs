//! Interfaces that come and go, in this and in other network namespaces: is each protected as
//! soon as it is there, and does the agent tell?

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use aya::programs::SchedClassifier;
use aya::programs::links::FdLink;
use aya::programs::tc::{
    self, NlOptions, SchedClassifierLink, TcAttachOptions, TcAttachType, TcHandle,
};
use portcullis_common::names::program;
use portcullis_tests::agent::Agent;
use portcullis_tests::bench::xdp::xdp_filter::{Mode, XdpFilter};
use portcullis_tests::netns::{Host, Lab};
use portcullis_tests::packet::harness::Kernel;
use portcullis_tests::scenario::{SOON, is_cut_off};
use portcullis_tests::wait;
use serde_json::Value;

const PREFIX: &str = "pcx-links";
/// From an interface's creation to the event that tells of its program.
const AT_ONCE: std::time::Duration = std::time::Duration::from_secs(1);

/// `ip` with the words of `arguments`, on `host`.
fn ip(lab: &Lab, host: &Host, arguments: &str) {
    let mut command = Command::new("ip");
    command.args(arguments.split(' '));
    let output = lab.run_in(host, command).expect("ip runs");
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}

/// A second line between the server and the first client: `name` on the server's side.
fn add_line(lab: &Lab, name: &str) -> SocketAddr {
    let client = lab.client(0).namespace();
    let peer = format!("{name}-peer");
    ip(lab, lab.server(), &format!("link add {name} type veth peer name {peer} netns {client}"));
    ip(lab, lab.server(), &format!("address add 192.168.77.1/24 dev {name}"));
    ip(lab, lab.server(), &format!("link set {name} up"));
    ip(lab, lab.client(0), &format!("address add 192.168.77.2/24 dev {peer}"));
    ip(lab, lab.client(0), &format!("link set {peer} up"));
    "192.168.77.1:80".parse().expect("an address")
}

const CALLER: &str = "192.168.77.2";

fn listen(host: &Host, address: SocketAddr) -> TcpListener {
    host.run(|| Ok(TcpListener::bind(address)?)).expect("a listener")
}

fn reaches(host: &Host, server: SocketAddr) -> bool {
    host.run(|| Ok(std::net::TcpStream::connect_timeout(&server, SOON).is_ok())).expect("a try")
}

/// Events of one kind about one interface.
fn about<'a>(kind: &'a str, interface: &'a str) -> impl Fn(&Value) -> bool + 'a {
    move |event| event["event"] == kind && event["interface"] == interface
}

/// How many of the events so far are of that kind about that interface.
fn count(agent: &Agent<'_>, kind: &str, interface: &str) -> usize {
    agent.events().expect("events").iter().filter(|event| about(kind, interface)(event)).count()
}

fn wait_for_count(agent: &Agent<'_>, kind: &str, interface: &str, wanted: usize) {
    wait::until(SOON, &format!("{kind} of {interface}"), || {
        Ok((count(agent, kind, interface) == wanted).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}: {:?}\n{}", agent.events(), agent.log()));
}

fn pins(lab: &Lab) -> Vec<String> {
    let entries = std::fs::read_dir(lab.pin_dir().join("links")).expect("pins");
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The interfaces that `portcullis status` shows, each with its namespace and hook.
fn status(agent: &Agent<'_>, list: &str) -> Vec<String> {
    let status = agent.json("status", &[]).expect("status");
    let shown = |one: &Value| one["name"].as_str().expect("a name").to_owned();
    status[list].as_array().expect("a list").iter().map(shown).collect()
}

#[test]
fn an_interface_that_appears_is_protected_at_once() {
    let lab = Lab::new(PREFIX, 1).expect("a laboratory");
    let mut agent = Agent::start(&lab, "interfaces = [\"eth0\", \"late0\"]").expect("the agent");
    assert_eq!(
        (status(&agent, "interfaces"), status(&agent, "waiting")),
        (vec!["eth0".into()], vec!["late0".into()])
    );
    assert!(agent.log().contains("no program on late0: it is not there"), "{}", agent.log());
    assert_eq!(agent.metric("portcullis_interfaces_waiting").expect("metrics"), Some(1.0));
    agent.json("block", &[CALLER]).expect("a block");

    for round in 1..=3 {
        let begin = Instant::now();
        let server = add_line(&lab, "late0");
        agent.wait_for_event(SOON, "the program", about("attach", "late0")).expect("attached");
        wait_for_count(&agent, "attach", "late0", round);
        assert!(begin.elapsed() < AT_ONCE, "after {:?}", begin.elapsed());
        let _listener = listen(lab.server(), server);
        assert!(is_cut_off(lab.client(0), server), "{}", agent.log());
        assert_eq!(pins(&lab), ["eth0@xdp-native", "late0@xdp-native"]);
        assert_eq!(status(&agent, "waiting"), Vec::<String>::new());

        ip(&lab, lab.server(), "link delete late0");
        wait_for_count(&agent, "detach", "late0", round);
        assert_eq!(pins(&lab), ["eth0@xdp-native"]);
        assert_eq!(status(&agent, "waiting"), ["late0"]);
    }
    let changes = |change: &str| {
        let name = format!("portcullis_interface_changes_total{{change=\"{change}\"}}");
        agent.metric(&name).expect("metrics")
    };
    assert_eq!((changes("attached"), changes("detached")), (Some(4.0), Some(3.0)));
    assert_eq!(changes("failed"), Some(0.0));
}

#[test]
fn patterns_and_names_follow_renames() {
    let lab = Lab::new(PREFIX, 1).expect("a laboratory");
    let config = "interfaces = [\"eth*\", \"lan?\", \"!lan9\"]";
    let mut agent = Agent::start(&lab, config).expect("the agent");
    let server = add_line(&lab, "wan0");
    let _listener = listen(lab.server(), server);
    agent.json("block", &[CALLER]).expect("a block");
    assert!(reaches(lab.client(0), server), "wan0 is not wanted");

    ip(&lab, lab.server(), "link set wan0 name lan1");
    wait_for_count(&agent, "attach", "lan1", 1);
    assert!(is_cut_off(lab.client(0), server));
    // From one name that is wanted to another: the program stays, and its pin moves.
    ip(&lab, lab.server(), "link set lan1 name lan2");
    wait_for_count(&agent, "attach", "lan2", 1);
    assert!(is_cut_off(lab.client(0), server));
    assert_eq!(pins(&lab), ["eth0@xdp-native", "lan2@xdp-native"]);
    let event = agent.wait_for_event(SOON, "the old name", about("detach", "lan1")).unwrap();
    assert_eq!(event["reason"], "it is called lan2 now");
    ip(&lab, lab.server(), "link set lan2 name lan9");
    wait_for_count(&agent, "detach", "lan2", 1);
    assert!(reaches(lab.client(0), server));
    assert_eq!(pins(&lab), ["eth0@xdp-native"]);
}

#[test]
fn renamed_while_no_agent_runs_is_taken_over_all_the_same() {
    let lab = Lab::new(PREFIX, 1).expect("a laboratory");
    let config = "interfaces = [\"eth*\", \"lan?\"]";
    for attach in ["auto", "tc"] {
        let config = format!("{config}\n[kernel]\nattach = \"{attach}\"\n");
        let agent = Agent::start(&lab, &config).expect("the agent");
        let server = add_line(&lab, "lan1");
        let _listener = listen(lab.server(), server);
        agent.json("block", &[CALLER]).expect("a block");
        wait_for_count(&agent, "attach", "lan1", usize::from(attach == "tc") + 1);
        agent.kill().expect("killed");
        ip(&lab, lab.server(), "link set lan1 name lan2");
        let agent = Agent::start(&lab, &config).expect("the next agent");
        let hook = if attach == "tc" { "tcx" } else { "xdp-native" };
        assert!(agent.log().contains(&format!("took over lan2 by {hook}")), "{}", agent.log());
        assert_eq!(pins(&lab), [format!("eth0@{hook}"), format!("lan2@{hook}")]);
        assert!(is_cut_off(lab.client(0), server));
        ip(&lab, lab.server(), "link delete lan2");
    }
}

#[test]
fn a_reload_changes_the_interfaces() {
    let lab = Lab::new(PREFIX, 1).expect("a laboratory");
    let server = add_line(&lab, "lan1");
    let _listener = listen(lab.server(), server);
    for attach in ["auto", "clsact"] {
        let kernel = format!("kernel.attach = \"{attach}\"\n");
        let agent = Agent::start(&lab, &kernel).expect("the agent");
        agent.json("block", &[CALLER]).expect("a block");
        assert!(reaches(lab.client(0), server));
        agent.reload(&format!("{kernel}interfaces = [\"eth0\", \"lan1\"]")).expect("signalled");
        wait::until(SOON, "lan1", || Ok((status(&agent, "interfaces").len() == 2).then_some(())))
            .expect("attached");
        assert!(is_cut_off(lab.client(0), server));
        agent.reload(&format!("{kernel}interfaces = [\"eth0\"]")).expect("signalled");
        wait::until(SOON, "lan1", || Ok((status(&agent, "interfaces").len() == 1).then_some(())))
            .expect("detached");
        assert!(reaches(lab.client(0), server));
        let event = agent.events().expect("events").into_iter().rfind(about("detach", "lan1"));
        assert_eq!(event.expect("told")["reason"], "it is no longer configured");
    }
}

#[test]
fn without_any_of_its_interfaces_an_agent_does_not_start() {
    let lab = Lab::new(PREFIX, 0).expect("a laboratory");
    for interfaces in ["[\"eth7\"]", "[\"wlan*\"]"] {
        assert!(Agent::start(&lab, &format!("interfaces = {interfaces}")).is_err());
        let log = std::fs::read_to_string(lab.dir().join("portcullis.log")).expect("a log");
        assert!(log.contains("there are: lo, eth0"), "{log}");
    }
}

/// What an operator takes off stays off until the interface comes anew.
#[test]
fn what_is_detached_by_hand_stays_off() {
    let lab = Lab::new(PREFIX, 1).expect("a laboratory");
    let agent = Agent::start(&lab, "interfaces = [\"eth0\", \"lan?\"]").expect("the agent");
    add_line(&lab, "lan1");
    wait_for_count(&agent, "attach", "lan1", 1);
    std::fs::remove_file(lab.pin_dir().join("links/lan1@xdp-native")).expect("it is there");
    // News of any interface makes the agent look at all.
    ip(&lab, lab.server(), "link set lan1 alias mine");
    wait_for_count(&agent, "detach", "lan1", 1);
    wait_for_count(&agent, "attach_failed", "lan1", 1);
    assert_eq!(status(&agent, "waiting"), ["lan1"]);
    ip(&lab, lab.server(), "link delete lan1");
    add_line(&lab, "lan1");
    wait_for_count(&agent, "attach", "lan1", 2);
}

/// A namespace of a test's own, beside those of its laboratory.
struct Extra(String);

impl Extra {
    fn add(lab: &Lab) -> Self {
        let this = Self(format!("{}-x", lab.name()));
        this.ip(&format!("netns add {}", this.0));
        this
    }

    fn delete(&self) {
        self.ip(&format!("netns delete {}", self.0));
    }

    fn ip(&self, arguments: &str) {
        let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip runs");
        assert!(status.success(), "ip {arguments}");
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    /// A line from here, where it is eth0, to the first client.
    fn connect(&self, lab: &Lab) {
        let (here, there) = (&self.0, lab.client(0).namespace());
        self.ip(&format!("link add eth0 netns {here} type veth peer name xline netns {there}"));
        self.ip(&format!("-netns {here} address add 192.168.77.1/24 dev eth0"));
        self.ip(&format!("-netns {here} link set eth0 up"));
        ip(lab, lab.client(0), &format!("address add {CALLER}/24 dev xline"));
        ip(lab, lab.client(0), "link set xline up");
    }
}

impl Drop for Extra {
    fn drop(&mut self) {
        if Path::new(&self.path()).exists() {
            let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
        }
    }
}

fn in_extra(config: &str, extra: &Extra) -> String {
    format!("{config}\n[[namespace]]\npath = \"{}\"\ninterfaces = [\"eth*\"]\n", extra.path())
}

#[test]
fn interfaces_of_another_namespace_are_protected() {
    let lab = Lab::new(PREFIX, 2).expect("a laboratory");
    let other = lab.client(1);
    let path = format!("/run/netns/{}", other.namespace());
    let namespace = format!("[[namespace]]\npath = \"{path}\"\ninterfaces = [\"eth0\"]\n");
    let server = SocketAddr::new(other.v4().into(), 80);
    let _listener = listen(other, server);
    let caller = lab.client(0).v4().to_string();
    for (attach, hook) in [("auto", "xdp-native"), ("tc", "tcx"), ("clsact", "clsact")] {
        let config = format!("kernel.attach = \"{attach}\"\n{namespace}");
        let agent = Agent::start(&lab, &config).expect("the agent");
        let shown = agent.json("status", &[]).expect("status")["interfaces"].clone();
        assert_eq!(shown[1]["namespace"], path, "{shown}");
        assert_eq!((&shown[0]["hook"], &shown[1]["hook"]), (&hook.into(), &hook.into()));
        assert_eq!(shown[0].get("namespace"), None);
        assert!(reaches(lab.client(0), server));
        agent.json("block", &[&caller]).expect("a block");
        assert!(is_cut_off(lab.client(0), server), "{attach}");
        // What protects the host protects the namespace's addresses.
        let refused = agent.command("block", &[&other.v4().to_string()]).expect("an answer");
        assert!(!refused.status.success(), "{refused:?}");
        assert!(
            agent
                .command("block", &[&lab.server().v4().to_string()])
                .is_ok_and(|o| !o.status.success())
        );

        agent.kill().expect("killed");
        assert!(is_cut_off(lab.client(0), server), "{attach}");
        let agent = Agent::start(&lab, &config).expect("the next agent");
        let sentence = format!("took over eth0 in {path} by {hook}");
        assert!(agent.log().contains(&sentence), "{}", agent.log());
        assert!(is_cut_off(lab.client(0), server), "{attach}");
        agent.stop().expect("stopped");

        let detached = Agent::command_of(&lab, "detach", &["--json"]).expect("detach runs");
        let detached: Value = serde_json::from_slice(&detached.stdout).expect("JSON");
        assert_eq!(detached["links"].as_array().map(Vec::len), Some(2), "{detached}");
        assert!(reaches(lab.client(0), server), "{attach}");
    }
}

#[test]
fn a_namespace_may_come_and_go() {
    let lab = Lab::new(PREFIX, 1).expect("a laboratory");
    let extra = Extra::add(&lab);
    extra.delete();
    let mut agent = Agent::start(&lab, &in_extra("", &extra)).expect("the agent");
    assert_eq!(status(&agent, "interfaces"), ["eth0"]);
    agent.json("block", &[CALLER]).expect("a block");
    for round in 1..=2 {
        let extra = Extra::add(&lab);
        let begin = Instant::now();
        extra.connect(&lab);
        let server: SocketAddr = "192.168.77.1:80".parse().expect("an address");
        // The first is the server's own eth0.
        wait_for_count(&agent, "attach", "eth0", round + 1);
        println!("attached {:?} after its namespace was made", begin.elapsed());
        let inside =
            |event: &Value| event["event"] == "attach" && event["namespace"] == extra.path();
        agent.wait_for_event(SOON, "the program", inside).expect("it names the namespace");
        assert!(is_cut_off(lab.client(0), server));
        assert_eq!(pins(&lab).len(), 2);
        extra.delete();
        wait_for_count(&agent, "detach", "eth0", round);
        assert_eq!(pins(&lab), ["eth0@xdp-native"]);
        // The agent keeps nothing of it alive: its interfaces go, and with them their peers.
        wait::until(SOON, "the other end to go", || {
            let there = lab.client(0).run(|| Ok(nix::net::if_::if_nametoindex("xline").is_ok()))?;
            Ok((!there).then_some(()))
        })
        .expect("the namespace ends");
    }
}

/// Whether `text` says of a hook that xdp-filter has the interface.
fn names_the_filter(text: &str) -> bool {
    text.contains("another XDP program has the interface: xdpfilt_alw_all, program ")
}

#[test]
fn beside_another_xdp_program_tc_protects_and_says_why() {
    let lab = Lab::new(PREFIX, 1).expect("a laboratory");
    let server = SocketAddr::new(lab.server().v4().into(), 80);
    let _listener = listen(lab.server(), server);
    let filter = XdpFilter::load(lab.server(), Mode::Generic).expect("xdp-filter");
    let mut agent = Agent::start(&lab, "").expect("the agent");
    let event = agent.wait_for_event(SOON, "the program", about("attach", "eth0")).expect("told");
    assert_eq!(event["hook"], "tcx", "{event}");
    let shown = agent.json("status", &[]).expect("status")["interfaces"][0].clone();
    for list in [&event["passed_over"], &shown["passed_over"]] {
        let reasons = list.as_array().expect("reasons");
        assert_eq!(reasons.len(), 2, "{reasons:?}");
        for (reason, hook) in reasons.iter().zip(["xdp-native: ", "xdp-generic: "]) {
            let reason = reason.as_str().expect("a sentence");
            assert!(reason.starts_with(hook) && names_the_filter(reason), "{reason}");
        }
    }
    assert!(names_the_filter(&agent.log()), "{}", agent.log());
    let status = agent.command("status", &[]).expect("status");
    assert!(names_the_filter(&String::from_utf8_lossy(&status.stdout)), "{status:?}");
    let doctor = agent.json("doctor", &[]);
    let doctor = doctor.expect("nothing is missing")["checks"].to_string();
    assert!(doctor.contains("XDP: xdpfilt_alw_all, program "), "{doctor}");

    let caller = lab.client(0).v4().to_string();
    assert!(reaches(lab.client(0), server));
    agent.json("block", &[&caller]).expect("a block");
    assert!(is_cut_off(lab.client(0), server));
    agent.json("unblock", &[&caller]).expect("lifted");
    // What the other program drops, it still drops.
    filter.deny_source(lab.client(0).v4().into()).expect("denied");
    assert!(is_cut_off(lab.client(0), server));
    agent.kill().expect("killed");

    // With nothing but XDP to choose from, the agent says who is there, and ends.
    assert!(Agent::start(&lab, "kernel.attach = \"xdp-native\"").is_err());
    let log = std::fs::read_to_string(lab.dir().join("portcullis.log")).expect("a log");
    assert!(names_the_filter(&log), "{log}");
    drop(filter);

    // The other one has gone: the next start has the better hook, and leaves one program.
    let agent = Agent::start(&lab, "kernel.attach = \"xdp-native\"").expect("the next agent");
    assert_eq!(pins(&lab), ["eth0@xdp-native"], "{}", agent.log());
}

/// The TC program of `kernel` on eth0 of this thread's namespace, by tcx and by a filter that
/// lives as long as the second of the links.
fn attach_tc(kernel: &mut Kernel) -> anyhow::Result<(FdLink, SchedClassifierLink)> {
    let program = kernel.loaded.ebpf.program_mut(program::TC).expect("it has one");
    let classifier: &mut SchedClassifier = program.try_into()?;
    let tcx = classifier.attach("eth0", TcAttachType::Ingress)?;
    tc::qdisc_add_clsact("eth0")?;
    let options = NlOptions { priority: 7, handle: TcHandle::new(0, 7), classid: None };
    let options = TcAttachOptions::Netlink(options);
    let filter = classifier.attach_with_options("eth0", TcAttachType::Ingress, options)?;
    Ok((FdLink::try_from(classifier.take_link(tcx)?)?, classifier.take_link(filter)?))
}

#[test]
fn other_tc_programs_stay_beside() {
    let lab = Lab::new(PREFIX, 1).expect("a laboratory");
    let server = SocketAddr::new(lab.server().v4().into(), 80);
    let _listener = listen(lab.server(), server);
    let mut theirs = Kernel::new().expect("another program");
    let (link, filter) = lab.server().run(|| attach_tc(&mut theirs)).expect("attached");
    let seen = || theirs.loaded.reasons.all().expect("counters")[0].packets;
    let caller = lab.client(0).v4().to_string();
    for (attach, hook) in [("tc", "tcx"), ("clsact", "clsact")] {
        let agent =
            Agent::start(&lab, &format!("kernel.attach = \"{attach}\"")).expect("the agent");
        assert_eq!(agent.json("status", &[]).expect("status")["interfaces"][0]["hook"], hook);
        let before = seen();
        assert!(reaches(lab.client(0), server), "{hook}");
        // By either of its hooks, so that each packet counts twice.
        assert!(seen() > before, "{hook}: what passes goes on to the others");
        agent.json("block", &[&caller]).expect("a block");
        assert!(is_cut_off(lab.client(0), server), "{hook}");
        agent.kill().expect("killed");
        let detached = Agent::command_of(&lab, "detach", &[]).expect("detach runs");
        assert!(detached.status.success(), "{detached:?}");
        let before = seen();
        assert!(reaches(lab.client(0), server), "{hook}");
        assert!(seen() > before, "{hook}: they have been left in place");
    }
    assert!(link.info().is_ok_and(|info| info.program_id() > 0));
    // It was made in another namespace than the one this thread is in.
    let removed = lab.server().run(|| {
        drop(filter);
        Ok(())
    });
    removed.expect("dropped");
}
