use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::{FailureMatch, Login};
use crate::transaction::Headers;

pub(crate) const START: f64 = 1_700_000_000.0;

/// A request `at` seconds after the start, answered with 200.
pub(crate) fn request(at: f64, src: &str, method: &str, path: &str) -> Transaction {
    Transaction {
        ts: Timestamp::from_secs_f64(START + at).unwrap(),
        src: src.parse().unwrap(),
        src_port: 40_000,
        dst: None,
        dst_port: Some(443),
        pid: None,
        comm: None,
        container: None,
        ja4: None,
        direction: Direction::In,
        proto: "http/1.1".to_owned(),
        scheme: "https".to_owned(),
        host: "shop.example".to_owned(),
        method: method.to_owned(),
        path: path.to_owned(),
        req_headers: Headers::default(),
        resp_headers: Headers::default(),
        req_body: None,
        resp_body: None,
        req_bytes: None,
        resp_bytes: None,
        status: Some(200),
        grpc_status: None,
        duration_ms: None,
    }
}

pub(crate) fn get(at: f64, src: &str, path: &str) -> Transaction {
    request(at, src, "GET", path)
}

pub(crate) fn login(at: f64, src: &str, user: &str, status: u16) -> Transaction {
    let mut tx = request(at, src, "POST", "/api/login");
    tx.req_body = Some(format!(r#"{{"email":"{user}","password":"hunter2"}}"#));
    tx.status = Some(status);
    tx
}

pub(crate) fn service(name: &str, mode: Option<Mode>) -> Service {
    let hosts = vec![format!("{name}.example")];
    Service { name: name.into(), hosts, mode, ..Service::default() }
}

/// 5 requests in 16 s; logins by default.
fn rate_config() -> Config {
    let mut config = Config::default();
    config.detect.request_rate.requests = 5;
    config.detect.request_rate.window = Duration::from_secs(16);
    config
}

fn findings(config: &Config, txs: impl IntoIterator<Item = Transaction>) -> Vec<Finding> {
    let mut detectors = Detectors::new(Arc::new(config.clone()));
    let mut out = Vec::new();
    for tx in txs {
        detectors.observe(&tx, &mut out);
    }
    out
}

const A: &str = "192.0.2.1";
const B: &str = "192.0.2.2";

#[test]
fn rate_is_per_client_and_window() {
    let config = rate_config();
    let burst = |src: &'static str, n: u32, gap: f64| {
        (0..n).map(move |i| get(f64::from(i) * gap, src, "/"))
    };
    assert_eq!(findings(&config, burst(A, 5, 0.1)), [], "the limit itself is allowed");
    assert_eq!(findings(&config, burst(A, 100, 3.3)), [], "5 in any 16 s are allowed");
    assert_eq!(findings(&config, burst(A, 5, 0.1).chain(burst(B, 5, 0.1))), []);
    let mut out = burst(A, 5, 0.1).map(|tx| Transaction { direction: Direction::Out, ..tx });
    assert_eq!(findings(&config, out.by_ref().chain(burst(A, 5, 0.1))), []);

    let found = findings(&config, burst(A, 6, 0.1));
    let [finding] = &found[..] else { panic!("{found:?}") };
    assert_eq!(finding.detector, DetectorName::RequestRate);
    assert_eq!(finding.actor, Actor { ip: A.parse().unwrap(), via: None });
    assert_eq!(finding.owasp, "API4:2023");
    assert_eq!(finding.ts, get(0.5, A, "/").ts);
    assert_eq!(
        serde_json::to_string(&finding.evidence).unwrap(),
        r#"{"requests":6,"requests_allowed":5,"window_s":16.0}"#
    );
    assert!((0.5..0.6).contains(&finding.score), "{}", finding.score);
}

#[test]
fn one_finding_per_crossing() {
    let config = rate_config();
    // 10 a second: after a finding nothing is said for a window, while counting goes on.
    let times: Vec<f64> = findings(&config, (0..400).map(|i| get(f64::from(i) * 0.1, A, "/")))
        .iter()
        .map(|finding| finding.ts.as_secs_f64() - START)
        .collect();
    assert_eq!(times.len(), 3, "{times:?}");
    for (time, expected) in times.iter().zip([0.5, 16.5, 32.5]) {
        assert!((time - expected).abs() < 0.05, "{times:?}");
    }
}

#[test]
fn quiet_and_forget() {
    let mut detectors = Detectors::new(Arc::new(rate_config()));
    let mut out = Vec::new();
    let mut run = |detectors: &mut Detectors, from: u32, to: u32| {
        out.clear();
        (from..to).for_each(|s| detectors.observe(&get(f64::from(s), A, "/"), &mut out));
        out.clone()
    };
    let found = run(&mut detectors, 0, 6);
    assert_eq!(found.len(), 1);
    detectors.quiet(&found[0], get(100.0, A, "/").ts);
    assert_eq!(run(&mut detectors, 6, 100), []);
    let again = run(&mut detectors, 100, 101);
    assert_eq!(again.len(), 1, "the abuse never stopped, so it is found when silence ends");

    detectors.quiet(&again[0], get(1_000.0, A, "/").ts);
    detectors.forget(A.parse().unwrap());
    assert_eq!(run(&mut detectors, 101, 106), []);
    assert_eq!(run(&mut detectors, 106, 107).len(), 1);
}

#[test]
fn ipv6_clients_are_their_64() {
    let config = rate_config();
    let txs = (0..6).map(|i| get(0.1, &format!("2001:db8:1:2::{i}"), "/"));
    let found = findings(&config, txs);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].actor.ip.to_string(), "2001:db8:1:2::");
    let txs = (0..6).map(|i| get(0.1, &format!("2001:db8:1:{i}::1"), "/"));
    assert_eq!(findings(&config, txs), []);
}

