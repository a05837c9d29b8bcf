//! The head of a message: gathering its bytes, and what its fields say. Those of requests are in
//! [`request_head`](super::request_head).

use bytes::{Bytes, BytesMut};
use std::mem::MaybeUninit;

use super::credential::{CredentialKey, push_field};
use super::framing::{FramingFields, Malformed, trim_spaces};
use crate::transaction::Headers;

/// Fields that a response's head may have.
pub const MAX_HEADER_FIELDS: usize = 256;

/// Larger buffers are given back when their head is complete.
const KEPT_BUFFER: usize = 4 * 1024;

/// The start of a head whose end has not come.
#[derive(Debug, Default)]
pub struct HeadBuffer {
    bytes: BytesMut,
    /// No head ends before this, so that no byte is looked at twice.
    scanned: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Gathered<'a> {
    /// All bytes are taken, the end has not come.
    Partial,
    /// The head, and how many of the bytes that were handed over belong to it.
    Complete { head: &'a [u8], used: usize },
}

impl HeadBuffer {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes allocated.
    pub fn heap_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// Adds `data` up to the end of the head, which may have `max` bytes.
    pub fn gather<'a>(&'a mut self, data: &'a [u8], max: usize) -> Result<Gathered<'a>, Malformed> {
        let before = self.bytes.len();
        if before == 0
            && let Some(used) = find_end(data, 0)
        {
            let head = data.get(..used).filter(|_| used <= max).ok_or(Malformed::HeadTooLong)?;
            return Ok(Gathered::Complete { head, used });
        }
        // One byte more than allowed is enough to tell that the head is too long.
        let room = max.saturating_add(1).saturating_sub(before).min(data.len());
        self.bytes.extend_from_slice(data.get(..room).unwrap_or_default());
        match find_end(&self.bytes, self.scanned) {
            Some(end) if end <= max => Ok(Gathered::Complete {
                head: self.bytes.get(..end).unwrap_or_default(),
                used: end.saturating_sub(before),
            }),
            None if self.bytes.len() <= max => {
                self.scanned = self.bytes.len().saturating_sub(2);
                Ok(Gathered::Partial)
            }
            Some(_) | None => Err(Malformed::HeadTooLong),
        }
    }

    /// Keeps `data` for later; false when that would be more than `max` bytes.
    pub fn append(&mut self, data: &[u8], max: usize) -> bool {
        let fits = self.bytes.len().saturating_add(data.len()) <= max;
        if fits {
            self.bytes.extend_from_slice(data);
        }
        fits
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.scanned = 0;
        if self.bytes.capacity() > KEPT_BUFFER {
            self.bytes = BytesMut::new();
        }
    }

    /// Takes what has been gathered.
    pub fn take(&mut self) -> Bytes {
        self.scanned = 0;
        std::mem::take(&mut self.bytes).freeze()
    }
}

/// The end of the empty line that ends a head. A line may end in a bare LF (RFC 9112,
/// section 2.2).
fn find_end(bytes: &[u8], from: usize) -> Option<usize> {
    memchr::memchr_iter(b'\n', bytes.get(from..)?).find_map(|at| {
        let next = from.checked_add(at)?.checked_add(1)?;
        match bytes.get(next..)? {
            [b'\n', ..] => next.checked_add(1),
            [b'\r', b'\n', ..] => next.checked_add(2),
            _ => None,
        }
    })
}

#[derive(Debug)]
pub struct ResponseHead {
    pub status: u16,
    pub headers: Headers,
    pub fields: FramingFields,
    pub plain: bool,
}

impl ResponseHead {
    /// Whether the body is a stream of server-sent events, which may never end.
    pub fn is_event_stream(&self) -> bool {
        self.has_media_type("text/event-stream", |rest| rest.is_empty())
    }

    /// Whether the body is gRPC, whose outcome is in trailers (or here, if there is no body).
    pub fn is_grpc(&self) -> bool {
        let suffix = |rest: &str| matches!(rest.as_bytes().first(), None | Some(b'+' | b'-'));
        self.has_media_type("application/grpc", suffix)
    }

