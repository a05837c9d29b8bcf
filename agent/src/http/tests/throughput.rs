//! How fast the stage is. Prints a figure and asserts nothing about time:
//! `cargo test --release -p portcullis --lib http::tests::throughput -- --ignored --nocapture`

use std::time::Instant;

use super::{CredentialKey, Http, Settings};
use crate::flow::{Chunk, Side};
use crate::time::Timestamp;

const REQUEST: &str = "POST /api/v1/login HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36\r\nAccept: application/json\r\nAccept-Encoding: gzip, deflate, br\r\nAccept-Language: en-GB,en;q=0.9\r\nContent-Type: application/json\r\nCookie: session=0123456789abcdef0123456789abcdef\r\nConnection: keep-alive\r\nContent-Length: 42\r\n\r\n{\"user\":\"anna@example\",\"password\":\"s3cret\"}";
const RESPONSE: &str = "HTTP/1.1 401 Unauthorized\r\nServer: nginx\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nContent-Type: application/json\r\nContent-Length: 32\r\nConnection: keep-alive\r\n\r\n{\"error\":\"invalid credentials!\"}";

#[test]
#[ignore = "prints a measurement"]
fn transactions_per_second() {
    const CONNECTIONS: u64 = 1_000;
    const ROUNDS: u64 = 500;
    let request = REQUEST.replace("Length: 42", "Length: 43");
    let mut http = Http::new(Settings::default(), CredentialKey::new(b"key"));
    let mut out = Vec::new();
    let mut transactions = 0;
    let begun = Instant::now();
    for round in 0..ROUNDS {
        for connection in 0..CONNECTIONS {
            for (side, data) in [(Side::Read, request.as_str()), (Side::Write, RESPONSE)] {
                let len = data.len() as u64;
                let chunk = Chunk {
                    connection,
                    side,
                    ts: Timestamp::from_nanos(round),
                    local: ([192, 0, 2, 1], 443).into(),
                    remote: ([198, 51, 100, 7], 50_000).into(),
                    pid: 1,
                    comm: "nginx",
                    offset: round * len,
                    len,
                    data: data.as_bytes(),
                    ja4: None,
                };
                http.chunk(&chunk, &mut out);
            }
            transactions += out.len();
            out.clear();
        }
    }
    let elapsed = begun.elapsed();
    assert_eq!(transactions as u64, ROUNDS * CONNECTIONS);
    println!("{:.0} transactions/s", transactions as f64 / elapsed.as_secs_f64());
}
