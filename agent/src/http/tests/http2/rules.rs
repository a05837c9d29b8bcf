//! What the RFCs say, seen from outside.

use std::time::Duration;

use super::*;
use crate::http::http2::hpack::tests::resize;

#[test]
fn an_exchange_becomes_a_transaction() {
    let mut host = host();
    let fields = [
        named(AUTHORITY, "user@shop.example:8443", false),
        literal("content-length", "9", false),
        literal("user-agent", "curl/8", true),
        literal("cookie", "sid=s3cret", false),
        literal("authorization", "Bearer t0ken", false),
    ];
    host.read(post(1, "/api/login?next=%2F", &fields)).wait(Duration::from_millis(250));
    host.read([data(1, 0, "user="), data(1, END_STREAM, "anna")].concat());
    let fields = [type_of("text/plain"), literal("set-cookie", "sid=n3w; Path=/", false)];
    host.write(status(1, "401", &fields)).write(data(1, END_STREAM, "no"));
    let [t] = &host.out[..] else { panic!("{:?}", host.out) };
    assert_eq!((t.method.as_str(), t.path.as_str()), ("POST", "/api/login?next=%2F"));
    assert_eq!((t.host.as_str(), t.proto.as_str(), t.status), ("shop.example", "h2", Some(401)));
    assert_eq!((t.src.to_string().as_str(), t.src_port), ("198.51.100.7", 50_000));
    assert_eq!((t.req_body.as_deref(), t.req_bytes), (Some("user=anna"), Some(9)));
    assert_eq!((t.resp_body.as_deref(), t.resp_bytes), (Some("no"), Some(2)));
    assert_eq!((t.duration_ms, t.grpc_status), (Some(250.0), None));
    assert_eq!(t.req_headers.get("user-agent"), Some("curl/8"));
    assert_eq!(t.resp_headers.get("content-type"), Some("text/plain"));
    let all = format!("{t:?}");
    assert!(["s3cret", "t0ken", "n3w"].iter().all(|secret| !all.contains(secret)), "{all}");
    assert!(t.req_headers.get("authorization").unwrap().starts_with("Bearer "));
    assert_eq!(host.count(Counter::Http2Connection), 1);
}

#[test]
fn streams_are_paired_by_their_number() {
    let mut host = host();
    host.read([get(1, "/a"), get(3, "/b"), get(5, "/c")].concat());
    host.write([status(5, "205", &[]), status(1, "201", &[])].concat());
    host.write([data(1, 0, "a"), data(5, END_STREAM, "c"), data(1, END_STREAM, "")].concat());
    assert_eq!(host.pairs(), ["/c 205", "/a 201"]);
    host.close();
    assert_eq!(host.pairs(), ["/c 205", "/a 201", "/b -"]);
    assert_eq!(host.count(Counter::UnansweredRequests), 1);
}

#[test]
fn requests_that_this_host_sends_are_read_too() {
    let mut host = Host::new();
    host.write([PREFACE, &settings(), &get(1, "/a")].concat());
    host.read([settings(), ok(1, "")].concat());
    assert_eq!(host.pairs(), ["/a 200"]);
    assert_eq!(host.out[0].direction, crate::transaction::Direction::Out);
    assert_eq!(host.out[0].src.to_string(), "192.0.2.1");
}

#[test]
fn either_side_may_be_seen_first_and_in_any_pieces() {
    for step in [1, 3, 8, 9, 10, 23, 24, 25, 1_000] {
        let mut host = Host::new();
        for piece in settings().chunks(step) {
            host.write(piece);
        }
        for piece in [PREFACE, &settings(), &get(1, "/a")].concat().chunks(step) {
            host.read(piece);
        }
        for piece in ok(1, "body").chunks(step) {
            host.write(piece);
        }
        assert_eq!(host.pairs(), ["/a 200"], "by {step}");
        assert_eq!(host.count(Counter::NotHttp) + host.count(Counter::JoinedMidway), 0);
    }
}

