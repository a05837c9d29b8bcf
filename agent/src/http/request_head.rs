//! The head of a request, read as leniently as widespread servers read it.
//!
//! A client chooses what it sends. Were a request refused here that a server answers, its
//! connection would go on unseen. So only what leaves the framing in doubt is refused, or what
//! no widespread server takes.

use std::borrow::Cow;

use super::credential::CredentialKey;
use super::framing::{Framing, Malformed, MethodKind, trim_spaces};
use super::head::Fields;
use crate::transaction::Headers;

/// Fields that a request's head may have: more than fit into one of the default size.
pub const MAX_REQUEST_FIELDS: usize = 32_768;

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
}

/// Reads a whole request head (RFC 9112, section 3).
///
/// Beyond what the RFC allows, it takes several spaces around the target, spaces and bytes that
/// are not UTF-8 in it (percent-encoded), any minor version (as 1.1), folded fields, and control
/// characters in values. Lines that are no field are left out.
pub fn parse_request(head: &[u8], key: &CredentialKey) -> Result<RequestHead, Malformed> {
    let (line, rest) = physical_line(head).ok_or(Malformed::Head)?;
    let line = RequestLine::of(line).ok_or(Malformed::Head)?;
    if !ends_lines_well(head) {
        return Err(Malformed::Head);
    }
    let fields = read_fields(rest, line.minor, key)?;
    let kind = MethodKind::of(line.method);
    let target = target_text(line.target);
    let (authority, path) = split_target(&target, kind);
    let host = match authority {
        Some(authority) => host_of(authority).to_owned(),
        None => host_of(&String::from_utf8_lossy(&fields.host)).to_owned(),
    };
    Ok(RequestHead {
        method: line.method.to_owned(),
        kind,
        path,
        host,
        proto: if line.minor == 0 { "http/1.0" } else { "http/1.1" },
        framing: fields.framing.request()?,
        headers: fields.headers,
    })
}

/// Whether `data` begins with a complete line `method SP target SP HTTP/1.x`, perhaps after
/// empty lines (RFC 9112, section 2.2).
pub fn begins_with_request_line(data: &[u8]) -> bool {
    let Some((line, _)) = physical_line(without_empty_lines(data)) else { return false };
    let clean = |byte: &u8| !byte.is_ascii_control();
    RequestLine::of(line)
        .is_some_and(|found| line.iter().all(clean) && !found.target.contains(&b' '))
}

/// `data` without the line ends at its start.
pub fn without_empty_lines(data: &[u8]) -> &[u8] {
    let blank = data.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    data.get(blank..).unwrap_or_default()
}

/// `tchar` (RFC 9110, section 5.6.2).
pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

struct RequestLine<'a> {
    method: &'a str,
    target: &'a [u8],
    /// 0, or 1 for every later version.
    minor: u8,
}

impl<'a> RequestLine<'a> {
    fn of(line: &'a [u8]) -> Option<Self> {
        let (method, rest) = line.split_at_checked(memchr::memchr(b' ', line)?)?;
        let rest = trim_spaces(rest);
        let (target, version) = rest.split_at_checked(memchr::memrchr(b' ', rest)?)?;
        let target = trim_spaces(target);
        let (protocol, digits) = trim_spaces(version).split_at_checked(b"HTTP/1.".len())?;
        let well_formed = !method.is_empty()
            && method.iter().copied().all(is_token)
            && !target.is_empty()
            && protocol.eq_ignore_ascii_case(b"HTTP/1.")
            && !digits.is_empty()
            && digits.iter().all(u8::is_ascii_digit);
        let minor = u8::from(digits.iter().any(|&digit| digit != b'0'));
        let method = std::str::from_utf8(method).ok()?;
        well_formed.then_some(Self { method, target, minor })
    }
}

/// The first line, without its end, and what follows it.
fn physical_line(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (line, rest) = data.split_at_checked(memchr::memchr(b'\n', data)?)?;
    Some((without_cr(line), rest.get(1..)?))
}

/// Servers take several CR before the LF.
fn without_cr(mut line: &[u8]) -> &[u8] {
    while let Some(shorter) = line.strip_suffix(b"\r") {
        line = shorter;
    }
    line
}

/// No NUL, and every CR belongs to the end of a line: elsewhere some servers take it for one.
fn ends_lines_well(head: &[u8]) -> bool {
    let follows = |at: usize| head.get(at.saturating_add(1)).copied();
    memchr::memchr(0, head).is_none()
        && memchr::memchr_iter(b'\r', head).all(|at| matches!(follows(at), Some(b'\r' | b'\n')))
}

