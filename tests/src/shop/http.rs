//! HTTP/1.1 as the proxy in front speaks it: bodies with a length, connections kept.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::api;

const MAX_REQUEST: usize = 64 * 1024;
const MAX_HEADERS: usize = 64;

/// Answers every request on `stream`, until the client or a malformed request ends it.
pub fn answer_all(mut stream: TcpStream) {
    // A client that went away is not an error of the shop.
    let _ = stream.set_nodelay(true).and_then(|()| exchange(&mut stream));
}

fn exchange(stream: &mut (impl Read + Write)) -> io::Result<()> {
    let mut buffer = Vec::new();
    while let Some(request) = read_request(stream, &mut buffer)? {
        let (status, body) = api::answer(&request.method, &request.path, &request.body);
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 {status} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            reason(status),
            body.len()
        );
        stream.write_all((head + &body).as_bytes())?;
    }
    Ok(())
}

struct Request {
    method: String,
    path: String,
    body: Vec<u8>,
}

/// The next request; `None` when the client is done. `buffer` keeps what came after it.
fn read_request(stream: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<Option<Request>> {
    loop {
        if let Some((request, length)) = parse(buffer)? {
            buffer.drain(..length);
            return Ok(Some(request));
        }
        if buffer.len() > MAX_REQUEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut piece = [0; 4096];
        let length = stream.read(&mut piece)?;
        if length == 0 {
            return Ok(None);
        }
        buffer.extend_from_slice(&piece[..length]);
    }
}

/// A request and its length in `buffer`; `None` if it is not all there.
fn parse(buffer: &[u8]) -> io::Result<Option<(Request, usize)>> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidData);
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(body_start) = head.parse(buffer).map_err(invalid)? else {
        return Ok(None);
    };
    let length =
        head.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok());
    let end = body_start.saturating_add(length.unwrap_or(0));
    let (Some(method), Some(path)) = (head.method, head.path) else { return Ok(None) };
    Ok(buffer.get(body_start..end).map(|body| {
        (Request { method: method.into(), path: path.into(), body: body.to_vec() }, end)
    }))
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        405 => "Method Not Allowed",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes one by one and keeps what is written.
    struct Trickle<'a> {
        input: &'a [u8],
        output: Vec<u8>,
    }

    impl Read for Trickle<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.input.read(&mut into[..1])
        }
    }

    impl Write for Trickle<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.output.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_connection_is_kept_and_requests_answered_in_order() {
        let input = b"POST /api/login HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}\
            GET /api/products/2 HTTP/1.1\r\n\r\nGET /x HTTP/1.1\r\n\r\n";
        let mut stream = Trickle { input, output: Vec::new() };
        exchange(&mut stream).expect("well formed");
        let output = String::from_utf8(stream.output).expect("text");
        let statuses: Vec<&str> =
            output.split("HTTP/1.1 ").skip(1).filter_map(|answer| answer.get(..3)).collect();
        assert_eq!(statuses, ["400", "200", "404"]);
    }

    #[test]
    fn what_is_not_http_ends_the_connection() {
        let mut stream = Trickle { input: b"\x16\x03\x01 hello\r\n\r\n", output: Vec::new() };
        assert!(exchange(&mut stream).is_err());
        assert_eq!(stream.output, b"");
    }
}
