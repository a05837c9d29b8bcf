//! The control socket: how commands reach the running agent.
//!
//! # Protocol, version 1
//! A Unix stream socket. The client writes one JSON object a line, at most [`MAX_REQUEST`]
//! bytes long; the agent answers each with one line, in order. Requests:
//!
//! ```json
//! {"v":1,"command":"ping"}
//! {"v":1,"command":"status"}
//! {"v":1,"command":"blocks"}
//! {"v":1,"command":"block","target":"203.0.113.7","ttl_s":600,"reason":"ticket 4711"}
//! {"v":1,"command":"unblock","target":"203.0.113.7"}
//! {"v":1,"command":"allow_list"}
//! {"v":1,"command":"allow_add","target":"198.51.100.0/24"}
//! {"v":1,"command":"allow_remove","target":"198.51.100.0/24"}
//! {"v":1,"command":"decisions","limit":20}
//! {"v":1,"command":"findings","limit":20}
//! {"v":1,"command":"libraries"}
//! {"v":1,"command":"reload"}
//! ```
//!
//! `ttl_s` and `reason` may be left out; without `ttl_s` a block holds until it is lifted.
//! Unknown keys are refused, so that a misspelt one cannot change what a command means.
//! Answers have `v` and `result` with the fields of [`Response`]; a command that failed gets
//! `{"v":1,"result":"error","kind":"refused","message":"…"}`. A line that cannot be read gets
//! an error as well, and the connection stays open; only a line that is too long or not UTF-8
//! closes it. Whoever may open the socket may use every command: access is by file mode and
//! group.

mod client;
mod server;
mod socket;

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};

use crate::decision::Decision;

use super::snapshot::Snapshot;

pub use client::{Client, ClientError};
pub use server::Server;
pub use socket::{BindError, ControlSocket};

pub const VERSION: u64 = 1;
/// Longest request in bytes, newline included.
pub const MAX_REQUEST: usize = 64 * 1024;

/// A command to the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Does the pipeline answer?
    Ping,
    Status,
    Blocks,
    Block {
        #[serde(deserialize_with = "target")]
        target: IpNet,
        /// `None`: until it is lifted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ttl_s: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    Unblock {
        #[serde(deserialize_with = "target")]
        target: IpNet,
    },
    AllowList,
    /// Until the agent stops; for longer it belongs in the configuration.
    AllowAdd {
        #[serde(deserialize_with = "target")]
        target: IpNet,
    },
    AllowRemove {
        #[serde(deserialize_with = "target")]
        target: IpNet,
    },
    /// The latest, oldest first.
    Decisions {
        limit: usize,
    },
    /// The latest, oldest first.
    Findings {
        limit: usize,
    },
    /// TLS library files and whether there are probes in them.
    Libraries,
    /// Reads the configuration again, as SIGHUP does.
    Reload,
}

impl Request {
    /// The command's name on the wire.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Status => "status",
            Self::Blocks => "blocks",
            Self::Block { .. } => "block",
            Self::Unblock { .. } => "unblock",
            Self::AllowList => "allow_list",
            Self::AllowAdd { .. } => "allow_add",
            Self::AllowRemove { .. } => "allow_remove",
            Self::Decisions { .. } => "decisions",
            Self::Findings { .. } => "findings",
            Self::Libraries => "libraries",
            Self::Reload => "reload",
        }
    }
}

/// The agent's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Response {
    Pong,
    Status(Box<Snapshot>),
    Blocks {
        blocks: Vec<BlockInfo>,
    },
    /// The block that is now in force.
    Blocked {
        block: BlockInfo,
    },
    Unblocked {
        target: IpNet,
    },
    /// The allow list, after the change if one was asked for.
    Allowed {
        allowed: Vec<AllowInfo>,
    },
    Decisions {
        decisions: Vec<Decision>,
    },
    /// Findings in the event log's format.
    Findings {
        findings: Vec<Value>,
    },
    Libraries {
        libraries: Vec<LibraryInfo>,
    },
    Reloaded {
        /// Changes that a reload cannot make.
        warnings: Vec<String>,
    },
    Error {
        kind: ErrorKind,
        message: String,
    },
}

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request cannot be understood, or its version is not spoken here.
    BadRequest,
    /// A guard or a limit forbids it, or there is nothing to do it to.
    Refused,
    /// It was tried and did not work.
    Failed,
    /// The configuration that was to be read is wrong; the old one holds.
    BadConfig,
    /// Too many clients, or the pipeline did not answer in time.
    Busy,
}

