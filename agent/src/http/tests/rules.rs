//! Pairing, bodies and what a transaction says.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::{Counter, Host, Settings, get, ok};
use crate::flow::Side;
use crate::transaction::Direction;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

#[test]
fn a_served_exchange_becomes_a_transaction() {
    let mut host = Host::new();
    host.read("POST /login?x=1 HTTP/1.1\r\nHost: Shop.example:8443\r\nAuthorization: Bearer abc\r\nContent-Length: 9\r\n\r\nuser=anna");
    let begun = host.now;
    host.wait(Duration::from_millis(25));
    host.write(
        "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nSet-Cookie: s=1; Secure\r\n\r\nno",
    );
    let [t] = &host.out[..] else { panic!("{:?}", host.out) };
    assert_eq!((t.ts, t.duration_ms), (begun, Some(25.0)));
    assert_eq!((t.src, t.src_port), (CLIENT, 50_000));
    assert_eq!((t.dst, t.dst_port), (Some(SERVER), Some(443)));
    assert_eq!((t.pid, t.comm.as_deref()), (Some(77), Some("nginx")));
    assert_eq!(t.direction, Direction::In);
    assert_eq!((t.proto.as_str(), t.scheme.as_str()), ("http/1.1", "https"));
    assert_eq!((t.host.as_str(), t.method.as_str()), ("Shop.example", "POST"));
    assert_eq!((t.path.as_str(), t.status), ("/login?x=1", Some(401)));
    assert_eq!((t.req_body.as_deref(), t.req_bytes), (Some("user=anna"), Some(9)));
    assert_eq!((t.resp_body.as_deref(), t.resp_bytes), (Some("no"), Some(2)));
    assert_eq!(t.req_headers.get("host"), Some("Shop.example:8443"));
    let hash = super::CredentialKey::new(b"key").hash(b"abc");
    assert_eq!(t.req_headers.get("authorization"), Some(format!("Bearer {hash}").as_str()));
    assert!(!t.resp_headers.get("set-cookie").unwrap().contains("s=1;"));
}

#[test]
fn a_client_is_recognised_by_what_it_writes() {
    let mut host = Host::new();
    host.write(get("/out")).read(ok("hi"));
    let [t] = &host.out[..] else { panic!("{:?}", host.out) };
    assert_eq!(t.direction, Direction::Out);
    assert_eq!((t.src, t.src_port), (SERVER, 443));
    assert_eq!((t.dst, t.dst_port), (Some(CLIENT), Some(50_000)));
}

#[test]
fn a_connection_keeps_the_fingerprint_that_it_began_with() {
    let mut host = Host::new();
    assert!(!host.http.knows(1));
    host.ja4 = Some("first".into());
    host.read(get("/a"));
    assert!(host.http.knows(1));
    host.ja4 = Some("later".into());
    host.write(ok("")).read(get("/b")).write(ok(""));
    host.on(2).read(get("/c")).write(ok(""));
    host.ja4 = None;
    host.on(3).read(get("/d")).write(ok(""));
    let all: Vec<_> = host.out.iter().map(|t| (t.path.as_str(), t.ja4.as_deref())).collect();
    let (first, later) = (Some("first"), Some("later"));
    assert_eq!(all, [("/a", first), ("/b", first), ("/c", later), ("/d", None)]);
}

