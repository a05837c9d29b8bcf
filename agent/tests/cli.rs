//! The command line as its callers see it: standard output, standard error and exit status.
//! What answers on the socket is the real server with a pipeline of the test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use portcullis::decision::Mode;
use portcullis::report::control::{
    BlockAction, BlockInfo, Call, ControlSocket, ErrorKind, Request, Response, Server,
};
use portcullis::report::snapshot::Snapshot;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

struct Ended {
    status: i32,
    stdout: String,
    stderr: String,
}

fn portcullis(args: &[&str]) -> Ended {
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(args)
        .env_remove("RUST_LOG")
        .output()
        .expect("the program starts");
    ended(&output)
}

fn ended(output: &Output) -> Ended {
    Ended {
        status: output.status.code().expect("not killed"),
        stdout: String::from_utf8(output.stdout.clone()).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr.clone()).expect("UTF-8"),
    }
}

impl Ended {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}

/// An agent of which only the control socket is real.
struct Agent {
    _runtime: Runtime,
    dir: TempDir,
}

impl Agent {
    fn start() -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let dir = tempfile::tempdir().expect("a directory");
        let socket = ControlSocket::bind(&dir.path().join("sock"), None).expect("binds");
        let (calls, mut queue) = mpsc::channel::<Call>(8);
        runtime.spawn(async move {
            while let Some(call) = queue.recv().await {
                let _ = call.reply.send(answer(call.request));
            }
        });
        runtime.block_on(async {
            let server = Server::new(socket).expect("a server");
            tokio::spawn(server.serve(calls, std::future::pending()));
        });
        Self { _runtime: runtime, dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    fn call(&self, args: &[&str]) -> Ended {
        let socket = self.socket();
        let socket = socket.to_str().expect("UTF-8");
        portcullis(&[args, &["--socket", socket]].concat())
    }
}

fn answer(request: Request) -> Response {
    match request {
        Request::Status => {
            let mut snapshot = Snapshot::new("7.7.7", 99, Mode::Enforce);
            snapshot.uptime_s = 61.0;
            snapshot.transactions = 12;
            snapshot.findings.insert("request_rate".into(), 3);
            Response::Status(Box::new(snapshot))
        }
        Request::Blocks => Response::Blocks {
            blocks: vec![block("203.0.113.7/32", Some(65)), block("2001:db8::/64", None)],
        },
        Request::Block { target, action, rate, service, ttl_s, .. } => {
            let block = BlockInfo { action, rate, service, ..block(&target.to_string(), ttl_s) };
            Response::Blocked { block }
        }
        Request::Unblock { target, .. } => {
            Response::error(ErrorKind::Refused, format!("{target} is not blocked"))
        }
        Request::AllowList | Request::AllowAdd { .. } => Response::Allowed { allowed: Vec::new() },
        Request::Findings { limit } => Response::Findings {
            findings: vec![json!({"ts": 1.5, "detector": "request_rate", "limit": limit})],
        },
        Request::Decisions { .. } => Response::Decisions { decisions: Vec::new() },
        other => Response::error(ErrorKind::BadRequest, other.name()),
    }
}

fn block(target: &str, remaining_s: Option<u64>) -> BlockInfo {
    BlockInfo {
        target: target.parse().expect("a target"),
        action: BlockAction::Drop,
        rate: None,
        service: None,
        remaining_s,
        id: "2a".into(),
        detector: Some("operator".into()),
        reason: Some("ticket 4711".into()),
        count_only: false,
        packets: 5,
        bytes: 300,
        exceeded: 0,
        no_room: 0,
    }
}

fn config(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("portcullis.toml");
    fs::write(&path, text).expect("written");
    path
}

#[test]
fn a_wrong_call_is_status_2() {
    for args in [&[][..], &["explode"], &["block"], &["block", "host.example"], &["replay"]] {
        let ended = portcullis(args);
        assert_eq!((ended.status, ended.stdout.as_str()), (2, ""), "{args:?}");
        assert!(!ended.stderr.is_empty(), "{args:?}");
    }
    let ended = portcullis(&["version", "--log-level", "a=b=c"]);
    assert_eq!(ended.status, 2);
    assert!(ended.stderr.contains("`a=b=c` is not a log level or filter"), "{}", ended.stderr);
}

#[test]
fn help_has_an_example_and_is_status_0() {
    for command in ["run", "check", "doctor", "status", "block", "blocks", "replay", "detach"] {
        let ended = portcullis(&[command, "--help"]);
        assert_eq!(ended.status, 0);
        assert!(ended.stdout.contains("Example: "), "{command}: {}", ended.stdout);
    }
}

#[test]
fn version_is_printed() {
    let ended = portcullis(&["version", "--json"]);
    assert_eq!(ended.status, 0);
    assert_eq!(ended.json()["version"], env!("CARGO_PKG_VERSION"));
    assert!(portcullis(&["version"]).stdout.starts_with("portcullis "));
}

#[test]
fn without_an_agent_the_message_says_how_to_start_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("sock");
    let socket = socket.to_str().expect("UTF-8");
    for command in ["status", "blocks", "decisions", "findings", "allow"] {
        let ended = portcullis(&[command, "--socket", socket]);
        assert_eq!(ended.status, 1, "{command}");
        assert!(ended.stderr.contains("no agent is running"), "{command}: {}", ended.stderr);
        assert!(ended.stderr.contains("systemctl start portcullis"), "{command}");
    }
}

