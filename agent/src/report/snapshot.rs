//! The agent's numbers at one moment. `/metrics` and `portcullis status` both show this, so
//! that what is counted is counted in one place.

use std::borrow::Cow;
use std::collections::BTreeMap;

use portcullis_common::answer::Answered;
use portcullis_common::event::Loss;
use portcullis_common::policy::{PacketCount, Reason};
use serde::{Deserialize, Serialize};

use crate::decision::Mode;
use crate::rule::Kind;

/// A name from a fixed table: a reason, a loss, a detector. Never a value from traffic, for
/// each becomes the value of a metric's label.
pub type Name = Cow<'static, str>;

/// Counters are absolute, since the agent started, except for `packets`, whose map outlives it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub version: String,
    pub pid: u32,
    pub mode: Mode,
    /// Seconds since the agent started.
    pub uptime_s: f64,
    pub interfaces: Vec<Interface>,
    /// Configured interfaces without a program.
    pub waiting: Vec<WaitingInterface>,
    pub interface_changes: InterfaceChanges,
    /// Packets by the reason they passed or were dropped for ([`Reason::name`]).
    pub packets: BTreeMap<Name, Packets>,
    pub blocks: Blocks,
    /// Blocks in force by what they do ([`Kind::name`]).
    pub rules: BTreeMap<Name, u64>,
    /// Packets beyond the limits in force.
    pub limit_exceeded: u64,
    /// Files of networks that the configuration names.
    pub lists: Vec<List>,
    /// What became of dropped packets that could be answered ([`Answered::name`]).
    pub answers: BTreeMap<Name, u64>,
    /// Connections of blocked clients.
    pub sockets: Sockets,
    pub decoy: Decoy,
    /// TLS library files with probes in them.
    pub libraries_attached: u64,
    /// Connections whose HTTP is being followed.
    pub connections: u64,
    /// Clients that the detectors remember.
    pub actors: u64,
    pub transactions: u64,
    /// What could not be seen or followed, by the name of the table or limit ([`Loss::name`]
    /// and the pipeline's own).
    pub losses: BTreeMap<Name, Lost>,
    /// The HTTP parser's counters, by name.
    pub http: BTreeMap<Name, u64>,
    /// TLS fingerprints and the hellos of QUIC: what was learned, and what was not and why.
    pub fingerprints: BTreeMap<Name, u64>,
    /// Findings by detector.
    pub findings: BTreeMap<Name, u64>,
    /// Decisions by action.
    pub decisions: BTreeMap<Name, u64>,
    /// Decisions that a guard forbade, by guard.
    pub guarded: BTreeMap<Name, u64>,
    pub reloads: Reloads,
    pub event_log: EventLogCount,
}

/// An interface and how its packets reach the policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    /// Path of its network namespace; absent for the agent's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// [`crate::kernel::Hook::name`].
    pub hook: Name,
    /// Why better hooks were not to be had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passed_over: Vec<String>,
}

/// A configured interface without a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingInterface {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    pub problem: String,
}

/// What has happened to interfaces since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceChanges {
    pub attached: u64,
    pub detached: u64,
    /// Times that no program could be attached to one.
    pub failed: u64,
    /// Changes that no event tells of.
    pub untold: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packets {
    pub packets: u64,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Times it happened.
    pub events: u64,
    /// Plaintext that went unseen.
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocks {
    pub in_force: u64,
    pub capacity: u64,
    /// Part of the capacity that only operators may use.
    pub operator_reserve: u64,
    /// Blocks that could not be written to the kernel.
    pub failed: u64,
}

/// A list as it was read last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    pub name: String,
    pub networks: u64,
    /// Lines that could not be read.
    pub bad_lines: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sockets {
    pub closed: u64,
    /// Connections that could not be closed, or not even be looked for.
    pub failed: u64,
}

/// Clients that are deceived.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decoy {
    /// Connections that were steered to the decoy.
    pub steered: u64,
    /// Connections that were refused because no decoy listened.
    pub refused: u64,
    /// Connections that the tarpit holds now.
    pub held: u64,
    /// Connections that the tarpit has accepted.
    pub accepted: u64,
    /// Connections that the tarpit gave up for newer ones.
    pub evicted: u64,
    /// Of the tarpit's connections that have ended.
    pub held_s: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    /// Why there is no decoy at the moment.
    pub problem: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloads {
    pub succeeded: u64,
    pub failed: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventLogCount {
    pub written: u64,
    /// Events that could not be written.
    pub failed: u64,
}

impl Snapshot {
    /// Every kernel counter present and zero, so that a series exists before its first event.
    pub fn new(version: impl Into<String>, pid: u32, mode: Mode) -> Self {
        Self {
            version: version.into(),
            pid,
            mode,
            uptime_s: 0.0,
            interfaces: Vec::new(),
            waiting: Vec::new(),
            interface_changes: InterfaceChanges::default(),
            packets: Reason::ALL.map(|r| (r.name().into(), Packets::default())).into(),
            blocks: Blocks::default(),
            rules: Kind::ALL.map(|kind| (kind.name().into(), 0)).into(),
            limit_exceeded: 0,
            lists: Vec::new(),
            answers: Answered::ALL.map(|a| (a.name().into(), 0)).into(),
            sockets: Sockets::default(),
            decoy: Decoy::default(),
            libraries_attached: 0,
            connections: 0,
            actors: 0,
            transactions: 0,
            losses: Loss::ALL.map(|l| (l.name().into(), Lost::default())).into(),
            http: BTreeMap::new(),
            fingerprints: BTreeMap::new(),
            findings: BTreeMap::new(),
            decisions: BTreeMap::new(),
            guarded: BTreeMap::new(),
            reloads: Reloads::default(),
            event_log: EventLogCount::default(),
        }
    }
}

impl From<PacketCount> for Packets {
    fn from(count: PacketCount) -> Self {
        Self { packets: count.packets, bytes: count.bytes }
    }
}