#[test]
fn requests_and_responses_are_paired_in_order() {
    let mut host = Host::new();
    host.read(get("/a") + &get("/b")).write(ok("a"));
    assert_eq!(host.pairs(), ["/a 200"]);
    host.read(get("/c")).write(ok("b") + "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(host.pairs(), ["/a 200", "/b 200", "/c 404"]);
    assert_eq!(host.out[1].resp_body.as_deref(), Some("b"));
    assert_eq!(host.out[2].resp_body, None);
    host.close();
    assert_eq!(host.count(Counter::Transactions), 3);
    assert_eq!(host.count(Counter::UnansweredRequests), 0);
}

#[test]
fn responses_without_a_body_whatever_their_fields() {
    let mut host = Host::new();
    host.read("HEAD /a HTTP/1.1\r\n\r\n".to_owned() + &get("/b") + &get("/c") + &get("/d"));
    host.write("HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n");
    host.write("HTTP/1.1 204 No Content\r\n\r\n");
    host.write("HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n").write(ok("d"));
    assert_eq!(host.pairs(), ["/a 200", "/b 204", "/c 304", "/d 200"]);
    assert_eq!(host.out[0].resp_bytes, Some(0));
}

#[test]
fn interim_responses_are_passed_over() {
    let mut host = Host::new();
    host.read("POST /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    host.write("HTTP/1.1 100 Continue\r\n\r\n").read("hi");
    host.write("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n".to_owned() + &ok("done"));
    assert_eq!(host.pairs(), ["/a 200"]);
    assert_eq!(host.out[0].req_body.as_deref(), Some("hi"));
    assert_eq!(host.count(Counter::InterimResponses), 2);
}

#[test]
fn chunked_bodies_both_ways() {
    let mut host = Host::new();
    host.read("PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: v\r\n\r\n");
    host.read(get("/b"));
    host.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwxyz\r\n0\r\n\r\n")
        .write(ok("b"));
    assert_eq!(host.pairs(), ["/a 200", "/b 200"]);
    assert_eq!((host.out[0].req_body.as_deref(), host.out[0].req_bytes), (Some("abcde"), Some(5)));
    assert_eq!((host.out[0].resp_body.as_deref(), host.out[0].resp_bytes), (Some("wxyz"), Some(4)));
}

#[test]
fn a_body_may_end_with_the_connection() {
    let mut host = Host::new();
    host.read("GET /a HTTP/1.0\r\n\r\n").write("HTTP/1.0 200 OK\r\n\r\npart").write(" two");
    assert!(host.out.is_empty());
    host.close();
    assert_eq!(host.pairs(), ["/a 200"]);
    assert_eq!(host.out[0].proto, "http/1.0");
    assert_eq!(
        (host.out[0].resp_body.as_deref(), host.out[0].resp_bytes),
        (Some("part two"), Some(8))
    );
    assert_eq!(host.http.connections(), 0);
}

#[test]
fn an_upgrade_is_handed_on_and_the_rest_is_left_alone() {
    let mut host = Host::new();
    host.read("GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n");
    host.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\u{1}\u{2}");
    host.read("\u{1}not http\r\n\r\n").write(ok("no")).close();
    assert_eq!(host.pairs(), ["/ws 101"]);
    assert_eq!((host.count(Counter::Upgraded), host.count(Counter::MalformedRequest)), (1, 0));
}

#[test]
fn a_tunnel_is_handed_on_and_the_rest_is_left_alone() {
    let mut host = Host::new();
    host.read("CONNECT db:5432 HTTP/1.1\r\n\r\n").read(get("/inside"));
    host.write("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n".to_owned() + &ok("x")).close();
    assert_eq!(host.pairs(), ["db:5432 200"]);
    assert_eq!(host.count(Counter::Tunnels), 1);
}

#[test]
fn requests_after_a_refused_tunnel_are_read() {
    let mut host = Host::new();
    host.read("CONNECT db:5432 HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi".to_owned() + &get("/b"));
    host.write("HTTP/1.1 405 No\r\nContent-Length: 2\r\n\r\nno").write(ok("b"));
    assert_eq!(host.pairs(), ["db:5432 405", "/b 200"]);
}

#[test]
fn a_response_may_come_before_the_request_has_ended() {
    let mut host = Host::new();
    host.read("POST /big HTTP/1.1\r\nContent-Length: 10\r\n\r\n01234");
    host.write("HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(host.pairs(), ["/big 413"]);
    assert_eq!((host.out[0].req_body.as_deref(), host.out[0].req_bytes), (Some("01234"), Some(10)));
    host.read("56789".to_owned() + &get("/next")).write(ok("n"));
    assert_eq!(host.pairs(), ["/big 413", "/next 200"]);
}

#[test]
fn a_request_body_that_ends_during_its_response_is_complete() {
    let mut host = Host::new();
    host.read("POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n");
    host.write("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nxy")
        .read("1\r\nc\r\n0\r\n\r\n")
        .write("zz");
    assert_eq!(host.pairs(), ["/a 200"]);
    assert_eq!((host.out[0].req_body.as_deref(), host.out[0].req_bytes), (Some("abc"), Some(3)));
}

#[test]
fn a_transaction_waits_for_no_more_than_the_excerpt() {
    let mut host = Host::with(Settings { body_excerpt: 4, ..Settings::default() });
    host.read(get("/length")).write("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc");
    assert!(host.out.is_empty());
    host.write("de");
    assert_eq!(host.pairs(), ["/length 200"]);
    host.write("fghi").read(get("/chunked"));
    host.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabcde");
    assert_eq!(host.pairs(), ["/length 200", "/chunked 200"]);
    host.write("fghi\r\n0\r\n\r\n").read(get("/next")).write(ok(""));
    assert_eq!(host.pairs(), ["/length 200", "/chunked 200", "/next 200"]);
    let bodies: Vec<_> = host.out.iter().map(|t| (t.resp_body.as_deref(), t.resp_bytes)).collect();
    assert_eq!(bodies, [(Some("abcd"), Some(9)), (Some("abcd"), None), (None, Some(0))]);
}

#[test]
fn a_stream_is_handed_on_while_it_goes_on() {
    let mut host = Host::new();
    host.read(get("/events")).write("HTTP/1.1 200 OK\r\n\r\ndata: 1\n\n");
    host.wait(Duration::from_secs(1)).write("data: 2\n\n");
    assert!(host.out.is_empty());
    host.wait(Duration::from_secs(1)).write("data: 3\n\n");
    assert_eq!(host.pairs(), ["/events 200"]);
    host.write("data: 4\n\n").close();
    assert_eq!(host.count(Counter::Transactions), 1);
}

#[test]
fn coded_responses_have_sizes_but_no_excerpt() {
    let mut host = Host::new();
    host.read("POST /a HTTP/1.1\r\nContent-Encoding: br\r\nContent-Length: 9\r\n\r\nuser=anna");
    host.write("HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\n");
    assert_eq!(host.pairs(), ["/a 200"]);
    host.write("xx")
        .read("POST /b HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n");
    host.write("HTTP/1.1 200 OK\r\nContent-Encoding: identity\r\nContent-Length: 2\r\n\r\nyy");
    let bodies: Vec<_> = host
        .out
        .iter()
        .map(|t| (t.req_body.as_deref(), t.req_bytes, t.resp_body.as_deref(), t.resp_bytes))
        .collect();
    // A client may claim a coding that its body does not have.
    let expected =
        [(Some("user=anna"), Some(9), None, Some(2)), (Some("x"), Some(1), Some("yy"), Some(2))];
    assert_eq!(bodies, expected);
}

#[test]
fn empty_lines_before_a_request_are_passed_over() {
    let mut host = Host::new();
    host.read("\r\n\r\n".to_owned() + &get("/a") + "\r\n" + &get("/b")).write(ok("") + &ok(""));
    assert_eq!(host.pairs(), ["/a 200", "/b 200"]);
}

#[test]
fn a_response_without_request_ends_the_pairing() {
    let mut host = Host::new();
    host.read(get("/a")).write(ok("") + &ok("unasked")).read(get("/b")).write(ok("")).close();
    assert_eq!(host.pairs(), ["/a 200", "/b -"]);
    assert_eq!(host.count(Counter::ResponsesWithoutRequest), 1);
    assert_eq!(host.count(Counter::UnpairedRequests), 1);
}

#[test]
fn what_a_closed_connection_leaves_is_handed_on() {
    let mut host = Host::new();
    host.read(get("/a") + &get("/b") + "GET /half")
        .write("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab");
    host.close();
    assert_eq!(host.pairs(), ["/a 200", "/b -"]);
    assert_eq!((host.out[0].resp_body.as_deref(), host.out[0].resp_bytes), (Some("ab"), Some(9)));
    assert_eq!((host.out[1].status, host.out[1].duration_ms), (None, None));
    assert_eq!(host.count(Counter::UnansweredRequests), 1);
    assert_eq!(host.count(Counter::IncompleteRequests), 1);
}

/// (what the client sends, what is counted).
const MALFORMED_REQUESTS: &[(&str, Counter)] = &[
    ("GET / HTTP/1.1\r\nA: b\rc\r\n\r\n", Counter::MalformedRequest),
    ("GET / HTTP/1.1\r\nContent-Length : 1\r\n\r\n", Counter::MalformedRequest),
    (
        "GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        Counter::RequestContentLength,
    ),
    ("GET / HTTP/1.1\r\nContent-Length: 5x\r\n\r\n", Counter::RequestContentLength),
    (
        "GET / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        Counter::RequestLengthConflict,
    ),
    ("GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", Counter::RequestTransferEncoding),
    ("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Counter::RequestTransferEncoding),
];

/// What breaks RFC 9112 and widespread servers answer all the same.
#[test]
fn what_servers_answer_is_seen() {
    let many = format!("POST /login HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(300));
    let full = format!("POST /login HTTP/1.1\r\n{}\r\n", "A:\n".repeat(21_000));
    let requests: &[(&[u8], &str)] = &[
        (b"POST /login HTTP/1.2\r\n\r\n", "/login"),
        (b"POST  /login  HTTP/1.1\r\n\r\n", "/login"),
        (b"POST /login HTTP/1.1\r\nX@y: 1\r\n\r\n", "/login"),
        (b"POST /login HTTP/1.1\r\nno colon\r\n\r\n", "/login"),
        (many.as_bytes(), "/login"),
        (full.as_bytes(), "/login"),
        (b"POST /login HTTP/1.1\r\nA: \x01\r\n\r\n", "/login"),
        (b"POST /login?\xff HTTP/1.1\r\n\r\n", "/login?%FF"),
        (b"POST /login HTTP/1.1\nTransfer-Encoding: chunked\n\n1\na\n0\n\n", "/login"),
    ];
    for (request, path) in requests {
        // The first request of a connection and a later one.
        let mut host = Host::new();
        host.read(request).write(ok("")).read(get("/b")).read(request).write(ok("") + &ok(""));
        let expected = [format!("{path} 200"), "/b 200".to_owned(), format!("{path} 200")];
        assert_eq!(host.pairs(), expected, "{:?}", String::from_utf8_lossy(request));
        // … and one after a loss.
        host.lose(Side::Read, 9).read([b"\r\n", *request].concat()).close();
        assert_eq!(host.pairs().last(), Some(&format!("{path} -")));
    }
}

#[test]
fn a_long_method_keeps_the_pairing() {
    let method = "ABCDEFGHIJ".repeat(400);
    for step in [7, 1_000, 10_000] {
        let mut host = Host::new();
        for piece in format!("{method} /a HTTP/1.1\r\n\r\n").as_bytes().chunks(step) {
            host.read(piece);
        }
        host.write("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        host.read(get("/b")).write(ok(""));
        assert_eq!(host.pairs(), ["/a 404", "/b 200"]);
        assert_eq!(host.out[0].method, method);
    }
    // What is kept of it counts as memory.
    let mut host = Host::with(Settings { max_buffered_bytes: 1_000, ..Settings::default() });
    host.read(&method);
    assert_eq!((host.http.buffered_bytes(), host.count(Counter::EvictedForMemory)), (0, 1));
}

#[test]
fn nothing_is_read_after_a_malformed_request() {
    for (request, counter) in MALFORMED_REQUESTS {
        let mut host = Host::new();
        host.read(get("/a") + &get("/b") + request + &get("/c")).write(ok("a") + &ok("b"));
        host.write("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").read(get("/d")).close();
        assert_eq!(host.pairs(), ["/a 200", "/b 200"], "{request:?}");
        assert_eq!(host.count(*counter), 1, "{request:?}");
    }
}

#[test]
fn a_malformed_chunk_leaves_its_request_to_be_answered() {
    let mut host = Host::new();
    host.read("POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n");
    host.write("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        .read(get("/b"))
        .write(ok(""));
    assert_eq!(host.pairs(), ["/a 400"]);
    assert_eq!(host.count(Counter::RequestChunk), 1);
}

#[test]
fn nothing_is_read_after_a_malformed_response() {
    let table = [
        ("HTTP/1.1 abc\r\n\r\n", Counter::MalformedResponse, "/a -"),
        ("\r\nHTTP/1.1 200 OK\r\n\r\n", Counter::MalformedResponse, "/a -"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n", Counter::ResponseContentLength, "/a -"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            Counter::ResponseLengthConflict,
            "/a -",
        ),
        (
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            Counter::ResponseTransferEncoding,
            "/a -",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz",
            Counter::ResponseChunk,
            "/a 200",
        ),
    ];
    for (response, counter, first) in table {
        let mut host = Host::new();
        host.read(get("/a") + &get("/b")).write(response).read(get("/c")).write(ok("")).close();
        assert_eq!(host.pairs(), [first, "/b -"], "{response:?}");
        assert_eq!(host.count(counter), 1, "{response:?}");
    }
}

#[test]
fn heads_are_bounded() {
    let long = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(70_000));
    let mut host = Host::new();
    host.read(long);
    assert_eq!(host.count(Counter::RequestHeadTooLong), 1);
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(257));
    let mut host = Host::new();
    host.read(get("/a")).write(many);
    assert_eq!(host.count(Counter::ResponseTooManyFields), 1);
    let mut host = Host::new();
    host.read(get("/a")).write(format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(70_000)));
    assert_eq!(host.count(Counter::ResponseHeadTooLong), 1);
    assert_eq!(host.pairs(), ["/a -"]);
}

#[test]
fn other_protocols_are_counted_and_left_alone() {
    let table = [
        (Side::Read, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Counter::Http2Connection),
        (Side::Write, "\0\0\u{6}\u{4}\0\0\0\0\0\0\u{3}\0\0\0\u{64}", Counter::Http2Connection),
        (Side::Read, "\u{10}\u{1}MQTT", Counter::NotHttp),
        (Side::Write, "220 mail.example ESMTP\r\n\r\n", Counter::NotHttp),
    ];
    for (side, data, counter) in table {
        let mut host = Host::new();
        host.chunk(side, data.as_bytes(), 0).read("more").write("more").close();
        assert!(host.out.is_empty());
        assert_eq!(host.count(counter), 1, "{data:?}");
        assert_eq!(host.count(Counter::MalformedRequest), 0, "{data:?}");
    }
}
