//! Does `mode = "observe"` decide and log everything and drop nothing, for the whole
//! installation or for one service?

use portcullis_tests::scenario::{
    Family, MANY, SOON, Scene, block_of, event, guess, host_net, is_served,
};
use serde_json::Value;

const PREFIX: &str = "pcx-observe";
const PACKETS: &str = "portcullis_packets_total";

fn of_kind(events: &[Value], kind: &str) -> Vec<Value> {
    events.iter().filter(|event| event["event"] == kind).cloned().collect()
}

#[test]
fn everything_is_decided_and_nothing_dropped() {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let mut agent = scene.agent("mode = \"observe\"").expect("the agent");
    let guesses = scene.guess(scene.attacker(), MANY).expect("guesses");
    assert_eq!((guesses.answered, guesses.stopped), (MANY, false));

    let decision = agent.wait_for_event(SOON, "a decision", event("decision")).unwrap();
    assert_eq!((&decision["mode"], &decision["action"]), (&"observe".into(), &"drop".into()));
    assert_eq!(decision["detector"], "credential_stuffing");
    assert_eq!(decision["subject"]["ip"], scene.attacker().v4().to_string());
    let events = agent.events().expect("events");
    assert_eq!(of_kind(&events, "finding").len(), 1);
    assert_eq!(of_kind(&events, "decision").len(), 1, "one decision holds, observed or not");

    assert!(scene.is_served(scene.attacker()));
    let target = host_net(scene.attacker().v4().into());
    let block = block_of(&agent, &target).expect("blocks").expect("an entry that counts");
    assert_eq!((&block["count_only"], &block["id"]), (&true.into(), &decision["id"]));
    assert!(block["packets"].as_u64().expect("a number") > 0, "{block}");
    let text = agent.command("blocks", &[]).expect("blocks");
    assert!(String::from_utf8_lossy(&text.stdout).contains("(counts only)"), "{text:?}");

    let packets = |reason: &str| agent.metric(&format!("{PACKETS}{{reason=\"{reason}\"}}"));
    assert!(packets("pass_count_only").expect("metrics").expect("a metric") > 0.0);
    assert_eq!(packets("drop_denied").expect("metrics"), Some(0.0));
    assert!(of_kind(&agent.events().expect("events"), "first_drop").is_empty());

    // What an operator asks for is not observed but done.
    let innocent = scene.innocent().v4().to_string();
    agent.json("block", &[&innocent]).expect("a block");
    assert!(scene.is_cut_off(scene.innocent()));
}

#[test]
fn one_service_observes_while_another_enforces() {
    let scene = Scene::new(PREFIX, 3).expect("a scene");
    let config = "
        [[service]]
        name = \"trial\"
        hosts = [\"trial.test\"]
        mode = \"observe\"
        [[service]]
        name = \"shop\"
        hosts = [\"shop.test\"]
    ";
    let mut agent = scene.agent(config).expect("the agent");
    let server = scene.server(Family::V4);
    let [first, second, innocent] = [0, 1, 2].map(|index| scene.lab.client(index));
    let at_trial = |host, most| {
        guess(host, &scene.client, server, most, |request| request.host("trial.test"))
            .expect("guesses")
    };

    let guesses = at_trial(first, MANY);
    assert_eq!((guesses.answered, guesses.stopped), (MANY, false));
    let decision = agent.wait_for_event(SOON, "a decision", event("decision")).unwrap();
    assert_eq!((&decision["mode"], &decision["service"]), (&"observe".into(), &"trial".into()));

    scene.guess_until_stopped(second).expect("stopped");
    let enforced = |event: &Value| event["event"] == "decision" && event["service"] == "shop";
    let decision = agent.wait_for_event(SOON, "a decision", enforced).unwrap();
    assert_eq!(decision["mode"], "enforce");

    // An observed decision stands in the way of none that is enforced.
    assert!(is_served(first, &scene.client, server));
    scene.guess_until_stopped(first).expect("stopped at the service that enforces");
    let target = host_net(first.v4().into());
    let block = block_of(&agent, &target).expect("blocks").expect("the block");
    assert_eq!(block["count_only"], false);
    assert!(is_served(innocent, &scene.client, server));
}