#[test]
fn observed_traffic_never_adds_to_enforced() {
    let mut config = rate_config();
    config.services = vec![service("shop", None), service("beta", Some(Mode::Observe))];
    let to = |host: &str, n: u32| {
        (0..n)
            .map(|_| Transaction { host: host.to_owned(), ..get(0.0, A, "/") })
            .collect::<Vec<_>>()
    };
    let mixed = [to("beta.example:8443", 5), to("shop.example", 5)].concat();
    assert_eq!(findings(&config, mixed), []);
    let found = findings(&config, [to("shop.example", 5), to("beta.example:8443", 6)].concat());
    let services: Vec<_> = found.iter().map(|finding| finding.service.as_deref()).collect();
    assert_eq!(services, [Some("beta")]);
}

#[test]
fn lateness() {
    let config = rate_config();
    let late = [0.0, 100.0, 92.0, 95.0, 99.0, 93.0, 100.0].map(|at| get(at, A, "/"));
    assert_eq!(findings(&config, late).len(), 1, "within the window any order counts");
    let mut detectors = Detectors::new(Arc::new(config));
    let mut out = Vec::new();
    for at in [100.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0] {
        detectors.observe(&get(at, A, "/"), &mut out);
    }
    assert_eq!(out, []);
    let counters = detectors.counters();
    let late = Counter { name: counter::TOO_LATE, detector: DetectorName::RequestRate, value: 6 };
    assert!(counters.contains(&late), "{counters:?}");
}

#[test]
fn stuffing_is_found_and_explained() {
    let attack = (0..12).map(|i| login(f64::from(i), A, &format!("user{i}@example.org"), 401));
    let found = findings(&Config::default(), attack);
    let [finding] = &found[..] else { panic!("{found:?}") };
    assert_eq!(finding.detector, DetectorName::CredentialStuffing);
    assert_eq!(finding.owasp, "API2:2023");
    assert_eq!(finding.ts, get(9.0, A, "/").ts);
    assert_eq!(finding.score, 0.9);
    assert_eq!(
        serde_json::to_string(&finding.evidence).unwrap(),
        concat!(
            r#"{"rule":"distinct_users","endpoint":"login","logins":10,"failures":10,"failures_threshold":10,"#,
            r#""distinct_users":10,"distinct_users_threshold":5,"failure_ratio":1.0,"#,
            r#""failure_ratio_threshold":0.8,"window_s":300.0}"#
        )
    );
    let text = serde_json::to_string(finding).unwrap();
    assert!(!text.contains("user1") && !text.contains("hunter2"), "{text}");
}

/// Each row: failures, user names among them, successes, seconds between logins; found?
#[test]
fn stuffing_needs_all_three_thresholds() {
    for (what, failures, users, successes, gap, found) in [
        ("just enough", 10, 5, 2, 1.0, true),
        ("one failure short", 9, 9, 0, 1.0, false),
        ("one user short: brute force of few accounts", 50, 4, 0, 1.0, false),
        ("someone forgot a password", 50, 1, 0, 1.0, false),
        ("too many succeed", 10, 10, 3, 1.0, false),
        ("an office behind one address", 30, 30, 300, 0.5, false),
        ("too slow for the window", 10, 10, 0, 40.0, false),
    ] {
        let successes = (0..successes).map(|i| (format!("ok{i}"), 200));
        let failures = (0..failures).map(|i| (format!("user{}", i % users), 401));
        let txs = successes
            .chain(failures)
            .enumerate()
            .map(|(i, (user, status))| login(i as f64 * gap, A, &user, status));
        assert_eq!(findings(&Config::default(), txs).len(), usize::from(found), "{what}");
    }
}