/// Reads the lines after the first, up to and with the empty one.
fn read_fields(mut rest: &[u8], minor: u8, key: &CredentialKey) -> Result<Fields, Malformed> {
    if matches!(rest.first(), Some(b' ' | b'\t')) {
        return Err(Malformed::Head);
    }
    let lines = memchr::memchr_iter(b'\n', rest).count();
    if lines > MAX_REQUEST_FIELDS.saturating_add(1) {
        return Err(Malformed::TooManyFields);
    }
    let mut fields = Fields::new(minor, lines, rest.len());
    while !matches!(rest, b"\r\n" | b"\n") {
        let (line, after) = rest.split_at_checked(field_end(rest)).ok_or(Malformed::Head)?;
        let line = without_cr(line.strip_suffix(b"\n").unwrap_or(line));
        if line.is_empty() {
            return Err(Malformed::Head);
        }
        if let Some((name, value)) = split_field(line)? {
            fields.add(name, &unfolded(value), key);
        }
        rest = after;
    }
    Ok(fields)
}

/// Where the field at the start of `rest` ends, with the lines folded into it (RFC 9112,
/// section 5.2).
fn field_end(rest: &[u8]) -> usize {
    memchr::memchr_iter(b'\n', rest)
        .map(|at| at.saturating_add(1))
        .find(|&next| !matches!(rest.get(next), Some(b' ' | b'\t')))
        .unwrap_or(rest.len())
}

/// Name and value of a field line; `None` for one that is no field. The error is for one that
/// some servers take for a framing field and others do not.
fn split_field(line: &[u8]) -> Result<Option<(&str, &[u8])>, Malformed> {
    let colon = memchr::memchr(b':', line);
    let (before, value) = line.split_at_checked(colon.unwrap_or(line.len())).unwrap_or_default();
    let name = trim_name(before);
    let exact = colon.is_some() && name.len() == before.len();
    let frames = [&b"content-length"[..], b"transfer-encoding"];
    if !exact && frames.iter().any(|field| field.eq_ignore_ascii_case(name)) {
        return Err(Malformed::Head);
    }
    let name = std::str::from_utf8(name)
        .ok()
        .filter(|name| colon.is_some() && !name.is_empty() && name.bytes().all(is_token));
    Ok(name.map(|name| (name, value.get(1..).unwrap_or_default())))
}

/// `name` without spaces and control characters around it.
fn trim_name(name: &[u8]) -> &[u8] {
    let graphic = |byte: &u8| *byte > b' ' && *byte != 0x7f;
    let start = name.iter().position(graphic).unwrap_or(name.len());
    let end = name.iter().rposition(graphic).map_or(start, |last| last.saturating_add(1));
    name.get(start..end).unwrap_or_default()
}

/// Spaces in place of line ends.
fn unfolded(value: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'\n', value).is_none() {
        return Cow::Borrowed(value);
    }
    let space = |&byte: &u8| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte };
    Cow::Owned(value.iter().map(space).collect())
}

