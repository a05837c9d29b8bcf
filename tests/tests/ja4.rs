//! Blocks of TLS clients by their JA4, with real clients: the block holds from the next hello on, for
//! every address or for one network, and for no other client.

use aya::maps::{HashMap, Map, MapData};
use portcullis_common::ABI_VERSION;
use portcullis_common::names::pinned;
use portcullis_tests::agent::Agent;
use portcullis_tests::curl::curl;
use portcullis_tests::netns::Host;
use portcullis_tests::scenario::{Family, SOON, Scene};

const PREFIX: &str = "pcx-ja4";
const LEARNED: &str = "portcullis_fingerprints_total{kind=\"learned\"}";
/// curl's status when time is up.
const TIMED_OUT: i32 = 28;

/// curl's exit status.
fn asks(scene: &Scene, host: &Host, family: Family) -> i32 {
    let ca = &scene.nginx.certs().ca;
    curl(host, ca, scene.server(family), "/api/items", &[], 2).expect("curl runs").exit
}

/// The only JA4 that the agent has learned.
fn learned(scene: &Scene) -> String {
    let pin = scene.lab.pin_dir().join(format!("maps-v{ABI_VERSION}")).join(pinned::KNOWN);
    let known = Map::HashMap(MapData::from_pin(pin).expect("it is pinned"));
    let known = HashMap::<_, u64, [[u8; 8]; 5]>::try_from(known).expect("what is known");
    let mut names: Vec<_> = known.iter().map(|entry| entry.expect("an entry").1).collect();
    assert_eq!(names.len(), 1, "one client has come");
    let name = names.pop().expect("one").concat();
    String::from_utf8(name).expect("text").trim_end_matches('\0').to_owned()
}

/// The scene, its agent, and what curl is called.
fn with_curls_ja4<T>(attach: &str, test: impl FnOnce(&Scene, &Agent<'_>, &str) -> T) -> T {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    let agent = scene.agent(&format!("kernel.attach = \"{attach}\"")).expect("the agent");
    assert_eq!(asks(&scene, scene.attacker(), Family::V4), 0);
    agent.wait_for_metric(SOON, LEARNED, |n| n == 1.0).expect("curl is learned");
    let ja4 = learned(&scene);
    test(&scene, &agent, &ja4)
}

fn a_block_holds_for_one_client_wherever_it_is(attach: &str) {
    with_curls_ja4(attach, |scene, agent, ja4| {
        agent.json("block", &[ja4]).expect("a block");
        for host in [scene.attacker(), scene.innocent()] {
            for family in [Family::V4, Family::V6] {
                assert_eq!(asks(scene, host, family), TIMED_OUT, "{family:?}");
            }
            assert!(scene.is_served(host), "another client on the same address");
        }
        let dropped = agent.metric("portcullis_packets_total{reason=\"drop_denied\"}");
        assert!(dropped.expect("metrics").expect("a metric") > 0.0);
        agent.command("unblock", &[ja4]).expect("the command runs");
        assert_eq!(asks(scene, scene.attacker(), Family::V4), 0);
    });
}

#[test]
fn by_xdp() {
    a_block_holds_for_one_client_wherever_it_is("xdp-native");
}

#[test]
fn by_tc() {
    a_block_holds_for_one_client_wherever_it_is("tc");
}

#[test]
fn with_a_network_it_holds_there_alone() {
    with_curls_ja4("auto", |scene, agent, ja4| {
        let attacker = scene.attacker().v4().to_string();
        agent.json("block", &[&attacker, "--ja4", ja4]).expect("a block");
        assert_eq!(asks(scene, scene.attacker(), Family::V4), TIMED_OUT);
        assert!(scene.is_served(scene.attacker()));
        assert_eq!(asks(scene, scene.innocent(), Family::V4), 0);
    });
}