/// Each row: what succeeds between the failures and with which user names, so many for every
/// ten failures; found within 100 failures?
#[test]
fn an_attackers_own_logins_do_not_hide_failures() {
    let named = |user: String| login(0.0, A, &user, 200);
    let anonymous = |_: String| request(0.0, A, "POST", "/api/login");
    type Success = dyn Fn(String) -> Transaction;
    let rows: [(&str, &Success, u32, u32, bool); 6] = [
        ("one account", &named, 1, 3, true),
        ("one account, far more often than it fails", &named, 1, 50, true),
        ("ten accounts", &named, 10, 30, true),
        ("nameless logins", &anonymous, 1, 30, true),
        ("an office of many users", &named, 1_000, 10, false),
        ("an office of more users than are told apart", &named, 65, 10, false),
    ];
    for (what, success, users, successes, found) in rows {
        let mut txs = Vec::new();
        let mut logged_in = 0;
        for attempt in 0..100u32 {
            if attempt % 10 == 0 {
                txs.extend((0..successes).map(|n| {
                    let user = (logged_in + n) % users;
                    success(format!("ok{user}"))
                }));
                logged_in += successes;
            }
            txs.push(login(0.0, A, &format!("user{attempt}"), 401));
        }
        let found_any = !findings(&Config::default(), txs).is_empty();
        assert_eq!(found_any, found, "{what}");
    }
}

#[test]
fn a_user_who_logs_in_again_counts_in_each_window() {
    // One user every 100 s: each window of 300 s has seen them.
    let of_old = (0..40).map(|i| login(f64::from(i) * 100.0, A, "ok", 200));
    let failures = (0..10).map(|i| login(4_000.0, A, &format!("user{i}"), 401));
    let found = findings(&Config::default(), of_old.chain(failures));
    assert_eq!(found[0].evidence["logins"], 11);
}

#[test]
fn names_of_successful_logins_do_not_count() {
    let known = (0..2).map(|i| login(0.0, A, &format!("ok{i}"), 200));
    let failures = (0..10).map(|i| login(1.0, A, &format!("user{}", i % 4), 401));
    assert_eq!(findings(&Config::default(), known.chain(failures)), []);
}

#[test]
fn a_login_without_response_counts_as_neither() {
    let unanswered =
        (0..20).map(|i| Transaction { status: None, ..login(0.0, A, &format!("user{i}"), 401) });
    let failures = (0..9).map(|i| login(1.0, A, &format!("user{i}"), 401));
    assert_eq!(findings(&Config::default(), unanswered.chain(failures)), []);
}

#[test]
fn configured_logins_and_failures_count() {
    let mut config = Config::default();
    let mut shop = service("shop", None);
    shop.logins = vec![Login {
        method: None,
        path: "/enter".to_owned(),
        user_field: Some("card".to_owned()),
        failure: vec![FailureMatch::BodyContains("denied".to_owned())],
    }];
    config.services = vec![shop];
    let attempts = |host: &'static str| {
        (0..10).map(move |i| Transaction {
            host: host.to_owned(),
            req_body: Some(format!("card={i}&pin=0000")),
            resp_body: Some("denied".to_owned()),
            ..request(f64::from(i), A, "POST", "/enter")
        })
    };
    let found = findings(&config, attempts("shop.example"));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].evidence["endpoint"], "/enter");
    assert_eq!(found[0].service.as_deref(), Some("shop"));
    assert_eq!(findings(&config, attempts("other.example")), []);
}

fn nameless(at: f64, status: u16) -> Transaction {
    Transaction { req_body: None, ..login(at, A, "", status) }
}

