//! A ClientHello read by small steps, each of which can be the last for now: more bytes may come
//! later. The kernel's side keeps a parser per flow and steps it in a loop of the kernel's own.

use super::hash::{self, Kind};
use super::{MAX_HELLO, MAX_ITEMS, MAX_RECORDS, NO_KEY, Seed};

/// What carries the hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Transport {
    Tcp = b't',
    Quic = b'q',
}

/// Why a hello has no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Refusal {
    /// It is not a ClientHello, or its lengths contradict each other.
    Malformed = 1,
    /// More bytes or records than the bounds allow.
    TooLong = 2,
    /// More values than the bounds allow.
    TooMany = 3,
    /// The bytes end before it does.
    Incomplete = 4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A step has been made.
    Going,
    /// No step can be made before there are more bytes.
    Waiting,
    /// The whole hello has been read.
    Done,
    Refused(Refusal),
}

/// The bytes read from, as many as there are by now.
pub trait Bytes {
    fn available(&self) -> u32;
    /// The byte at `at`; any byte when there is none.
    fn byte(&self, at: u32) -> u8;
}

impl Bytes for &[u8] {
    fn available(&self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX)
    }

    fn byte(&self, at: u32) -> u8 {
        self.get(at as usize).copied().unwrap_or_default()
    }
}

/// What comes next: 16 bits wide up to [`field::ALPN_LEN`], then 8. Numbers and not an enum, as
/// they lie in memory that the kernel's side shares with others.
mod field {
    pub const CIPHER: u32 = 0;
    pub const EXTENSION: u32 = 1;
    pub const EXTENSION_LEN: u32 = 2;
    pub const SIGNATURE: u32 = 3;
    pub const VERSION: u32 = 4;
    pub const MESSAGE_LEN: u32 = 5;
    pub const LEGACY_VERSION: u32 = 6;
    pub const CIPHERS_LEN: u32 = 7;
    pub const EXTENSIONS_LEN: u32 = 8;
    pub const SIGNATURES_LEN: u32 = 9;
    pub const ALPN_LEN: u32 = 10;
    pub const MESSAGE_TYPE: u32 = 11;
    pub const MESSAGE_LEN_HIGH: u32 = 12;
    pub const SESSION_LEN: u32 = 13;
    pub const COMPRESSION_LEN: u32 = 14;
    pub const VERSIONS_LEN: u32 = 15;
    pub const ALPN_VALUE_LEN: u32 = 16;
    pub const ALPN_FIRST: u32 = 17;
    pub const ALPN_LAST: u32 = 18;
    /// Nothing: the end.
    pub const NONE: u32 = 19;
}

/// Extensions whose content matters (IANA "TLS ExtensionType Values").
mod extension {
    pub const SERVER_NAME: u32 = 0;
    pub const SIGNATURE_ALGORITHMS: u32 = 13;
    pub const ALPN: u32 = 16;
    pub const SUPPORTED_VERSIONS: u32 = 43;
}

/// What has been seen already.
mod seen {
    pub const SERVER_NAME: u32 = 1;
    pub const SIGNATURES: u32 = 2;
    pub const ALPN: u32 = 4;
    /// The ALPN extension had a value that is not empty.
    pub const ALPN_VALUE: u32 = 8;
    pub const VERSIONS: u32 = 16;
}

/// RFC 8446, section 5.1.
const RECORD_HEADER: u32 = 5;
const HANDSHAKE: u8 = 22;
const MAX_RECORD: u32 = 1 << 14;
/// RFC 8446, section 4.
const CLIENT_HELLO: u32 = 1;
/// Version, random, and three empty lists with lengths of 1, 2 and 1 bytes.
const SHORTEST: u32 = 2 + RANDOM + 1 + 2 + 1;
const RANDOM: u32 = 32;
/// Type and length of an extension.
const EXTENSION_HEADER: u32 = 4;
/// JA4 counts with two digits.
const MOST_COUNTED: u32 = 99;

