//! HPACK (RFC 7541): header fields out of header blocks, whose bytes may come in any pieces.

use super::huffman;
use super::table::{Field, Table};

/// Larger buffers are given back when a field is complete.
const KEPT_BUFFER: usize = 4 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Nobody can read on in this direction (RFC 7541, section 2.3.3 and others).
    Malformed,
    /// A name or value is longer than allowed here.
    TooLong,
}

/// Reads the header blocks of one direction of a connection.
#[derive(Debug, Default)]
pub struct Decoder {
    table: Table,
    /// The start of a field that has not come whole.
    pending: Vec<u8>,
    /// Name and value of the latest field with encoded text.
    text: Vec<u8>,
    /// How often the encoder chose a table larger than what is kept.
    pub tables_too_large: u64,
}

impl Decoder {
    /// Reads the next piece of a block, where a name or value may take `max` bytes as encoded.
    pub fn feed(
        &mut self,
        piece: &[u8],
        max: usize,
        mut sink: impl FnMut(Field<'_>),
    ) -> Result<(), Error> {
        if self.pending.is_empty() {
            let used = self.fields(piece, max, &mut sink)?;
            self.pending.extend_from_slice(piece.get(used..).unwrap_or_default());
        } else {
            let mut pending = std::mem::take(&mut self.pending);
            pending.extend_from_slice(piece);
            let used = self.fields(&pending, max, &mut sink)?;
            pending.drain(..used);
            self.pending = pending;
        }
        Ok(())
    }

    /// The block ends.
    pub fn end(&mut self) -> Result<(), Error> {
        if !self.pending.is_empty() {
            return Err(Error::Malformed);
        }
        for buffer in [&mut self.pending, &mut self.text] {
            if buffer.capacity() > KEPT_BUFFER {
                *buffer = Vec::new();
            }
        }
        Ok(())
    }

    /// Part of a block was not seen.
    pub fn forget(&mut self) {
        self.pending = Vec::new();
        self.table.forget();
    }

    /// Bytes of memory, about.
    pub fn heap_bytes(&self) -> usize {
        self.table.heap_bytes() + self.pending.capacity() + self.text.capacity()
    }

    /// Reads all whole fields; how many bytes they take.
    fn fields(
        &mut self,
        bytes: &[u8],
        max: usize,
        sink: &mut impl FnMut(Field<'_>),
    ) -> Result<usize, Error> {
        let mut reader = Reader { bytes, max };
        let mut used = 0;
        while let Some(representation) = reader.representation()? {
            used = bytes.len().saturating_sub(reader.bytes.len());
            self.field(representation, sink)?;
        }
        Ok(used)
    }

    fn field(
        &mut self,
        representation: Representation<'_>,
        sink: &mut impl FnMut(Field<'_>),
    ) -> Result<(), Error> {
        match representation {
            Representation::Indexed(index) => {
                sink(self.table.get(index).map_err(|_| Error::Malformed)?);
            }
            Representation::Literal { name, value, added } => {
                self.text.clear();
                let known = match name {
                    Name::Text(text) => {
                        text.decode(&mut self.text)?;
                        true
                    }
                    Name::Indexed(index) => {
                        let field = self.table.get(index).map_err(|_| Error::Malformed)?;
                        self.text.extend_from_slice(field.name.unwrap_or_default());
                        field.name.is_some()
                    }
                };
                let end = self.text.len();
                value.decode(&mut self.text)?;
                let (name, value) = self.text.split_at_checked(end).unwrap_or_default();
                let name = Some(name).filter(|_| known);
                sink(Field { name, value: Some(value) });
                if added {
                    self.table.add(name, value);
                }
            }
            Representation::Resize(size) => {
                if !self.table.resize(size) {
                    self.tables_too_large = self.tables_too_large.saturating_add(1);
                }
            }
        }
        Ok(())
    }
}

/// RFC 7541, section 6.
enum Representation<'a> {
    Indexed(usize),
    Literal { name: Name<'a>, value: Text<'a>, added: bool },
    Resize(usize),
}

enum Name<'a> {
    Indexed(usize),
    Text(Text<'a>),
}

/// A string as it was sent.
struct Text<'a> {
    encoded: bool,
    bytes: &'a [u8],
}

impl Text<'_> {
    fn decode(&self, text: &mut Vec<u8>) -> Result<(), Error> {
        if self.encoded {
            return huffman::decode(self.bytes, text).map_err(|_| Error::Malformed);
        }
        text.extend_from_slice(self.bytes);
        Ok(())
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    /// Longest string.
    max: usize,
}

impl<'a> Reader<'a> {
    /// The next one, if it has come whole; strings are not decoded before.
    fn representation(&mut self) -> Result<Option<Representation<'a>>, Error> {
        let Some(&first) = self.bytes.first() else { return Ok(None) };
        Ok(match first {
            0x80.. => self.integer(7)?.map(Representation::Indexed),
            0x40.. => self.literal(6, true)?,
            0x20.. => self.integer(5)?.map(Representation::Resize),
            _ => self.literal(4, false)?,
        })
    }

