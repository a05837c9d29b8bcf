//! What does SIGHUP change, what does it keep, and what does a bad file do?

use portcullis_tests::agent::Agent;
use portcullis_tests::client::Request;
use portcullis_tests::scenario::{SOON, Scene, block_of, event, host_net};
use serde_json::Value;

const PREFIX: &str = "pcx-reload";
const LENIENT: &str = "[detect.credential_stuffing]\nfailures = 1000\n";
const RELOADS: &str = "portcullis_config_reloads_total";

/// Reloads `config` and waits until the agent has said so for the `nth` time; what it said.
fn reload(agent: &mut Agent<'_>, config: &str, nth: usize) -> Value {
    agent.reload(config).expect("signalled");
    reloaded(agent, nth)
}

fn reloaded(agent: &mut Agent<'_>, nth: usize) -> Value {
    let what = format!("reload {nth}");
    portcullis_tests::wait::until(SOON, &what, || {
        Ok(agent.events()?.into_iter().filter(event("reload")).nth(nth - 1))
    })
    .expect("reloaded")
}

#[test]
fn thresholds_change_and_what_is_known_stays() {
    let scene = Scene::new(PREFIX, 3).expect("a scene");
    let mut agent = scene.agent(LENIENT).expect("the agent");
    let other = scene.lab.client(2);
    let block = agent.json("block", &[&other.v4().to_string()]).expect("a block");

    // A connection from before, and failed logins that were too few.
    let mut connection = scene.connect(scene.attacker()).expect("a connection");
    let mut guess = |user: u32| {
        let login = Request::login(&format!("user{user}@example.com"), "hunter2");
        connection.request(&login).is_ok_and(|answer| answer.status == 401)
    };
    assert!((0..30).all(&mut guess));
    agent.wait_for_metric(SOON, "portcullis_transactions_total", |n| n >= 30.0).expect("seen");
    assert!(agent.events().unwrap().iter().all(|e| e["event"] != "finding"));

    let told = reload(&mut agent, "[detect.credential_stuffing]\nfailures = 20\n", 1);
    assert_eq!((&told["ok"], &told["messages"]), (&true.into(), &serde_json::json!([])));
    // The first guess after it is one too many, because the earlier ones are remembered, and it
    // is seen, because the connection is.
    let answered = (30..60).take_while(|user| guess(*user)).count();
    assert!(answered <= 10, "{answered} more guesses were answered");
    let decision = agent.wait_for_event(SOON, "a decision", |decision| {
        decision["event"] == "decision" && decision["detector"] == "credential_stuffing"
    });
    let decision = decision.unwrap();
    assert!(decision["evidence"]["failures"].as_u64().expect("a number") > 30, "{decision}");

    let kept = block_of(&agent, &host_net(other.v4().into())).expect("blocks").expect("the block");
    assert_eq!(kept["id"], block["id"]);
    let reloads = agent.metric(&format!("{RELOADS}{{result=\"success\"}}")).expect("metrics");
    assert_eq!(reloads, Some(1.0));
}

#[test]
fn lists_and_mode_take_effect() {
    let scene = Scene::new(PREFIX, 3).expect("a scene");
    let mut agent = scene.agent("").expect("the agent");
    let listed = scene.lab.client(2);
    scene.guess_until_stopped(scene.attacker()).expect("stopped");
    let decision = agent.wait_for_event(SOON, "a decision", event("decision")).unwrap();

    // Blocked by the file, for as long as it says so.
    let (attacker, target) = (scene.attacker().v4(), listed.v4());
    assert!(scene.is_served(listed));
    reload(&mut agent, &format!("block = [\"{target}\"]"), 1);
    assert!(scene.is_cut_off(listed));
    assert!(scene.is_cut_off(scene.attacker()), "the earlier block stays");
    let block = block_of(&agent, &host_net(target.into())).expect("blocks").expect("the block");
    assert_eq!(block["remaining_s"], Value::Null);
    reload(&mut agent, "", 2);
    assert!(scene.is_served(listed));
    assert!(scene.is_cut_off(scene.attacker()), "the earlier block stays");

    // Allowed: the block is lifted.
    reload(&mut agent, &format!("guards.allow = [\"{attacker}\"]"), 3);
    assert!(scene.is_served(scene.attacker()));
    let lift = agent.wait_for_event(SOON, "a lift", event("lift")).unwrap();
    let lifts: Vec<Value> = agent.events().unwrap().into_iter().filter(event("lift")).collect();
    assert!(lifts.iter().any(|lift| lift["id"] == decision["id"]), "{lift}");

    // No longer allowed, the attacker starts anew; then the mode lifts what was decided.
    reload(&mut agent, "", 4);
    assert!(scene.is_served(scene.attacker()));
    scene.guess_until_stopped(scene.attacker()).expect("stopped again");
    reload(&mut agent, "mode = \"observe\"", 5);
    assert!(scene.is_served(scene.attacker()));
    assert_eq!(agent.json("status", &[]).expect("status")["mode"], "observe");
    assert_eq!(agent.json("blocks", &[]).expect("blocks"), serde_json::json!([]));
    let guesses = scene.guess(scene.attacker(), 30).expect("guesses");
    assert_eq!((guesses.answered, guesses.stopped), (30, false));
    let block = block_of(&agent, &host_net(attacker.into())).expect("blocks").expect("an entry");
    assert_eq!(block["count_only"], true);

    // What was only observed does not stand in the way of enforcing.
    reload(&mut agent, "", 6);
    scene.guess_until_stopped(scene.attacker()).expect("stopped once more");
    let block = block_of(&agent, &host_net(attacker.into())).expect("blocks").expect("the block");
    assert_eq!(block["count_only"], false);
}

