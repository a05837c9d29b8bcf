//! The table of prefixes that have rules: an array that userspace writes as memory and the programs
//! read without a call. A bucket has room for a few prefixes. A prefix lies in the bucket that the
//! first half of its hash names or, where that was full, in the one that the second half names.
//!
//! Only userspace writes, and never moves a prefix from its second bucket to its first: who
//! looks into the first and then into the second finds what is there the whole time.

use crate::policy::{NO_RULE, PrefixRules};

/// Prefixes that a bucket has room for.
pub const SLOTS: usize = 5;

/// Two lines of cache.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    pub slots: [Slot; SLOTS],
    /// 1 when a prefix whose first bucket this is may be in its second.
    pub overflows: u64,
}

/// A prefix and its rules.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// [`Said`]. Written last, and read again after the address: so that the rules that were read are
    /// those of the prefix that was compared.
    pub said: u64,
    /// As [`crate::net::Addr::halves`]; no bits past the length.
    pub halves: [u64; 2],
}

/// The length of a prefix plus 1, its own first rule and that of its list: 8, 28 and 28 bits from the
/// lowest on. 0 for a free slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said(pub u64);

/// Rules have lower indices than this, so that two fit beside a length.
pub const MAX_RULES: u32 = 1 << 28;

impl Said {
    pub const NOTHING: Self = Self(0);

    #[inline(always)]
    pub const fn new(prefix_len: u32, rules: PrefixRules) -> Self {
        let PrefixRules { own, listed } = rules;
        if own == NO_RULE && listed == NO_RULE {
            return Self::NOTHING;
        }
        let (own, listed) = (own & (MAX_RULES - 1), listed & (MAX_RULES - 1));
        Self(Self::tag(prefix_len) | (own as u64) << 8 | (listed as u64) << 36)
    }

    /// The lowest 8 bits for a prefix of the length.
    #[inline(always)]
    pub const fn tag(prefix_len: u32) -> u64 {
        (prefix_len + 1) as u64 & 0xff
    }

    #[inline(always)]
    pub const fn is_nothing(self) -> bool {
        self.0 == 0
    }

    #[inline(always)]
    pub const fn prefix_len(self) -> u32 {
        (self.0 as u32 & 0xff).saturating_sub(1)
    }

    #[inline(always)]
    pub const fn rules(self) -> PrefixRules {
        PrefixRules { own: (self.0 >> 8) as u32 & (MAX_RULES - 1), listed: (self.0 >> 36) as u32 }
    }
}

/// Seeded, so that no client can choose where its address would lie. The multipliers are odd and of no
/// other meaning.
#[inline(always)]
pub const fn hash(halves: [u64; 2], prefix_len: u32, seed: [u64; 2]) -> u64 {
    let a = (halves[0] ^ seed[0]).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let b = (halves[1] ^ seed[1] ^ (prefix_len as u64) << 56).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    let mixed = (a.rotate_left(32) ^ b).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ mixed >> 32
}

/// The first bucket of a hash, of `buckets`.
#[inline(always)]
pub const fn first(hash: u64, buckets: u32) -> u32 {
    scaled(hash as u32, buckets)
}

/// The second bucket of a hash, of `buckets`; perhaps the first again.
#[inline(always)]
pub const fn second(hash: u64, buckets: u32) -> u32 {
    scaled((hash >> 32) as u32, buckets)
}

/// A number below `end`, in proportion.
#[inline(always)]
const fn scaled(number: u32, end: u32) -> u32 {
    ((number as u64 * end as u64) >> 32) as u32
}
