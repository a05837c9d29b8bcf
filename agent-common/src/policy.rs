//! Keys and values of the policy maps, and the reasons that packets are counted under.
//!
//! A rule says what happens to the packets of a subject: of an address or a network
//! ([`PrefixKey`]), of a TLS fingerprint, of both together ([`ConjunctionKey`]), or of a flow. The
//! maps of the subjects point into one array of rules.

use crate::net::Addr;

/// An address (length 128) or a network; IPv4 in its mapped form, so that a /24 has length 120.
/// The bits of `addr` past `prefix_len` are zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixKey {
    pub addr: Addr,
    pub prefix_len: u32,
}

/// What is said of the addresses of a prefix: indices into the array of rules, or [`NO_RULE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixRules {
    /// The first of the subject's own rules; [`Rule::next`] leads to the others.
    pub own: u32,
    /// The rule of the list that names the prefix. Lists share one rule among all their entries.
    pub listed: u32,
}

/// The clients within a network that have a TLS fingerprint.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConjunctionKey {
    pub fingerprint: u64,
    pub addr: Addr,
    pub prefix_len: u32,
    pub reserved: u32,
}

/// What is said of a TLS fingerprint.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FingerprintRules {
    /// As [`PrefixRules::own`].
    pub own: u32,
    pub reserved: u32,
    /// The prefix lengths of the conjunctions with this fingerprint.
    pub lengths: Lengths,
}

/// A set of prefix lengths.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lengths {
    /// Bit `n` for an IPv4 prefix of length `n`, 0 to 32.
    pub v4: u64,
    /// The same for IPv6, 0 to 63 and 64 to 127.
    pub v6: [u64; 2],
    /// Bit 0 for single IPv6 addresses.
    pub v6_whole: u64,
}

/// The index that is no rule.
pub const NO_RULE: u32 = 0;

/// Own rules that one subject can have, of different scopes and actions.
pub const MAX_RULES_OF_SUBJECT: usize = 4;

/// One rule. The kernel adds to the counters with atomic operations; everything else only userspace
/// writes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// On `CLOCK_MONOTONIC_COARSE`, in nanoseconds; [`NEVER_EXPIRES`] for none. 0 for a slot
    /// without a rule.
    pub expires_ns: u64,
    /// Which decision made this rule; userspace's own numbering.
    pub id: u64,
    /// Frames the rule acted on, and their bytes with the link header.
    pub packets: u64,
    pub bytes: u64,
    /// The services it holds for: bits of scope numbers, or [`EVERYWHERE`].
    pub scopes: u64,
    /// [`action`], and [`flag`]s.
    pub action: u32,
    pub flags: u32,
    /// The next rule of the same subject, or [`NO_RULE`].
    pub next: u32,
    /// Index into the array of limits, for [`action::LIMIT`].
    pub limit: u32,
    /// Who asked for it ([`origin`]), for the agent that takes the rule over; nothing to the
    /// kernel.
    pub origin: u32,
    pub reserved: u32,
}

pub const NEVER_EXPIRES: u64 = u64::MAX;

/// [`Rule::scopes`] of a rule that holds whatever the destination.
pub const EVERYWHERE: u64 = u64::MAX;

/// Scopes that can be told apart: the lowest bits of [`Rule::scopes`].
pub const MAX_SCOPES: usize = 62;

/// What is said of a destination port, beside the scopes it belongs to.
pub mod port {
    /// No source is ever dropped on this port of TCP, of UDP.
    pub const FAILSAFE_TCP: u64 = 1 << 63;
    pub const FAILSAFE_UDP: u64 = 1 << 62;
}

/// What a rule does ([`Rule::action`]).
pub mod action {
    pub const DROP: u32 = 0;
    /// Count the packet under the rule and let it pass.
    pub const COUNT: u32 = 1;
    /// Drop what exceeds the limit.
    pub const LIMIT: u32 = 2;
    /// Let new connections be accepted by the decoy.
    pub const STEER: u32 = 3;
}

