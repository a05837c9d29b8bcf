//! Keys and values of the policy maps, and the reasons that packets are counted under.

use crate::net::Addr;

/// Key of the deny map. Two lengths exist: 128, one address, and 64, the subnet that an IPv6
/// client moves within. The bits of `addr` past `prefix_len` are zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DenyKey {
    pub addr: Addr,
    pub prefix_len: u32,
}

/// Value of the deny map. The kernel adds to the counters with atomic operations; everything
/// else only userspace writes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DenyEntry {
    /// On `CLOCK_MONOTONIC_COARSE`, in nanoseconds; [`NEVER_EXPIRES`] for none.
    pub expires_ns: u64,
    /// Which decision made this entry; userspace's own numbering.
    pub rule_id: u64,
    /// Frames the entry acted on, and their bytes with the link header.
    pub packets: u64,
    pub bytes: u64,
    pub action: u32,
    /// Who asked for it, for the agent that takes the entry over; nothing to the kernel.
    pub origin: u32,
}

pub const NEVER_EXPIRES: u64 = u64::MAX;

/// What a deny entry does ([`DenyEntry::action`]).
pub mod action {
    pub const DROP: u32 = 0;
    /// Count the packet under the entry and let it pass.
    pub const COUNT: u32 = 1;
    /// New connections go to the decoy.
    pub const STEER: u32 = 2;
}

/// Who asked for a deny entry ([`DenyEntry::origin`]).
pub mod origin {
    pub const AUTOMATIC: u32 = 0;
    pub const OPERATOR: u32 = 1;
    pub const CONFIGURED: u32 = 2;
}

/// Value of the allow list.
pub const ALLOWED: u32 = 1;

/// Why a packet passed or was dropped: an index into the per-CPU reason counters.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No entry names the source.
    PassNoMatch = 0,
    /// Denied, but on the allow list, which goes first.
    PassAllowed = 1,
    /// Denied, but for a failsafe port.
    PassFailsafe = 2,
    /// Denied by an entry that has expired.
    PassExpired = 3,
    /// Denied by an entry that only counts.
    PassCountOnly = 4,
    /// Neither IPv4 nor IPv6.
    PassNotIp = 5,
    /// More VLAN tags than the parser follows ([`crate::settings::MAX_VLAN_TAGS`]).
    PassTooManyTags = 6,
    /// The frame ends before its source address.
    PassTruncated = 7,
    /// A source on the deny list.
    DropDenied = 8,
}

impl Reason {
    pub const COUNT: u32 = 9;

    pub const ALL: [Reason; Self::COUNT as usize] = [
        Reason::PassNoMatch,
        Reason::PassAllowed,
        Reason::PassFailsafe,
        Reason::PassExpired,
        Reason::PassCountOnly,
        Reason::PassNotIp,
        Reason::PassTooManyTags,
        Reason::PassTruncated,
        Reason::DropDenied,
    ];

    /// The name under which metrics and the command line show the reason.
    pub const fn name(self) -> &'static str {
        match self {
            Reason::PassNoMatch => "pass_no_match",
            Reason::PassAllowed => "pass_allowed",
            Reason::PassFailsafe => "pass_failsafe",
            Reason::PassExpired => "pass_expired",
            Reason::PassCountOnly => "pass_count_only",
            Reason::PassNotIp => "pass_not_ip",
            Reason::PassTooManyTags => "pass_too_many_tags",
            Reason::PassTruncated => "pass_truncated",
            Reason::DropDenied => "drop_denied",
        }
    }
}

/// One slot of the per-CPU reason counters.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketCount {
    pub packets: u64,
    pub bytes: u64,
}
