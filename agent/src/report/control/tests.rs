use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;
use tokio::task::{JoinHandle, spawn_blocking};

use super::*;
use crate::decision::Mode;

struct Agent {
    dir: TempDir,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Agent {
    /// A server whose pipeline knows one block, and says who asked for another.
    fn start() -> Self {
        Self::start_with(pipeline(), None)
    }

    fn start_with(calls: mpsc::Sender<Call>, idle: Option<Duration>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = ControlSocket::bind(&dir.path().join("sock"), None).expect("binds");
        let mut server = Server::new(socket).expect("a server");
        if let Some(idle) = idle {
            server = server.with_idle_timeout(idle);
        }
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server.serve(calls, async {
            let _ = stopped.await;
        }));
        Self { dir, stop, task }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("sock")
    }
}

fn pipeline() -> mpsc::Sender<Call> {
    let (calls, mut queue) = mpsc::channel::<Call>(8);
    tokio::spawn(async move {
        while let Some(call) = queue.recv().await {
            let uid = call.peer.map(|peer| peer.uid);
            let response = match call.request {
                Request::Ping => Response::Pong,
                Request::Status => Response::Status(Box::new(Snapshot::new("1", 2, Mode::Enforce))),
                Request::Block { target, ttl_s, .. } => {
                    Response::Blocked { block: block(target, ttl_s, uid) }
                }
                other => Response::error(ErrorKind::Refused, other.name()),
            };
            let _ = call.reply.send(response);
        }
    });
    calls
}

fn block(target: Target, remaining_s: Option<u64>, uid: Option<u32>) -> BlockInfo {
    BlockInfo {
        target,
        action: BlockAction::Drop,
        rate: None,
        service: None,
        remaining_s,
        id: "5".into(),
        detector: Some("operator".into()),
        reason: uid.map(|uid| format!("asked for by uid {uid}")),
        count_only: false,
        packets: 0,
        bytes: 0,
        exceeded: 0,
        no_room: 0,
    }
}

/// Sends raw lines and reads as many answers.
fn raw(path: &Path, lines: &[&str]) -> Vec<Value> {
    let stream = UnixStream::connect(path).expect("connects");
    let mut answers = BufReader::new(stream);
    let mut result = Vec::new();
    for line in lines {
        answers.get_mut().write_all(format!("{line}\n").as_bytes()).expect("sends");
        let mut answer = String::new();
        answers.read_line(&mut answer).expect("answers");
        result.push(serde_json::from_str(&answer).expect("JSON"));
    }
    result
}

#[test]
fn every_request_reads_back() {
    let target: IpNet = "2001:db8::/64".parse().expect("a network");
    let order = |action, rate, service: Option<&str>, ttl_s, reason: Option<&str>| Request::Block {
        target: target.into(),
        action,
        rate,
        service: service.map(Into::into),
        ttl_s,
        reason: reason.map(Into::into),
    };
    let speed: crate::rule::Speed = "10/s".parse().expect("a rate");
    let requests = [
        Request::Ping,
        Request::Status,
        Request::Blocks,
        order(BlockAction::Drop, None, None, Some(600), Some("r")),
        order(BlockAction::Deceive, None, Some("shop"), None, None),
        order(BlockAction::RateLimit, Some(speed.rate(Some(5), true)), None, None, None),
        Request::Unblock { target: target.into(), action: None, service: None },
        Request::Unblock {
            target: "203.0.113.7:1>192.0.2.1:443".parse().expect("a flow"),
            action: Some(BlockAction::Count),
            service: Some("shop".into()),
        },
        Request::AllowList,
        Request::AllowAdd { target },
        Request::AllowRemove { target },
        Request::Decisions { limit: 3 },
        Request::Findings { limit: 4 },
        Request::Libraries,
        Request::Reload,
    ];
    for request in requests {
        let line = String::from_utf8(encode(&request).expect("JSON")).expect("UTF-8");
        assert!(line.contains(&format!("\"command\":\"{}\"", request.name())), "{line}");
        assert_eq!(decode_request(&line), Ok(request));
    }
}