/// [`Rule::flags`].
pub mod flag {
    /// Only count: the rule's mode is `observe`.
    pub const OBSERVE: u32 = 1;
    /// The allow list has addresses of the subject. Without this flag it has none, so that the kernel
    /// need not look.
    pub const CHECK_ALLOWED: u32 = 2;
}

/// Who asked for a rule ([`Rule::origin`]).
pub mod origin {
    pub const AUTOMATIC: u32 = 0;
    pub const OPERATOR: u32 = 1;
    pub const CONFIGURED: u32 = 2;
    /// The rule of a list.
    pub const LISTED: u32 = 3;
}

/// A rate limit: the generic cell rate algorithm (ITU-T I.371, annex A), with the theoretical
/// arrival time advanced by compare-and-exchange.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Theoretical arrival time of the next unit, on `CLOCK_MONOTONIC`, in nanoseconds; of the one
    /// bucket, where all packets of the subject share it.
    pub arrival_ns: u64,
    /// Time that one unit takes up, in 1/1024 nanoseconds ([`COST_SHIFT`]).
    pub cost: u64,
    /// How far ahead of now the arrival time may be: the burst.
    pub tolerance_ns: u64,
    /// [`unit`].
    pub unit: u32,
    /// Where each client has a bucket of its own: the length of the prefix that is one client, for
    /// IPv4 and IPv6, in the low and the next 8 bits, plus 1; 0 where all share one bucket.
    pub client_prefix: u32,
    /// Packets that exceeded the limit.
    pub exceeded: u64,
    /// Packets that passed because there was no bucket left for their client.
    pub no_room: u64,
    pub reserved: [u64; 2],
}

/// [`Limit::cost`] has so many bits after the point.
pub const COST_SHIFT: u32 = 10;

/// What a limit counts ([`Limit::unit`]).
pub mod unit {
    pub const PACKETS: u32 = 0;
    pub const BYTES: u32 = 1;
    /// TCP segments that open a connection: SYN without ACK.
    pub const CONNECTIONS: u32 = 2;
}

/// Clients' buckets: a set-associative table, each set one line of cache.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketSet {
    pub slots: [Bucket; BUCKETS_OF_SET],
}

pub const BUCKETS_OF_SET: usize = 4;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Seeded hash of rule and client.
    pub client: u64,
    /// As [`Limit::arrival_ns`]. A bucket whose time has passed is as good as empty, and another
    /// client may have it.
    pub arrival_ns: u64,
}

/// Value of the allow list.
pub const ALLOWED: u32 = 1;

/// Why a packet passed or was dropped: an index into the per-CPU reason counters.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No rule names the packet.
    PassNoMatch = 0,
    /// Named by a rule, but its source is on the allow list, which goes first.
    PassAllowed = 1,
    /// Named by a rule, but for a failsafe port.
    PassFailsafe = 2,
    /// Named only by rules that have expired.
    PassExpired = 3,
    /// Named by a rule that only counts.
    PassCountOnly = 4,
    /// Neither IPv4 nor IPv6.
    PassNotIp = 5,
    /// More VLAN tags than the parser follows ([`crate::settings::MAX_VLAN_TAGS`]).
    PassTooManyTags = 6,
    /// The frame ends before its source address.
    PassTruncated = 7,
    /// A rule denies it.
    DropDenied = 8,
    /// Within the limit of every rule that names it.
    PassWithinLimit = 9,
    /// Its new connections go to the decoy.
    PassSteered = 10,
    /// Beyond the limit of a rule.
    DropLimited = 11,
}

impl Reason {
    pub const COUNT: u32 = 12;

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
        Reason::PassWithinLimit,
        Reason::PassSteered,
        Reason::DropLimited,
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
            Reason::PassWithinLimit => "pass_within_limit",
            Reason::PassSteered => "pass_steered",
            Reason::DropLimited => "drop_limited",
        }
    }

    pub const fn drops(self) -> bool {
        matches!(self, Reason::DropDenied | Reason::DropLimited)
    }
}

/// One slot of the per-CPU reason counters.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketCount {
    pub packets: u64,
    pub bytes: u64,
}
