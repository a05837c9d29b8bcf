//! The first bytes of a connection: which protocol, and which side asks.

use super::counts::{Counter, Counts};
use super::http2::{Role, Scan, begins_like_a_frame};
use super::request_head::{begins_with_request_line, is_token, without_empty_lines};
use crate::flow::{Piece, Side};

/// Start of the client's connection preface of HTTP/2 (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// Only so many bytes can be the start of something that is not a method.
const SPECIAL: usize = HTTP2_PREFACE.len();

/// A connection whose protocol is not known yet.
#[derive(Debug, Default)]
pub struct Opening {
    read: End,
    write: End,
    /// Its start was not seen or was not a request. Then only a chunk that begins with a request
    /// line tells which side asks, and responses cannot be paired.
    midway: bool,
}

#[derive(Debug, Default)]
struct End {
    /// First bytes, too few to tell: the start of HTTP/2 or of a response, or of a method.
    bytes: Vec<u8>,
    glimpse: Glimpse,
    /// Frames of HTTP/2, on a connection joined midway.
    scan: Scan,
}

/// How the latest chunk of a side began, on a connection joined midway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Glimpse {
    #[default]
    Nothing,
    Response,
    Other,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    /// HTTP/1 requests on the side of the chunk. `bytes` came before it, `answer` on the other
    /// side; neither was read.
    Requests {
        bytes: Vec<u8>,
        answer: Vec<u8>,
    },
    /// HTTP/1 requests on the side of the chunk, from its beginning; nobody knows which
    /// responses are theirs.
    RequestsMidway,
    /// HTTP/2 from its beginning, with requests on this side. `bytes` came before the chunk on
    /// its side, `answer` on the other; neither was read.
    Http2 {
        requests: Side,
        bytes: Vec<u8>,
        answer: Vec<u8>,
    },
    /// HTTP/2 from the client's preface on, with which the chunk begins; not all of the other
    /// side was seen.
    Http2Requests {
        scan: Scan,
    },
    /// HTTP/2 joined midway, and what each side said, the chunk included, from the beginning of a
    /// frame on.
    Http2Midway {
        requests: Side,
        asked: Vec<u8>,
        answered: Vec<u8>,
    },
}

impl Opening {
    /// Takes what came on `side`. A method may have fewer than `max` bytes.
    pub fn look(
        &mut self,
        side: Side,
        piece: &Piece<'_>,
        max: usize,
        counts: &mut Counts,
    ) -> Found {
        if !self.midway {
            let reason = match self.look_at_start(side, piece, max) {
                Ok(found) => return found,
                Err(reason) => reason,
            };
            counts.one(reason);
            *self = Self { midway: true, ..Self::default() };
        }
        self.look_midway(side, piece, max)
    }

    /// Bytes of memory beside the struct itself.
    pub fn heap_bytes(&self) -> usize {
        [&self.read, &self.write]
            .into_iter()
            .map(|end| end.bytes.capacity().saturating_add(end.scan.heap_bytes()))
            .fold(0, usize::saturating_add)
    }

    /// The error is how a connection that did not begin with a request is counted.
    fn look_at_start(
        &mut self,
        side: Side,
        piece: &Piece<'_>,
        max: usize,
    ) -> Result<Found, Counter> {
        if piece.missing_before > 0 {
            return Err(Counter::JoinedMidway);
        }
        let (own, other) = match side {
            Side::Read => (&mut self.read.bytes, &mut self.write.bytes),
            Side::Write => (&mut self.write.bytes, &mut self.read.bytes),
        };
        let before = own.len();
        let start = if before == 0 {
            // Empty lines may come before a request (RFC 9112, section 2.2).
            let seen = without_empty_lines(piece.data);
            let start = Start::of(seen, 0, max);
            if start == Start::Short {
                *own = seen.to_vec();
            }
            start
        } else {
            let room = max.saturating_sub(before).min(piece.data.len());
            own.extend_from_slice(piece.data.get(..room).unwrap_or_default());
            // What is longer than these was seen to be a method so far.
            let start = Start::of(own, if before < SPECIAL { 0 } else { before }, max);
            if start != Start::Short {
                own.truncate(before);
            }
            start
        };
        match start {
            Start::Short if piece.missing_after == 0 => Ok(Found::Nothing),
            Start::Short | Start::Response => Err(Counter::JoinedMidway),
            Start::Request => {
                Ok(Found::Requests { bytes: std::mem::take(own), answer: std::mem::take(other) })
            }
            Start::Http2 => {
                // A client begins with the preface, a server with a frame.
                let is_server = own.first().or(piece.data.first()) == Some(&0);
                let requests = if is_server { side.other() } else { side };
                let (bytes, answer) = (std::mem::take(own), std::mem::take(other));
                Ok(Found::Http2 { requests, bytes, answer })
            }
            Start::Frame => Err(Counter::JoinedMidway),
            Start::Other => Err(Counter::NotHttp),
        }
    }

