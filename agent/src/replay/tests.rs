use std::fmt::Write as _;

use tempfile::TempDir;

use super::*;
use crate::config::Service;
use crate::decision::Mode;
use crate::detect::tests::{get, login};

/// Traffic of ten minutes with attacks among it; the same at every call.
struct Generator {
    state: u64,
    txs: Vec<Transaction>,
}

impl Generator {
    /// A number below `bound`: the high half of a linear congruential generator (Knuth, MMIX).
    fn below(&mut self, bound: u32) -> u32 {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 32) as u32 % bound
    }

    fn login(&mut self, second: u32, src: &str, user: &str, status: u16) -> &mut Transaction {
        let millis = self.below(1_000);
        let tx = login(f64::from(second) + f64::from(millis) / 1e3, src, user, status);
        self.txs.push(tx);
        self.txs.last_mut().unwrap()
    }

    /// Credential stuffing from one address, from a /64, through the trusted proxy, and on the
    /// observed service.
    fn attacks(&mut self) {
        for i in 0..80 {
            let status = if i % 40 == 39 { 200 } else { 401 };
            self.login(120 + i, "203.0.113.66", &format!("user{i}@example.org"), status);
        }
        for i in 0..40 {
            let src = format!("2001:db8:bad:1::{:x}", self.below(0x10000));
            self.login(200 + i, &src, &format!("v6user{i}@example.org"), 403);
        }
        for i in 0..40 {
            let tx =
                self.login(300 + 2 * i, "192.0.2.250", &format!("proxied{i}@example.org"), 401);
            tx.req_headers.push("X-Forwarded-For", "198.51.100.99, 203.0.113.77");
        }
        for i in 0..30 {
            let tx = self.login(400 + i, "203.0.113.88", &format!("beta{i}@example.org"), 401);
            tx.host = "beta.example".to_owned();
        }
    }

    /// An office behind one address, people who forget passwords, and readers.
    fn benign(&mut self) {
        for i in 0..120 {
            let status = if self.below(12) == 0 { 401 } else { 200 };
            self.login(5 * i, "198.51.100.10", &format!("clerk{i}@example.net"), status);
        }
        for person in 0..5 {
            for attempt in 0..4 {
                let src = format!("198.51.100.{}", 20 + person);
                let status = if attempt < 3 { 401 } else { 200 };
                self.login(100 * person + 9 * attempt, &src, "me@example.net", status);
            }
        }
        for i in 0..120 {
            let second = f64::from(5 * i) + f64::from(self.below(5_000)) / 1e3;
            let src = format!("198.51.100.{}", 100 + self.below(50));
            let path = format!("/api/products/{}", self.below(1_000));
            self.txs.push(get(second, &src, &path));
        }
    }

    fn stuffing() -> String {
        let mut generator = Self { state: 1, txs: Vec::new() };
        generator.attacks();
        generator.benign();
        generator.txs.sort_by_key(|tx| tx.ts);
        let lines = generator.txs.iter().map(|tx| serde_json::to_string(tx).unwrap() + "\n");
        lines.collect()
    }
}

