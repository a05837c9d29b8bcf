//! Prefixes that name an address: which lengths may, by the gates, and what the table says of one.

use portcullis_common::{
    gate::{self, Bit},
    policy::Lengths,
    prefix_table::{self, Bucket, SLOTS, Said},
    settings::Settings,
};

use crate::{
    headers::Address,
    maps::{PC_PREFIXES, PC_V4_GATE, PC_V4_LENGTHS, PC_V6_GATE, PC_V6_LENGTHS, PC_V6_WIDE},
};

/// Lengths of prefixes that may name an address; IPv4's as those of the mapped form, 96 to 128.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Candidates {
    /// Bit `n` for length `n`, 0 to 63 and 64 to 127.
    lengths: [u64; 2],
    /// Bit 0 for length 128.
    whole: u64,
}

impl Candidates {
    pub const NONE: Self = Self { lengths: [0; 2], whole: 0 };

    #[inline(always)]
    pub fn are_none(&self) -> bool {
        let [first, second] = self.lengths;
        first | second | self.whole == 0
    }

    /// Bit `n` for length `n` of IPv4.
    #[inline(always)]
    fn of_v4(lengths: u64) -> Self {
        Self { lengths: [0, lengths << 32], whole: lengths >> 32 & 1 }
    }

    /// All of `lengths` that are of the address's family.
    #[inline(always)]
    pub fn of(address: Address, lengths: &Lengths) -> Self {
        if address.is_v4() {
            Self::of_v4(lengths.v4)
        } else {
            Self { lengths: lengths.v6, whole: lengths.v6_whole }
        }
    }

    /// Whether single addresses may be named.
    #[inline(always)]
    pub fn takes_whole(&self) -> bool {
        self.whole != 0
    }

    /// Takes out the length of single addresses.
    #[inline(always)]
    pub fn drop_whole(&mut self) {
        self.whole = 0;
    }

    /// Takes out the longest; there must be one.
    #[inline(always)]
    pub fn take_longest(&mut self) -> u32 {
        if self.whole != 0 {
            self.whole = 0;
            return 128;
        }
        let half = usize::from(self.lengths[1] != 0);
        let bit = highest_bit(self.lengths[half & 1]) & 63;
        self.lengths[half & 1] &= !(1 << bit);
        half as u32 * 64 + bit
    }
}

/// Position of the highest bit that is set in `word`, which has one. The machine has no instruction for
/// it, and a search by branches would have the verifier walk through each outcome: all bits below the
/// highest are set, which leaves 64 words, and a de Bruijn sequence tells them apart (Leiserson, Prokop
/// and Randall, "Using de Bruijn Sequences to Index a 1 in a Computer Word").
#[inline(always)]
fn highest_bit(mut word: u64) -> u32 {
    for step in [1, 2, 4, 8, 16, 32] {
        word |= word >> step;
    }
    let index = (word ^ word >> 1).wrapping_mul(DE_BRUIJN) >> 58;
    // SAFETY: the index has six bits; volatile, so that the compiler does not turn the table into
    // branches.
    u32::from(unsafe { (&raw const POSITIONS).cast::<u8>().add(index as usize).read_volatile() })
}

const DE_BRUIJN: u64 = 0x03f7_9d71_b4cb_0a89;

static POSITIONS: [u8; 64] = positions();

const fn positions() -> [u8; 64] {
    let mut positions = [0; 64];
    let mut bit = 0;
    while bit < 64 {
        positions[((1_u64 << bit).wrapping_mul(DE_BRUIJN) >> 58) as usize] = bit as u8;
        bit += 1;
    }
    positions
}

/// Whether a prefix of `set` may name the address, by the first gate alone.
#[inline(always)]
pub fn may_name(source: Address, set: u32, settings: &Settings) -> bool {
    if source.is_v4() {
        let bit = gate::v4_bit(source.v4());
        return is_set(PC_V4_GATE.get(set * gate::V4_WORDS + bit.word), bit);
    }
    if lengths_of(set, settings).v6[0] & SHORTER_LENGTHS != 0 {
        return true;
    }
    let bit = gate::v6_bit(gate::v6_hash(source.first_word()));
    is_set(PC_V6_GATE.get(set * gate::V6_WORDS + bit.word), bit)
}