    fn look_midway(&mut self, side: Side, piece: &Piece<'_>, max: usize) -> Found {
        if let Some(found) = self.look_for_frames(side, piece, max) {
            return found;
        }
        let data = piece.data;
        if data.is_empty() {
            return Found::Nothing;
        }
        let (own, other) = match side {
            Side::Read => (&mut self.read, &mut self.write),
            Side::Write => (&mut self.write, &mut self.read),
        };
        own.glimpse = match Start::of(without_empty_lines(data), 0, max) {
            Start::Http2 if data.starts_with(HTTP2_PREFACE) => {
                return Found::Http2Requests { scan: std::mem::take(&mut other.scan) };
            }
            Start::Response => Glimpse::Response,
            // Beside a side that does not speak as a server, this may be part of a body.
            Start::Request if other.glimpse != Glimpse::Other && begins_with_request_line(data) => {
                return Found::RequestsMidway;
            }
            Start::Request | Start::Short | Start::Http2 | Start::Frame | Start::Other => {
                Glimpse::Other
            }
        };
        Found::Nothing
    }

    /// HTTP/2 is certain when both sides have frames, and these tell which side asks.
    fn look_for_frames(&mut self, side: Side, piece: &Piece<'_>, max: usize) -> Option<Found> {
        match side {
            Side::Read => self.read.scan.look(piece, max),
            Side::Write => self.write.scan.look(piece, max),
        };
        let (read, write) = (&mut self.read.scan, &mut self.write.scan);
        if !read.is_proven() || !write.is_proven() {
            return None;
        }
        let requests = match (read.role(), write.role()) {
            (Some(Role::Requests), Some(Role::Responses) | None)
            | (None, Some(Role::Responses)) => Side::Read,
            (Some(Role::Responses), Some(Role::Requests) | None) | (None, Some(Role::Requests)) => {
                Side::Write
            }
            (None, None) => return None,
            (Some(_), Some(_)) => {
                (*read, *write) = Default::default();
                return None;
            }
        };
        let (read, write) = (read.take(), write.take());
        let (asked, answered) = match requests {
            Side::Read => (read, write),
            Side::Write => (write, read),
        };
        Some(Found::Http2Midway { requests, asked, answered })
    }
}

/// How a stream of bytes starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// Too few bytes to tell.
    Short,
    Request,
    Response,
    Http2,
    /// What may be a frame of HTTP/2.
    Frame,
    Other,
}