    fn literal(&mut self, prefix: u32, added: bool) -> Result<Option<Representation<'a>>, Error> {
        let name = match self.integer(prefix)? {
            None => return Ok(None),
            Some(0) => self.text()?.map(Name::Text),
            Some(index) => Some(Name::Indexed(index)),
        };
        let Some(name) = name else { return Ok(None) };
        let value = self.text()?;
        Ok(value.map(|value| Representation::Literal { name, value, added }))
    }

    /// RFC 7541, section 5.2.
    fn text(&mut self) -> Result<Option<Text<'a>>, Error> {
        let Some(&first) = self.bytes.first() else { return Ok(None) };
        let Some(length) = self.integer(7)? else { return Ok(None) };
        // As soon as it is known, so that it makes no difference in which pieces it comes.
        if length > self.max {
            return Err(Error::TooLong);
        }
        let Some((bytes, rest)) = self.bytes.split_at_checked(length) else { return Ok(None) };
        self.bytes = rest;
        Ok(Some(Text { encoded: first & 0x80 != 0, bytes }))
    }

    /// RFC 7541, section 5.1. What does not fit into 28 bits beside the prefix is refused.
    fn integer(&mut self, prefix: u32) -> Result<Option<usize>, Error> {
        let Some((&first, mut rest)) = self.bytes.split_first() else { return Ok(None) };
        let mask = 0xff_u8 >> 8_u32.saturating_sub(prefix);
        let mut value = usize::from(first & mask);
        if first & mask == mask {
            for shift in [0, 7, 14, 21, 28] {
                let Some((&byte, after)) = rest.split_first() else { return Ok(None) };
                if shift == 28 && byte != 0 {
                    return Err(Error::Malformed);
                }
                rest = after;
                value = value.saturating_add(usize::from(byte & 0x7f) << shift);
                if byte & 0x80 == 0 {
                    break;
                }
            }
        }
        self.bytes = rest;
        Ok(Some(value))
    }
}

#[cfg(test)]
pub mod tests {
    use super::super::huffman;
    use super::{Decoder, Error, Field};

