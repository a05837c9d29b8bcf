//! What an operator can see and do while the agent runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use portcullis_tests::scenario::{SOON, Scene, block_of, event, host_net};
use portcullis_tests::wait;
use serde_json::Value;

const PREFIX: &str = "pcx-operator";

#[test]
fn only_the_agents_user_and_group_reach_the_socket() {
    let scene = Scene::new(PREFIX, 0).expect("a scene");
    let agent = scene.agent("report.control_group = \"daemon\"").expect("the agent");
    let meta = fs::metadata(&agent.files().control_socket).expect("the socket");
    assert_eq!(meta.permissions().mode() & 0o777, 0o660);
    let group = nix::unistd::Group::from_name("daemon").expect("groups").expect("a group");
    assert_eq!(std::os::unix::fs::MetadataExt::gid(&meta), group.gid.as_raw());

    // A second agent does not take the place of one that runs.
    let second = agent.command("run", &[]).expect("runs");
    assert_eq!(second.status.code(), Some(1));
    let error = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(error.contains("another agent") && error.contains("stop it first"), "{error}");
    assert!(agent.json("status", &[]).is_ok());
}

#[test]
fn blocks_are_made_shown_and_lifted() {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let mut agent = scene.agent("").expect("the agent");
    let host = scene.attacker();
    let target = host.v4().to_string();
    assert!(scene.is_served(host));

    let arguments = [target.as_str(), "--ttl", "1h", "--reason", "ticket 4711"];
    let output = agent.command("block", &arguments).expect("runs");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{target} blocked for 1h\n"));
    assert!(scene.is_cut_off(host));
    assert!(scene.is_served(scene.innocent()));

    let block = block_of(&agent, &host_net(host.v4().into())).expect("blocks").expect("the block");
    assert_eq!((&block["detector"], &block["reason"]), (&"operator".into(), &"ticket 4711".into()));
    assert!((3_500..=3_600).contains(&block["remaining_s"].as_u64().expect("a number")), "{block}");
    assert!(block["packets"].as_u64().expect("a number") > 0, "{block}");
    let table = agent.command("blocks", &[]).expect("runs");
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    for word in [&target, "operator", "ticket 4711", block["id"].as_str().expect("text")] {
        assert!(table.contains(word), "{word}: {table}");
    }

    // The whole /64 of an IPv6 client, without an end.
    let [a, b, c, d, ..] = host.v6().segments();
    let net: ipnet::IpNet = format!("{a:x}:{b:x}:{c:x}:{d:x}::/64").parse().expect("a network");
    let made = agent.json("block", &[&net.to_string()]).expect("a block");
    assert_eq!((&made["target"], &made["remaining_s"]), (&net.to_string().into(), &Value::Null));

    agent.json("unblock", &[&target]).expect("lifted");
    assert!(scene.is_served(host));
    let again = agent.command("unblock", &[&target]).expect("runs");
    assert_eq!(again.status.code(), Some(1));
    let error = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(error.contains("is not blocked"), "{error}");

    let told = agent.wait_for_event(SOON, "the command", |event| {
        event["event"] == "operator" && event["command"] == "block"
    });
    let told = told.unwrap();
    assert_eq!((&told["uid"], &told["ok"]), (&0.into(), &true.into()));
    assert_eq!(told["reason"], "ticket 4711");
    let lifts = agent.events().unwrap().into_iter().filter(event("lift")).count();
    assert_eq!(lifts, 1);
}

#[test]
fn the_operators_word_replaces_the_detectors() {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let mut agent = scene.agent("").expect("the agent");
    scene.guess_until_stopped(scene.attacker()).expect("stopped");
    let decision = agent.wait_for_event(SOON, "a decision", event("decision")).unwrap();

    let target = scene.attacker().v4().to_string();
    let arguments = [target.as_str(), "--ttl", "1s"];
    let block = agent.json("block", &arguments).expect("a block");
    assert_ne!(block["id"], decision["id"]);
    let lift = agent.wait_for_event(SOON, "the lift", event("lift")).unwrap();
    assert_eq!(lift["id"], decision["id"]);
    wait::until(SOON, "the operator's block to end", || {
        Ok(scene.is_served(scene.attacker()).then_some(()))
    })
    .expect("served");
}

#[test]
fn what_cannot_be_blocked_is_refused_with_a_sentence() {
    let scene = Scene::new(PREFIX, 1).expect("a scene");
    let agent = scene.agent("").expect("the agent");
    for (target, exit, sentence) in [
        ("127.0.0.0/16", 1, "127.0.0.0/8 is this host's loopback"),
        ("203.0.113.7 with Firefox", 2, "is no JA4"),
        ("198.51.100.7/24", 2, "has bits set past its prefix"),
        ("example.org", 2, "neither an IP address nor a network"),
    ] {
        let output = agent.command("block", &[target]).expect("runs");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(exit), "{target}: {error}");
        assert!(error.contains(sentence), "{target}: {error}");
    }
    assert_eq!(agent.json("blocks", &[]).expect("blocks"), serde_json::json!([]));
}

#[test]
fn who_is_allowed_live_is_let_in_at_once() {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let mut agent = scene.agent("").expect("the agent");
    let attacker = scene.attacker().v4().to_string();
    scene.guess_until_stopped(scene.attacker()).expect("stopped");
    agent.json("allow", &["add", &attacker]).expect("allowed");
    assert!(scene.is_served(scene.attacker()));
    agent.wait_for_event(SOON, "the lift", event("lift")).unwrap();
    let guesses = scene.guess(scene.attacker(), 30).expect("guesses");
    assert_eq!((guesses.answered, guesses.stopped), (30, false));

    agent.json("allow", &["remove", &attacker]).expect("no longer allowed");
    let refused = agent.command("allow", &["remove", &attacker]).expect("runs");
    assert_eq!(refused.status.code(), Some(1));
    scene.guess_until_stopped(scene.attacker()).expect("stopped again");
}