#[test]
fn bad_requests_say_what_is_wrong() {
    let table = [
        ("nonsense", "not a JSON object"),
        ("[1]", "not a JSON object"),
        (r#"{"command":"ping"}"#, "`v`, the protocol's version (1), is missing"),
        (r#"{"v":2,"command":"ping"}"#, "only version 1"),
        (r#"{"v":"1","command":"ping"}"#, "only version 1"),
        (r#"{"v":1}"#, "missing field `command`"),
        (r#"{"v":1,"command":"explode"}"#, "unknown variant `explode`"),
        (r#"{"v":1,"command":"block"}"#, "missing field `target`"),
        (r#"{"v":1,"command":"block","target":"x"}"#, "`x` is neither an IP address"),
        (r#"{"v":1,"command":"block","target":"10.0.0.1/8"}"#, "`10.0.0.0/8` is the network"),
        (r#"{"v":1,"command":"block","target":"::1","ttl":5}"#, "unknown field `ttl`"),
        (r#"{"v":1,"command":"block","target":"::1","ttl_s":-5}"#, "invalid value"),
    ];
    for (line, expected) in table {
        let message = decode_request(line).expect_err(line);
        assert!(message.contains(expected), "{line}: {message}");
    }
}

#[test]
fn targets_are_canonical() {
    let table = [
        ("203.0.113.7", "203.0.113.7/32"),
        ("::ffff:203.0.113.7", "203.0.113.7/32"),
        ("::ffff:203.0.113.0/120", "203.0.113.0/24"),
        ("2001:db8::1", "2001:db8::1/128"),
        ("2001:db8::/64", "2001:db8::/64"),
    ];
    for (text, net) in table {
        assert_eq!(parse_network(text).map(|net| net.to_string()).as_deref(), Ok(net), "{text}");
    }
}

#[tokio::test]
async fn client_and_server_understand_each_other() {
    let agent = Agent::start();
    let path = agent.path();
    let answers = spawn_blocking(move || {
        let mut client = Client::connect(&path).expect("connects");
        let target = "203.0.113.7/32".parse().expect("a network");
        [
            Request::Ping,
            Request::Status,
            Request::Block {
                target,
                action: BlockAction::Drop,
                rate: None,
                service: None,
                ttl_s: Some(60),
                reason: None,
            },
            Request::Reload,
        ]
        .map(|request| client.call(&request).expect("answers"))
    })
    .await
    .expect("no panic");
    let uid = nix::unistd::Uid::current().as_raw();
    let target = "203.0.113.7/32".parse().expect("a network");
    assert_eq!(
        answers,
        [
            Response::Pong,
            Response::Status(Box::new(Snapshot::new("1", 2, Mode::Enforce))),
            Response::Blocked { block: block(target, Some(60), Some(uid)) },
            Response::error(ErrorKind::Refused, "reload"),
        ]
    );
}

#[tokio::test]
async fn a_bad_line_closes_nothing() {
    let agent = Agent::start();
    let path = agent.path();
    let answers =
        spawn_blocking(move || raw(&path, &["{", r#"{"v":1,"command":"ping"}"#])).await.unwrap();
    assert_eq!(answers[0]["result"], "error");
    assert_eq!(answers[0]["kind"], "bad_request");
    assert_eq!(answers[1], json!({"v": 1, "result": "pong"}));
}

#[tokio::test]
async fn a_request_too_long_is_refused_and_others_go_on() {
    let agent = Agent::start();
    let path = agent.path();
    spawn_blocking(move || {
        let mut other = Client::connect(&path).expect("connects");
        let mut stream = UnixStream::connect(&path).expect("connects");
        stream.write_all(&vec![b' '; MAX_REQUEST]).expect("sends");
        let mut answer = String::new();
        // The server closes the connection: there is an end to read to.
        stream.read_to_string(&mut answer).expect("answers");
        assert!(answer.contains("longer than 65536 bytes"), "{answer}");
        assert_eq!(other.call(&Request::Ping).expect("answers"), Response::Pong);

        // One byte less is a line of its own.
        let ping = r#"{"v":1,"command":"ping"}"#;
        let line = format!("{}{ping}", " ".repeat(MAX_REQUEST - ping.len() - 1));
        assert_eq!(raw(&path, &[&line]), [json!({"v": 1, "result": "pong"})]);
    })
    .await
    .expect("no panic");
}

#[tokio::test]
async fn clients_beyond_the_limit_are_told_so() {
    let agent = Agent::start();
    let path = agent.path();
    spawn_blocking(move || {
        let mut clients: Vec<_> =
            (0..server::MAX_CLIENTS).map(|_| Client::connect(&path).expect("connects")).collect();
        for client in &mut clients {
            assert_eq!(client.call(&Request::Ping).expect("answers"), Response::Pong);
        }
        let mut one_more = Client::connect(&path).expect("connects");
        let answer = one_more.call(&Request::Ping).expect("answers");
        assert_eq!(answer, Response::error(ErrorKind::Busy, "32 clients are connected already"));
        // The others are none the worse for it.
        assert_eq!(clients[0].call(&Request::Ping).expect("answers"), Response::Pong);
    })
    .await
    .expect("no panic");
}

#[tokio::test]
async fn an_idle_client_is_let_go() {
    let agent = Agent::start_with(pipeline(), Some(Duration::from_millis(20)));
    let path = agent.path();
    let end = spawn_blocking(move || {
        let mut stream = UnixStream::connect(&path).expect("connects");
        stream.write_all(b"{\"v\":1").expect("sends half a line");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).map(|_| rest)
    });
    let end = tokio::time::timeout(Duration::from_secs(10), end).await.expect("is let go");
    assert_eq!(end.expect("no panic").expect("an orderly end"), b"");
}

#[tokio::test]
async fn a_stopping_pipeline_is_an_answer() {
    let (calls, queue) = mpsc::channel(1);
    drop(queue);
    let agent = Agent::start_with(calls, None);
    let path = agent.path();
    let answer = spawn_blocking(move || Client::connect(&path)?.call(&Request::Ping)).await;
    let expected = Response::error(ErrorKind::Failed, "the agent is stopping");
    assert_eq!(answer.expect("no panic").expect("answers"), expected);
}

#[tokio::test]
async fn stopping_lets_idle_clients_go_and_removes_the_socket() {
    let agent = Agent::start();
    let path = agent.path();
    let client_path = path.clone();
    let client = spawn_blocking(move || {
        let mut client = Client::connect(&client_path).expect("connects");
        assert_eq!(client.call(&Request::Ping).expect("answers"), Response::Pong);
        client
    });
    let client = client.await.expect("no panic");
    agent.stop.send(()).expect("still serving");
    tokio::time::timeout(Duration::from_secs(10), agent.task).await.expect("ends").expect("ends");
    assert!(!path.exists());
    drop(client);
    assert!(matches!(Client::connect(&path), Err(ClientError::NotRunning(_))));
}

#[test]
fn the_socket_is_for_its_group_only() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("made/sock");
    let gid = nix::unistd::Gid::current();
    let group = nix::unistd::Group::from_gid(gid).expect("looked up").expect("has a name");
    let socket = ControlSocket::bind(&path, Some(&group.name)).expect("binds");
    let meta = fs::metadata(&path).expect("exists");
    assert!(meta.file_type().is_socket());
    assert_eq!((meta.permissions().mode() & 0o777, meta.gid()), (0o660, gid.as_raw()));
    let parent = fs::metadata(dir.path().join("made")).expect("exists");
    assert_eq!((parent.permissions().mode() & 0o777, parent.gid()), (0o750, gid.as_raw()));
    drop(socket);
    let left: Vec<_> = fs::read_dir(dir.path().join("made")).expect("readable").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_unknown_group_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let error = ControlSocket::bind(&dir.path().join("sock"), Some("no-such-group"));
    let message = error.expect_err("no such group").to_string();
    assert!(message.starts_with("there is no group `no-such-group`"), "{message}");
}

#[test]
fn a_dead_agents_socket_is_replaced_and_a_living_ones_is_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("sock");
    // A listener leaves its file behind, as a killed agent does.
    drop(UnixListener::bind(&path).expect("binds"));
    assert!(path.exists());
    let living = ControlSocket::bind(&path, None).expect("replaces it");
    let message = ControlSocket::bind(&path, None).expect_err("in use").to_string();
    let pid = std::process::id();
    assert!(message.starts_with(&format!("another agent (process {pid}) answers")), "{message}");
    assert!(UnixStream::connect(&path).is_ok(), "the living one is untouched");
    drop(living);
    assert!(!path.exists());
}

#[test]
fn a_file_in_the_way_is_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("sock");
    fs::write(&path, "precious").expect("written");
    assert!(matches!(ControlSocket::bind(&path, None), Err(BindError::NotASocket(_))));
    assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
}
