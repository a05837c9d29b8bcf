//! Connections whose beginning was not seen.

use super::*;

#[test]
fn a_connection_joined_midway_is_recognised_and_recovers() {
    for (lost, counter) in [(700, Counter::JoinedMidway), (0, Counter::JoinedMidway)] {
        let mut host = Host::new();
        host.lose(Side::Read, lost).lose(Side::Write, lost);
        // Authority, agent and a cookie are in the table since before.
        let old = [indexed(LATEST), indexed(LATEST + 7), named(LATEST + 9, "s3cret", false)];
        for stream in [101, 103, 105] {
            let fields = [indexed(GET), named(PATH, &format!("/{stream}"), false)];
            host.read(headers(stream, BOTH, &[&fields[..], &old].concat()));
            host.write(
                [headers(stream, END_HEADERS, &[indexed(STATUS)]), data(stream, 1, "x")].concat(),
            );
        }
        assert_eq!(host.pairs(), ["/101 200", "/103 200", "/105 200"]);
        assert_eq!(host.count(Counter::UnknownFields), 9);
        assert!(!format!("{:?}", host.out).contains("s3cret"));
        // Named again, they are known from then on.
        let new =
            [indexed(GET), named(PATH, "/107", false), named(AUTHORITY, "shop.example", true)];
        host.read(headers(107, BOTH, &new)).write(ok(107, ""));
        let again = [indexed(GET), named(PATH, "/109", false), indexed(LATEST)];
        host.read(headers(109, BOTH, &again)).write(ok(109, ""));
        assert_eq!(host.out[4].host, "shop.example");
        assert_eq!(host.count(Counter::UnknownFields), 9);
        assert_eq!((host.count(counter), host.count(Counter::Http2Connection)), (1, 1));
        assert_eq!(host.count(Counter::NotHttp), 0);
    }
}

#[test]
fn both_sides_must_have_frames_and_tell_who_asks() {
    let request = |stream| get(stream, "/a");
    let mut host = Host::new();
    host.lose(Side::Read, 7).lose(Side::Write, 7);
    host.read([request(1), request(3), request(5)].concat());
    host.write("something else").write("again");
    assert_eq!((host.out.len(), host.count(Counter::Http2Connection)), (0, 0));
    // Requests on both sides: not HTTP/2.
    host.write([request(1), request(3), request(5)].concat());
    assert_eq!((host.out.len(), host.count(Counter::Http2Connection)), (0, 0));
    host.read([window(), window(), window()].concat());
    host.write([window(), window(), window()].concat());
    assert_eq!(host.count(Counter::Http2Connection), 0, "nobody knows who asks");
    host.read(request(7)).write(ok(7, ""));
    assert_eq!(
        (host.pairs(), host.count(Counter::Http2Connection)),
        (vec!["/a 200".to_owned()], 1)
    );
}

#[test]
fn the_host_may_be_the_client() {
    let mut host = Host::new();
    host.lose(Side::Read, 7).lose(Side::Write, 7);
    host.write([get(1, "/a"), get(3, "/b"), get(5, "/c")].concat());
    host.read([ok(1, ""), ok(3, ""), ok(5, "")].concat());
    assert_eq!(host.pairs(), ["/a 200", "/b 200", "/c 200"]);
    assert_eq!(host.out[0].direction, crate::transaction::Direction::Out);
}

#[test]
fn a_server_whose_first_bytes_were_lost_is_found_again() {
    let mut host = Host::new();
    host.lose(Side::Write, 40).write(window());
    host.read([PREFACE, &settings(), &get(1, "/a"), &get(3, "/b")].concat());
    host.write([ok(1, ""), ok(3, "")].concat());
    assert_eq!(host.pairs(), ["/a 200", "/b 200"]);
    assert_eq!(host.count(Counter::Http2Connection), 1);
}

#[test]
fn http_1_joined_midway_is_no_http_2() {
    let mut host = Host::new();
    host.lose(Side::Read, 7).lose(Side::Write, 7);
    host.read(super::super::get("/a")).write(super::super::ok("a")).read(super::super::get("/b"));
    assert_eq!(host.pairs(), ["/a -", "/b -"]);
    assert_eq!(host.count(Counter::Http2Connection), 0);
}
