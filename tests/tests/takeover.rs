//! Does `kill -9` of the agent let a packet of a blocked source through: at the kill, while no
//! agent runs, or when the next one takes over?

use std::net::IpAddr;
use std::time::{Duration, Instant};

use portcullis_tests::agent::Agent;
use portcullis_tests::flood::{Flood, Witness};
use portcullis_tests::netns::{Host, Lab};
use portcullis_tests::scenario::{Family, SOON, Scene, block_of, event, host_net};
use portcullis_tests::wait;
use serde_json::Value;

const PREFIX: &str = "pcx-kill";
/// Packets of the blocked source sent in each of the three phases at least.
const ENOUGH: u64 = 3_000;

/// Waits until `flood` has sent enough from now on, and the witness still receives others'.
fn let_it_flow(flood: &Flood, witness: &Witness, other: IpAddr) {
    let (sent, received) = (flood.sent(), witness.packets(other));
    wait::until(SOON, "packets of both clients", || {
        let blocked = flood.sent() >= sent + ENOUGH;
        let innocent = witness.packets(other) >= received + ENOUGH;
        Ok((blocked && innocent).then_some(()))
    })
    .expect("both send");
}

fn packets(block: &Value) -> u64 {
    block["packets"].as_u64().expect("a number")
}

/// Starts an agent in the place of one that was killed.
fn restart<'lab>(lab: &'lab Lab, config: &str) -> Agent<'lab> {
    Agent::start(lab, config).expect("the next agent")
}

fn nothing_leaks(attach: &str, hook: &str, family: Family) {
    let lab = Lab::new(PREFIX, 2).expect("a laboratory");
    let [blocked, other, server] =
        [lab.client(0), lab.client(1), lab.server()].map(|host| match family {
            Family::V4 => IpAddr::from(host.v4()),
            Family::V6 => IpAddr::from(host.v6()),
        });
    let config = format!("kernel.attach = \"{attach}\"");
    let agent = Agent::start(&lab, &config).expect("the agent");
    let witness = Witness::listen(lab.server()).expect("a witness");
    let innocent = Flood::start(lab.client(1), other, server).expect("packets");

    // The witness does see this source while nothing blocks it.
    {
        let _before = Flood::start(lab.client(0), blocked, server).expect("packets");
        wait::until(SOON, "packets", || Ok((witness.packets(blocked) > 0).then_some(())))
            .expect("nothing blocks yet");
    }
    let made = agent.json("block", &[&blocked.to_string()]).expect("a block");
    // Packets that passed before may be on their way to the witness; they stop coming.
    let mut seen = witness.packets(blocked);
    let probe = innocent.sent();
    wait::until(SOON, "the earlier packets", || {
        let now = witness.packets(blocked);
        let quiet = std::mem::replace(&mut seen, now) == now;
        Ok((quiet && innocent.sent() > probe + ENOUGH).then_some(()))
    })
    .expect("the block holds");

    let flood = Flood::start(lab.client(0), blocked, server).expect("packets");
    let_it_flow(&flood, &witness, other);
    let target = host_net(blocked);
    let before = block_of(&agent, &target).expect("blocks").expect("the block");
    agent.kill().expect("killed");
    let_it_flow(&flood, &witness, other);
    let agent = restart(&lab, &config);
    let_it_flow(&flood, &witness, other);

    assert!(agent.log().contains(&format!("took over eth0 by {hook}")), "{}", agent.log());
    assert!(agent.log().contains("took over 1 blocks"), "{}", agent.log());
    let after = block_of(&agent, &target).expect("blocks").expect("the block");
    assert_eq!(after["id"], made["id"], "{after}");
    assert!(packets(&before) >= ENOUGH, "{before}");
    assert!(packets(&after) >= packets(&before) + 2 * ENOUGH, "{before} {after}");
    assert!(witness.is_awake());
    assert_eq!(witness.packets(blocked), seen, "packets got through; {} were sent", flood.sent());
}

#[test]
fn nothing_leaks_at_native_xdp() {
    nothing_leaks("xdp-native", "xdp-native", Family::V4);
}

#[test]
fn nothing_leaks_at_generic_xdp() {
    nothing_leaks("xdp-generic", "xdp-generic", Family::V6);
}

#[test]
fn nothing_leaks_at_tcx() {
    nothing_leaks("tc", "tcx", Family::V6);
}

#[test]
fn nothing_leaks_at_clsact() {
    nothing_leaks("clsact", "clsact", Family::V4);
}

#[test]
fn blocks_expire_while_no_agent_runs() {
    const TTL: Duration = Duration::from_secs(2);
    /// The kernel's coarse clock moves in steps of at most 10 ms (CONFIG_HZ=100).
    const STEP: Duration = Duration::from_millis(20);
    let lab = Lab::new(PREFIX, 1).expect("a laboratory");
    let [blocked, server] = [lab.client(0), lab.server()].map(|host| IpAddr::from(host.v4()));
    let agent = Agent::start(&lab, "").expect("the agent");
    let witness = Witness::listen(lab.server()).expect("a witness");
    let begin = Instant::now();
    agent.json("block", &[&blocked.to_string(), "--ttl", "2s"]).expect("a block");
    let flood = Flood::start(lab.client(0), blocked, server).expect("packets");
    agent.kill().expect("killed");

    let first = wait::until(SOON, "packets", || Ok(witness.of(blocked))).expect("it expires");
    assert!(flood.sent() > first.packets, "some were dropped before");
    assert!(first.last - begin >= TTL - STEP, "after {:?}", first.last - begin);

    // The next agent does not bring it back, and forgets it.
    let agent = Agent::start(&lab, "").expect("the next agent");
    let_it_flow(&flood, &witness, blocked);
    assert_eq!(agent.json("blocks", &[]).expect("blocks"), serde_json::json!([]));
    assert_eq!(agent.metric("portcullis_blocks").expect("metrics"), Some(0.0));
}