#[test]
fn the_socket_comes_from_the_configuration() {
    let agent = Agent::start();
    let socket = agent.socket();
    let text = format!("interfaces = [\"lo\"]\n[report]\ncontrol_socket = {socket:?}\n");
    let path = config(agent.dir.path(), &text);
    let ended = portcullis(&["status", "--json", "--config", path.to_str().expect("UTF-8")]);
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    assert_eq!(ended.json()["transactions"], 12);
}

#[test]
fn answers_are_shown_as_tables_and_as_json() {
    let agent = Agent::start();
    let blocks = agent.call(&["blocks"]);
    assert_eq!(blocks.status, 0, "{}", blocks.stderr);
    assert_eq!(
        blocks.stdout,
        "TARGET         ACTION  SERVICE  RATE  EXCEEDED  PACKETS  BYTES  REMAINING  ID  DETECTOR  REASON\n\
         203.0.113.7    drop    -        -     0         5        300    1m 5s      2a  operator  ticket 4711\n\
         2001:db8::/64  drop    -        -     0         5        300    no end     2a  operator  ticket 4711\n"
    );
    let blocks = agent.call(&["blocks", "--json"]).json();
    assert_eq!(blocks[0]["target"], "203.0.113.7/32");
    assert_eq!(blocks[0]["remaining_s"], 65);

    let status = agent.call(&["status"]);
    let shown = |line: &str| line.split_whitespace().eq(["transactions", "12"]);
    assert!(status.stdout.lines().any(shown), "{}", status.stdout);
    assert!(status.stdout.contains("Findings\n  request_rate  3\n"), "{}", status.stdout);
    assert!(!status.stdout.contains("ring_full"), "counters at zero are left out");

    let findings = agent.call(&["findings", "--limit", "4", "--json"]);
    assert_eq!(findings.stdout.lines().count(), 1);
    assert_eq!(findings.json()["limit"], 4);
    assert_eq!(agent.call(&["decisions"]).stdout, "no decisions yet\n");
    assert_eq!(agent.call(&["allow", "list", "--json"]).json(), json!([]));
}

#[test]
fn a_block_says_how_long_it_holds() {
    let agent = Agent::start();
    let ended = agent.call(&["block", "203.0.113.9", "--ttl", "10m"]);
    assert_eq!(ended.stdout, "203.0.113.9 blocked for 10m\n", "{}", ended.stderr);
    let ended = agent.call(&["block", "203.0.113.9"]);
    assert_eq!(ended.stdout, "203.0.113.9 blocked until it is lifted\n");
    let ended = agent.call(&[
        "block",
        "198.51.100.0/24",
        "--action",
        "rate-limit",
        "--rate",
        "50 connections/s",
        "--each",
        "--service",
        "shop",
    ]);
    let limited = "198.51.100.0/24 limited to 50 connections/s each on shop until it is lifted\n";
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), (limited, ""));
}

#[test]
fn every_target_can_be_named() {
    const JA4: &str = "t13d1516h2_8daaf6152771_e5627efa2ab1";
    let agent = Agent::start();
    let ended = agent.call(&["block", JA4]);
    assert_eq!(ended.stdout, format!("{JA4} blocked until it is lifted\n"));
    assert!(ended.stderr.contains("shared by all who use the same software"), "{}", ended.stderr);
    let ended = agent.call(&["block", "203.0.113.7", "--ja4", JA4, "--json"]);
    assert_eq!(ended.json()["target"], format!("203.0.113.7/32 with {JA4}"));
    assert_eq!(ended.stderr, "");
    let flow = "203.0.113.7:50000>192.0.2.1:443";
    let ended = agent.call(&["block", flow, "--action", "count"]);
    assert_eq!(ended.stdout, format!("{flow} counted until it is lifted\n"));
    for wrong in [
        &["block", JA4, "--ja4", JA4][..],
        &["block", flow, "--ja4", JA4],
        &["block", "203.0.113.7", "--rate", "10/s"],
        &["unblock", "203.0.113.7", "--ja4", "Firefox"],
    ] {
        assert_eq!(agent.call(wrong).status, 2, "{wrong:?}");
    }
}