#[test]
fn heads_go_on_in_continuations_and_have_padding() {
    let mut host = host();
    let block = [indexed(GET), indexed(HTTPS), named(PATH, "/long", false)].concat();
    let (start, end) = block.split_at(5);
    let start = [&[3][..], &[0; 4], &[16], start, b"pad"].concat();
    host.read(frame(1, 0x29, 1, &start)).read(frame(9, 0, 1, b"")).read(frame(9, 4, 1, end));
    host.write(frame(1, 0xc, 1, &[&[2][..], &indexed(STATUS), b"XX"].concat()));
    host.write(frame(0, 0x9, 1, b"\x05hello12345"));
    assert_eq!(host.pairs(), ["/long 200"]);
    assert_eq!(
        (host.out[0].resp_body.as_deref(), host.out[0].resp_bytes),
        (Some("hello"), Some(5))
    );
    assert_eq!(host.out[0].req_bytes, Some(0));
}

#[test]
fn fields_come_out_of_the_table() {
    let mut host = host();
    let agent = literal("user-agent", "curl/8", true);
    host.read([indexed(GET), indexed(HTTPS), named(PATH, "/a", true), agent].concat_headers(1));
    // The latest entry is the agent, before it the path.
    let again = [indexed(GET), indexed(HTTPS), indexed(LATEST + 1), indexed(LATEST)];
    host.read(again.concat_headers(3)).write([ok(1, ""), ok(3, "")].concat());
    assert_eq!(host.pairs(), ["/a 200", "/a 200"]);
    assert_eq!(host.out[1].req_headers.get("user-agent"), Some("curl/8"));
    // Emptied by the encoder: what it had is an error now, and the connection ends.
    let wrong = [resize(0), indexed(GET), indexed(LATEST)];
    host.read(wrong.concat_headers(5)).read(get(7, "/b"));
    assert_eq!(host.count(Counter::RequestCompression), 1);
    assert_eq!(host.out.len(), 2);
}

trait Concat {
    fn concat_headers(&self, stream: u32) -> Vec<u8>;
}

impl Concat for [Vec<u8>] {
    /// A request without body.
    fn concat_headers(&self, stream: u32) -> Vec<u8> {
        headers(stream, BOTH, self)
    }
}

#[test]
fn interim_responses_and_trailers_belong_to_their_exchange() {
    let mut host = host();
    host.read([post(1, "/a", &[]), data(1, 0, "x")].concat());
    host.read(headers(1, BOTH, &[literal("x-sum", "1", true)]));
    host.write([status(1, "103", &[]), status(1, "100", &[]), status(1, "200", &[])].concat());
    host.write([data(1, 0, "abc"), headers(1, BOTH, &[literal("x-sum", "2", true)])].concat());
    assert_eq!(host.pairs(), ["/a 200"]);
    assert_eq!((host.out[0].req_bytes, host.out[0].resp_bytes), (Some(1), Some(3)));
    assert_eq!(host.count(Counter::InterimResponses), 2);
}

#[test]
fn the_outcome_of_a_grpc_call_is_in_its_trailers() {
    let grpc = || type_of("application/grpc+proto");
    let outcome = |code: &str| literal("grpc-status", code, true);
    let mut host = host();
    host.read([post(1, "/auth.Auth/Login", &[grpc()]), data(1, END_STREAM, "\0\0\0\0\0")].concat());
    host.write([status(1, "200", &[grpc()]), data(1, 0, "\0\0\0\0\0")].concat());
    assert!(host.out.is_empty());
    host.write(headers(1, BOTH, &[outcome("16")]));
    // Trailers alone.
    host.read([post(3, "/auth.Auth/Login", &[grpc()]), data(3, END_STREAM, "")].concat());
    host.write(headers(3, BOTH, &[indexed(STATUS), grpc(), outcome("7")]));
    // What is no gRPC has none.
    host.read(get(5, "/a")).write(headers(5, BOTH, &[indexed(STATUS), outcome("7")]));
    let found: Vec<_> = host.out.iter().map(|t| (t.status, t.grpc_status)).collect();
    assert_eq!(found, [(Some(200), Some(16)), (Some(200), Some(7)), (Some(200), None)]);
    assert_eq!(host.out[0].resp_bytes, Some(5));
}

#[test]
fn a_grpc_stream_is_not_waited_for_without_end() {
    let mut host = host();
    host.read(post(1, "/chat.Chat/Talk", &[]));
    host.write(status(1, "200", &[type_of("application/grpc")]));
    for _ in 0..4 {
        host.wait(Duration::from_millis(600)).write(data(1, 0, "\0\0\0\0\0"));
    }
    assert_eq!(host.pairs(), ["/chat.Chat/Talk 200"]);
    assert_eq!(host.out[0].duration_ms, Some(2_400.0));
    host.write(headers(1, BOTH, &[literal("grpc-status", "0", false)])).close();
    assert_eq!(host.out.len(), 1);
}

