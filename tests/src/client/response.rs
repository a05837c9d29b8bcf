//! Answers: status, headers, body (RFC 9112 §6).

use anyhow::{Context, bail};

const MAX_HEADERS: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of this name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let header = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        header.map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&self.body)))
    }
}

/// An answer and its length in `buffer`; `None` if it is not all there. `to_head`: the request
/// was `HEAD`.
pub fn parse(buffer: &[u8], to_head: bool) -> anyhow::Result<Option<(Response, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(start) = head.parse(buffer).context("not HTTP")? else {
        return Ok(None);
    };
    let status = head.code.context("no status")?;
    let headers = head
        .headers
        .iter()
        .map(|header| (header.name.to_owned(), String::from_utf8_lossy(header.value).into_owned()));
    let mut response = Response { status, headers: headers.collect(), body: Vec::new() };
    let rest = buffer.get(start..).unwrap_or_default();
    let without_body = to_head || status < 200 || status == 204 || status == 304;
    let body = if without_body {
        Some((Vec::new(), 0))
    } else if response.header("transfer-encoding").is_some_and(|coding| coding == "chunked") {
        chunked(rest)?
    } else {
        let length = response.header("content-length").context("an answer of unknown length")?;
        let length: usize = length.parse().context("not a length")?;
        rest.get(..length).map(|body| (body.to_vec(), length))
    };
    Ok(body.map(|(body, length)| {
        response.body = body;
        (response, start + length)
    }))
}

/// The decoded body and its length as sent; `None` if it is not all there. Trailers are not
/// expected.
fn chunked(mut rest: &[u8]) -> anyhow::Result<Option<(Vec<u8>, usize)>> {
    let whole = rest.len();
    let mut body = Vec::new();
    loop {
        let size = httparse::parse_chunk_size(rest).ok().context("not a chunk")?;
        let httparse::Status::Complete((line, size)) = size else { return Ok(None) };
        let end = line + usize::try_from(size)?;
        let Some(after) = rest.get(end..).filter(|after| after.len() >= 2) else { return Ok(None) };
        let Some(after) = after.strip_prefix(b"\r\n") else { bail!("a chunk without its end") };
        body.extend_from_slice(&rest[line..end]);
        rest = after;
        if size == 0 {
            return Ok(Some((body, whole - rest.len())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP";
    const CHUNKED: &[u8] =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\nHTTP";

    #[test]
    fn both_framings_and_what_follows() {
        for bytes in [LENGTH, CHUNKED] {
            let (response, length) = parse(bytes, false).expect("HTTP").expect("complete");
            assert_eq!((response.status, response.body.as_slice()), (200, &b"hello"[..]));
            assert_eq!(&bytes[length..], b"HTTP");
        }
    }

    #[test]
    fn every_shorter_piece_is_incomplete() {
        for bytes in [LENGTH, CHUNKED] {
            for length in 0..bytes.len() - 4 {
                assert_eq!(parse(&bytes[..length], false).expect("HTTP"), None, "{length} bytes");
            }
        }
    }

    #[test]
    fn an_answer_to_head_has_no_body() {
        let (response, length) = parse(LENGTH, true).expect("HTTP").expect("complete");
        assert_eq!(response.body, b"");
        assert!(LENGTH[length..].starts_with(b"hello"));
    }
}
