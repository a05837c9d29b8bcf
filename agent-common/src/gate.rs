//! Bits that say, before the prefixes' table is asked, that no rule can name an address, and which
//! lengths of prefix may. A set bit means "perhaps"; one that stays set after its rule has gone costs
//! time and nothing else.
//!
//! IPv4: one bit for each /24, set when a prefix lies within it or around it; and for each /20 the
//! lengths of the prefixes that lie within it or around it. IPv6: the same for each /32, found by its
//! hash; prefixes that are much shorter have their lengths noted for each /16 instead.

/// 64-bit words of the IPv4 bitmap.
pub const V4_WORDS: u32 = 1 << 18;
/// IPv4 networks of 20 bits, each with a word of lengths: bit `n` for length `n`.
pub const V4_BLOCKS: u32 = 1 << 20;
/// Length of those networks.
pub const V4_BLOCK_LEN: u32 = 20;

/// 64-bit words of the IPv6 bitmap.
pub const V6_WORDS: u32 = 1 << 18;
/// Places for the lengths of IPv6 networks of 32 bits, which share them by hash: bit `n` of the first
/// word for length `n` up to 63, bit `n` of the second for length `64 + n`, and bit
/// [`V6_WHOLE`] of the first for single addresses.
pub const V6_BLOCKS: u32 = 1 << 19;
/// Length of those networks.
pub const V6_BLOCK_LEN: u32 = 32;
/// No shorter length is noted for them.
pub const V6_SHORTEST: u32 = 28;
/// The bit of single addresses: that of a length too short to be noted there.
pub const V6_WHOLE: u64 = 1;
/// IPv6 networks of 16 bits, each with a word of lengths below [`V6_SHORTEST`].
pub const V6_WIDE: u32 = 1 << 16;

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

/// The hash of the /32 that an IPv6 address is in, whose first 32 bits are `network`. The multiplier is
/// odd and of no other meaning.
#[inline(always)]
pub const fn v6_hash(network: u32) -> u64 {
    let mixed = (network as u64 ^ 0x5bd1_e995).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 29
}

/// The bit of a /32 by its hash.
#[inline(always)]
pub const fn v6_bit(hash: u64) -> Bit {
    Bit { word: (hash >> 6) as u32 & (V6_WORDS - 1), mask: 1 << (hash & 63) }
}

/// The place for the lengths of a /32, by its hash.
#[inline(always)]
pub const fn v6_block(hash: u64) -> u32 {
    (hash >> 40) as u32 & (V6_BLOCKS - 1)
}

/// The bit of a flow, by its hash ([`crate::net::FlowKey::hash`]), in a bitmap of `words` pairs of
/// words, a power of two; the word is that of the first of two generations, beside which the
/// other's lies.
#[inline(always)]
pub const fn flow_bit(hash: u64, words: u32) -> Bit {
    Bit { word: ((hash >> 6) as u32 & (words - 1)) * 2, mask: 1 << (hash & 63) }
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
