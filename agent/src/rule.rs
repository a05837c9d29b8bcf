//! Rules of the kernel's policy, as plain data: whose packets, and what becomes of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::decision::{Action, Origin};

mod words;

pub use words::{Speed, parse_ja4, parse_network};

/// Whose packets a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    Network(IpNet),
    /// The clients with a TLS fingerprint, by its JA4.
    Fingerprint(Arc<str>),
    /// Those of a network alone.
    Conjunction(IpNet, Arc<str>),
    Flow(Flow),
}

impl Target {
    /// The JA4 that clients must have, if one is named.
    pub const fn ja4(&self) -> Option<&Arc<str>> {
        match self {
            Self::Fingerprint(ja4) | Self::Conjunction(_, ja4) => Some(ja4),
            Self::Network(_) | Self::Flow(_) => None,
        }
    }
}

impl From<IpNet> for Target {
    fn from(net: IpNet) -> Self {
        Self::Network(net)
    }
}

/// A TCP connection or a UDP exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flow {
    pub client: SocketAddr,
    pub server: SocketAddr,
    /// Of UDP; else of TCP.
    pub is_udp: bool,
}

/// What becomes of the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    Drop,
    Count,
    Limit(Rate),
    /// New connections go to the decoy.
    Steer,
}

impl Effect {
    /// What `action` comes to in the kernel; `None` where it is none of the kernel's business. A
    /// limit without a rate is none.
    pub fn of(action: Action, rate: Option<Rate>) -> Option<Self> {
        match action {
            Action::Drop => Some(Self::Drop),
            Action::RateLimit => rate.map(Self::Limit),
            Action::Deceive => Some(Self::Steer),
            Action::Tag => Some(Self::Count),
            Action::Alert => None,
        }
    }

    pub const fn action(self) -> Action {
        match self {
            Self::Drop => Action::Drop,
            Self::Limit(_) => Action::RateLimit,
            Self::Steer => Action::Deceive,
            Self::Count => Action::Tag,
        }
    }

    pub const fn rate(self) -> Option<Rate> {
        match self {
            Self::Limit(rate) => Some(rate),
            Self::Drop | Self::Steer | Self::Count => None,
        }
    }

    pub const fn kind(self) -> Kind {
        match self {
            Self::Drop => Kind::Drop,
            Self::Steer => Kind::Steer,
            Self::Limit(_) => Kind::Limit,
            Self::Count => Kind::Count,
        }
    }
}

/// [`Effect`] without its parameters, in the order in which a target's rules are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Drop,
    Steer,
    Limit,
    Count,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Drop, Self::Steer, Self::Limit, Self::Count];

    /// The name in blocks, metrics and the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Steer => "deceive",
            Self::Limit => "rate_limit",
            Self::Count => "count",
        }
    }
}

/// How much may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rate {
    /// Units in a second, at least one.
    pub per_s: u64,
    /// Units at once, at least one.
    pub burst: u64,
    #[serde(default)]
    pub unit: Unit,
    #[serde(default, skip_serializing_if = "Each::is_target")]
    pub each: Each,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    #[default]
    Packets,
    Bytes,
    /// TCP connections that are asked for.
    Connections,
}

/// Who shares a rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Each {
    /// All packets of the target.
    #[default]
    Target,
    /// Each client has the rate to itself: prefixes of so many bits are one.
    Client { v4: u8, v6: u8 },
}

impl Each {
    const fn is_target(&self) -> bool {
        matches!(self, Self::Target)
    }
}

/// What tells a rule from others: one target has at most one of a kind for a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleName {
    pub target: Target,
    pub kind: Kind,
    pub service: Option<Arc<str>>,
}

/// One rule as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub target: Target,
    pub effect: Effect,
    pub service: Option<Arc<str>>,
    /// `None`: until it is lifted.
    pub remaining: Option<Duration>,
    pub rule_id: u64,
    pub origin: Origin,
    pub count_only: bool,
    /// Packets that it named, and their bytes.
    pub packets: u64,
    pub bytes: u64,
    /// Of a limit: packets that were beyond it.
    pub exceeded: u64,
    /// Of a limit for each client: packets that passed because there was no room left to remember
    /// their client.
    pub no_room: u64,
}

impl Block {
    pub fn name(&self) -> RuleName {
        RuleName {
            target: self.target.clone(),
            kind: self.effect.kind(),
            service: self.service.clone(),
        }
    }
}