    /// An integer with a prefix of so many bits, below `first`.
    fn integer(first: u8, prefix: u32, value: usize) -> Vec<u8> {
        let mask = (1_usize << prefix) - 1;
        if value < mask {
            return vec![first | value as u8];
        }
        let mut bytes = vec![first | mask as u8];
        let mut rest = value - mask;
        while rest >= 128 {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
        bytes
    }

    pub fn text(text: &str, encoded: bool) -> Vec<u8> {
        let bytes = if encoded { huffman::tests::encode(text.as_bytes()) } else { text.into() };
        let first = if encoded { 0x80 } else { 0 };
        [integer(first, 7, bytes.len()), bytes].concat()
    }

    pub fn indexed(index: usize) -> Vec<u8> {
        integer(0x80, 7, index)
    }

    /// A literal field that goes into the table if `added`.
    pub fn literal(name: &str, value: &str, added: bool) -> Vec<u8> {
        let first = if added { 0x40 } else { 0 };
        [vec![first], text(name, true), text(value, false)].concat()
    }

    /// A literal with the name of a table entry.
    pub fn named(index: usize, value: &str, added: bool) -> Vec<u8> {
        let first = if added { integer(0x40, 6, index) } else { integer(0, 4, index) };
        [first, text(value, true)].concat()
    }

    pub fn resize(size: usize) -> Vec<u8> {
        integer(0x20, 5, size)
    }

    fn show(field: Field<'_>) -> String {
        let text = |bytes: Option<&[u8]>| match bytes {
            Some(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            None => "?".to_owned(),
        };
        format!("{}: {}", text(field.name), text(field.value))
    }

    /// Reads a block in pieces of `step` bytes.
    fn read(decoder: &mut Decoder, block: &[u8], step: usize) -> Result<Vec<String>, Error> {
        let mut fields = Vec::new();
        for piece in block.chunks(step) {
            decoder.feed(piece, 1_000, |field| fields.push(show(field)))?;
        }
        decoder.end().map(|()| fields)
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    fn assert_blocks(size: Option<usize>, blocks: &[(&str, &[&str])]) {
        for step in [1, 2, 3, 1_000] {
            let mut decoder = Decoder::default();
            if let Some(size) = size {
                assert_eq!(read(&mut decoder, &resize(size), step), Ok(vec![]));
            }
            for (block, fields) in blocks {
                let fields: Vec<String> = fields.iter().map(|&field| field.to_owned()).collect();
                assert_eq!(read(&mut decoder, &bytes(block), step), Ok(fields), "{block}");
            }
        }
    }

    #[test]
    fn integers_of_appendix_c_1() {
        assert_eq!(integer(0, 5, 10), [0b01010]);
        assert_eq!(integer(0, 5, 1_337), [0b11111, 0b1001_1010, 0b0000_1010]);
        // They are read where they stand: as the size of a table.
        assert_blocks(None, &[("2a", &[]), ("3f9a0a", &[]), ("3fe1ff03", &[])]);
    }

    #[test]
    fn fields_of_appendix_c_2() {
        let table: &[(&str, &[&str])] = &[
            (
                "400a637573746f6d2d6b65790d637573746f6d2d686561646572",
                &["custom-key: custom-header"],
            ),
            ("040c2f73616d706c652f70617468", &[":path: /sample/path"]),
            ("100870617373776f726406736563726574", &["password: secret"]),
            ("82", &[":method: GET"]),
        ];
        assert_blocks(None, table);
    }

    const REQUESTS: [&[&str]; 3] = [
        &[":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"],
        &[
            ":method: GET",
            ":scheme: http",
            ":path: /",
            ":authority: www.example.com",
            "cache-control: no-cache",
        ],
        &[
            ":method: GET",
            ":scheme: https",
            ":path: /index.html",
            ":authority: www.example.com",
            "custom-key: custom-value",
        ],
    ];

    #[test]
    fn requests_of_appendix_c_3_and_c_4() {
        let plain = [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ];
        let encoded = [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ];
        for blocks in [plain, encoded] {
            let blocks: Vec<_> = blocks.into_iter().zip(REQUESTS).collect();
            assert_blocks(None, &blocks);
        }
    }

    const RESPONSES: [&[&str]; 3] = [
        &[
            ":status: 302",
            "cache-control: private",
            "date: Mon, 21 Oct 2013 20:13:21 GMT",
            "location: https://www.example.com",
        ],
        &[
            ":status: 307",
            "cache-control: private",
            "date: Mon, 21 Oct 2013 20:13:21 GMT",
            "location: https://www.example.com",
        ],
        &[
            ":status: 200",
            "cache-control: private",
            "date: Mon, 21 Oct 2013 20:13:22 GMT",
            "location: https://www.example.com",
            "content-encoding: gzip",
            "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
        ],
    ];

    /// In a table of 256 bytes, so that entries are evicted.
    #[test]
    fn responses_of_appendix_c_5_and_c_6() {
        let plain = [
            "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 \
             303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 \
             6f6d",
            "4803 3330 37c1 c0bf",
            "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 \
             5a04 677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 \
             5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
        ];
        let encoded = [
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b \
             ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
            "4883 640e ffc1 c0bf",
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad \
             94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 \
             65c0 03ed 4ee5 b106 3d50 07",
        ];
        for blocks in [plain, encoded] {
            let blocks: Vec<_> = blocks.into_iter().zip(RESPONSES).collect();
            assert_blocks(Some(256), &blocks);
        }
    }

    #[test]
    fn blocks_that_nobody_can_read_are_refused() {
        for block in [
            // Index 0; an index beyond the table, as a field and as a name.
            &[0x80][..],
            &[0xbe],
            &[0x7e, 0],
            // An integer without end, and one too large.
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0xff, 0x80, 0x80, 0x80, 0x80, 0x80, 0],
            // Encoded text with bad padding; a block that ends within a field.
            &[0x00, 0x81, 0x00, 0x00],
            &[0x00, 0x03, b'a'],
            &[0x82, 0x40],
        ] {
            for step in [1, 100] {
                let found = read(&mut Decoder::default(), block, step);
                assert_eq!(found, Err(Error::Malformed), "{block:x?}");
            }
        }
    }

    #[test]
    fn what_came_before_the_connection_was_joined_has_no_name() {
        let mut decoder = Decoder::default();
        decoder.forget();
        let block = [indexed(62), named(70, "v", true), indexed(62), indexed(63)].concat();
        let fields = ["?: ?", "?: v", "?: v", "?: ?"].map(String::from);
        assert_eq!(read(&mut decoder, &block, 1), Ok(fields.to_vec()));
        // What is added now is known, and stays so when the latest comes before it.
        let block = [literal("a", "1", true), literal("b", "2", true), indexed(63)].concat();
        let fields = ["a: 1", "b: 2", "a: 1"].map(String::from);
        assert_eq!(read(&mut decoder, &block, 1), Ok(fields.to_vec()));
    }

    #[test]
    fn strings_beyond_the_limit_are_refused_before_they_come() {
        for (length, fits) in [(1_000, true), (1_001, false), (1 << 27, false)] {
            for step in [1, 5_000] {
                let start = [vec![0], text("a", false), integer(0, 7, length)].concat();
                let block = [start, vec![b'x'; length.min(1_000)]].concat();
                let found = read(&mut Decoder::default(), &block, step);
                assert_eq!(found.is_ok(), fits, "{length} by {step}");
                assert!(fits || found == Err(Error::TooLong));
            }
        }
    }
}
