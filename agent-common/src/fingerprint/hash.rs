//! The keyed hash that keys are made with. Multiplications and shifts only, 64 bits wide: what
//! BPF has instructions for.

use super::Seed;

/// Odd, random-looking: of the fractions of the golden ratio and of the square roots of 2 and 3.
const MULTIPLIERS: [u64; 3] = [0x9e37_79b9_7f4a_7c15, 0x6a09_e667_f3bc_c909, 0xbb67_ae85_84ca_a73b];

/// What a value is, so that a cipher and an extension of the same number differ.
#[derive(Clone, Copy)]
#[repr(u64)]
pub enum Kind {
    Cipher = 1 << 16,
    Extension = 2 << 16,
    Signature = 3 << 16,
}

/// Hash of a value in a list without an order.
#[inline(always)]
pub fn of_value(kind: Kind, value: u32, seed: Seed) -> u64 {
    mix(kind as u64 | u64::from(value), seed)
}

/// Hash of a list with an order, `hash` being that of the list without its last value.
#[inline(always)]
pub fn appended(hash: u64, kind: Kind, value: u32, seed: Seed) -> u64 {
    mix(hash.wrapping_add(kind as u64 | u64::from(value)), seed)
}

/// Hash of `words`, in their order.
#[inline(always)]
pub fn of_words(words: [u64; 4], seed: Seed) -> u64 {
    let mut hash = 0_u64;
    for word in words {
        hash = mix(hash.wrapping_mul(MULTIPLIERS[2]) ^ word, seed);
    }
    hash
}

/// Two rounds, a half of the seed before each.
#[inline(always)]
fn mix(value: u64, Seed([first, second]): Seed) -> u64 {
    let mut hash = (value ^ first).wrapping_mul(MULTIPLIERS[0]);
    hash ^= hash >> 32;
    hash = hash.wrapping_add(second).wrapping_mul(MULTIPLIERS[1]);
    hash ^ hash >> 29
}