#[test]
fn the_next_agents_configuration_decides_what_it_takes_over() {
    let scene = Scene::new(PREFIX, 4).expect("a scene");
    let [by_operator, kept, dropped] = [1, 2, 3].map(|n| scene.lab.client(n));
    let listed = |hosts: &[&Host]| {
        let list: Vec<_> = hosts.iter().map(|host| format!("\"{}\"", host.v4())).collect();
        format!("block = [{}]\n", list.join(", "))
    };
    let mut agent = scene.agent(&listed(&[kept, dropped])).expect("the agent");
    agent.json("block", &[&by_operator.v4().to_string()]).expect("a block");
    scene.guess_until_stopped(scene.attacker()).expect("stopped");
    agent
        .wait_for_event(SOON, "a detector's decision", |event| {
            event["event"] == "decision" && event["detector"] != "operator"
        })
        .expect("decided");
    agent.kill().expect("killed");

    // Observed only, and with one block fewer on the list.
    let config = format!("mode = \"observe\"\n{}", listed(&[kept]));
    let mut agent = scene.agent(&config).expect("the next agent");
    assert!(scene.is_served(scene.attacker()), "{}", agent.log());
    assert!(scene.is_served(dropped));
    assert!(scene.is_cut_off(by_operator));
    assert!(scene.is_cut_off(kept));

    // What the list blocked before the crash, a reload can still take off; what an operator
    // blocked, it leaves.
    agent.reload("mode = \"observe\"\n").expect("signalled");
    agent.wait_for_event(SOON, "the reload", event("reload")).expect("reloaded");
    assert!(scene.is_served(kept), "{:?}", agent.json("blocks", &[]));
    assert!(scene.is_cut_off(by_operator));
}

#[test]
fn a_detected_attacker_stays_blocked_over_a_crash() {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let mut agent = scene.agent("").expect("the agent");
    scene.guess_until_stopped(scene.attacker()).expect("stopped");
    let decision = agent.wait_for_event(SOON, "a decision", event("decision")).unwrap();
    agent.kill().expect("killed");
    assert!(scene.is_cut_off(scene.attacker()));
    assert!(scene.is_served(scene.innocent()));

    let agent = scene.agent("").expect("the next agent");
    let target = host_net(scene.attacker().v4().into());
    let block = block_of(&agent, &target).expect("blocks").expect("the block");
    assert_eq!(block["id"], decision["id"]);
    let remaining = block["remaining_s"].as_u64().expect("a number");
    assert!((1..600).contains(&remaining), "{block}");
    assert!(scene.is_cut_off(scene.attacker()));
    // The operator's way out still works.
    agent.json("unblock", &[&scene.attacker().v4().to_string()]).expect("lifted");
    assert!(scene.is_served(scene.attacker()));
}

#[test]
fn the_next_agent_may_attach_elsewhere() {
    let lab = Lab::new(PREFIX, 2).expect("a laboratory");
    let [blocked, other, server] =
        [lab.client(0), lab.client(1), lab.server()].map(|host| IpAddr::from(host.v4()));
    let agent = Agent::start(&lab, "").expect("the agent");
    let witness = Witness::listen(lab.server()).expect("a witness");
    let _innocent = Flood::start(lab.client(1), other, server).expect("packets");
    agent.json("block", &[&blocked.to_string()]).expect("a block");
    let flood = Flood::start(lab.client(0), blocked, server).expect("packets");
    agent.kill().expect("killed");
    for hook in ["clsact", "xdp-generic", "tcx", "xdp-native"] {
        let attach = if hook == "tcx" { "tc" } else { hook };
        let agent = restart(&lab, &format!("kernel.attach = \"{attach}\""));
        let_it_flow(&flood, &witness, other);
        let status = agent.json("status", &[]).expect("status");
        assert_eq!(status["interfaces"][0]["hook"], hook);
        assert_eq!(witness.packets(blocked), 0, "packets got through at {hook}");
        // Each packet meets one program, not two: what is dropped is dropped once and what
        // passes is counted once.
        assert_eq!(programs_on(&lab), 1, "at {hook}");
        agent.kill().expect("killed");
    }
}

/// Portcullis' programs on the server's interface, as iproute2 and the pins show them.
fn programs_on(lab: &Lab) -> usize {
    let mut filters = std::process::Command::new("tc");
    filters.args(["filter", "show", "dev", "eth0", "ingress"]);
    let output = lab.server().output(filters).expect("tc runs");
    let filters = String::from_utf8_lossy(&output.stdout);
    let filters = filters.lines().filter(|line| line.contains("portcullis_tc")).count();
    let pins = std::fs::read_dir(lab.pin_dir().join("links")).expect("pins").count();
    filters + pins
}