#[test]
fn slow_bodies_are_handed_on_when_patience_ends() {
    let mut host = host();
    host.read([get(1, "/a"), get(3, "/b")].concat()).write(status(1, "200", &[]));
    host.wait(Duration::from_secs(1)).write(status(3, "200", &[]));
    host.wait(Duration::from_secs(1)).write(data(3, 0, "x"));
    assert_eq!(host.pairs(), ["/a 200"]);
    host.wait(Duration::from_secs(1)).write(window());
    assert_eq!(host.pairs(), ["/a 200", "/b 200"]);
    assert_eq!(host.out[1].duration_ms, Some(3_000.0));
}

#[test]
fn streams_that_are_reset_are_requests_without_response() {
    let mut host = host();
    for stream in (1..200).step_by(2) {
        host.read([get(stream, "/a"), reset(stream)].concat());
    }
    assert_eq!((host.out.len(), host.count(Counter::ResetStreams)), (100, 100));
    // The server's answers may have been on their way.
    host.write(ok(1, ""));
    // A response that is cut off is one.
    host.read(get(201, "/b")).write([status(201, "200", &[]), reset(201)].concat());
    assert_eq!(host.pairs().last().unwrap(), "/b 200");
    assert_eq!(host.count(Counter::ResetStreams), 100);
    assert_eq!(host.count(Counter::ResponsesWithoutRequest), 0);
}

#[test]
fn websockets_and_tunnels_are_left_in_peace() {
    let mut host = host();
    let connect = || named(2, "CONNECT", false);
    let websocket = [
        connect(),
        indexed(HTTPS),
        literal(":protocol", "websocket", false),
        named(PATH, "/chat", false),
        named(AUTHORITY, "shop.example", false),
    ];
    host.read(headers(1, END_HEADERS, &websocket)).write(status(1, "200", &[]));
    assert_eq!(host.pairs(), ["/chat 200"]);
    let tunnel = [connect(), named(AUTHORITY, "inner:443", false)];
    host.read(headers(3, END_HEADERS, &tunnel)).write(status(3, "200", &[]));
    assert_eq!(host.pairs()[1..], ["inner:443 200"]);
    let kept = host.http.buffered_bytes();
    for _ in 0..100 {
        host.read(data(1, 0, "frames")).write(data(1, 0, "frames")).read(data(3, 0, "bytes"));
    }
    assert_eq!((host.out.len(), host.http.buffered_bytes()), (2, kept));
    assert_eq!((host.count(Counter::Upgraded), host.count(Counter::Tunnels)), (1, 1));
    // Other streams go on.
    host.read(get(5, "/a")).write(ok(5, ""));
    assert_eq!(host.pairs()[2..], ["/a 200"]);
}

#[test]
fn event_streams_are_handed_on_at_once_in_both_versions() {
    let mut two = host();
    two.read(get(1, "/events")).write(status(1, "200", &[type_of("text/event-stream")]));
    let mut one = Host::new();
    one.read("GET /events HTTP/1.1\r\n\r\n");
    one.write("HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream; charset=utf-8\r\n\r\n");
    for mut host in [one, two] {
        assert_eq!(host.pairs(), ["/events 200"]);
        assert_eq!(host.count(Counter::EventStreams), 1);
        host.write("data: x\n\n").close();
        assert_eq!((host.out.len(), host.out[0].resp_body.as_deref()), (1, None));
    }
}

#[test]
fn pushed_responses_are_passed_over_and_keep_the_table() {
    let mut host = host();
    let request = [indexed(GET), named(PATH, "/style.css", true)].concat();
    host.read(get(1, "/a")).write(frame(5, 4, 1, &[&[0, 0, 0, 2][..], &request].concat()));
    host.write([ok(2, "css"), status(1, "200", &[indexed(LATEST)])].concat());
    host.write(data(1, END_STREAM, ""));
    assert_eq!(host.pairs(), ["/a 200"]);
    assert_eq!(host.count(Counter::PushedResponses), 1);
}