fn config() -> Config {
    let mut config = Config::default();
    config.guards.trusted_proxies = vec!["192.0.2.250/32".parse().unwrap()];
    config.services = vec![Service {
        name: "beta".into(),
        hosts: vec!["beta.example".to_owned()],
        mode: Some(Mode::Observe),
        ..Service::default()
    }];
    config
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// Compares `actual` with a fixture. `PORTCULLIS_BLESS=1` writes the fixture instead.
fn compare(name: &str, actual: &str) {
    let path = fixture(name);
    if std::env::var_os("PORTCULLIS_BLESS").is_some() {
        fs::write(&path, actual).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap();
    // Not assert_eq: two long texts side by side show nothing.
    for (n, (ours, theirs)) in actual.lines().zip(expected.lines()).enumerate() {
        assert_eq!(ours, theirs, "{name}:{}", n + 1);
    }
    assert_eq!(actual.lines().count(), expected.lines().count(), "{name}");
}

struct Run {
    dir: TempDir,
    stderr: String,
    summary: anyhow::Result<Summary>,
}

impl Run {
    fn of(config: &Config, texts: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut inputs = Vec::new();
        for (n, text) in texts.iter().enumerate() {
            let path = dir.path().join(format!("{n}.jsonl"));
            fs::write(&path, text).unwrap();
            inputs.push(path);
        }
        Self::in_dir(dir, config, &inputs, "decisions", "findings")
    }

    fn in_dir(
        dir: TempDir,
        config: &Config,
        inputs: &[PathBuf],
        decisions: &str,
        findings: &str,
    ) -> Self {
        let outputs = Outputs {
            decisions: Some(dir.path().join(decisions)),
            findings: Some(dir.path().join(findings)),
        };
        let mut stderr = Vec::new();
        let summary = run(config, inputs, outputs, &mut stderr);
        Self { dir, stderr: String::from_utf8(stderr).unwrap(), summary }
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap()
    }
}

#[test]
fn the_fixture_gives_exactly_its_result() {
    let text = Generator::stuffing();
    assert!(text.len() < 200_000, "{} bytes", text.len());
    compare("stuffing.jsonl", &text);
    let run = Run::of(&config(), &[&text]);
    compare("stuffing.findings.jsonl", &run.file("findings"));
    compare("stuffing.decisions.jsonl", &run.file("decisions"));

    let summary = run.summary.unwrap();
    assert_eq!(run.stderr, "");
    assert_eq!((summary.transactions, summary.unreadable_lines, summary.out_of_order), (450, 0, 0));
    assert_eq!(summary.findings["credential_stuffing"], 4);
    assert_eq!(summary.findings["request_rate"], 0);
    assert_eq!((summary.decisions["drop"], summary.decisions["alert"]), (3, 1));
    assert!((590.0..600.0).contains(&summary.span_s), "{}", summary.span_s);
    assert!(!summary.actors_at_least);
}

#[test]
fn the_fixtures_decisions_are_the_attackers_and_no_others() {
    let run = Run::of(&config(), &[&Generator::stuffing()]);
    let mut seen = String::new();
    for line in run.file("decisions").lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let subject = line["subject"].as_object().unwrap().values().next().unwrap().clone();
        let (action, mode, via) = (&line["action"], &line["mode"], &line["evidence"]["via"]);
        writeln!(seen, "{action} {subject} {mode} {via}").unwrap();
    }
    assert_eq!(
        seen.replace('"', ""),
        "drop 203.0.113.66 enforce null\n\
         drop 2001:db8:bad:1::/64 enforce null\n\
         alert 203.0.113.77 enforce 192.0.2.250\n\
         drop 203.0.113.88 observe null\n"
    );
    let files = run.file("decisions") + &run.file("findings");
    assert!(!files.contains("@example") && !files.contains("hunter2"), "no personal value");
}

#[test]
fn unreadable_lines_are_named_counted_and_passed_over() {
    let text = Generator::stuffing();
    let whole = Run::of(&config(), &[&text]);
    let mut spoilt = String::from("not JSON\n");
    for (n, line) in text.lines().enumerate() {
        writeln!(spoilt, "{line}").unwrap();
        if n == 99 {
            spoilt.push_str("\n{\"ts\":\"alice\"}\n");
        }
    }
    let run = Run::of(&config(), &[&spoilt]);
    let messages: Vec<_> = run.stderr.lines().map(|l| l.rsplit_once("jsonl").unwrap().1).collect();
    assert_eq!(messages.len(), 2, "{messages:?}");
    assert!(messages[0].starts_with(":1: no JSON"), "{messages:?}");
    assert!(messages[1].starts_with(":103: `ts`: "), "{messages:?}");
    assert!(!run.stderr.contains("alice"));
    assert_eq!(run.summary.as_ref().unwrap().unreadable_lines, 2);
    assert_eq!(run.file("decisions"), whole.file("decisions"));
}

#[test]
fn inputs_are_one_recording() {
    let text = Generator::stuffing();
    let half = text.len() / 2 + text[text.len() / 2..].find('\n').unwrap() + 1;
    let whole = Run::of(&config(), &[&text]);
    let parts = Run::of(&config(), &[&text[..half], &text[half..]]);
    assert_eq!(parts.file("findings"), whole.file("findings"));
    assert_eq!(parts.summary.unwrap().transactions, 450);
}

#[test]
fn small_disorder_changes_nothing_of_substance() {
    let text = Generator::stuffing();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.chunks_mut(5).for_each(|chunk| chunk.reverse());
    let run = Run::of(&config(), &[&lines.join("\n")]);
    let summary = run.summary.unwrap();
    assert!(summary.out_of_order > 300, "{}", summary.out_of_order);
    assert_eq!((summary.decisions["drop"], summary.decisions["alert"]), (3, 1));
}

#[test]
fn nothing_is_overwritten_by_mistake() {
    let text = Generator::stuffing();
    let attempt = |inputs: &[&str], decisions: &str, findings: &str| {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("in.jsonl"), &text).unwrap();
        fs::write(dir.path().join("old"), "old\n").unwrap();
        std::os::unix::fs::symlink("in.jsonl", dir.path().join("link")).unwrap();
        let inputs: Vec<_> = inputs.iter().map(|name| dir.path().join(name)).collect();
        let run = Run::in_dir(dir, &config(), &inputs, decisions, findings);
        assert_eq!(run.file("in.jsonl"), text, "{decisions} {findings}");
        let kept = run.file("old") == "old\n";
        (run.summary.map(|_| ()).map_err(|error| error.to_string()), kept)
    };
    let (result, kept) = attempt(&["in.jsonl"], "in.jsonl", "old");
    assert!(result.unwrap_err().contains("is an input") && kept);
    let (result, kept) = attempt(&["in.jsonl"], "old", "link");
    assert!(result.unwrap_err().contains("is an input") && kept);
    for both in ["old", "new"] {
        let (result, kept) = attempt(&["in.jsonl"], both, both);
        assert!(result.unwrap_err().contains("both decisions and findings") && kept);
    }
    let (result, kept) = attempt(&["in.jsonl", "missing"], "old", "f");
    assert!(result.unwrap_err().contains("can't open") && kept);
    let (result, kept) = attempt(&["in.jsonl", "."], "old", "f");
    assert!(result.unwrap_err().contains("is a directory") && kept);
    let (result, kept) = attempt(&["in.jsonl"], "old", "f");
    assert!(result.is_ok() && !kept);
}

#[test]
fn summaries_for_people_and_programs() {
    let summary = Run::of(&config(), &[&Generator::stuffing(), "x\n"]).summary.unwrap();
    let summary = Summary { elapsed_s: 0.5, replayed_per_s: 900.0, ..summary };
    let text = summary.to_string();
    for part in [
        "transactions  450 in 59",
        "replayed in 0.50 s (900/s)",
        "unreadable    1 lines",
        "findings      credential_stuffing 4, request_rate 0",
        "decisions     alert 1, drop 3",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let json = serde_json::to_value(&summary).unwrap();
    assert_eq!(json["transactions"], 450);
    assert_eq!(json["findings"]["credential_stuffing"], 4);
    assert_eq!(json["decisions"]["alert"], 1);
    let empty = Run::of(&config(), &[""]).summary.unwrap();
    assert_eq!((empty.transactions, empty.span_s, empty.rate_per_s), (0, 0.0, 0.0));
}
