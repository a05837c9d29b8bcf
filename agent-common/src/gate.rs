//! Bits that say, before any map is asked, that no rule can name an address. A set bit means
//! "perhaps"; one that stays set after its rule has gone costs time and nothing else.
//!
//! IPv4: one bit for each /24, set when a prefix lies within it or around it; and for each /20 the
//! lengths of the prefixes that lie within it or around it. Prefixes of every length
//! have a bit in a hashed bitmap besides; IPv6 addresses are sorted out by hashed bits of
//! their leading 8, 16, … 120 bits, each set when a prefix of one of the next eight lengths begins
//! with them.

/// 64-bit words of the IPv4 bitmap.
pub const V4_WORDS: u32 = 1 << 18;
/// IPv4 networks of 20 bits, each with a word of lengths: bit `n` for length `n`.
pub const V4_BLOCKS: u32 = 1 << 20;
/// Length of those networks.
pub const V4_BLOCK_LEN: u32 = 20;
/// Classes of IPv6 prefix lengths: 0 to 7, 8 to 15, … 120 to 127, and whole addresses.
pub const CLASSES: u32 = 17;

/// A bit of a bitmap of 64-bit words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bit {
    pub word: u32,
    pub mask: u64,
}

/// The bit of an IPv4 address.
#[inline(always)]
pub const fn v4_bit(address: u32) -> Bit {
    Bit { word: address >> 14, mask: 1 << (address >> 8 & 63) }
}

/// The bit of a prefix in the hashed bitmap of `words` words, a power of two; `halves` has no bits
/// past `len`. IPv4 in mapped form.
#[inline(always)]
pub const fn prefix_bit(halves: [u64; 2], len: u32, words: u32) -> Bit {
    hashed_bit(halves, len as u64, words)
}

/// The bit of all IPv6 prefixes that begin with `halves` and whose length is of `class`; `halves`
/// has no bits past the class's shortest length, `class * 8`.
#[inline(always)]
pub const fn class_bit(halves: [u64; 2], class: u32, words: u32) -> Bit {
    hashed_bit(halves, 0x100 | class as u64, words)
}

/// The bit of a flow, by its hash ([`crate::net::FlowKey::hash`]), in a bitmap of `words` words, a
/// power of two.
#[inline(always)]
pub const fn flow_bit(hash: u64, words: u32) -> Bit {
    Bit { word: (hash >> 6) as u32 & (words - 1), mask: 1 << (hash & 63) }
}

/// The class of an IPv6 prefix length.
#[inline(always)]
pub const fn class_of(len: u32) -> u32 {
    len / 8
}

/// The multipliers are odd and of no other meaning.
#[inline(always)]
const fn hashed_bit(halves: [u64; 2], tag: u64, words: u32) -> Bit {
    let a = (halves[0] ^ tag << 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let b = (halves[1] ^ tag).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    let mixed = (a ^ b.rotate_left(31)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = mixed ^ mixed >> 32;
    Bit { word: (mixed >> 6) as u32 & (words - 1), mask: 1 << (mixed & 63) }
}

/// `halves` without the bits past `len`, which is at most 128.
#[inline(always)]
pub const fn masked(halves: [u64; 2], len: u32) -> [u64; 2] {
    let (first, second) = if len < 64 { (len, 0) } else { (64, len - 64) };
    [halves[0] & leading_ones(first), halves[1] & leading_ones(second)]
}

/// A mask of the first `count` bits, at most 64.
#[inline(always)]
const fn leading_ones(count: u32) -> u64 {
    if count == 0 { 0 } else { u64::MAX << ((64 - count) & 63) }
}
