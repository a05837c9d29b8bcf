//! Decisions into the kernel's maps: the only writer of the policy.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

/// Who asked for a block. Operators have a reserve of the map to themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Operator,
    Automatic,
}

/// One entry of the deny map as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub target: IpNet,
    /// `None`: until it is lifted.
    pub remaining: Option<Duration>,
    pub rule_id: u64,
    pub count_only: bool,
    pub packets: u64,
    pub bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum EnforceError {
    #[error("{0} can't be blocked: only single addresses and IPv6 /64 networks can be")]
    Unsupported(IpNet),
    #[error("the deny map is full: {used} of {capacity} entries, {reserve} reserved for operators")]
    Full { used: u32, capacity: u32, reserve: u32 },
    #[error("{0} is not blocked")]
    NotBlocked(IpNet),
    #[error("{0} is not on the allow list")]
    NotAllowed(IpAddr),
    #[error(transparent)]
    Kernel(#[from] anyhow::Error),
}

/// The kernel's policy maps, or what stands for them in a test.
pub trait PolicyMaps {
    /// Blocks `target`, or replaces its block, keeping the counters.
    fn block(
        &mut self,
        target: IpNet,
        ttl: Option<Duration>,
        rule_id: u64,
        origin: Origin,
    ) -> Result<(), EnforceError>;

    fn unblock(&mut self, target: IpNet) -> Result<(), EnforceError>;

    /// Every block that has not expired, in no particular order.
    fn blocks(&self) -> Result<Vec<Block>, EnforceError>;

    /// Removes expired blocks; returns how many.
    fn sweep(&mut self) -> Result<u32, EnforceError>;

    /// Replaces the allow list.
    fn set_allowed(&mut self, nets: &[IpNet]) -> Result<(), EnforceError>;
}
