//! Is an interface refused on which nothing could be dropped?

use std::fs;
use std::process::Command;

use portcullis_tests::agent::Agent;
use portcullis_tests::netns::Lab;

const PREFIX: &str = "pcx-links";

#[test]
fn a_layer_3_interface_is_refused_with_a_sentence() {
    let lab = Lab::new(PREFIX, 1).expect("a laboratory");
    let mut ip = Command::new("ip");
    ip.args(["tuntap", "add", "tun0", "mode", "tun"]);
    assert!(lab.run_in(lab.server(), ip).expect("ip runs").status.success());

    let sentence = "its frames have no Ethernet header";
    assert!(Agent::start(&lab, "interfaces = [\"eth0\", \"tun0\"]").is_err());
    let log = fs::read_to_string(lab.dir().join("portcullis.log")).expect("a log");
    assert!(log.contains("tun0") && log.contains(sentence), "{log}");

    let doctor = Agent::command_of(&lab, "doctor", &["--json"]).expect("the doctor");
    let report: serde_json::Value = serde_json::from_slice(&doctor.stdout).expect("JSON");
    let checks = report["checks"].as_array().expect("checks");
    let of_tun = |check: &&serde_json::Value| check["name"] == "tun0";
    let check = checks.iter().find(of_tun).expect("tun0");
    assert_eq!(check["state"], "missing", "{check}");
    assert!(check["found"].as_str().is_some_and(|found| found.contains(sentence)), "{check}");
}
