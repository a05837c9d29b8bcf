//! Decisions into the kernel's maps: the only writer of the policy.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use portcullis_common::fingerprint::Seed;

use crate::decision::{Decision, Mode, Origin};

pub use crate::rule::{Block, Each, Effect, Flow, Kind, Rate, RuleName, Target, Unit};

/// A rule to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBlock {
    /// `None`: until it is lifted.
    pub ttl: Option<Duration>,
    /// Number of the decision: its id, which is hexadecimal.
    pub rule_id: u64,
    pub origin: Origin,
    pub effect: Effect,
    /// Count what would be dropped, and let it pass.
    pub count_only: bool,
    /// Only on the ports and addresses of this service; `None`: everywhere.
    pub service: Option<Arc<str>>,
}

/// Networks that share one rule.
#[derive(Clone, Debug)]
pub struct List {
    pub name: Arc<str>,
    pub rule: NewBlock,
    pub networks: Vec<IpNet>,
}

/// The ports and addresses of a service. Empty lists stand for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    pub service: Arc<str>,
    pub ports: Vec<u16>,
    pub addresses: Vec<std::net::IpAddr>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub used: u32,
    pub capacity: u32,
    /// Of the capacity, what only operators may use.
    pub reserve: u32,
}

/// All rules together, but for those of lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// In the order of [`Kind::ALL`].
    pub rules: [u64; Kind::ALL.len()],
    /// As [`Block::exceeded`] and [`Block::no_room`].
    pub exceeded: u64,
    pub no_room: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum EnforceError {
    #[error(
        "the table of rules is full: {} of {} entries, {} of them for operators only",
        .0.used, .0.capacity, .0.reserve
    )]
    Full(Usage),
    #[error("the kernel's table of {what} is full")]
    NoRoom { what: &'static str },
    #[error("{target} has {limit} rules already, and can't have more")]
    TooManyRules { target: Target, limit: usize },
    #[error("there is no service {0} with ports or addresses of its own")]
    NoScope(Arc<str>),
    #[error("{0} is not blocked")]
    NotBlocked(Target),
    #[error(transparent)]
    Kernel(#[from] anyhow::Error),
}

/// The kernel's policy maps, or what stands for them in a test.
pub trait PolicyMaps: FingerprintMaps {
    /// Makes a rule of `target`, or replaces the one of the same name; the counters go on when the rule
    /// is the same, or both are listed in the configuration.
    /// When the map is full, a rule that only counts gives way to one that does more.
    fn block(&mut self, target: impl Into<Target>, block: NewBlock) -> Result<(), EnforceError>;

    /// Removes one rule.
    fn remove(&mut self, name: &RuleName) -> Result<(), EnforceError>;

    /// Removes all rules of `target`.
    fn unblock(&mut self, target: impl Into<Target>) -> Result<(), EnforceError>;

    /// Every rule that has not expired, in no particular order; none of lists.
    fn blocks(&self) -> Result<Vec<Block>, EnforceError>;

    /// Of those, the ones of `ja4`, alone or within a network.
    fn blocks_of(&self, ja4: &str) -> Vec<Block>;

    /// Removes expired rules; returns how many.
    fn sweep(&mut self) -> Result<u32, EnforceError>;

    /// Rules that there are, and for how many there is room.
    fn usage(&self) -> Usage;

    fn tally(&self) -> Tally;

    /// Replaces all lists, in one step. The counters of a list go on by its name.
    fn set_lists(&mut self, lists: &[List]) -> Result<(), EnforceError>;

    /// Replaces the scopes that rules can have.
    fn set_scopes(&mut self, scopes: &[Scope]) -> Result<(), EnforceError>;

    /// A TLS client with this fingerprint has been seen: what is said of its JA4 holds for the key,
    /// and for the flows that have it. Whether it is news.
    fn learn(&mut self, fingerprint: u64, ja4: &str) -> Result<bool, EnforceError>;

    /// Replaces the allow list. What stays on it is never off it in between.
    fn set_allowed(&mut self, nets: &[IpNet]) -> Result<(), EnforceError>;

    /// Replaces the destination ports on which nobody is dropped.
    fn set_failsafe(&mut self, tcp: &[u16], udp: &[u16]) -> Result<(), EnforceError>;

    /// Whether packets in tunnels are judged beside those that carry them.
    fn set_tunnels(&mut self, judged: bool) -> Result<(), EnforceError>;
}

/// Carries a decision out, as far as it is one for the kernel: what is observed only counts.
///
/// # Errors
/// When the kernel's maps do not take the rule.
pub fn carry_out(
    maps: &mut impl PolicyMaps,
    decision: &Decision,
    ttl: Option<Duration>,
    origin: Origin,
) -> Result<(), EnforceError> {
    let effect = Effect::of(decision.action, decision.rate);
    let (Some(effect), Some(target)) = (effect, decision.subject.target()) else {
        return Ok(());
    };
    let block = NewBlock {
        ttl,
        rule_id: decision.rule_id().unwrap_or_default(),
        origin,
        effect,
        count_only: decision.mode == Mode::Observe,
        service: decision.scope().cloned(),
    };
    maps.block(target, block)
}

/// Where the kernel keeps the TLS fingerprints of clients. Fingerprints are its own numbers for them
/// ([`portcullis_common::fingerprint`]).
pub trait FingerprintMaps {
    /// Whether to look for fingerprints.
    fn set_fingerprinting(&mut self, on: bool);

    /// What the numbers are computed under.
    fn seed(&self) -> Seed;

    /// The fingerprints that an earlier agent learned, with their JA4.
    fn known(&self) -> Vec<(u64, Arc<str>)>;

    /// The fingerprints that have `ja4`: mostly one, since those of different clients differ in
    /// what it is made of.
    fn keys_of(&self, ja4: &str) -> Vec<u64>;

    /// Forgets the JA4 of a fingerprint, unless there are rules for it: then whether it was forgotten.
    fn forget(&mut self, fingerprint: u64, ja4: &str) -> Result<bool, EnforceError>;

    /// The fingerprint of the client's hello on this flow; `None` if it was not seen.
    fn fingerprint_of(&self, flow: &Flow) -> Option<u64>;

    /// The client's hello on this flow was seen at `seen_ns` (`CLOCK_MONOTONIC`) and has this
    /// fingerprint: what is said of it holds for the flow.
    fn set_fingerprint_of(
        &mut self,
        flow: &Flow,
        fingerprint: u64,
        seen_ns: u64,
    ) -> Result<(), EnforceError>;
}
