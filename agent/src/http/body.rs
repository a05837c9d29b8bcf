//! Reading a body: its bytes without their framing, and where it ends.

use super::framing::{Framing, Malformed};

/// A body that has not ended.
#[derive(Debug)]
pub struct Body {
    rest: Rest,
    received: u64,
}

#[derive(Debug)]
enum Rest {
    Length(u64),
    Chunked(Decoder),
    UntilClose,
}

/// What became of the bytes handed to [`Body::feed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fed {
    /// How many belonged to the body.
    pub used: usize,
    /// Whether the body ended with them.
    pub ended: bool,
}

/// Where bytes that were lost lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    Inside,
    /// The body ended with them.
    Ended,
    /// Not certainly within the body: where the next message begins is unknown.
    Unknown,
}

impl Body {
    /// `None` for a body without bytes.
    pub fn new(framing: Framing) -> Option<Self> {
        let rest = match framing {
            Framing::Length(0) => return None,
            Framing::Length(length) => Rest::Length(length),
            Framing::Chunked => Rest::Chunked(Decoder::default()),
            Framing::UntilClose => Rest::UntilClose,
        };
        Some(Self { rest, received: 0 })
    }

    /// As [`Self::new`] for a request. Its chunked framing may have lines that end in a bare LF,
    /// which servers take.
    pub fn of_request(framing: Framing) -> Option<Self> {
        let mut body = Self::new(framing)?;
        if let Rest::Chunked(decoder) = &mut body.rest {
            decoder.bare_lf = true;
        }
        Some(body)
    }

    /// Bytes of content so far, lost ones that were skipped among them.
    pub fn received(&self) -> u64 {
        self.received
    }

    pub fn ends_with_connection(&self) -> bool {
        matches!(self.rest, Rest::UntilClose)
    }

    /// Reads from `data` and gives the content to `sink`, piece by piece.
    pub fn feed(&mut self, data: &[u8], mut sink: impl FnMut(&[u8])) -> Result<Fed, Malformed> {
        let mut received = self.received;
        let mut sink = |content: &[u8]| {
            received = received.saturating_add(content.len() as u64);
            sink(content);
        };
        let fed = match &mut self.rest {
            Rest::Length(rest) => {
                let used = data.len().min(usize::try_from(*rest).unwrap_or(usize::MAX));
                sink(data.get(..used).unwrap_or_default());
                *rest = rest.saturating_sub(used as u64);
                Fed { used, ended: *rest == 0 }
            }
            Rest::Chunked(decoder) => decoder.feed(data, &mut sink)?,
            Rest::UntilClose => {
                sink(data);
                Fed { used: data.len(), ended: false }
            }
        };
        self.received = received;
        Ok(fed)
    }

    /// Passes over `missing` lost bytes if all of them must have been content.
    pub fn skip(&mut self, missing: u64) -> Skip {
        let skip = match &mut self.rest {
            Rest::Length(rest) => match rest.checked_sub(missing) {
                Some(left) => {
                    *rest = left;
                    if left == 0 { Skip::Ended } else { Skip::Inside }
                }
                None => Skip::Unknown,
            },
            Rest::Chunked(decoder) => decoder.skip(missing),
            Rest::UntilClose => Skip::Inside,
        };
        if skip != Skip::Unknown {
            self.received = self.received.saturating_add(missing);
        }
        skip
    }
}

/// The chunked transfer coding (RFC 9112, section 7.1). Extensions and trailers are passed over.
/// Lines end in CRLF, or in LF where that is allowed.
#[derive(Debug, Default)]
struct Decoder {
    state: State,
    /// Of the chunk's size, or of its data, when that is being read.
    rest: u64,
    /// Whether the size has a digit.
    sized: bool,
    bare_lf: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the start of a line of the trailer section.
    Trailer,
    TrailerLine,
    TrailerLf,
    EndLf,
    End,
}

