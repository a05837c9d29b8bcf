//! Lost and repeated bytes.

use super::{Counter, Host, Settings, get, ok};
use crate::flow::Side;

const LENGTH_20: &str = "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn losses_within_a_body_keep_the_pairing() {
    // (start of the response, lost, its end, resp_bytes)
    let table = [
        (format!("{LENGTH_20}abc"), 10, "6789012", Some(20)),
        (format!("{LENGTH_20}abc"), 17, "", Some(20)),
        (LENGTH_20.to_owned(), 1, "1234567890123456789", Some(20)),
        (format!("{CHUNKED}14\r\nabc"), 10, "6789012\r\n0\r\n\r\n", None),
        (format!("{CHUNKED}14\r\nabc"), 17, "\r\n0\r\n\r\n", None),
    ];
    for (start, lost, end, bytes) in &table {
        for cut in [true, false] {
            let mut host = Host::new();
            host.read(get("/a") + &get("/b"));
            // Either the call's end was cut off or calls were lost between.
            if cut {
                host.chunk(Side::Write, start.as_bytes(), *lost);
            } else {
                host.write(start).lose(Side::Write, *lost);
            }
            host.write(end.to_string() + &ok("b"));
            assert_eq!(host.pairs(), ["/a 200", "/b 200"], "{start:?}");
            assert_eq!(host.out[0].resp_bytes, *bytes, "{start:?}");
            assert_eq!(host.count(Counter::GapBytes), *lost);
            assert_eq!(host.count(Counter::GapDesync), 0);
        }
    }
}

#[test]
fn a_body_is_kept_up_to_the_loss() {
    let mut host = Host::new();
    host.read("POST /a HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc").lose(Side::Read, 4);
    host.read("hij".to_owned() + &get("/b")).write(ok("") + &ok(""));
    assert_eq!(host.pairs(), ["/a 200", "/b 200"]);
    assert_eq!((host.out[0].req_body.as_deref(), host.out[0].req_bytes), (Some("abc"), Some(10)));
}

#[test]
fn a_body_until_the_close_may_lose_anything() {
    let mut host = Host::new();
    host.read(get("/a")).write("HTTP/1.1 200 OK\r\n\r\nabc").lose(Side::Write, 1_000);
    host.write("HTTP/1.1 500 Not a response\r\n\r\n").close();
    assert_eq!(host.pairs(), ["/a 200"]);
    assert_eq!(host.count(Counter::GapDesync), 0);
}

#[test]
fn a_loss_elsewhere_in_responses_ends_the_pairing() {
    for start in
        ["", "HTTP/1.1 2", &format!("{LENGTH_20}01234567890123456789"), &format!("{CHUNKED}2")]
    {
        let mut host = Host::new();
        host.read(get("/a") + &get("/b") + &get("/c")).write(start).lose(Side::Write, 30);
        host.write(ok("x")).read(get("/d")).write(ok("d")).close();
        let paired = host.out.iter().filter(|t| t.status.is_some()).count();
        assert_eq!(paired, usize::from(start.contains("Length") || start.contains("chunked")));
        assert_eq!(host.out.len(), 4, "{start:?}");
        assert_eq!(host.count(Counter::GapDesync), 1);
        assert_eq!(host.count(Counter::UnpairedRequests), 1);
    }
}

#[test]
fn a_loss_of_requests_keeps_earlier_pairs_and_finds_later_requests() {
    let mut host = Host::new();
    host.read(get("/a") + &get("/b") + "GET /lo").lose(Side::Read, 100);
    host.read("middle of something").read(get("/d") + &get("/e"));
    host.write(ok("a") + &ok("b") + &ok("c") + &ok("d")).close();
    let mut pairs = host.pairs();
    pairs.sort();
    assert_eq!(pairs, ["/a 200", "/b 200", "/d -", "/e -"]);
    assert_eq!(host.count(Counter::GapDesync), 1);
    assert_eq!(host.count(Counter::UnpairedRequests), 2);
}

#[test]
fn unpaired_requests_have_their_bodies() {
    let mut host = Host::with(Settings { body_excerpt: 4, ..Settings::default() });
    host.lose(Side::Read, 9).read("POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nab");
    assert!(host.out.is_empty());
    host.read("c".to_owned() + "POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nabcdef");
    assert_eq!(host.pairs(), ["/a -", "/b -"]);
    host.read("\r\n0\r\n\r\n".to_owned() + &get("/c"));
    assert_eq!(host.pairs(), ["/a -", "/b -", "/c -"]);
    let bodies: Vec<_> = host.out.iter().map(|t| (t.req_body.as_deref(), t.req_bytes)).collect();
    assert_eq!(bodies, [(Some("abc"), Some(3)), (Some("abcd"), None), (None, Some(0))]);
    assert_eq!(host.count(Counter::JoinedMidway), 1);
}

#[test]
fn repeated_bytes_are_read_once() {
    let mut host = Host::new();
    let request = get("/a");
    host.read(&request).chunk_at(Side::Read, 0, request.as_bytes(), 0);
    let both = get("/a") + &get("/b");
    host.chunk_at(Side::Read, 0, both.as_bytes(), 0).write(ok("a") + &ok("b")).close();
    assert_eq!(host.pairs(), ["/a 200", "/b 200"]);
    assert_eq!(host.count(Counter::RepeatedBytes), 2 * request.len() as u64);
}

#[test]
fn positions_at_the_end_of_their_range_do_no_harm() {
    let mut host = Host::new();
    host.read(get("/a"));
    host.chunk_at(Side::Write, u64::MAX, b"HTTP/1.1 200 OK\r\n\r\n", u64::MAX - 19);
    host.chunk_at(Side::Read, u64::MAX - 1, b"GET", 0).close();
    assert_eq!(host.pairs(), ["/a -"]);
}
