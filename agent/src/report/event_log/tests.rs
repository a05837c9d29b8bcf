use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use super::*;

fn at(seconds: f64) -> Timestamp {
    Timestamp::from_secs_f64(seconds).expect("a time")
}

fn stop(ts: Timestamp) -> Event<'static> {
    Event::Stop { ts, reason: "SIGTERM" }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("the log is readable");
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn appends_one_object_a_line_with_mode_0640() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("events.jsonl");
    let mut log = EventLog::open(&path).expect("opens");
    log.append(at(1.0), &stop(at(1.0)));
    let target = "203.0.113.7/32".parse().expect("a network");
    let drop = Event::FirstDrop { ts: at(2.5), id: Some("d1"), target, after_ms: Some(3.25) };
    log.append(at(2.5), &drop);

    assert_eq!(
        lines(&path),
        [
            json!({"event": "stop", "ts": 1.0, "reason": "SIGTERM"}),
            json!({"event": "first_drop", "ts": 2.5, "id": "d1", "target": "203.0.113.7/32",
                   "after_ms": 3.25}),
        ]
    );
    let mode = fs::metadata(&path).expect("exists").permissions().mode();
    assert_eq!(mode & 0o137, 0, "no more than 0640, whatever the umask: {mode:o}");
    assert_eq!(log.count(), EventLogCount { written: 2, failed: 0 });
}

#[test]
fn findings_and_decisions_keep_their_own_format() {
    let decision: Decision = serde_json::from_value(json!({
        "ts": 10.125, "id": "d7", "action": "drop", "subject": {"ip": "203.0.113.7"},
        "service": null, "ttl_s": 600, "detector": "request_rate", "owasp": "API4:2023",
        "score": 1.0, "reason": "too fast", "evidence": {"requests": 4000}, "mode": "enforce"
    }))
    .expect("a decision");
    let line = serde_json::to_value(Event::Decision(&decision)).expect("JSON");
    assert_eq!(line["event"], "decision");
    assert_eq!(line["action"], "drop");
    let again: Decision = serde_json::from_value(line).expect("the line is a decision still");
    assert_eq!(again, decision);

    let lift = Lift { ts: at(11.0), id: "d7".into(), action: crate::decision::LiftAction::Lift };
    let line = serde_json::to_value(Event::Lift(&lift)).expect("JSON");
    assert_eq!(line, json!({"event": "lift", "ts": 11.0, "id": "d7", "action": "lift"}));
}

#[test]
fn follows_a_rotation_within_a_second() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, old) = (dir.path().join("log"), dir.path().join("log.1"));
    let mut log = EventLog::open(&path).expect("opens");
    log.append(at(100.0), &stop(at(100.0)));
    fs::rename(&path, &old).expect("rotates");
    // Within a second of the last look: still the old file, and nothing lost.
    log.append(at(100.5), &stop(at(100.5)));
    log.append(at(101.0), &stop(at(101.0)));
    assert_eq!(lines(&old).len(), 2);
    assert_eq!(lines(&path).len(), 1);
    assert_eq!(log.count(), EventLogCount { written: 3, failed: 0 });
}

#[test]
fn reopens_at_once_when_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, old) = (dir.path().join("log"), dir.path().join("log.1"));
    let mut log = EventLog::open(&path).expect("opens");
    log.append(at(100.0), &stop(at(100.0)));
    fs::rename(&path, &old).expect("rotates");
    log.reopen().expect("opens again");
    log.append(at(100.1), &stop(at(100.1)));
    assert_eq!((lines(&old).len(), lines(&path).len()), (1, 1));
}

#[test]
fn a_path_that_cannot_be_opened_again_keeps_the_old_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let sub = dir.path().join("sub");
    let moved = dir.path().join("moved");
    fs::create_dir(&sub).expect("a directory");
    let mut log = EventLog::open(&sub.join("log")).expect("opens");
    fs::rename(&sub, &moved).expect("moves");
    log.append(at(5.0), &stop(at(5.0)));
    assert!(matches!(log.reopen(), Err(OpenError::NoDirectory { .. })));
    log.append(at(7.0), &stop(at(7.0)));
    assert_eq!(lines(&moved.join("log")).len(), 2);
}

#[test]
fn a_full_disk_is_counted_and_stops_nothing() {
    let mut log = EventLog::open(Path::new("/dev/full")).expect("opens");
    log.append(at(1.0), &stop(at(1.0)));
    log.append(at(1.1), &stop(at(1.1)));
    assert_eq!(log.count(), EventLogCount { written: 0, failed: 2 });
}

/// A disk with so much room left.
struct Disk {
    content: Vec<u8>,
    room: usize,
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.room);
        if taken == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.room -= taken;
        self.content.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_torn_line_does_not_spoil_the_next() {
    let mut disk = Disk { content: Vec::new(), room: 8 };
    let mut torn = false;
    let mut write = |disk: &mut Disk, text: &str| write_line(disk, &mut torn, text.into()).is_ok();
    assert!(write(&mut disk, "one"));
    assert!(!write(&mut disk, "second"), "there is room for four bytes of it");
    assert!(!write(&mut disk, "third"), "there is room for none");
    disk.room = 1;
    assert!(!write(&mut disk, "fourth"), "there is room for the newline before it");
    disk.room = 100;
    assert!(write(&mut disk, "fifth"));
    assert!(write(&mut disk, "sixth"));
    assert_eq!(String::from_utf8_lossy(&disk.content), "one\nseco\nfifth\nsixth\n");
}

#[test]
fn a_line_torn_by_a_crash_is_ended_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log");
    fs::write(&path, r#"{"event":"stop","ts":1.0,"rea"#).expect("written");
    let mut log = EventLog::open(&path).expect("opens");
    log.append(at(2.0), &stop(at(2.0)));
    assert_eq!(lines(&path).len(), 1);
}

#[test]
fn a_missing_directory_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("missing/log");
    let error = EventLog::open(&path).expect_err("no such directory").to_string();
    let missing = dir.path().join("missing");
    assert!(error.contains(&format!("the directory {} does not exist", missing.display())));
}
