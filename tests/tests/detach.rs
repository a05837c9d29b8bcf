//! What stays in the kernel when the agent stops, what `portcullis detach` removes, and where
//! it pins when nobody has mounted the BPF file system?

use std::fs;
use std::path::Path;
use std::process::Command;

use portcullis_tests::agent::Agent;
use portcullis_tests::netns::Lab;
use portcullis_tests::scenario::{SOON, Scene, host_net};

const PREFIX: &str = "pcx-detach";

/// What iproute2 shows on the server's interface.
fn shown(lab: &Lab, program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = lab.server().output(command).expect("iproute2 runs");
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn is_attached(lab: &Lab) -> bool {
    let xdp = shown(lab, "ip", &["-details", "link", "show", "dev", "eth0"]);
    let tc = shown(lab, "tc", &["filter", "show", "dev", "eth0", "ingress"]);
    xdp.contains("prog/xdp") || tc.contains("portcullis_tc")
}

#[test]
fn stopping_keeps_blocks_and_detach_removes_everything() {
    let scene = Scene::new(PREFIX, 2).expect("a scene");
    for attach in ["xdp-native", "tc", "clsact"] {
        let config = format!("kernel.attach = \"{attach}\"");
        let agent = scene.agent(&config).expect("the agent");
        let attacker = scene.attacker().v4().to_string();
        agent.json("block", &[&attacker]).expect("a block");
        assert!(scene.is_cut_off(scene.attacker()));
        let files = agent.files().clone();
        let status = agent.stop().expect("stopped");
        assert!(status.success(), "{status}");
        assert!(!files.control_socket.exists(), "the socket is gone");

        assert!(scene.is_cut_off(scene.attacker()), "{attach}: stopping lifts no block");
        assert!(scene.is_served(scene.innocent()));
        assert!(attach == "tc" || is_attached(&scene.lab), "{attach}");

        let detach = |arguments: &[&str]| {
            Agent::command_of(&scene.lab, "detach", arguments).expect("detach runs")
        };
        let output = detach(&["--json"]);
        assert!(output.status.success(), "{attach}: {output:?}");
        let detached: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(detached["links"].as_array().expect("a list").len(), 1, "{detached}");
        let maps = detached["maps"].as_array().expect("a list");
        assert_eq!(maps.len(), portcullis_common::names::pinned::ALL.len(), "{detached}");
        assert!(!scene.lab.pin_dir().exists());
        assert!(!is_attached(&scene.lab), "{attach}");
        assert!(scene.is_served(scene.attacker()), "{attach}: traffic flows again");

        let again = detach(&[]);
        assert!(again.status.success(), "{again:?}");
        assert_eq!(String::from_utf8_lossy(&again.stdout), "nothing was attached\n");
    }
}

#[test]
fn the_bpf_file_system_is_mounted_where_it_is_not() {
    let lab = Lab::new(PREFIX, 1).expect("a laboratory");
    // Out of the way in the agent's own mount namespace only, however often it is mounted.
    let unmount = "mount --make-rprivate /
        while umount /sys/fs/bpf 2>/dev/null; do :; done
        ! grep -q ' /sys/fs/bpf ' /proc/self/mounts";
    let mut agent = Agent::start_with_mounts(&lab, "", unmount).expect("the agent");
    let root = format!("/proc/{}", agent.pid());
    let mounts = fs::read_to_string(format!("{root}/mounts")).expect("mounts");
    assert!(mounts.lines().any(|line| line.starts_with("bpf /sys/fs/bpf bpf ")), "{mounts}");
    assert!(agent.log().contains("mounted the BPF file system"), "{}", agent.log());
    let pins =
        Path::new(&root).join("root").join(lab.pin_dir().strip_prefix("/").expect("below /"));
    assert!(pins.join("links/eth0@xdp-native").exists());
    assert!(!lab.pin_dir().exists(), "not on the machine's own");
    agent.wait_for_event(SOON, "the start", |event| event["event"] == "start").unwrap();
    let client = lab.client(0).v4();
    agent.json("block", &[&client.to_string()]).expect("a block");
    let blocks = agent.json("blocks", &[]).expect("blocks");
    assert_eq!(blocks[0]["target"], host_net(client.into()));
    agent.stop().expect("stopped");
}