/// Where a parser stands in a hello, and what it knows of it. All zeros is one at the start of a
/// hello over TCP, less its first field.
///
/// `position` and all ends are offsets into the handshake message. Ends lie within each other:
/// `list_end` ≤ `extension_end` ≤ `extensions_end` ≤ `message_end`, each checked where it is set.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Parser {
    /// Offset of the next byte, record headers counted.
    at: u32,
    /// Where the next record header is, likewise.
    record_end: u32,
    records: u32,
    items: u32,
    field: u32,
    /// The first byte of a field of two of which only one is there yet, and [`HALF`].
    half: u32,
    /// Bytes to skip before the field.
    skip: u32,
    position: u32,
    message_end: u32,
    extensions_end: u32,
    extension_end: u32,
    list_end: u32,
    /// Type of the extension whose length comes next.
    extension: u32,
    seen: u32,
    version: u32,
    ciphers: u32,
    extensions: u32,
    /// First byte of the first ALPN value, then its last.
    alpn: u32,
    cipher_sum: u64,
    extension_sum: u64,
    signatures: u64,
}

const HALF: u32 = 1 << 8;

impl Parser {
    #[inline(always)]
    pub fn new(transport: Transport) -> Self {
        let record_end = match transport {
            Transport::Tcp => 0,
            Transport::Quic => u32::MAX,
        };
        Self { record_end, field: field::MESSAGE_TYPE, ..Self::default() }
    }

    /// How many bytes the hello takes so far, record headers counted.
    #[inline(always)]
    pub fn consumed(&self) -> u32 {
        self.at
    }

    /// Reads the next field, the next record header, or past bytes that mean nothing. Every step
    /// that says [`Progress::Going`] consumes a byte at least.
    #[inline(always)]
    pub fn step(&mut self, bytes: &impl Bytes, seed: Seed) -> Progress {
        if self.field == field::NONE && self.skip == 0 {
            return Progress::Done;
        }
        let available = bytes.available().min(MAX_HELLO);
        if self.at == self.record_end {
            return self.open_record(bytes, available);
        }
        let end = self.record_end.min(available);
        if self.at >= end {
            return waiting(available);
        }
        if self.skip > 0 {
            let skipped = self.skip.min(end - self.at);
            self.skip -= skipped;
            self.advance(skipped);
            // What follows is mostly there too.
            if self.at >= end || self.field == field::NONE {
                return Progress::Going;
            }
        }
        let first = u32::from(bytes.byte(self.at));
        if self.field >= field::MESSAGE_TYPE {
            self.advance(1);
            return self.narrow(first);
        }
        if self.half != 0 {
            let value = (self.half & 0xff) << 8 | first;
            self.half = 0;
            self.advance(1);
            return self.wide(value, seed);
        }
        if end - self.at == 1 {
            self.half = HALF | first;
            self.advance(1);
            return Progress::Going;
        }
        let value = first << 8 | u32::from(bytes.byte(self.at + 1));
        self.advance(2);
        self.wide(value, seed)
    }

    #[inline(always)]
    fn advance(&mut self, bytes: u32) {
        self.at += bytes;
        self.position += bytes;
    }

    #[inline(always)]
    fn open_record(&mut self, bytes: &impl Bytes, available: u32) -> Progress {
        let at = self.at;
        if at + RECORD_HEADER > available {
            return waiting(available);
        }
        let len = u32::from(bytes.byte(at + 3)) << 8 | u32::from(bytes.byte(at + 4));
        // The minor version varies: 1 in first hellos, 3 in others, and the servers ignore it.
        // An empty piece of a handshake message is forbidden (section 5.1).
        let is_handshake = bytes.byte(at) == HANDSHAKE && bytes.byte(at + 1) == 3;
        if !is_handshake || len == 0 || len > MAX_RECORD {
            return Progress::Refused(Refusal::Malformed);
        }
        if self.records >= MAX_RECORDS {
            return Progress::Refused(Refusal::TooLong);
        }
        self.records += 1;
        self.at = at + RECORD_HEADER;
        self.record_end = self.at + len;
        Progress::Going
    }