/// A block in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockInfo {
    pub target: IpNet,
    /// Seconds; `None`: until it is lifted.
    pub remaining_s: Option<u64>,
    /// The id of the decision behind it.
    pub id: String,
    /// A detector's name, or `operator`; `None` when an agent made it that has ended since.
    pub detector: Option<String>,
    pub reason: Option<String>,
    /// Counts packets and lets them pass.
    pub count_only: bool,
    pub packets: u64,
    /// From the network header on.
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowInfo {
    pub target: IpNet,
    pub origin: AllowOrigin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AllowOrigin {
    /// The configuration's allow list.
    Config,
    /// A trusted proxy of the configuration.
    TrustedProxy,
    /// The host itself, its gateway or a resolver.
    Host,
    /// Added through the control socket.
    Operator,
}

/// A TLS library file that processes use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LibraryInfo {
    pub path: String,
    pub stack: String,
    /// Its plaintext is seen.
    pub attached: bool,
    /// Why it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    pub pids: Vec<u32>,
}

impl Response {
    pub fn error(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::Error { kind, message: message.into() }
    }
}

/// Who is at the other end of the socket, as the kernel knows it (`SO_PEERCRED`, unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub uid: u32,
    pub pid: Option<i32>,
}

/// A request on its way to the pipeline.
#[derive(Debug)]
pub struct Call {
    pub request: Request,
    /// `None`: the agent's own metrics endpoint.
    pub peer: Option<Peer>,
    pub reply: oneshot::Sender<Response>,
}

/// Sends a request to the pipeline and waits at most `timeout` for the answer. What goes wrong
/// on the way is an answer too.
pub async fn ask(
    calls: &mpsc::Sender<Call>,
    request: Request,
    peer: Option<Peer>,
    timeout: Duration,
) -> Response {
    let (reply, answer) = oneshot::channel();
    let exchange = async {
        if calls.send(Call { request, peer, reply }).await.is_err() {
            return None;
        }
        answer.await.ok()
    };
    match tokio::time::timeout(timeout, exchange).await {
        Ok(Some(response)) => response,
        Ok(None) => Response::error(ErrorKind::Failed, "the agent is stopping"),
        Err(_) => Response::error(
            ErrorKind::Busy,
            format!("the pipeline did not answer within {} s", timeout.as_secs()),
        ),
    }
}

/// Reads an address or a network, `203.0.113.7` or `2001:db8::/64`. IPv4-mapped addresses
/// become IPv4.
///
/// # Errors
/// With a sentence for people, when it is neither or has bits set past its prefix.
pub fn parse_target(text: &str) -> Result<IpNet, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(ip.to_canonical()));
    }
    let net: IpNet = text
        .parse()
        .map_err(|_| format!("`{text}` is neither an IP address nor a network in CIDR notation"))?;
    if net.trunc() != net {
        return Err(format!(
            "`{text}` has bits set past its prefix: `{}` is the network",
            net.trunc()
        ));
    }
    Ok(canonical(net))
}

/// An IPv4-mapped network (RFC 4291, section 2.5.5.2) as an IPv4 one.
fn canonical(net: IpNet) -> IpNet {
    let v4 = match net.addr() {
        IpAddr::V6(v6) => v6.to_ipv4_mapped(),
        IpAddr::V4(_) => None,
    };
    let mapped = v4.zip(net.prefix_len().checked_sub(96));
    mapped.and_then(|(v4, len)| IpNet::new(v4.into(), len).ok()).unwrap_or(net)
}

fn target<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpNet, D::Error> {
    parse_target(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

/// Reads one line of the protocol.
fn decode_request(line: &str) -> Result<Request, String> {
    let mut object: Map<String, Value> =
        serde_json::from_str(line).map_err(|error| format!("not a JSON object: {error}"))?;
    match object.remove("v").as_ref().map(Value::as_u64) {
        Some(Some(VERSION)) => {}
        Some(_) => return Err(format!("only version {VERSION} of the protocol is spoken here")),
        None => return Err(format!("`v`, the protocol's version ({VERSION}), is missing")),
    }
    serde_json::from_value(Value::Object(object)).map_err(|error| error.to_string())
}

/// Writes a request or response as one line of the protocol.
fn encode<T: Serialize>(message: &T) -> serde_json::Result<Vec<u8>> {
    #[derive(Serialize)]
    struct Envelope<'a, T> {
        v: u64,
        #[serde(flatten)]
        message: &'a T,
    }
    let mut line = serde_json::to_vec(&Envelope { v: VERSION, message })?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests;