/// The target as text: what cannot stand in one is percent-encoded.
pub fn target_text(target: &[u8]) -> String {
    use percent_encoding::{CONTROLS, percent_encode, utf8_percent_encode};
    const ENCODED: &percent_encoding::AsciiSet = &CONTROLS.add(b' ');
    let mut text = String::with_capacity(target.len());
    for chunk in target.utf8_chunks() {
        // Characters that are not ASCII stay as they are; the crate would encode them.
        for piece in chunk.valid().split_inclusive(|c: char| !c.is_ascii()) {
            let ascii = piece.trim_end_matches(|c: char| !c.is_ascii());
            text.extend(utf8_percent_encode(ascii, ENCODED));
            text.push_str(piece.get(ascii.len()..).unwrap_or_default());
        }
        text.extend(percent_encode(chunk.invalid(), ENCODED));
    }
    text
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
pub fn host_of(authority: &str) -> &str {
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        CredentialKey, Framing, MAX_REQUEST_FIELDS, Malformed, RequestHead,
        begins_with_request_line, host_of, parse_request,
    };

    fn request(head: impl AsRef<[u8]>) -> Result<RequestHead, Malformed> {
        parse_request(head.as_ref(), &CredentialKey::unkeyed())
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
            let head = request(format!("{start} HTTP/1.1\r\nHost: {host}\r\n\r\n")).unwrap();
            assert_eq!((head.host.as_str(), head.path.as_str()), (expected_host, expected_path));
        }
        assert_eq!(host_of("a:"), "a");
        assert_eq!(request("GET / HTTP/1.0\r\n\r\n").unwrap().proto, "http/1.0");
    }

    #[test]
    fn what_servers_take_is_read() {
        let table: &[(&[u8], &str, &str)] = &[
            (b"GET  /a   HTTP/1.1 \r\n\r\n", "/a", "http/1.1"),
            (b"GET /a HTTP/1.2\r\n\r\n", "/a", "http/1.1"),
            (b"GET /a HTTP/1.10\n\n", "/a", "http/1.1"),
            (b"GET /a HTTP/1.00\n\r\n", "/a", "http/1.0"),
            (b"GET /a\xffb\xc3\xa9 HTTP/1.1\r\n\r\n", "/a%FFb\u{e9}", "http/1.1"),
            (b"GET /a b\x01%20 HTTP/1.1\r\r\n\r\n", "/a%20b%01%20", "http/1.1"),
        ];
        for (head, path, proto) in table {
            let found = request(head).unwrap();
            assert_eq!((found.path.as_str(), found.proto), (*path, *proto));
        }
        let long = "X".repeat(40_000);
        assert_eq!(request(format!("{long} / HTTP/1.1\r\n\r\n")).unwrap().method, long);
    }

    #[test]
    fn what_is_no_field_is_left_out() {
        type NameAndValue = (&'static str, &'static str);
        let table: &[(&[u8], Option<NameAndValue>)] = &[
            (b"A: b", Some(("A", "b"))),
            (b"A : b", Some(("A", "b"))),
            (b"A_b:\tc\t", Some(("A_b", "c"))),
            (b"A: b\x01c", Some(("A", "b\u{1}c"))),
            (b"A: b\xff", Some(("A", "b\u{fffd}"))),
            (b"A:", Some(("A", ""))),
            (b"A: b\r\n\tc\n  d", Some(("A", "b  \tc   d"))),
            (b"X@y: 1", None),
            (b"no colon", None),
            (b": b", None),
            (b"@Content-Length: 5", None),
            (b"Content-Length\xa0: 5", None),
            (b"X\xff: 1", None),
        ];
        for (line, expected) in table {
            let head = [b"GET / HTTP/1.1\r\n", *line, b"\r\nHost: shop\r\n\r\n"].concat();
            let found = request(head).unwrap();
            assert_eq!((found.host.as_str(), found.framing), ("shop", Framing::Length(0)));
            let first = found.headers.iter().next().filter(|(name, _)| *name != "Host");
            assert_eq!(first, *expected, "{line:?}");
        }
        let folded = "POST / HTTP/1.1\r\nTransfer-Encoding:\r\n chunked\r\n\r\n";
        assert_eq!(request(folded).unwrap().framing, Framing::Chunked);
    }

    #[test]
    fn malformed_request_heads_are_refused() {
        for head in [
            "GET / HTTP/2.0\r\n\r\n",
            "GET / HTTP/1.\r\n\r\n",
            "GET / HTTP/1.x\r\n\r\n",
            "GET /\r\n\r\n",
            "GET HTTP/1.1\r\n\r\n",
            " GET / HTTP/1.1\r\n\r\n",
            "G@T / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\n A: b\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\rc\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\0c\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n\r\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length : 5\r\n\r\n",
            "GET / HTTP/1.1\r\n\x0bTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n",
        ] {
            assert_eq!(request(head).unwrap_err(), Malformed::Head, "{head:?}");
        }
        for (line, malformed) in [
            ("Content-Length: 5\x0c", Malformed::ContentLength),
            ("Content-Length: 5\r\n 0", Malformed::ContentLength),
            ("Transfer-Encoding: \x0bchunked", Malformed::TransferEncoding),
        ] {
            let head = format!("GET / HTTP/1.1\r\n{line}\r\n\r\n");
            assert_eq!(request(head).unwrap_err(), malformed, "{line:?}");
        }
        let fields = |n| format!("GET / HTTP/1.1\r\n{}\r\n", "A:\n".repeat(n));
        assert_eq!(request(fields(MAX_REQUEST_FIELDS)).unwrap().headers.len(), MAX_REQUEST_FIELDS);
        let error = request(fields(MAX_REQUEST_FIELDS + 1)).unwrap_err();
        assert_eq!(error, Malformed::TooManyFields);
    }

    #[test]
    fn a_request_line_is_told_from_other_text() {
        assert!(begins_with_request_line(b"GET /x HTTP/1.1\r\nHost: y\r\n"));
        assert!(begins_with_request_line(b"\r\n\nGET  /x HTTP/1.2\r\n"));
        assert!(begins_with_request_line(b"PROPFIND /x HTTP/1.0\n"));
        for other in [
            &b"GET /x HTTP/1.1"[..],
            b"GET /x\r\n",
            b"say /x y HTTP/1.1\r\n",
            b"GET /x\x01 HTTP/1.1\r\n",
            b"{\"a\": 1}\n",
            b"",
        ] {
            assert!(!begins_with_request_line(other), "{other:?}");
        }
    }
}