#[test]
fn what_is_no_message_is_left_out_and_the_rest_goes_on() {
    let path = || named(PATH, "/x", false);
    let long = named(PATH, &"x".repeat(70_000), false);
    // Too long for a frame, but not for this reader.
    let requests: [Vec<Vec<u8>>; 5] = [
        vec![indexed(HTTPS), path()],
        vec![indexed(GET), indexed(HTTPS)],
        vec![indexed(GET), path(), path()],
        vec![named(2, "G T", false), path()],
        vec![indexed(GET), named(PATH, "", false)],
    ];
    let mut host = host();
    for (stream, fields) in (1..).step_by(2).zip(&requests) {
        host.read(headers(stream, BOTH, fields)).write(status(stream, "400", &[]));
    }
    assert_eq!((host.out.len(), host.count(Counter::MalformedRequest)), (0, 5));
    host.read(get(21, "/a")).write(status(21, "2000", &[])).read(get(23, "/b")).write(ok(23, ""));
    assert_eq!(host.pairs(), ["/a -", "/b 200"]);
    assert_eq!(host.count(Counter::MalformedResponse), 1);
    let block = [indexed(GET), long].concat();
    let (first, rest) = block.split_at(16_000);
    host.read(frame(1, END_STREAM, 25, first));
    for piece in rest.chunks(16_000) {
        host.read(frame(9, 0, 25, piece));
    }
    host.read(frame(9, END_HEADERS, 25, b"")).read(get(27, "/c")).write(ok(27, ""));
    assert_eq!(host.pairs().last().unwrap(), "/c 200");
    assert!(host.count(Counter::RequestHeadTooLong) >= 1);
}

#[test]
fn heads_are_read_to_the_limit_whatever_their_table_holds() {
    // One entry of 4,000 bytes, named 10,000 times over.
    let mut host = host();
    let bomb = [
        vec![indexed(GET), named(PATH, "/bomb", false), literal("x", &"y".repeat(4_000), true)],
        vec![indexed(LATEST); 10_000],
    ];
    host.read(headers(1, BOTH, &bomb.concat())).write(ok(1, ""));
    assert_eq!(host.pairs(), ["/bomb 200"]);
    assert!(host.out[0].req_headers.len() < 20);
    assert_eq!(host.count(Counter::RequestHeadTooLong), 1);
}

#[test]
fn a_flood_of_continuations_keeps_nothing() {
    let mut host = host();
    host.read(get(1, "/a")).read(frame(1, 0, 3, &indexed(GET)));
    let field = literal("x-flood", &"y".repeat(1_000), false);
    for _ in 0..1_000 {
        host.read(frame(9, 0, 3, &field));
        assert!(host.http.buffered_bytes() < 200_000, "{}", host.http.buffered_bytes());
    }
    host.write(ok(1, ""));
    assert_eq!(host.pairs(), ["/a 200"]);
}

#[test]
fn streams_at_a_time_are_bounded() {
    let mut host = begun(Host::with(Settings { max_pipelined: 3, ..Settings::default() }));
    host.read([get(1, "/a"), get(3, "/b"), get(5, "/c"), get(7, "/d")].concat());
    assert_eq!(host.pairs(), ["/a -"]);
    host.write([ok(1, ""), ok(3, ""), ok(5, ""), ok(7, "")].concat());
    assert_eq!(host.pairs(), ["/a -", "/b 200", "/c 200", "/d 200"]);
    assert_eq!(host.count(Counter::PipelineOverflow), 1);
}

#[test]
fn frames_that_end_a_connection_end_its_reading() {
    let mut host = host();
    host.read(get(1, "/a")).read(frame(6, 0, 1, &[0; 8])).read(get(3, "/b")).write(ok(1, ""));
    assert_eq!(host.pairs(), ["/a -"]);
    assert_eq!(host.count(Counter::RequestFrame), 1);
    let mut host = super::host();
    host.read(get(1, "/a")).write(frame(3, 0, 0, &[0; 4]));
    assert_eq!((host.pairs(), host.count(Counter::ResponseFrame)), (vec!["/a -".to_owned()], 1));
}

#[test]
fn nothing_is_kept_of_finished_exchanges() {
    let mut host = host();
    host.read(get(1, "/a")).write(ok(1, "body"));
    let idle = host.http.buffered_bytes();
    for stream in (3..2_000).step_by(2) {
        host.read(get(stream, "/a"));
    }
    for stream in (3..2_000).step_by(2) {
        host.write(ok(stream, "body"));
    }
    assert_eq!(host.out.len(), 1_000);
    assert_eq!(host.http.buffered_bytes(), idle);
}