    /// Takes in a field of 16 bits.
    #[inline(always)]
    fn wide(&mut self, value: u32, seed: Seed) -> Progress {
        match self.field {
            field::CIPHER => return self.cipher(value, seed),
            field::EXTENSION => {
                self.extension = value;
                self.field = field::EXTENSION_LEN;
            }
            field::EXTENSION_LEN => return self.enter_extension(value, seed),
            field::SIGNATURE => {
                if !is_grease(value) {
                    self.signatures = hash::appended(self.signatures, Kind::Signature, value, seed);
                }
                return self.next_of_list();
            }
            field::VERSION => {
                if !is_grease(value) && value > self.version {
                    self.version = value;
                }
                return self.next_of_list();
            }
            field::MESSAGE_LEN => {
                if value < SHORTEST {
                    return Progress::Refused(Refusal::Malformed);
                }
                if value > MAX_HELLO {
                    return Progress::Refused(Refusal::TooLong);
                }
                self.message_end = self.position + value;
                self.field = field::LEGACY_VERSION;
            }
            field::LEGACY_VERSION => {
                self.version = value;
                self.skip = RANDOM;
                self.field = field::SESSION_LEN;
            }
            field::CIPHERS_LEN => {
                // The length of the compression methods follows.
                if !value.is_multiple_of(2) || value + 1 > self.message_end - self.position {
                    return Progress::Refused(Refusal::Malformed);
                }
                self.list_end = self.position + value;
                self.field = if value == 0 { field::COMPRESSION_LEN } else { field::CIPHER };
            }
            field::EXTENSIONS_LEN => {
                if value > self.message_end - self.position {
                    return Progress::Refused(Refusal::Malformed);
                }
                self.extensions_end = self.position + value;
                self.extension_end = self.position;
                self.leave_extension();
            }
            field::SIGNATURES_LEN => self.enter_list(value, field::SIGNATURE),
            // The field of `ALPN_LEN`: no other is 16 bits wide.
            _ => self.enter_list(value, field::ALPN_VALUE_LEN),
        }
        Progress::Going
    }

    /// Takes in a field of 8 bits.
    #[inline(always)]
    fn narrow(&mut self, value: u32) -> Progress {
        match self.field {
            field::MESSAGE_TYPE => {
                if value != CLIENT_HELLO {
                    return Progress::Refused(Refusal::Malformed);
                }
                self.field = field::MESSAGE_LEN_HIGH;
            }
            field::MESSAGE_LEN_HIGH => {
                if value != 0 {
                    return Progress::Refused(Refusal::TooLong);
                }
                self.field = field::MESSAGE_LEN;
            }
            field::SESSION_LEN => {
                // The length of the ciphers follows.
                if value + 2 > self.message_end - self.position {
                    return Progress::Refused(Refusal::Malformed);
                }
                self.skip = value;
                self.field = field::CIPHERS_LEN;
            }
            field::COMPRESSION_LEN => {
                let rest = self.message_end - self.position;
                if value > rest {
                    return Progress::Refused(Refusal::Malformed);
                }
                if rest - value >= 2 {
                    self.skip = value;
                    self.field = field::EXTENSIONS_LEN;
                } else {
                    self.skip = rest;
                    self.field = field::NONE;
                }
            }
            field::VERSIONS_LEN => self.enter_list(value, field::VERSION),
            field::ALPN_VALUE_LEN => {
                // The end of the list is that of its first value from here on.
                let rest = self.list_end - self.position;
                self.list_end = self.position + value.min(rest);
                if self.list_end == self.position {
                    self.leave_extension();
                } else {
                    self.seen |= seen::ALPN_VALUE;
                    self.field = field::ALPN_FIRST;
                }
            }
            field::ALPN_FIRST => {
                self.alpn = value << 8 | value;
                if self.list_end == self.position {
                    self.leave_extension();
                } else {
                    self.skip = self.list_end - self.position - 1;
                    self.field = field::ALPN_LAST;
                }
            }
            // The field of `ALPN_LAST`: `NONE` ends the hello before it is read.
            _ => {
                self.alpn = (self.alpn & 0xff00) | value;
                self.leave_extension();
            }
        }
        Progress::Going
    }

    #[inline(always)]
    fn cipher(&mut self, value: u32, seed: Seed) -> Progress {
        if !is_grease(value) {
            self.ciphers += 1;
            let hash = hash::of_value(Kind::Cipher, value, seed);
            self.cipher_sum = self.cipher_sum.wrapping_add(hash);
        }
        if self.position >= self.list_end {
            self.field = field::COMPRESSION_LEN;
        }
        self.count_item()
    }

    /// Counts the extension and goes into it when its content matters.
    #[inline(always)]
    fn enter_extension(&mut self, len: u32, seed: Seed) -> Progress {
        if len > self.extensions_end - self.position {
            return Progress::Refused(Refusal::Malformed);
        }
        self.extension_end = self.position + len;
        let kind = self.extension;
        if !is_grease(kind) {
            self.extensions += 1;
            if kind != extension::SERVER_NAME && kind != extension::ALPN {
                let hash = hash::of_value(Kind::Extension, kind, seed);
                self.extension_sum = self.extension_sum.wrapping_add(hash);
            }
        }
        match kind {
            extension::SERVER_NAME => {
                self.seen |= seen::SERVER_NAME;
                self.leave_extension();
            }
            extension::SIGNATURE_ALGORITHMS => {
                self.enter_first(seen::SIGNATURES, len >= 2, field::SIGNATURES_LEN);
            }
            extension::ALPN => self.enter_first(seen::ALPN, len >= 2, field::ALPN_LEN),
            extension::SUPPORTED_VERSIONS => {
                if self.seen & seen::VERSIONS == 0 {
                    self.version = 0;
                }
                self.enter_first(seen::VERSIONS, len >= 1, field::VERSIONS_LEN);
            }
            _ => self.leave_extension(),
        }
        self.count_item()
    }