/// A gate that can't be read is open.
#[inline(always)]
fn is_set(word: Option<&u64>, bit: Bit) -> bool {
    word.is_none_or(|word| word & bit.mask != 0)
}

/// The lengths that occur in `set`.
#[inline(always)]
fn lengths_of(set: u32, settings: &Settings) -> &Lengths {
    &settings.prefixes[(set & 1) as usize].lengths
}

/// Lengths of IPv6 prefixes that are noted by /16 and not by /32.
const SHORTER_LENGTHS: u64 = (1 << gate::V6_SHORTEST) - 1;

/// What the gates leave of the lengths that occur in `set`.
#[inline(always)]
pub fn find(source: Address, set: u32, settings: &Settings) -> Candidates {
    let lengths = lengths_of(set, settings);
    if source.is_v4() {
        let block = source.v4() >> (32 - gate::V4_BLOCK_LEN);
        let nearby = PC_V4_LENGTHS.get(set * gate::V4_BLOCKS + block);
        return Candidates::of_v4(lengths.v4 & nearby.copied().unwrap_or(u64::MAX));
    }
    let network = source.first_word();
    let block = gate::v6_block(gate::v6_hash(network));
    let near = PC_V6_LENGTHS.get(set * gate::V6_BLOCKS + block);
    let [near, near_long] = near.copied().unwrap_or([u64::MAX; 2]);
    let mut wide = 0;
    if lengths.v6[0] & SHORTER_LENGTHS != 0 {
        let around = PC_V6_WIDE.get(set * gate::V6_WIDE + (network >> 16));
        wide = around.copied().unwrap_or(u64::MAX);
    }
    let short = wide & SHORTER_LENGTHS | near & !SHORTER_LENGTHS;
    Candidates {
        lengths: [lengths.v6[0] & short, lengths.v6[1] & near_long],
        whole: lengths.v6_whole & near & gate::V6_WHOLE,
    }
}

/// What is said of the prefix in `set`.
#[inline(always)]
pub fn look_up(halves: [u64; 2], len: u32, set: u32, settings: &Settings) -> Said {
    let buckets = settings.prefixes[(set & 1) as usize].buckets;
    let hash = prefix_table::hash(halves, len, settings.seed);
    let Some(bucket) = bucket(set, prefix_table::first(hash, buckets)) else {
        return Said::NOTHING;
    };
    let said = said_in(bucket, halves, len);
    // SAFETY: a field of a map value, which stays while the program runs.
    let overflows = unsafe { (&raw const (*bucket).overflows).read_volatile() };
    if said != 0 || overflows == 0 {
        return Said(said);
    }
    match self::bucket(set, prefix_table::second(hash, buckets)) {
        Some(bucket) => Said(said_in(bucket, halves, len)),
        None => Said::NOTHING,
    }
}

#[inline(always)]
fn bucket(set: u32, index: u32) -> Option<*const Bucket> {
    PC_PREFIXES.get_value_ptr_mut(set, &index).map(<*mut Bucket>::cast_const)
}

/// What the bucket says of the prefix: the word of [`Said`].
#[inline(always)]
fn said_in(bucket: *const Bucket, halves: [u64; 2], len: u32) -> u64 {
    for at in 0..SLOTS {
        // SAFETY: a slot of a map value, by words that userspace writes each in one step.
        unsafe {
            let slot = &raw const (*bucket).slots[at];
            let said = (&raw const (*slot).said).read_volatile();
            let [first, second] = (&raw const (*slot).halves).read_volatile();
            let again = (&raw const (*slot).said).read_volatile();
            // One branch: each doubles what the verifier walks through.
            let length = (said & 0xff) ^ Said::tag(len);
            if length | (first ^ halves[0]) | (second ^ halves[1]) | (again ^ said) == 0 {
                return said;
            }
        }
    }
    0
}
