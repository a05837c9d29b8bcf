//! Lost bytes.

use super::*;

#[test]
fn losses_within_content_cost_only_what_was_lost() {
    for as_cut in [true, false] {
        let mut host = host();
        let body = data(1, END_STREAM, "0123456789");
        host.read([post(1, "/a", &[]), get(3, "/b")].concat());
        lose(&mut host, Side::Read, &body[..12], 5, as_cut);
        host.read([&body[17..], &get(5, "/c")].concat());
        host.write(status(1, "200", &[]));
        lose(&mut host, Side::Write, &body[..12], 7, as_cut);
        host.write([ok(3, "b"), ok(5, "c")].concat());
        assert_eq!(host.pairs(), ["/a 200", "/b 200", "/c 200"]);
        assert_eq!(
            (host.out[0].req_body.as_deref(), host.out[0].req_bytes),
            (Some("012"), Some(10))
        );
        assert_eq!(host.out[0].resp_body.as_deref(), Some("012"));
        assert_eq!((host.count(Counter::GapBytes), host.count(Counter::GapDesync)), (12, 0));
    }
}

#[test]
fn a_lost_head_leaves_its_stream_and_later_entries_without_names() {
    for as_cut in [true, false] {
        let mut host = host();
        let fields = [indexed(GET), named(PATH, "/kept", true), literal("x-a", "1", true)];
        host.read(headers(1, BOTH, &fields));
        // This head adds who knows what to the table.
        let lost = headers(3, BOTH, &[indexed(GET), named(PATH, "/lost", true)]);
        lose(&mut host, Side::Read, &lost[..10], lost.len() - 10, as_cut);
        host.read(headers(5, BOTH, &[indexed(POST), indexed(LATEST + 2), indexed(LATEST)]));
        let fields = [indexed(GET), named(PATH, "/new", true), literal("x-b", "2", true)];
        host.read(headers(7, BOTH, &fields));
        host.read(headers(9, BOTH, &[indexed(GET), indexed(LATEST + 1), indexed(LATEST)]));
        for stream in [1, 3, 5, 7, 9] {
            host.write(ok(stream, ""));
        }
        assert_eq!(host.pairs(), ["/kept 200", "* 200", "* 200", "/new 200", "/new 200"]);
        let methods: Vec<_> = host.out.iter().map(|t| t.method.as_str()).collect();
        assert_eq!(methods, ["GET", "*", "POST", "GET", "GET"]);
        let fields: Vec<_> = host.out[2].req_headers.iter().collect();
        assert_eq!(fields, [("*", ""), ("*", "")]);
        assert_eq!(host.out[4].req_headers.get("x-b"), Some("2"));
        assert_eq!(host.count(Counter::UnknownFields), 2);
        assert_eq!(
            (host.count(Counter::GapDesync), host.count(Counter::RequestCompression)),
            (0, 0)
        );
    }
}

#[test]
fn a_lost_response_head_leaves_the_request_without_status() {
    let mut host = host();
    host.read([get(1, "/a"), get(3, "/b")].concat());
    let lost = status(1, "401", &[literal("x", "y", true)]);
    host.chunk(Side::Write, &lost[..9], lost.len() as u64 - 9);
    host.write([data(1, END_STREAM, "no"), ok(3, "")].concat());
    assert_eq!(host.pairs(), ["/a -", "/b 200"]);
    assert_eq!(host.count(Counter::UnpairedRequests), 1);
}

#[test]
fn the_outcome_of_a_grpc_call_survives_losses_of_its_messages() {
    let mut host = host();
    host.read(post(1, "/a.A/B", &[])).write(status(1, "200", &[type_of("application/grpc")]));
    let message = data(1, 0, "0123456789");
    host.chunk(Side::Write, &message[..12], 7);
    host.write(headers(1, BOTH, &[literal("grpc-status", "16", false)]));
    assert_eq!((host.out[0].grpc_status, host.out[0].resp_bytes), (Some(16), Some(10)));
}

#[test]
fn frames_are_found_again_where_they_prove_themselves() {
    for side in [Side::Read, Side::Write] {
        let mut host = host();
        host.read([post(1, "/a", &[]), data(1, 0, "abc")].concat());
        host.chunk(side, b"", 1_000);
        // In the middle of something, then three frames of which the first is no head.
        host.chunk(side, b"middle of something", 0);
        host.chunk(side, &window(), 0);
        host.read([data(1, END_STREAM, "def"), get(3, "/b")].concat());
        host.write([status(1, "200", &[]), data(1, END_STREAM, "xyz")].concat());
        host.read([get(5, "/c"), window(), window()].concat());
        host.write([ok(3, ""), ok(5, "")].concat()).close();
        assert_eq!(host.pairs(), ["/a 200", "/b 200", "/c 200"], "{side:?}");
        assert_eq!(host.count(Counter::GapDesync), 1);
        let a = &host.out[0];
        if side == Side::Read {
            // How much of the body was lost is unknown.
            assert_eq!((a.req_body.as_deref(), a.req_bytes), (Some("abc"), None));
        } else {
            assert_eq!((a.req_body.as_deref(), a.req_bytes), (Some("abcdef"), Some(6)));
        }
    }
}

#[test]
fn requests_do_not_wait_for_responses_that_cannot_be_read() {
    let mut host = host();
    host.chunk(Side::Write, b"", 1_000);
    host.read(get(1, "/a"));
    assert!(host.out.is_empty());
    host.wait(std::time::Duration::from_secs(2)).read(get(3, "/b"));
    assert_eq!(host.pairs(), ["/a -"]);
    assert_eq!(host.count(Counter::UnpairedRequests), 1);
}

#[test]
fn content_that_looks_like_frames_proves_nothing_within_a_frame() {
    let mut host = host();
    let deceptive = [ok(3, ""), ok(3, ""), ok(3, "")].concat();
    host.read([get(1, "/a"), get(3, "/b")].concat()).write(status(1, "200", &[]));
    host.write(&frame(0, END_STREAM, 1, &deceptive)[..9]).write(deceptive).write(ok(3, ""));
    assert_eq!(host.pairs(), ["/a 200", "/b 200"]);
}