    /// Goes on with `field` in the first extension of its kind that has room for it.
    #[inline(always)]
    fn enter_first(&mut self, kind: u32, has_room: bool, field: u32) {
        let is_first = self.seen & kind == 0;
        self.seen |= kind;
        if is_first && has_room {
            self.field = field;
        } else {
            self.leave_extension();
        }
    }

    /// Goes on with `item` in the list of `len` bytes that begins here, or past it when it has
    /// none.
    #[inline(always)]
    fn enter_list(&mut self, len: u32, item: u32) {
        let len = len.min(self.extension_end - self.position);
        self.list_end = self.position + len;
        let item_len = if item == field::ALPN_VALUE_LEN { 1 } else { 2 };
        if len >= item_len {
            self.field = item;
        } else {
            self.leave_extension();
        }
    }

    #[inline(always)]
    fn next_of_list(&mut self) -> Progress {
        if self.list_end - self.position < 2 {
            self.leave_extension();
        }
        self.count_item()
    }

    #[inline(always)]
    fn leave_extension(&mut self) {
        if self.extensions_end - self.extension_end >= EXTENSION_HEADER {
            self.skip = self.extension_end - self.position;
            self.field = field::EXTENSION;
        } else {
            self.skip = self.message_end - self.position;
            self.field = field::NONE;
        }
    }

    #[inline(always)]
    fn count_item(&mut self) -> Progress {
        self.items += 1;
        if self.items > MAX_ITEMS {
            return Progress::Refused(Refusal::TooMany);
        }
        Progress::Going
    }

    /// The key of a hello that has been read ([`Progress::Done`]).
    #[inline(always)]
    pub fn key(&self, transport: Transport, seed: Seed) -> u64 {
        let version = version_characters(self.version);
        let alpn = self.alpn_characters();
        let has_server_name = self.seen & seen::SERVER_NAME;
        let head = u64::from(transport as u8) << 56
            | u64::from(version) << 40
            | u64::from(alpn) << 24
            | u64::from(has_server_name) << 16
            | u64::from(self.ciphers.min(MOST_COUNTED)) << 8
            | u64::from(self.extensions.min(MOST_COUNTED));
        let words = [head, self.cipher_sum, self.extension_sum, self.signatures];
        match hash::of_words(words, seed) {
            NO_KEY => 1,
            key => key,
        }
    }

    #[inline(always)]
    fn alpn_characters(&self) -> u16 {
        if self.seen & seen::ALPN_VALUE == 0 {
            return characters(b"00");
        }
        let (first, last) = ((self.alpn >> 8) as u8, self.alpn as u8);
        if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() {
            characters(&[first, last])
        } else {
            characters(&[hex_digit(first >> 4), hex_digit(last & 0x0f)])
        }
    }
}

#[inline(always)]
fn waiting(available: u32) -> Progress {
    if available >= MAX_HELLO { Progress::Refused(Refusal::TooLong) } else { Progress::Waiting }
}

/// RFC 8701, section 2.
#[inline(always)]
fn is_grease(value: u32) -> bool {
    value & 0x0f0f == 0x0a0a && value >> 8 == value & 0xff
}

/// The two characters that JA4 has for a version.
#[inline(always)]
fn version_characters(version: u32) -> u16 {
    characters(match version {
        0x0304 => b"13",
        0x0303 => b"12",
        0x0302 => b"11",
        0x0301 => b"10",
        0x0300 => b"s3",
        0x0002 => b"s2",
        0xfeff => b"d1",
        0xfefd => b"d2",
        0xfefc => b"d3",
        _ => b"00",
    })
}

#[inline(always)]
fn characters(pair: &[u8; 2]) -> u16 {
    u16::from_be_bytes(*pair)
}

#[inline(always)]
fn hex_digit(nibble: u8) -> u8 {
    if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 }
}
