use super::*;
use crate::decision::Mode;
use crate::report::snapshot::{
    Blocks as BlocksOf, Decoy, EventLogCount, Interface, InterfaceChanges, List, Lost,
    Packets as PacketsOf, Reloads as ReloadsOf, Snapshot, Sockets,
};

fn snapshot() -> Snapshot {
    let mut of = Snapshot::new("1.2.3", 42, Mode::Enforce);
    of.uptime_s = 12.5;
    of.interfaces = vec![Interface {
        name: "eth\"0".into(),
        namespace: Some("/run/netns/blue".into()),
        hook: "xdp-native".into(),
        passed_over: Vec::new(),
    }];
    of.interface_changes = InterfaceChanges { attached: 3, detached: 2, failed: 1, untold: 0 };
    of.packets.insert("drop_denied".into(), PacketsOf { packets: 7, bytes: 420 });
    of.blocks = BlocksOf { in_force: 3, capacity: 131_072, operator_reserve: 4_096, failed: 1 };
    of.rules.insert("rate_limit".into(), 2);
    of.limit_exceeded = 31;
    of.lists = vec![List { name: "bad-hosts".into(), networks: 1_000, bad_lines: 3 }];
    of.answers.insert("reset".into(), 6);
    of.sockets = Sockets { closed: 17, failed: 1 };
    of.decoy = Decoy {
        steered: 21,
        refused: 2,
        held: 5,
        accepted: 20,
        evicted: 3,
        held_s: 3_600,
        bytes_read: 4_096,
        bytes_written: 720,
        problem: None,
    };
    of.libraries_attached = 2;
    of.connections = 11;
    of.actors = 9;
    of.transactions = 1_000_000_007;
    of.losses.insert("ring_full_read".into(), Lost { events: 5, bytes: 81_920 });
    of.http.insert("malformed".into(), 4);
    of.findings.insert("credential_stuffing".into(), 2);
    of.decisions.insert("drop".into(), 2);
    of.guarded.insert("trusted_proxy".into(), 1);
    of.reloads = ReloadsOf { succeeded: 3, failed: 1 };
    of.event_log = EventLogCount { written: 8, failed: 0 };
    of
}

#[test]
fn the_text_is_stable() {
    let text = render(snapshot()).expect("valid names");
    assert_eq!(text, include_str!("golden.txt"), "\n{text}");
}

#[test]
fn every_family_follows_the_naming_rules() {
    for family in Family::ALL {
        let (name, help, labels) = family.about();
        assert!(name.starts_with("portcullis_"), "{name}");
        assert!(help.ends_with('.'), "{name}: {help}");
        assert!(family.desc().is_ok(), "{name}");
        for sample in family.samples(&snapshot()) {
            assert_eq!(sample.labels.len(), labels.len(), "{name}");
        }
    }
    let mut names: Vec<_> = Family::ALL.iter().map(|family| family.about().0).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Family::ALL.len());
}