#[test]
fn an_error_of_the_agent_is_status_1() {
    let agent = Agent::start();
    let ended = agent.call(&["unblock", "203.0.113.9"]);
    assert_eq!(ended.status, 1);
    assert_eq!(ended.stderr, "portcullis: 203.0.113.9 is not blocked\n");
    // A request that the agent does not understand is the call's fault.
    assert_eq!(agent.call(&["allow", "remove", "10.0.0.0/8"]).status, 2);
}

#[test]
fn a_reader_that_stops_early_is_no_failure() {
    let agent = Agent::start();
    let mut child = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["blocks", "--socket"])
        .arg(agent.socket())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    drop(child.stdout.take());
    let ended = ended(&child.wait_with_output().expect("ends"));
    assert_eq!((ended.status, ended.stderr.as_str()), (0, ""));
}

#[test]
fn check_lists_every_mistake_with_its_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = config(dir.path(), "interfaces = 5\nmode = \"loud\"\nnonsense = true\n");
    let name = path.to_str().expect("UTF-8");
    for command in ["check", "run"] {
        let ended = portcullis(&[command, "--config", name]);
        assert_eq!(ended.status, 2, "{command}");
        for mistake in [":1:", ":2:", ":3:", "interfaces", "mode", "nonsense"] {
            assert!(ended.stderr.contains(mistake), "{command} {mistake}: {}", ended.stderr);
        }
    }
    let ended = portcullis(&["check", "--json", "--config", name]);
    assert_eq!(ended.status, 2);
    let report = ended.json();
    assert_eq!(report["ok"], false);
    assert_eq!(report["problems"].as_array().expect("a list").len(), 3, "{report}");
    assert_eq!(report["problems"][1]["line"], 2);

    let ended = portcullis(&["check", "--config", "/nonexistent/portcullis.toml"]);
    assert_eq!(ended.status, 2);
    assert!(ended.stderr.contains("/nonexistent/portcullis.toml"), "{}", ended.stderr);
}

#[test]
fn check_accepts_a_good_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = config(dir.path(), "interfaces = [\"eth0\"]\n");
    let ended = portcullis(&["check", "--config", path.to_str().expect("UTF-8")]);
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    assert!(ended.stdout.ends_with(": no mistakes\n"), "{}", ended.stdout);
}

#[test]
fn doctor_names_what_is_missing() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = config(dir.path(), "interfaces = [\"no-such-link\"]\n");
    let name = path.to_str().expect("UTF-8");
    let ended = portcullis(&["doctor", "--json", "--config", name]);
    assert_eq!(ended.status, 1, "{}", ended.stderr);
    let report = ended.json();
    assert_eq!(report["ok"], false);
    let checks = report["checks"].as_array().expect("a list");
    let link = checks.iter().find(|check| check["name"] == "no-such-link").expect("looked at");
    assert_eq!((&link["state"], &link["area"]), (&json!("missing"), &json!("interfaces")));
    assert!(link["advice"].as_str().expect("advice").contains("lo"), "{link}");
    for area in ["configuration", "kernel", "capabilities", "interfaces", "TLS libraries"] {
        assert!(checks.iter().any(|check| check["area"] == area), "{area}");
    }
}

#[test]
fn replay_prints_a_summary_and_writes_decisions() {
    let dir = tempfile::tempdir().expect("a directory");
    let input = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/stuffing.jsonl");
    let config = config(dir.path(), "");
    let config = config.to_str().expect("UTF-8");
    let out = dir.path().join("decisions.jsonl");
    let out_name = out.to_str().expect("UTF-8");
    let args = ["replay", "--json", "--config", config, "--decisions", out_name, input];
    let ended = portcullis(&args);
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    let lines = fs::read_to_string(input).expect("the fixture").lines().count();
    assert_eq!(ended.json()["transactions"], lines);
    let decisions = fs::read_to_string(&out).expect("written");
    let first: Value = serde_json::from_str(decisions.lines().next().expect("one")).expect("JSON");
    assert_eq!(
        (&first["detector"], &first["action"]),
        (&json!("credential_stuffing"), &json!("drop"))
    );

    let text = portcullis(&["replay", "--config", config, input]);
    assert!(text.stdout.starts_with(&format!("transactions  {lines} ")), "{}", text.stdout);
    let missing = portcullis(&["replay", "--config", config, "/nonexistent.jsonl"]);
    assert_eq!(missing.status, 1);
    assert!(missing.stderr.contains("/nonexistent.jsonl"), "{}", missing.stderr);
}