#[test]
fn a_bad_file_changes_nothing_and_is_told() {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let mut agent = scene.agent("").expect("the agent");
    let file = agent.files().config.display().to_string();
    let good = std::fs::read_to_string(&agent.files().config).expect("the configuration");
    let check = || {
        let output = agent.command("check", &[]).expect("check runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(check(), (Some(0), String::new()));

    // Keys that do not exist, a wrong type, an impossible value, and a conflict: all at once.
    let bad = "\
interfaces = [\"eth0\"]
mode = \"observe\"
block = [\"192.0.2.7\"]

[guards]
allow = [\"192.0.2.0/24\"]

[detect.credential_stuffing]
failures = \"ten\"
tresholds = 3

[decide]
ttl = \"0s\"
";
    agent.reload_raw(bad).expect("signalled");
    let told = portcullis_tests::wait::until(SOON, "the reload", || {
        Ok(agent.events()?.into_iter().find(event("reload")))
    })
    .expect("told");
    let (exit, mistakes) = check();
    assert_eq!(exit, Some(2), "{mistakes}");
    let messages: Vec<String> = serde_json::from_value(told["messages"].clone()).expect("text");
    let log = agent.log();
    for (line, key) in [
        (3, "block"),
        (9, "detect.credential_stuffing.failures"),
        (10, "detect.credential_stuffing.tresholds"),
        (13, "decide.ttl"),
    ] {
        let place = |text: &str| {
            text.lines().any(|text| text.contains(&format!("{file}:{line}:")) && text.contains(key))
        };
        assert!(messages.iter().any(|message| place(message)), "{line} {key}: {messages:?}");
        assert!(place(&mistakes), "{line} {key}: {mistakes}");
        assert!(place(&log), "{line} {key}: {log}");
    }
    assert_eq!(messages.len(), mistakes.lines().count(), "{messages:?}\n{mistakes}");
    assert_eq!(told["ok"], false);
    assert!(log.contains("the old one holds"), "{log}");
    let failures = agent.metric(&format!("{RELOADS}{{result=\"failure\"}}")).expect("metrics");
    assert_eq!(failures, Some(1.0));

    // Not TOML at all, and no file at all.
    agent.reload_raw("interfaces = [\n").expect("signalled");
    let told = reloaded(&mut agent, 2);
    assert!(told["messages"][0].as_str().expect("text").contains(&file), "{told}");
    std::fs::remove_file(&agent.files().config).expect("removed");
    agent.signal(nix::sys::signal::Signal::SIGHUP).expect("signalled");
    let told = reloaded(&mut agent, 3);
    assert_eq!(told["ok"], false);

    // The configuration from the start holds: it enforces.
    std::fs::write(&agent.files().config, good).expect("written");
    assert_eq!(agent.json("status", &[]).expect("status")["mode"], "enforce");
    scene.guess_until_stopped(scene.attacker()).expect("stopped");
    assert!(scene.is_served(scene.innocent()));
}

#[test]
fn keys_that_need_a_restart_are_named_and_the_rest_holds() {
    let scene = Scene::new(PREFIX, 1).expect("a scene");
    let mut agent = scene.agent("").expect("the agent");
    let attacker = scene.attacker().v4();
    let config = format!(
        "block = [\"{attacker}\"]\n[kernel]\nattach = \"tc\"\nmax_blocks = 5000\n\
         [capture]\nring_bytes = \"1MiB\"\n"
    );
    let told = reload(&mut agent, &config, 1);
    assert_eq!(told["ok"], true);
    let messages = told["messages"].to_string();
    for key in ["kernel.attach", "kernel.max_blocks", "capture.ring_bytes"] {
        assert!(messages.contains(&format!("{key} changes at the next start only")), "{told}");
        assert!(agent.log().contains(&format!("{key} changes")), "{}", agent.log());
    }
    assert_eq!(told["messages"].as_array().expect("a list").len(), 3, "{told}");
    assert!(scene.is_cut_off(scene.attacker()), "what can change has changed");

    // At the next start they do change, and the blocks are carried over to the smaller map.
    let before = block_of(&agent, &host_net(attacker.into())).expect("blocks").expect("a block");
    agent.stop().expect("stopped");
    let agent = scene.agent(&config).expect("the next agent");
    let status = agent.json("status", &[]).expect("status");
    assert_eq!(status["interfaces"][0]["hook"], "tcx");
    assert_eq!(status["blocks"]["capacity"], 5000);
    let after = block_of(&agent, &host_net(attacker.into())).expect("blocks").expect("a block");
    assert!(after["packets"].as_u64() >= before["packets"].as_u64(), "{before} {after}");
    assert!(scene.is_cut_off(scene.attacker()));
}