    fn has_media_type(&self, media_type: &str, rest_fits: impl Fn(&str) -> bool) -> bool {
        let Some(value) = self.headers.get("content-type") else { return false };
        let found = value.split(';').next().unwrap_or_default().trim();
        found
            .split_at_checked(media_type.len())
            .is_some_and(|(start, rest)| start.eq_ignore_ascii_case(media_type) && rest_fits(rest))
    }
}

/// Reads a whole response head (RFC 9112, section 4).
pub fn parse_response(head: &[u8], key: &CredentialKey) -> Result<ResponseHead, Malformed> {
    // httparse would pass over empty lines, which only requests may have before them.
    if !head.starts_with(b"HTTP/") {
        return Err(Malformed::Head);
    }
    let mut space = [const { MaybeUninit::uninit() }; MAX_HEADER_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    whole(config.parse_response_with_uninit_headers(&mut response, head, &mut space), head)?;
    let (Some(status @ 100..), Some(minor)) = (response.code, response.version) else {
        return Err(Malformed::Head);
    };
    let bytes = response.headers.iter().map(|field| field.name.len() + field.value.len()).sum();
    let mut fields = Fields::new(minor, response.headers.len(), bytes);
    for field in response.headers {
        fields.add(field.name, field.value, key);
    }
    Ok(ResponseHead {
        status,
        plain: fields.plain && !fields.framing.is_coded(),
        fields: fields.framing,
        headers: fields.headers,
    })
}

fn whole(parsed: httparse::Result<usize>, head: &[u8]) -> Result<(), Malformed> {
    match parsed {
        Ok(httparse::Status::Complete(end)) if end == head.len() => Ok(()),
        Err(httparse::Error::TooManyHeaders) => Err(Malformed::TooManyFields),
        Ok(_) | Err(_) => Err(Malformed::Head),
    }
}

/// What one pass over the fields finds.
pub struct Fields {
    pub headers: Headers,
    pub framing: FramingFields,
    /// The first `Host` that is not empty.
    pub host: Vec<u8>,
    /// No content coding.
    pub plain: bool,
}

impl Fields {
    /// For a message of HTTP/1.`minor` with room for `fields` fields of `bytes` bytes in all.
    pub fn new(minor: u8, fields: usize, bytes: usize) -> Self {
        Self {
            headers: Headers::with_capacity(fields, bytes),
            framing: FramingFields::new(minor),
            host: Vec::new(),
            plain: true,
        }
    }

    /// Bytes allocated.
    pub fn heap_bytes(&self) -> usize {
        self.headers.heap_bytes().saturating_add(self.host.capacity())
    }

    pub fn add(&mut self, name: &str, value: &[u8], key: &CredentialKey) {
        let value = trim_spaces(value);
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        if is("host") && self.host.is_empty() {
            self.host = value.to_vec();
        } else if is("content-length") {
            self.framing.content_length(value);
        } else if is("transfer-encoding") {
            self.framing.transfer_encoding(value);
        } else if is("content-encoding") {
            self.plain &= value.is_empty() || value.eq_ignore_ascii_case(b"identity");
        }
        push_field(&mut self.headers, name, value, key);
    }
}

#[cfg(test)]
mod tests {
    use super::{CredentialKey, Gathered, HeadBuffer, Malformed, parse_response};

    #[test]
    fn heads_end_at_the_first_empty_line_however_they_are_cut() {
        let table = [
            ("A: b\r\n\r\nrest", Some(8)),
            ("A: b\n\nrest", Some(6)),
            ("A: b\n\r\nrest", Some(7)),
            ("A: b\r\n\nrest", Some(7)),
            ("A: b\r\nC: d\r\n", None),
            ("A: b\n\rC", None),
        ];
        for (data, end) in table {
            for step in 1..=data.len() {
                let mut buffer = HeadBuffer::default();
                let (mut used, mut found) = (0, None);
                for piece in data.as_bytes().chunks(step) {
                    if let Gathered::Complete { head, used: last } =
                        buffer.gather(piece, 100).unwrap()
                    {
                        assert_eq!(head.len(), used + last);
                        found = Some(used + last);
                        break;
                    }
                    used += piece.len();
                }
                assert_eq!(found, end, "{data:?} by {step}");
            }
        }
    }

    #[test]
    fn heads_beyond_the_limit_are_refused_and_never_kept() {
        for step in 1..=40 {
            for (length, fits) in [(20, true), (21, false)] {
                let head = format!("{}\n\n", "x".repeat(length - 2));
                let mut buffer = HeadBuffer::default();
                let mut found = Ok(Gathered::Partial);
                for piece in head.as_bytes().chunks(step) {
                    found = buffer.gather(piece, 20).map(|gathered| match gathered {
                        Gathered::Partial => Gathered::Partial,
                        Gathered::Complete { used, .. } => Gathered::Complete { head: b"", used },
                    });
                    assert!(buffer.bytes.len() <= 21);
                }
                assert_eq!(found.is_ok(), fits, "{length} by {step}");
            }
        }
    }

    #[test]
    fn malformed_response_heads_are_refused() {
        let response = |head: &str| parse_response(head.as_bytes(), &CredentialKey::unkeyed());
        assert_eq!(response("HTTP/1.1 200\r\n\r\n").unwrap().status, 200);
        assert_eq!(response("HTTP/1.0 404 Not Found\r\n\r\n").unwrap().status, 404);
        for head in [
            "HTTP/1.1 099 Low\r\n\r\n",
            "HTTP/1.1 20 Short\r\n\r\n",
            "HTTP/1.1 2000 Long\r\n\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "\r\nHTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        ] {
            assert_eq!(response(head).unwrap_err(), Malformed::Head, "{head:?}");
        }
    }
}
