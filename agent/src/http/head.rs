//! The head of a message: gathering its bytes, and what it says.

use std::mem::MaybeUninit;

use httparse::Header;

use super::credential::{CredentialKey, push_field};
use super::framing::{Framing, FramingFields, Malformed, MethodKind};
use crate::transaction::Headers;

/// Fields that a head may have.
pub const MAX_HEADER_FIELDS: usize = 256;

/// Larger buffers are given back when their head is complete.
const KEPT_BUFFER: usize = 4 * 1024;

/// The start of a head whose end has not come.
#[derive(Debug, Default)]
pub struct HeadBuffer {
    bytes: Vec<u8>,
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
            && let Some(end) = find_end(data, 0)
        {
            let head = data.get(..end.min(max)).unwrap_or_default();
            let fits = head.len() == end;
            return if fits {
                Ok(Gathered::Complete { head, used: end })
            } else {
                Err(Malformed::HeadTooLong)
            };
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
            self.bytes = Vec::new();
        }
    }

    /// Takes what has been gathered.
    pub fn take(&mut self) -> Vec<u8> {
        self.scanned = 0;
        std::mem::take(&mut self.bytes)
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

/// Whether `data` begins with a complete line `method SP target SP HTTP/1.x`.
pub fn begins_with_request_line(data: &[u8]) -> bool {
    let Some(line) = memchr::memchr(b'\n', data).and_then(|end| data.get(..=end)) else {
        return false;
    };
    // The line without any field is a whole head.
    let mut request = httparse::Request::new(&mut []);
    let head = [line, b"\r\n"].concat();
    matches!(request.parse(&head), Ok(httparse::Status::Complete(end)) if end == head.len())
}

#[derive(Debug)]
pub struct RequestHead {
    pub method: String,
    pub kind: MethodKind,
    pub path: String,
    /// Without port; empty when the request names none.
    pub host: String,
    pub proto: &'static str,
    pub headers: Headers,
    pub framing: Framing,
    /// Whether the body's bytes are the content itself, without a coding over them.
    pub plain: bool,
}

#[derive(Debug)]
pub struct ResponseHead {
    pub status: u16,
    pub headers: Headers,
    pub fields: FramingFields,
    pub plain: bool,
}

/// Reads a whole request head (RFC 9112, section 3).
pub fn parse_request(head: &[u8], key: &CredentialKey) -> Result<RequestHead, Malformed> {
    let mut space = [const { MaybeUninit::uninit() }; MAX_HEADER_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    whole(request.parse_with_uninit_headers(head, &mut space), head)?;
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version)
    else {
        return Err(Malformed::Head);
    };
    let fields = Fields::read(request.headers, minor, key);
    let kind = MethodKind::of(method);
    let (authority, path) = split_target(target, kind);
    let host = match authority {
        Some(authority) => host_of(authority).to_owned(),
        None => host_of(&String::from_utf8_lossy(fields.host)).to_owned(),
    };
    Ok(RequestHead {
        method: method.to_owned(),
        kind,
        path,
        host,
        proto: if minor == 0 { "http/1.0" } else { "http/1.1" },
        framing: fields.framing.request()?,
        plain: fields.plain && !fields.framing.is_coded(),
        headers: fields.headers,
    })
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
    let fields = Fields::read(response.headers, minor, key);
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
struct Fields<'a> {
    headers: Headers,
    framing: FramingFields,
    /// The first `Host`.
    host: &'a [u8],
    /// No content coding.
    plain: bool,
}

impl<'a> Fields<'a> {
    fn read(parsed: &[Header<'a>], minor: u8, key: &CredentialKey) -> Self {
        let bytes = parsed.iter().map(|field| field.name.len().saturating_add(field.value.len()));
        let bytes = bytes.fold(0, usize::saturating_add);
        let mut fields = Self {
            headers: Headers::with_capacity(parsed.len(), bytes),
            framing: FramingFields::new(minor),
            host: b"",
            plain: true,
        };
        for field in parsed {
            let value = field.value.trim_ascii();
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            if is("host") && fields.host.is_empty() {
                fields.host = value;
            } else if is("content-length") {
                fields.framing.content_length(value);
            } else if is("transfer-encoding") {
                fields.framing.transfer_encoding(value);
            } else if is("content-encoding") {
                fields.plain &= value.is_empty() || value.eq_ignore_ascii_case(b"identity");
            }
            push_field(&mut fields.headers, field.name, value, key);
        }
        fields
    }
}

/// The authority that a target names, and its path and query: as sent, or the part after the
/// authority in absolute-form (RFC 9112, section 3.2).
fn split_target(target: &str, kind: MethodKind) -> (Option<&str>, String) {
    if kind == MethodKind::Connect {
        return (Some(target), target.to_owned());
    }
    let absolute = target.split_once("://").filter(|(scheme, _)| {
        scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")
    });
    let Some((_, rest)) = absolute else { return (None, target.to_owned()) };
    match rest.find(['/', '?', '#']) {
        Some(end) => {
            let (authority, path) = rest.split_at(end);
            let slash = if path.starts_with('/') { "" } else { "/" };
            (Some(authority), format!("{slash}{path}"))
        }
        None => (Some(rest), "/".to_owned()),
    }
}

/// The host of `[userinfo@]host[:port]`; an IPv6 address keeps its brackets (RFC 3986,
/// section 3.2).
fn host_of(authority: &str) -> &str {
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        CredentialKey, Gathered, HeadBuffer, Malformed, begins_with_request_line, host_of,
        parse_request, parse_response,
    };

    fn request(head: &str) -> Result<super::RequestHead, Malformed> {
        parse_request(head.as_bytes(), &CredentialKey::unkeyed())
    }

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
    fn targets_and_hosts() {
        let table = [
            ("GET /a?b=c", "Shop.example:8443", "Shop.example", "/a?b=c"),
            ("GET https://u:p@api.example:1/x?y", "other", "api.example", "/x?y"),
            ("GET http://api.example", "other", "api.example", "/"),
            ("GET http://api.example?q", "other", "api.example", "/?q"),
            ("OPTIONS *", "shop", "shop", "*"),
            ("CONNECT db.example:5432", "other", "db.example", "db.example:5432"),
            ("GET /redirect?to=http://x/y", "shop", "shop", "/redirect?to=http://x/y"),
            ("GET /", "[2001:db8::1]:443", "[2001:db8::1]", "/"),
            ("GET /", "[2001:db8::1]", "[2001:db8::1]", "/"),
            ("GET /", "", "", "/"),
        ];
        for (start, host, expected_host, expected_path) in table {
            let head = request(&format!("{start} HTTP/1.1\r\nHost: {host}\r\n\r\n")).unwrap();
            assert_eq!((head.host.as_str(), head.path.as_str()), (expected_host, expected_path));
        }
        assert_eq!(host_of("a:"), "a");
        assert_eq!(request("GET / HTTP/1.0\r\n\r\n").unwrap().proto, "http/1.0");
    }

    #[test]
    fn malformed_request_heads_are_refused() {
        for head in [
            "GET  / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.2\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "GET /\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : x\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\rc\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\0c\r\n\r\n",
            "GET / HTTP/1.1\r\nno colon\r\n\r\n",
        ] {
            assert_eq!(request(head).unwrap_err(), Malformed::Head, "{head:?}");
        }
        let fields = |n| format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(n));
        assert_eq!(request(&fields(256)).unwrap().headers.len(), 256);
        assert_eq!(request(&fields(257)).unwrap_err(), Malformed::TooManyFields);
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

    #[test]
    fn a_request_line_is_told_from_other_text() {
        assert!(begins_with_request_line(b"GET /x HTTP/1.1\r\nHost: y\r\n"));
        assert!(begins_with_request_line(b"PROPFIND /x HTTP/1.0\n"));
        for other in [
            &b"GET /x HTTP/1.1"[..],
            b"GET /x\r\n",
            b"\r\nGET /x HTTP/1.1\r\n",
            b"{\"a\": 1}\n",
            b"",
        ] {
            assert!(!begins_with_request_line(other), "{other:?}");
        }
    }
}
