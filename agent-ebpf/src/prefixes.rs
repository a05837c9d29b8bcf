//! Which lengths of prefix may name an address: what the gates leave of those that occur.

use portcullis_common::{
    gate::{self, Bit, CLASSES},
    policy::Lengths,
    settings::Settings,
};

use crate::{
    headers::Address,
    maps::{PC_PREFIX_GATE, PC_V4_GATE, PC_V4_LENGTHS},
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
    const NONE: Self = Self { lengths: [0; 2], whole: 0 };

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

/// Writes what the gates leave of the lengths that occur in `set`.
#[inline(always)]
pub fn find(source: Address, set: u32, settings: &Settings, found: &mut Candidates) {
    *found = Candidates::NONE;
    let prefixes = &settings.prefixes[(set & 1) as usize];
    if source.is_v4() {
        let bit = gate::v4_bit(source.v4());
        let word = PC_V4_GATE.get(set * gate::V4_WORDS + bit.word);
        if word.is_none_or(|word| word & bit.mask != 0) {
            let block = source.v4() >> (32 - gate::V4_BLOCK_LEN);
            let nearby = PC_V4_LENGTHS.get(set * gate::V4_BLOCKS + block);
            *found = Candidates::of_v4(prefixes.lengths.v4 & nearby.copied().unwrap_or(u64::MAX));
        }
    } else {
        find_v6(source.halves(), set, settings, found);
    }
}

/// A function of its own, for the stack it needs.
#[inline(never)]
fn find_v6(halves: [u64; 2], set: u32, settings: &Settings, found: &mut Candidates) {
    let prefixes = &settings.prefixes[(set & 1) as usize];
    for class in 0..CLASSES {
        if prefixes.classes >> class & 1 == 0 {
            continue;
        }
        let beginning = gate::masked(halves, class * 8);
        let words = settings.prefix_gate_words;
        if !is_set(gate::class_bit(beginning, class, words), set, words) {
            continue;
        }
        if class == CLASSES - 1 {
            found.whole |= prefixes.lengths.v6_whole;
        } else {
            let half = (class / 8) as usize & 1;
            found.lengths[half] |= prefixes.lengths.v6[half] & 0xff << (class % 8 * 8);
        }
    }
}

/// Whether the gate of prefixes has the bit.
#[inline(always)]
pub fn is_set(bit: Bit, set: u32, words: u32) -> bool {
    let word = PC_PREFIX_GATE.get(set.wrapping_mul(words).wrapping_add(bit.word));
    // A gate that can't be read is open.
    word.is_none_or(|word| word & bit.mask != 0)
}
