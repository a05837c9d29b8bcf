//! How fast the stage is. Prints a figure and asserts nothing about time:
//! `cargo test --release -p portcullis --lib http::tests::throughput -- --ignored --nocapture`

use std::time::Instant;

use super::{CredentialKey, Http, Settings};
use crate::flow::{Chunk, Side};
use crate::time::Timestamp;

const REQUEST: &str = "POST /api/v1/login HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36\r\nAccept: application/json\r\nAccept-Encoding: gzip, deflate, br\r\nAccept-Language: en-GB,en;q=0.9\r\nContent-Type: application/json\r\nCookie: session=0123456789abcdef0123456789abcdef\r\nConnection: keep-alive\r\nContent-Length: 42\r\n\r\n{\"user\":\"anna@example\",\"password\":\"s3cret\"}";
const RESPONSE: &str = "HTTP/1.1 401 Unauthorized\r\nServer: nginx\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nContent-Type: application/json\r\nContent-Length: 32\r\nConnection: keep-alive\r\n\r\n{\"error\":\"invalid credentials!\"}";

const CONNECTIONS: u64 = 1_000;
const ROUNDS: u64 = 500;

#[test]
#[ignore = "prints a measurement"]
fn transactions_per_second() {
    let request = REQUEST.replace("Length: 42", "Length: 43");
    measure("HTTP/1", |_| (request.clone().into_bytes(), RESPONSE.into()));
    measure("HTTP/2", exchange_of_http2);
}

/// What both sides say on a connection's next exchange, after so many.
fn exchange_of_http2(round: u64) -> (Vec<u8>, Vec<u8>) {
    use super::http2::*;
    use crate::http::http2::hpack::tests::{indexed, literal, named};

    let stream = u32::try_from(2 * round + 1).unwrap();
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    let of = |text: &'static str| text.split("\r\n").filter_map(|line| line.split_once(": "));
    // All fields are in the table from the second exchange on.
    let fields = |head, own: &[&str]| -> Vec<Vec<u8>> {
        let fields: Vec<_> = of(head).filter(|(name, _)| !own.contains(name)).collect();
        let count = fields.len();
        let field = |(n, (name, value)): (usize, (&str, &str))| match round {
            0 => literal(&name.to_lowercase(), value, true),
            _ => indexed(LATEST + count - 1 - n),
        };
        fields.into_iter().enumerate().map(field).collect()
    };
    let (head, body) = REQUEST.split_once("\r\n\r\n").unwrap();
    let request = fields(head, &["Connection", "Content-Length"]);
    let (answer, error) = RESPONSE.split_once("\r\n\r\n").unwrap();
    let response = fields(answer, &["Connection", "Content-Length"]);
    if round == 0 {
        asked.extend([PREFACE, &settings()].concat());
        answered.extend(settings());
    }
    let length = literal("content-length", "43", false);
    asked.extend(post(stream, "/api/v1/login", &[&request[..], &[length]].concat()));
    asked.extend(data(stream, END_STREAM, body));
    let status = [&[named(STATUS, "401", false)], &response[..]].concat();
    answered.extend(headers(stream, END_HEADERS, &status));
    answered.extend(data(stream, END_STREAM, error));
    (asked, answered)
}

fn measure(version: &str, exchange: impl Fn(u64) -> (Vec<u8>, Vec<u8>)) {
    let mut http = Http::new(Settings::default(), CredentialKey::new(b"key"));
    let mut out = Vec::new();
    let (mut transactions, mut offsets) = (0, [0; 2]);
    let begun = Instant::now();
    for round in 0..ROUNDS {
        let (asked, answered) = exchange(round);
        for connection in 0..CONNECTIONS {
            for (side, data) in [(Side::Read, &asked), (Side::Write, &answered)] {
                let chunk = Chunk {
                    connection,
                    side,
                    ts: Timestamp::from_nanos(round),
                    local: ([192, 0, 2, 1], 443).into(),
                    remote: ([198, 51, 100, 7], 50_000).into(),
                    pid: 1,
                    comm: "nginx",
                    offset: offsets[usize::from(side == Side::Write)],
                    len: data.len() as u64,
                    data,
                    ja4: None,
                };
                http.chunk(&chunk, &mut out);
            }
            transactions += out.len();
            out.clear();
        }
        offsets = [offsets[0] + asked.len() as u64, offsets[1] + answered.len() as u64];
    }
    let elapsed = begun.elapsed();
    assert_eq!(transactions as u64, ROUNDS * CONNECTIONS);
    println!("{version}: {:.0} transactions/s", transactions as f64 / elapsed.as_secs_f64());
}
