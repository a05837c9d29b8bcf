//! Bytes from the front of a slice, in network byte order. Nothing is taken when there is not
//! enough.

#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    pub fn u8(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    pub fn u16(&mut self) -> Option<u16> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(u16::from_be_bytes(*bytes))
    }

    pub fn u24(&mut self) -> Option<u32> {
        let ([a, b, c], rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(u32::from_be_bytes([0, *a, *b, *c]))
    }

    pub fn u32(&mut self) -> Option<u32> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(u32::from_be_bytes(*bytes))
    }

    /// A vector whose length in bytes comes first, in one byte.
    pub fn vector8(&mut self) -> Option<Reader<'a>> {
        let mut ahead = *self;
        let length = ahead.u8()?;
        let taken = ahead.take(usize::from(length))?;
        *self = ahead;
        Some(Reader::new(taken))
    }

    /// A vector whose length in bytes comes first, in two bytes.
    pub fn vector16(&mut self) -> Option<Reader<'a>> {
        let mut ahead = *self;
        let length = ahead.u16()?;
        let taken = ahead.take(usize::from(length))?;
        *self = ahead;
        Some(Reader::new(taken))
    }

    /// As [`Self::vector8`], but ends with the bytes there are.
    pub fn list8(&mut self) -> Reader<'a> {
        let length = self.u8().map_or(0, usize::from);
        self.at_most(length)
    }

    /// As [`Self::vector16`], but ends with the bytes there are.
    pub fn list16(&mut self) -> Reader<'a> {
        let length = self.u16().map_or(0, usize::from);
        self.at_most(length)
    }

    fn at_most(&mut self, length: usize) -> Reader<'a> {
        Reader::new(self.take(length.min(self.rest.len())).unwrap_or_default())
    }

    /// All that is left, as numbers of two bytes, less an odd byte at the end.
    pub fn numbers(self) -> Vec<u16> {
        let (pairs, _odd) = self.rest.as_chunks();
        pairs.iter().map(|pair| u16::from_be_bytes(*pair)).collect()
    }

    /// An integer of variable length (RFC 9000, section 16).
    pub fn varint(&mut self) -> Option<u64> {
        let mut ahead = *self;
        let first = ahead.u8()?;
        let mut value = u64::from(first & 0x3f);
        for _ in 1..1u8 << (first >> 6) {
            value = value << 8 | u64::from(ahead.u8()?);
        }
        *self = ahead;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::Reader;

    #[test]
    fn integers_of_variable_length() {
        // The examples of RFC 9000, appendix A.1.
        let examples: [(&[u8], u64); 5] = [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ];
        for (bytes, value) in examples {
            let mut reader = Reader::new(bytes);
            assert_eq!((reader.varint(), reader.is_empty()), (Some(value), true), "{bytes:x?}");
            let mut short = Reader::new(&bytes[..bytes.len() - 1]);
            let before = short.rest();
            assert_eq!((short.varint(), short.rest()), (None, before), "{bytes:x?}");
        }
    }

    #[test]
    fn too_short_takes_nothing() {
        let mut reader = Reader::new(&[0, 3, 1, 2]);
        assert!(reader.vector16().is_none());
        assert_eq!(reader.rest(), [0, 3, 1, 2]);
        assert_eq!(reader.u16(), Some(3));
        assert!(reader.u24().is_none() && reader.u32().is_none() && reader.take(3).is_none());
        assert_eq!(reader.vector8().map(|vector| vector.rest()), Some(&[2][..]));
        assert!(reader.is_empty() && reader.u8().is_none() && reader.vector8().is_none());
        assert_eq!(Reader::new(&[1, 2, 3]).numbers(), [0x102]);
        assert_eq!(Reader::new(&[0, 9, 1, 2, 3]).list16().numbers(), [0x102]);
        assert!(Reader::new(&[7]).list16().is_empty() && Reader::new(&[]).list8().is_empty());
    }
}
