//! Decisions into the kernel's maps: the only writer of the policy.

use std::time::Duration;

use ipnet::IpNet;

use crate::decision::{Action, Decision, Mode, Origin};

/// What to enter into the deny map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewBlock {
    /// `None`: until it is lifted.
    pub ttl: Option<Duration>,
    /// Number of the decision: its id, which is hexadecimal.
    pub rule_id: u64,
    pub origin: Origin,
    /// Count what would be dropped, and let it pass.
    pub count_only: bool,
}

/// One entry of the deny map as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub target: IpNet,
    /// `None`: until it is lifted.
    pub remaining: Option<Duration>,
    pub rule_id: u64,
    pub origin: Origin,
    pub count_only: bool,
    pub packets: u64,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub used: u32,
    pub capacity: u32,
    /// Of the capacity, what only operators may use.
    pub reserve: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum EnforceError {
    #[error("{0} can't be blocked: only single addresses and IPv6 /64 networks can be")]
    Unsupported(IpNet),
    #[error(
        "the deny map is full: {} of {} entries, {} of them for operators only",
        .0.used, .0.capacity, .0.reserve
    )]
    Full(Usage),
    #[error("{0} is not blocked")]
    NotBlocked(IpNet),
    #[error(transparent)]
    Kernel(#[from] anyhow::Error),
}

/// The kernel's policy maps, or what stands for them in a test.
pub trait PolicyMaps {
    /// Blocks `target`, or replaces its block; the counters go on when the rule is the
    /// same, or both are listed in the configuration.
    /// When the map is full, a block that only counts gives way to one that drops.
    fn block(&mut self, target: IpNet, block: NewBlock) -> Result<(), EnforceError>;

    fn unblock(&mut self, target: IpNet) -> Result<(), EnforceError>;

    /// Every block that has not expired, in no particular order.
    fn blocks(&self) -> Result<Vec<Block>, EnforceError>;

    /// Removes expired blocks; returns how many.
    fn sweep(&mut self) -> Result<u32, EnforceError>;

    /// Entries of the deny map that are taken, and how many there are.
    fn usage(&self) -> Usage;

    /// Replaces the allow list. What stays on it is never off it in between.
    fn set_allowed(&mut self, nets: &[IpNet]) -> Result<(), EnforceError>;

    /// Replaces the destination ports on which nobody is dropped.
    fn set_failsafe(&mut self, tcp: &[u16], udp: &[u16]) -> Result<(), EnforceError>;
}

/// Carries a decision out, as far as it is one for the kernel: an observed drop only counts.
///
/// # Errors
/// When the kernel's map does not take the block.
pub fn carry_out(
    maps: &mut impl PolicyMaps,
    decision: &Decision,
    ttl: Option<Duration>,
    origin: Origin,
) -> Result<(), EnforceError> {
    let (Action::Drop, Some(target)) = (decision.action, decision.subject.network()) else {
        return Ok(());
    };
    let block = NewBlock {
        ttl,
        rule_id: decision.rule_id().unwrap_or_default(),
        origin,
        count_only: decision.mode == Mode::Observe,
    };
    maps.block(target, block)
}
