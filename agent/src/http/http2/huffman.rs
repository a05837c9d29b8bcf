//! The Huffman code of strings (RFC 7541, section 5.2 and appendix B).
//!
//! It is canonical: among codes of one length, and from each length to the next, codes count up
//! in the order of their symbols. So the lengths tell the codes.

/// Symbols: the 256 bytes, and the end of a string.
const SYMBOLS: usize = 257;
const END: u16 = 256;
const SHORTEST: usize = 5;
const LONGEST: usize = 30;

/// Bits of each symbol's code.
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// The codes of one length.
#[derive(Clone, Copy)]
struct Group {
    /// One more than the last of its codes, in the upper bits of 32; codes up to here have this
    /// length at most.
    limit: u64,
    first_code: u32,
    /// Where its symbols begin in [`SORTED`].
    first_symbol: u32,
}

/// The symbols by their codes.
const SORTED: [u16; SYMBOLS] = sorted();
const GROUPS: [Group; LONGEST + 1] = groups();

const fn sorted() -> [u16; SYMBOLS] {
    let mut symbols = [0; SYMBOLS];
    let (mut at, mut length) = (0, SHORTEST);
    while length <= LONGEST {
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                symbols[at] = symbol as u16;
                at += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    symbols
}

const fn groups() -> [Group; LONGEST + 1] {
    let mut groups = [Group { limit: 0, first_code: 0, first_symbol: 0 }; LONGEST + 1];
    let (mut code, mut symbols, mut length) = (0_u32, 0_u32, SHORTEST);
    while length <= LONGEST {
        let (mut count, mut symbol) = (0, 0);
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                count += 1;
            }
            symbol += 1;
        }
        let limit = ((code + count) as u64) << (32 - length);
        groups[length] = Group { limit, first_code: code, first_symbol: symbols };
        code = (code + count) << 1;
        symbols += count;
        length += 1;
    }
    groups
}

/// The text was not encoded by the rules: a symbol for its end, or padding that is none.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

/// Appends what `encoded` stands for to `text`: at most eight fifths of its length.
pub fn decode(encoded: &[u8], text: &mut Vec<u8>) -> Result<(), Malformed> {
    // The next bits, the first of them on top.
    let (mut bits, mut count) = (0_u64, 0_usize);
    let mut input = encoded.iter();
    loop {
        while count <= 32 {
            let Some(&byte) = input.next() else { break };
            bits |= u64::from(byte) << (56_usize.saturating_sub(count));
            count = count.saturating_add(8);
        }
        let (length, symbol) = next_symbol((bits >> 32) as u32);
        if length > count {
            return padding(bits, count);
        }
        let byte = u8::try_from(symbol).map_err(|_| Malformed)?;
        text.push(byte);
        bits <<= length;
        count = count.saturating_sub(length);
    }
}

/// The symbol that `bits` begin with, and the length of its code.
fn next_symbol(bits: u32) -> (usize, u16) {
    for (length, group) in GROUPS.iter().enumerate().skip(SHORTEST) {
        if u64::from(bits) < group.limit {
            let code = bits.checked_shr(32_u32.saturating_sub(length as u32)).unwrap_or_default();
            let nth = code.saturating_sub(group.first_code).saturating_add(group.first_symbol);
            return (length, SORTED.get(nth as usize).copied().unwrap_or(END));
        }
    }
    (LONGEST, END)
}

/// A string ends in less than a byte of ones (RFC 7541, section 5.2).
fn padding(bits: u64, count: usize) -> Result<(), Malformed> {
    let ones = bits.leading_ones() as usize;
    if count < 8 && ones >= count { Ok(()) } else { Err(Malformed) }
}

#[cfg(test)]
pub mod tests {
    use super::{GROUPS, LENGTHS, Malformed, SORTED, decode};

    /// The code and its length.
    fn code(symbol: u16) -> (u64, usize) {
        let length = usize::from(LENGTHS[usize::from(symbol)]);
        let at = SORTED.iter().position(|&sorted| sorted == symbol).unwrap();
        let group = GROUPS[length];
        (u64::from(group.first_code) + at as u64 - u64::from(group.first_symbol), length)
    }

    pub fn encode(text: &[u8]) -> Vec<u8> {
        let mut bits = String::new();
        for &byte in text {
            let (code, length) = code(u16::from(byte));
            bits += &format!("{code:0length$b}");
        }
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        let byte = |bits: &[u8]| u8::from_str_radix(str::from_utf8(bits).unwrap(), 2).unwrap();
        bits.as_bytes().chunks(8).map(byte).collect()
    }

    fn decoded(encoded: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut text = Vec::new();
        decode(encoded, &mut text).map(|()| text)
    }

    #[test]
    fn codes_are_those_of_appendix_b() {
        for (symbol, expected) in [
            (u16::from(b'0'), (0x0, 5)),
            (u16::from(b't'), (0x9, 5)),
            (u16::from(b' '), (0x14, 6)),
            (u16::from(b'z'), (0x7b, 7)),
            (u16::from(b'&'), (0xf8, 8)),
            (u16::from(b'!'), (0x3f8, 10)),
            (0, (0x1ff8, 13)),
            (92, (0x7fff0, 19)),
            (1, (0x7fffd8, 23)),
            (255, (0x3ffffee, 26)),
            (249, (0xffffffe, 28)),
            (22, (0x3ffffffe, 30)),
            (256, (0x3fffffff, 30)),
        ] {
            assert_eq!(code(symbol), expected, "{symbol}");
        }
        // A complete code: the last one is all ones.
        assert_eq!(GROUPS[30].limit, 1 << 32);
    }

    #[test]
    fn every_byte_and_the_examples_of_appendix_c() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decoded(&encode(&all)).unwrap(), all);
        for byte in 0..=255 {
            assert_eq!(decoded(&encode(&[byte])).unwrap(), [byte]);
        }
        let example = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decoded(&example).unwrap(), b"www.example.com");
        assert_eq!(decoded(&[0x64, 0x02]).unwrap(), b"302");
        assert_eq!(decoded(&[]).unwrap(), b"");
    }

    #[test]
    fn padding_is_less_than_a_byte_of_ones_and_ends_are_not_sent() {
        for bad in [
            // '0' with zeros behind it; ones for more than a byte; the end itself.
            &[0b0000_0000][..],
            &[0xff],
            &[0x64, 0x02, 0xff],
            &[0xff, 0xff, 0xff, 0xff],
            &[0xff, 0xff, 0xff, 0xfc],
        ] {
            assert_eq!(decoded(bad), Err(Malformed), "{bad:x?}");
        }
        assert_eq!(decoded(&[0b0000_0111]).unwrap(), b"0");
    }
}
