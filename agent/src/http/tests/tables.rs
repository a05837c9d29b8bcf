//! The table of connections and its bounds.

use std::time::Duration;

use super::{Counter, Host, Settings, get, ok};

#[test]
fn the_least_recently_active_connection_makes_room() {
    let mut host = Host::with(Settings { max_connections: 2, ..Settings::default() });
    host.on(1).read(get("/one")).on(2).read(get("/two")).on(1).read(get("/more"));
    host.on(3).read(get("/three"));
    assert_eq!(host.pairs(), ["/two -"]);
    assert_eq!(host.count(Counter::EvictedConnections), 1);
    assert_eq!(host.http.connections(), 2);
    host.on(1).write(ok("") + &ok("")).on(3).write(ok(""));
    assert_eq!(host.pairs(), ["/two -", "/one 200", "/more 200", "/three 200"]);
}

#[test]
fn an_evicted_connection_goes_on_unpaired() {
    let mut host = Host::with(Settings { max_connections: 1, ..Settings::default() });
    host.on(1).read(get("/a")).on(2).read(get("/x")).on(1).read(get("/b")).write(ok("a")).close();
    assert_eq!(host.pairs(), ["/a -", "/b -", "/x -"]);
    assert_eq!(host.count(Counter::JoinedMidway), 1);
}

#[test]
fn idle_connections_expire() {
    let mut host = Host::new();
    host.on(1).read(get("/a")).wait(Duration::from_secs(60)).on(2).read(get("/b"));
    host.write("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab");
    host.wait(Duration::from_secs(60)).expire();
    assert_eq!(host.pairs(), ["/a -"]);
    host.wait(Duration::from_secs(60)).expire();
    assert_eq!(host.pairs(), ["/a -", "/b 200"]);
    assert_eq!((host.http.connections(), host.http.buffered_bytes()), (0, 0));
    assert_eq!(host.count(Counter::ExpiredConnections), 2);
}

#[test]
fn memory_is_bounded_over_all_connections() {
    let bound = 200_000;
    let mut host = Host::with(Settings { max_buffered_bytes: bound, ..Settings::default() });
    for connection in 0..100 {
        host.on(connection).read(format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(10_000)));
        assert!(host.http.buffered_bytes() <= bound);
    }
    assert!((5..25).contains(&host.http.connections()), "{}", host.http.connections());
    assert_eq!(host.count(Counter::EvictedForMemory) as usize, 100 - host.http.connections());
    for connection in 0..100 {
        host.on(connection).close();
    }
    assert_eq!((host.http.connections(), host.http.buffered_bytes()), (0, 0));
}

#[test]
fn waiting_requests_are_bounded() {
    let mut host = Host::with(Settings { max_pipelined: 3, ..Settings::default() });
    host.read(get("/a") + &get("/b") + &get("/c"));
    assert!(host.out.is_empty());
    host.read(get("/d")).write(ok("a")).close();
    assert_eq!(host.pairs(), ["/a -", "/b -", "/c -", "/d -"]);
    assert_eq!(host.count(Counter::PipelineOverflow), 1);
    assert_eq!(host.count(Counter::UnansweredRequests), 3);
    assert_eq!(host.count(Counter::UnpairedRequests), 1);
}

#[test]
fn smaller_settings_hold_from_the_next_chunk_on() {
    let mut host = Host::new();
    host.on(1).read(get("/a")).on(2).read(get("/b")).on(3).read(get("/c"));
    host.http.set_settings(Settings { max_connections: 1, ..Settings::default() });
    host.on(3).write(ok(""));
    assert_eq!(host.pairs(), ["/c 200", "/a -", "/b -"]);
}

#[test]
fn nothing_is_kept_of_finished_exchanges() {
    let mut host = Host::new();
    let pipelined = get("/a").repeat(500);
    host.read(get("/a")).write(ok("body"));
    let idle = host.http.buffered_bytes();
    host.read(&pipelined).write(ok("body").repeat(500));
    assert_eq!(host.out.len(), 501);
    assert!(host.http.buffered_bytes() <= idle, "{} > {idle}", host.http.buffered_bytes());
}
