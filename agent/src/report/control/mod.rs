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
//! {"v":1,"command":"block","target":"198.51.100.0/24","action":"rate_limit","service":"shop",
//!  "rate":{"per_s":50,"burst":100,"unit":"connections","each":{"client":{"v4":32,"v6":64}}}}
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
//! A target is an address, a network, a JA4, a network and a JA4 (`198.51.100.0/24 with
//! t13d1516h2_8daaf6152771_e5627efa2ab1`) or a flow (`203.0.113.7:50000>192.0.2.1:443`, with
//! `/udp` behind one of UDP). The action is `drop` without the key, or `rate_limit`, which has a
//! `rate`, `deceive` or `count`. `ttl_s`, `reason` and `service` may be left out; without `ttl_s` a
//! block holds until it is lifted, without `service` on all ports. An `unblock` lifts all blocks of
//! the target that are of its `action` and `service`, where it has them.
//!
//! Unknown keys are refused, so that a misspelt one cannot change what a command means.
//! Answers have `v` and `result` with the fields of [`Response`]; a command that failed gets
//! `{"v":1,"result":"error","kind":"refused","message":"…"}`. A line that cannot be read gets
//! an error as well, and the connection stays open; only a line that is too long or not UTF-8
//! closes it. Whoever may open the socket may use every command: access is by file mode and
//! group.

mod client;
mod server;
mod socket;

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};

use crate::decision::Decision;
use crate::rule::{Effect, Kind, Rate, Target, parse_network};

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
        target: Target,
        #[serde(default)]
        action: BlockAction,
        /// Of [`BlockAction::RateLimit`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rate: Option<Rate>,
        /// Only on its ports and addresses.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<Arc<str>>,
        /// `None`: until it is lifted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ttl_s: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    Unblock {
        target: Target,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        action: Option<BlockAction>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<Arc<str>>,
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

/// What becomes of the packets of a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockAction {
    #[default]
    Drop,
    RateLimit,
    Deceive,
    Count,
}

impl BlockAction {
    /// `None` for a limit without a rate, and for a rate without a limit.
    pub const fn effect(self, rate: Option<Rate>) -> Option<Effect> {
        match (self, rate) {
            (Self::Drop, None) => Some(Effect::Drop),
            (Self::RateLimit, Some(rate)) => Some(Effect::Limit(rate)),
            (Self::Deceive, None) => Some(Effect::Steer),
            (Self::Count, None) => Some(Effect::Count),
            (Self::Drop | Self::Deceive | Self::Count, Some(_)) | (Self::RateLimit, None) => None,
        }
    }

    pub const fn kind(self) -> Kind {
        match self {
            Self::Drop => Kind::Drop,
            Self::RateLimit => Kind::Limit,
            Self::Deceive => Kind::Steer,
            Self::Count => Kind::Count,
        }
    }
}

impl From<Kind> for BlockAction {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Drop => Self::Drop,
            Kind::Limit => Self::RateLimit,
            Kind::Steer => Self::Deceive,
            Kind::Count => Self::Count,
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
        target: Target,
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
    pub target: Target,
    pub action: BlockAction,
    pub rate: Option<Rate>,
    /// On whose ports and addresses alone it holds.
    pub service: Option<Arc<str>>,
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
    /// With the link header.
    pub bytes: u64,
    /// Packets beyond the rate, which were dropped.
    pub exceeded: u64,
    /// Packets that passed because there was no room left to remember their client.
    pub no_room: u64,
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

fn target<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpNet, D::Error> {
    parse_network(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
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
