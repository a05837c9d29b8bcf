//! What one rule says of a packet.

use aya_ebpf::maps::lpm_trie::Key;
use portcullis_common::{
    policy::{EVERYWHERE, Reason, Rule, action, flag},
    settings::Settings,
};

use crate::{atomic, limit, maps::PC_ALLOW, policy::Work, report};

/// The reason so far for what becomes of a packet: a [`Reason`] as a number, compared without branches,
/// each of which would double what the verifier walks through.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Outcome(u32);

impl Outcome {
    pub const NONE: Self = Self(Reason::PassNoMatch as u32);

    const FINAL: u32 = 1 << Reason::PassAllowed as u32
        | 1 << Reason::PassFailsafe as u32
        | 1 << Reason::DropDenied as u32
        | 1 << Reason::DropLimited as u32;

    /// Four bits for each reason: which of two reasons to pass is reported.
    const RANKS: u64 = rank(Reason::PassExpired, 1)
        | rank(Reason::PassWithinLimit, 2)
        | rank(Reason::PassCountOnly, 3)
        | rank(Reason::PassSteered, 4)
        | rank(Reason::PassAllowed, 5)
        | rank(Reason::PassFailsafe, 5)
        | rank(Reason::DropDenied, 6)
        | rank(Reason::DropLimited, 6);

    /// Whether no further rule can change it.
    #[inline(always)]
    pub fn is_final(self) -> bool {
        Self::FINAL >> (self.0 & 31) & 1 != 0
    }

    #[inline(always)]
    pub fn number(self) -> u32 {
        self.0
    }

    /// The stronger of this and what a rule says; the latter where they are alike.
    #[inline(always)]
    pub fn and(self, reason: Reason) -> Self {
        let new = reason as u32;
        let difference = Self::rank_of(new).wrapping_sub(Self::rank_of(self.0));
        // All ones when the new one is weaker.
        let mask = (difference as i64 >> 63) as u32;
        Self(self.0 & mask | new & !mask)
    }

    #[inline(always)]
    fn rank_of(number: u32) -> u64 {
        Self::RANKS >> ((number & 15) * 4) & 15
    }
}

const fn rank(reason: Reason, rank: u64) -> u64 {
    rank << (reason as u32 * 4)
}

/// What a rule makes of the packet.
pub enum Said {
    Nothing,
    /// The packet has to be taken from the rule's limit.
    Limit,
    Reason(Reason),
}

/// Whether the rule denies whatever comes from its source, and has done so before.
#[inline(always)]
pub fn denies_outright(rule: *mut Rule, now_ns: u64) -> bool {
    // SAFETY: as in `apply`.
    unsafe {
        (*rule).expires_ns > now_ns
            && (*rule).scopes == EVERYWHERE
            && (*rule).action == action::DROP
            && (*rule).flags == 0
            && (&raw const (*rule).packets).read_volatile() != 0
    }
}

/// Counts a packet that the rule acts on.
#[inline(always)]
pub fn count(rule: *mut Rule, len: u64) {
    // SAFETY: both counters are aligned u64s of the map value.
    unsafe {
        atomic::add(&raw mut (*rule).bytes, len);
        atomic::add(&raw mut (*rule).packets, 1);
    }
}

/// Applies `rule`.
#[inline(always)]
pub fn apply(rule: *mut Rule, work: &Work, settings: &Settings) -> Said {
    // SAFETY: a pointer into a map value stays valid while the program runs, and only userspace
    // writes these fields.
    let (expires_ns, scopes, what, flags) =
        unsafe { ((*rule).expires_ns, (*rule).scopes, (*rule).action, (*rule).flags) };
    if scopes != EVERYWHERE && scopes & work.scopes(settings) == 0 {
        return Said::Nothing;
    }
    if expires_ns <= work.now_ns {
        return Said::Reason(Reason::PassExpired);
    }
    if flags & flag::CHECK_ALLOWED != 0
        && PC_ALLOW.get(Key::new(128, work.packet.source.addr())).is_some()
    {
        return Said::Reason(Reason::PassAllowed);
    }
    if work.is_failsafe != 0 {
        return Said::Reason(Reason::PassFailsafe);
    }
    // Two CPUs may both find theirs to be the first; the one that reads it takes the earlier.
    // SAFETY: as above.
    let is_first = unsafe { (&raw const (*rule).packets).read_volatile() == 0 };
    count(rule, work.len);
    if what == action::LIMIT {
        return Said::Limit;
    }
    if flags & flag::OBSERVE != 0 || what == action::COUNT {
        return Said::Reason(Reason::PassCountOnly);
    }
    if what == action::STEER {
        return Said::Reason(Reason::PassSteered);
    }
    if is_first {
        // SAFETY: as above.
        report::first_drop(work.packet.source.addr(), unsafe { (*rule).id });
    }
    Said::Reason(Reason::DropDenied)
}

/// Takes the packet from the limit of `rule`, which is at `index`.
#[inline(always)]
pub fn limit(rule: *mut Rule, index: u32, work: &Work, settings: &Settings) -> Reason {
    // SAFETY: as in `apply`.
    let (limit, flags) = unsafe { ((*rule).limit, (*rule).flags) };
    match limit::take(limit, index, work, settings) {
        limit::Taken::Within | limit::Taken::NoRoom => Reason::PassWithinLimit,
        limit::Taken::Exceeded if flags & flag::OBSERVE != 0 => Reason::PassCountOnly,
        limit::Taken::Exceeded => Reason::DropLimited,
    }
}