#[test]
fn failures_without_a_name_are_found_and_counted_under_a_name() {
    let mut detectors = Detectors::new(Arc::new(Config::default()));
    let mut out = Vec::new();
    (0..49).for_each(|_| detectors.observe(&nameless(0.0, 401), &mut out));
    assert_eq!(out, []);
    detectors.observe(&nameless(1.0, 401), &mut out);
    let [finding] = &out[..] else { panic!("{out:?}") };
    assert_eq!(finding.ts, nameless(1.0, 401).ts);
    assert_eq!(finding.score, 0.5);
    assert_eq!(
        finding.reason,
        "50 of 50 logins within 300 s failed, 50 of them without a readable user name"
    );
    assert_eq!(
        serde_json::to_string(&finding.evidence).unwrap(),
        concat!(
            r#"{"rule":"nameless_failures","endpoint":"login","logins":50,"failures":50,"#,
            r#""nameless_failures":50,"nameless_failures_threshold":50,"failure_ratio":1.0,"#,
            r#""failure_ratio_threshold":0.8,"window_s":300.0}"#
        )
    );
    let expected = Counter {
        name: counter::LOGINS_WITHOUT_USER,
        detector: DetectorName::CredentialStuffing,
        value: 50,
    };
    assert!(detectors.counters().contains(&expected));
}

/// Each row: nameless failures, failures of one user, users who succeed; the rule that fires?
#[test]
fn failures_without_a_name_have_their_own_threshold() {
    let config = Config::default();
    for (what, failures, of_one, successes, rule) in [
        ("just enough", 50, 0, 12, Some("nameless_failures")),
        ("one short", 49, 0, 0, None),
        ("names of one user neither add", 49, 40, 0, None),
        ("nor hide", 50, 200, 0, Some("nameless_failures")),
        ("too many succeed", 50, 0, 13, None),
    ] {
        let txs = (0..successes)
            .map(|i| login(0.0, A, &format!("ok{i}"), 200))
            .chain((0..of_one).map(|_| login(0.0, A, "someone", 401)))
            .chain((0..failures).map(|_| nameless(0.0, 401)));
        let found = findings(&config, txs);
        let fired = found.first().and_then(|finding| finding.evidence["rule"].as_str());
        assert_eq!(fired, rule, "{what}");
    }
    let slow = (0..100).map(|i| nameless(f64::from(i) * 10.0, 401));
    assert_eq!(findings(&config, slow), [], "too slow for the window");
}

#[test]
fn evidence_has_the_clients_ja4_and_no_proxys() {
    let ja4 = "t13d1516h2_8daaf6152771_e5627efa2ab1";
    let mut config = rate_config();
    config.guards.trusted_proxies = vec!["192.0.2.1/32".parse().unwrap()];
    let found_in = |src: &str, client: Option<&str>, ja4: Option<&str>| {
        let mut tx = get(0.0, src, "/");
        tx.ja4 = ja4.map(Into::into);
        client.into_iter().for_each(|client| tx.req_headers.push("X-Forwarded-For", client));
        let found = findings(&config, (0..6).map(|_| tx.clone()));
        found[0].evidence.get("ja4").cloned()
    };
    assert_eq!(found_in("192.0.2.9", None, Some(ja4)), Some(ja4.into()));
    assert_eq!(found_in("192.0.2.9", None, None), None);
    assert_eq!(found_in("192.0.2.1", Some("192.0.2.9"), Some(ja4)), None);
}

#[test]
fn reconfiguring_keeps_what_is_known() {
    let mut detectors = Detectors::new(Arc::new(rate_config()));
    let mut out = Vec::new();
    let five = |detectors: &mut Detectors, out: &mut Vec<Finding>| {
        (0..5).for_each(|_| detectors.observe(&get(0.0, A, "/"), out));
    };
    five(&mut detectors, &mut out);
    let mut stricter = rate_config();
    stricter.detect.request_rate.requests = 4;
    detectors.reconfigure(Arc::new(stricter));
    detectors.observe(&get(0.0, A, "/"), &mut out);
    assert_eq!(out.len(), 1);
    assert_eq!(out[0].evidence["requests"], 6);

    detectors.reconfigure(Arc::new(rate_config()));
    detectors.forget(A.parse().unwrap());
    five(&mut detectors, &mut out);
    let mut longer = rate_config();
    longer.detect.request_rate.window = Duration::from_secs(32);
    detectors.reconfigure(Arc::new(longer));
    five(&mut detectors, &mut out);
    assert_eq!(out.len(), 1, "another window starts anew");
}

#[test]
fn disabled_detectors_say_and_remember_nothing() {
    let mut config = rate_config();
    config.detect.request_rate.enabled = false;
    config.detect.credential_stuffing.enabled = false;
    let mut detectors = Detectors::new(Arc::new(config));
    let mut out = Vec::new();
    for i in 0..50 {
        detectors.observe(&login(0.0, A, &format!("user{i}"), 401), &mut out);
    }
    assert_eq!((out.len(), detectors.actors()), (0, 0));
}