impl Start {
    /// How `bytes` start, where a method may have fewer than `max`. Those before `from` are known
    /// to be of a method.
    fn of(bytes: &[u8], from: usize, max: usize) -> Self {
        match bytes {
            [] => return Self::Short,
            // A server's first SETTINGS frame on stream 0 (RFC 9113, section 6.5).
            [0, _, _, 4, 0, 0, 0, 0, 0, ..] => return Self::Http2,
            [0, ..] if bytes.len() < 9 => return Self::Short,
            [0, ..] if begins_like_a_frame(bytes) => return Self::Frame,
            _ => {}
        }
        if bytes.starts_with(HTTP2_PREFACE) {
            return Self::Http2;
        }
        if bytes.starts_with(b"HTTP/") {
            return Self::Response;
        }
        if HTTP2_PREFACE.starts_with(bytes) || b"HTTP/".starts_with(bytes) {
            return Self::Short;
        }
        let mut method = bytes.iter().enumerate().take(max).skip(from);
        match method.find(|&(_, &byte)| !is_token(byte)) {
            Some((1.., b' ')) => Self::Request,
            None if bytes.len() < max => Self::Short,
            Some(_) | None => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Found, Opening, Scan, Start};
    use crate::flow::Side::{Read, Write};
    use crate::flow::{Piece, Side};
    use crate::http::counts::{Counter, Counts};

    #[test]
    fn the_first_bytes_tell_the_protocol() {
        let table: &[(&[u8], Start)] = &[
            (b"", Start::Short),
            (b"GE", Start::Short),
            (b"GET /", Start::Request),
            (b"P", Start::Short),
            (b"PRI * HTTP/2.0\r\n", Start::Http2),
            (b"PRI * HTTP/2", Start::Short),
            (b"PRI * HTTP/1.1\r\n", Start::Request),
            (b"HTTP", Start::Short),
            (b"HTTP/1.1 200", Start::Response),
            (b"HEAD /", Start::Request),
            (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00", Start::Http2),
            (b"\x00\x00\x12\x04", Start::Short),
            (b"\x00\x00\x12\x05\x00\x00\x00\x00\x00\x00", Start::Other),
            (b"\x00\x00\x04\x08\x00\x00\x00\x00\x01\x00", Start::Frame),
            (b" GET /", Start::Other),
            (b"{\"a\":1}", Start::Other),
            (b"\x16\x03\x01", Start::Other),
            (b"ABCDEFGHIJABCDEFGHIJABCDEFGHIJABCDEFGHI", Start::Short),
            (b"ABCDEFGHIJABCDEFGHIJABCDEFGHIJABCDEFGHI ", Start::Request),
            (b"ABCDEFGHIJABCDEFGHIJABCDEFGHIJABCDEFGHIJ", Start::Other),
            (b"ABCDEFGHIJABCDEFGHIJABCDEFGHIJABCDEFGHIJ ", Start::Other),
        ];
        for (bytes, expected) in table {
            assert_eq!(Start::of(bytes, 0, 40), *expected, "{bytes:?}");
        }
    }

    /// Side, bytes lost before, bytes.
    type Call = (Side, u64, &'static str);

    fn look(chunks: &[Call]) -> (Found, Counts) {
        let (mut opening, mut counts) = (Opening::default(), Counts::default());
        let mut found = Found::Nothing;
        for (side, missing_before, data) in chunks {
            assert_eq!(found, Found::Nothing);
            let data = data.as_bytes();
            let piece = Piece { missing_before: *missing_before, data, ..Piece::default() };
            found = opening.look(*side, &piece, 40, &mut counts);
        }
        (found, counts)
    }

    #[test]
    fn connections_that_begin_with_a_request_are_paired() {
        let line = "GET / HTTP/1.1\r\n\r\n";
        for chunks in [&[(Read, 0, line)][..], &[(Write, 0, line)]] {
            let (found, counts) = look(chunks);
            assert_eq!(found, Found::Requests { bytes: vec![], answer: vec![] });
            assert_eq!(counts, Counts::default());
        }
        let (first, second) = ("ABCDEFGHIJABCDEFGHIJ", "ABCDEFGHIJABCDEFGHI");
        let (found, counts) = look(&[(Read, 0, first), (Read, 0, second), (Read, 0, " / HTTP")]);
        assert_eq!(
            found,
            Found::Requests { bytes: [first, second].concat().into(), answer: vec![] }
        );
        assert_eq!(counts, Counts::default());
        let (found, counts) = look(&[(Read, 0, first), (Read, 0, first), (Read, 0, " / HTTP")]);
        assert_eq!((found, counts.get(Counter::NotHttp)), (Found::Nothing, 1));
        let (found, _) = look(&[(Read, 0, "PRI * HTTP/"), (Read, 0, "1.1\r\n")]);
        assert_eq!(found, Found::Requests { bytes: b"PRI * HTTP/".to_vec(), answer: vec![] });
        let (found, _) = look(&[(Read, 0, "\r\nG"), (Write, 0, "H"), (Read, 0, "ET /")]);
        assert_eq!(found, Found::Requests { bytes: b"G".to_vec(), answer: b"H".to_vec() });
    }

    #[test]
    fn connections_joined_midway_wait_for_a_request_line() {
        let line = "GET / HTTP/1.1\r\n\r\n";
        let response = "HTTP/1.1 200 OK\r\n";
        let table: &[(&[Call], Found, Counter)] = &[
            (&[(Read, 7, line)], Found::RequestsMidway, Counter::JoinedMidway),
            (&[(Read, 7, "x"), (Read, 0, line)], Found::RequestsMidway, Counter::JoinedMidway),
            (
                &[(Write, 0, response), (Read, 0, line)],
                Found::RequestsMidway,
                Counter::JoinedMidway,
            ),
            (&[(Write, 0, "\x01"), (Read, 0, line)], Found::Nothing, Counter::NotHttp),
            (
                &[(Write, 0, "\x01"), (Read, 0, line), (Write, 0, response), (Read, 0, line)],
                Found::RequestsMidway,
                Counter::NotHttp,
            ),
            (
                &[(Write, 0, "\x01"), (Read, 0, "PRI * HTTP/2.0\r\n")],
                Found::Http2Requests { scan: Scan::default() },
                Counter::NotHttp,
            ),
        ];
        for (chunks, expected, counter) in table {
            let (found, counts) = look(chunks);
            assert_eq!(found, *expected, "{chunks:?}");
            assert_eq!(counts.get(*counter), 1, "{chunks:?}");
        }
    }
}