impl Decoder {
    fn feed(&mut self, data: &[u8], sink: &mut impl FnMut(&[u8])) -> Result<Fed, Malformed> {
        let mut used: usize = 0;
        while self.state != State::End {
            let Some((&byte, _)) = data.get(used..).and_then(<[u8]>::split_first) else { break };
            if self.state == State::Data {
                used = used.saturating_add(self.data(data.get(used..).unwrap_or_default(), sink));
            } else {
                self.step(byte)?;
                used = used.saturating_add(1);
            }
        }
        Ok(Fed { used, ended: self.state == State::End })
    }

    /// Takes the data of a chunk; how much of `data` it was.
    fn data(&mut self, data: &[u8], sink: &mut impl FnMut(&[u8])) -> usize {
        let used = data.len().min(usize::try_from(self.rest).unwrap_or(usize::MAX));
        sink(data.get(..used).unwrap_or_default());
        self.rest = self.rest.saturating_sub(used as u64);
        if self.rest == 0 {
            self.state = State::DataCr;
        }
        used
    }

    /// Takes one byte of framing.
    fn step(&mut self, byte: u8) -> Result<(), Malformed> {
        // A bare LF is read as the CRLF it stands for.
        if byte == b'\n' && self.bare_lf {
            self.state = match self.state {
                State::Size if self.sized => State::SizeLf,
                State::Extension => State::SizeLf,
                State::DataCr => State::DataLf,
                State::Trailer => State::EndLf,
                State::TrailerLine => State::TrailerLf,
                other => other,
            };
        }
        self.state = match (self.state, byte) {
            (State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => self.digit(byte)?,
            (State::Size, b'\r') if self.sized => State::SizeLf,
            (State::Size, b';' | b' ' | b'\t') if self.sized => State::Extension,
            (State::Extension, b'\r') => State::SizeLf,
            (State::Extension, byte) if byte != b'\n' => State::Extension,
            (State::SizeLf, b'\n') => {
                self.sized = false;
                if self.rest == 0 { State::Trailer } else { State::Data }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size,
            (State::Trailer, b'\r') => State::EndLf,
            (State::TrailerLine, b'\r') => State::TrailerLf,
            (State::Trailer | State::TrailerLine, byte) if byte != b'\n' => State::TrailerLine,
            (State::TrailerLf, b'\n') => State::Trailer,
            (State::EndLf, b'\n') => State::End,
            _ => return Err(Malformed::Chunk),
        };
        Ok(())
    }

    fn digit(&mut self, byte: u8) -> Result<State, Malformed> {
        let digit = char::from(byte).to_digit(16).ok_or(Malformed::Chunk)?;
        // Any number of leading zeros is allowed.
        self.rest = self.rest.checked_mul(16).ok_or(Malformed::Chunk)? | u64::from(digit);
        self.sized = true;
        Ok(State::Size)
    }

    fn skip(&mut self, missing: u64) -> Skip {
        if self.state != State::Data {
            return Skip::Unknown;
        }
        let Some(rest) = self.rest.checked_sub(missing) else { return Skip::Unknown };
        self.rest = rest;
        if rest == 0 {
            self.state = State::DataCr;
        }
        Skip::Inside
    }
}

#[cfg(test)]
mod tests {
    use super::{Body, Skip};
    use crate::http::framing::{Framing, Malformed};

    /// Content and bytes used when `data` comes in pieces of `step` bytes; `None`: not ended.
    fn read(
        mut body: Body,
        data: &[u8],
        step: usize,
    ) -> Result<Option<(Vec<u8>, usize)>, Malformed> {
        let (mut content, mut used) = (Vec::new(), 0);
        for piece in data.chunks(step) {
            let fed = body.feed(piece, |bytes| content.extend_from_slice(bytes))?;
            used += fed.used;
            assert_eq!(body.received(), content.len() as u64);
            if fed.ended {
                return Ok(Some((content, used)));
            }
        }
        Ok(None)
    }

    #[test]
    fn chunked_bodies() {
        // Content and bytes used, if the body ends.
        type Expected = Result<Option<(&'static str, usize)>, Malformed>;
        let table: &[(&str, Expected)] = &[
            ("0\r\n\r\nGET", Ok(Some(("", 5)))),
            ("3\r\nabc\r\n0\r\n\r\n", Ok(Some(("abc", 13)))),
            ("A;x=\"y\"\r\n0123456789\r\n00 ;q\r\n\r\nrest", Ok(Some(("0123456789", 30)))),
            ("1\r\na\r\n2 \r\nbc\r\n0\r\nX: y\r\nZ:\r\n\r\n", Ok(Some(("abc", 29)))),
            ("3\r\nab", Ok(None)),
            ("0\r\n", Ok(None)),
            ("3\nabc\r\n0\r\n\r\n", Err(Malformed::Chunk)),
            ("3\r\nabcd\r\n0\r\n\r\n", Err(Malformed::Chunk)),
            ("3;a\nabc", Err(Malformed::Chunk)),
            ("3;a\rb", Err(Malformed::Chunk)),
            ("\r\n", Err(Malformed::Chunk)),
            ("-1\r\n", Err(Malformed::Chunk)),
            ("0x3\r\nabc\r\n", Err(Malformed::Chunk)),
            ("10000000000000000\r\n", Err(Malformed::Chunk)),
            (";\r\n", Err(Malformed::Chunk)),
            ("0\r\nX: y\n\r\n", Err(Malformed::Chunk)),
            ("0\r\n\n", Err(Malformed::Chunk)),
            ("0\r\n\rX", Err(Malformed::Chunk)),
        ];
        for (data, expected) in table {
            for step in [1, 2, 3, 100] {
                let found = read(Body::new(Framing::Chunked).unwrap(), data.as_bytes(), step);
                let expected =
                    expected.map(|end| end.map(|(c, used)| (c.as_bytes().to_vec(), used)));
                assert_eq!(found, expected, "{data:?} by {step}");
            }
        }
    }

    #[test]
    fn chunked_requests_may_have_bare_line_feeds() {
        // How many bytes are used, if the body ends.
        for (data, used) in [
            ("3\nabc\n0\n\nGET", Ok(Some(9))),
            ("3;x\nabc\r\n0\r\nX: y\n\n", Ok(Some(18))),
            ("3\r\nabc\r\n0\nX: y\r\n\r\n", Ok(Some(18))),
            ("0000000000000000000003\nabc\n0\n\n", Ok(Some(30))),
            ("\n", Err(Malformed::Chunk)),
            ("3\nabcd\n0\n\n", Err(Malformed::Chunk)),
            ("3;a\rb", Err(Malformed::Chunk)),
            ("10000000000000000\n", Err(Malformed::Chunk)),
        ] {
            for step in [1, 2, 3, 100] {
                let body = Body::of_request(Framing::Chunked).unwrap();
                let found = read(body, data.as_bytes(), step);
                let found = found.map(|end| end.map(|(_, used)| used));
                assert_eq!(found, used, "{data:?} by {step}");
            }
        }
    }

    #[test]
    fn other_bodies() {
        assert!(Body::new(Framing::Length(0)).is_none());
        let found = read(Body::new(Framing::Length(3)).unwrap(), b"abcdef", 2).unwrap();
        assert_eq!(found, Some((b"abc".to_vec(), 3)));
        assert_eq!(read(Body::new(Framing::UntilClose).unwrap(), b"abcdef", 2).unwrap(), None);
    }

    #[test]
    fn lost_bytes_are_skipped_only_where_they_must_be_content() {
        let mut body = Body::new(Framing::Length(10)).unwrap();
        assert_eq!(body.skip(4), Skip::Inside);
        assert_eq!(body.skip(7), Skip::Unknown);
        assert_eq!(body.skip(6), Skip::Ended);
        assert_eq!(body.received(), 10);

        let mut body = Body::new(Framing::Chunked).unwrap();
        assert_eq!(body.skip(1), Skip::Unknown);
        body.feed(b"5\r\na", |_| ()).unwrap();
        assert_eq!(body.skip(5), Skip::Unknown);
        assert_eq!(body.skip(4), Skip::Inside);
        assert_eq!(body.skip(1), Skip::Unknown);
        assert!(body.feed(b"\r\n0\r\n\r\n", |_| ()).unwrap().ended);

        let mut body = Body::new(Framing::UntilClose).unwrap();
        assert_eq!(body.skip(u64::MAX), Skip::Inside);
    }
}