#[test]
fn clients_expire() {
    let mut detectors = Detectors::new(Arc::new(rate_config()));
    let mut out = Vec::new();
    detectors.observe(&get(0.0, A, "/"), &mut out);
    detectors.observe(&login(10.0, B, "user", 401), &mut out);
    assert_eq!(detectors.actors(), 2);
    detectors.expire(get(16.0, A, "/").ts);
    assert_eq!(detectors.actors(), 1);
    detectors.expire(get(26.0, A, "/").ts);
    assert_eq!(detectors.actors(), 1, "logins are remembered for 300 s");
    detectors.expire(get(310.0, A, "/").ts);
    assert_eq!(detectors.actors(), 0);
}

#[test]
fn a_million_clients_stay_within_the_limit() {
    let mut config = Config::default();
    config.detect.max_actors = 1_000;
    let mut detectors = Detectors::new(Arc::new(config));
    let mut out = Vec::new();
    let mut flood = |mut tx: Transaction, clients: u32| {
        for n in 0..clients {
            tx.src = std::net::Ipv4Addr::from_bits(n).into();
            detectors.observe(&tx, &mut out);
            assert!(detectors.actors() <= 1_000);
        }
        assert_eq!(detectors.actors(), 1_000);
        assert_eq!(out, []);
        let evicted = |c: &Counter| c.name == counter::ACTORS_EVICTED;
        detectors.counters().iter().filter(|c| evicted(c)).map(|c| c.value).collect::<Vec<_>>()
    };
    assert_eq!(flood(get(0.0, A, "/"), 1_000_000), [999_000, 0]);
    // Clients 0 to 999 come first again, then the rest: none of them is remembered.
    assert_eq!(flood(login(0.0, A, "user", 401), 100_000), [1_099_000, 99_000]);
}

prop_compose! {
    /// Any transaction, of few clients and with logins among them, so that rules are reached.
    pub(crate) fn any_transaction()(
        ts in prop_oneof![any::<u64>(), 0u64..1_000_000_000_000],
        src in prop_oneof![
            any::<std::net::IpAddr>(),
            (0u8..4).prop_map(|last| [192, 0, 2, last].into()),
            (0u16..4).prop_map(|last| [0x2001, 0xdb8, 0, last, 0, 0, 0, 1].into()),
        ],
        out in prop::bool::weighted(0.1),
        method in "POST|GET|PUT|[A-Z]{0,4}",
        path in "/login|/api/auth|/[a-z%;./?=*]{0,12}|.{0,20}",
        host in "shop.example|[a-z:.\\[\\]0-9]{0,12}",
        header in prop::option::of((
            "X-Forwarded-For|Forwarded|Authorization",
            "192.0.2.[0-9](, 10.0.0.[0-9]){0,2}|for=[0-9a-z\",;:.\\[\\]]{0,20}|.{0,30}",
        )),
        body in prop::option::of(r#"\{"user":"[a-z]{1,3}"|user=[a-z]{1,3}|.{0,40}"#),
        status in prop::option::of(prop_oneof![Just(401u16), Just(200), any::<u16>()]),
    ) -> Transaction {
        let mut tx = request(0.0, A, &method, &path);
        tx.ts = Timestamp::from_nanos(ts);
        tx.src = src;
        tx.host = host;
        tx.direction = if out { Direction::Out } else { Direction::In };
        if let Some((name, value)) = header {
            tx.req_headers.push(name, value);
        }
        tx.req_body = body;
        tx.status = status;
        tx
    }
}

proptest! {
    #[test]
    fn no_input_panics(txs in prop::collection::vec(any_transaction(), 0..100)) {
        let mut config = rate_config();
        config.detect.max_actors = 3;
        config.detect.credential_stuffing.failures = 2;
        config.detect.credential_stuffing.distinct_users = 2;
        config.guards.trusted_proxies = vec!["192.0.2.0/31".parse().unwrap()];
        let mut detectors = Detectors::new(Arc::new(config));
        let mut out = Vec::new();
        for tx in &txs {
            detectors.observe(tx, &mut out);
            detectors.expire(tx.ts);
            prop_assert!(detectors.actors() <= 3);
        }
        for finding in &out {
            prop_assert!((0.0..=1.0).contains(&finding.score));
        }
    }
}
