use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::detect::tests::{START, service};
use crate::finding::{Actor, DetectorName};

const ATTACKER: &str = "203.0.113.66";

fn at(seconds: f64) -> Timestamp {
    Timestamp::from_secs_f64(START + seconds).unwrap()
}

fn finding(seconds: f64, ip: &str) -> Finding {
    let evidence = [("failures".to_owned(), json!(10))].into_iter().collect();
    Finding {
        ts: at(seconds),
        detector: DetectorName::CredentialStuffing,
        actor: Actor { ip: ip.parse().unwrap(), via: None },
        service: None,
        owasp: "API2:2023",
        score: 0.97,
        reason: "ten of ten logins failed".to_owned(),
        evidence,
    }
}

fn rate(seconds: f64, ip: &str) -> Finding {
    Finding { detector: DetectorName::RequestRate, owasp: "API4:2023", ..finding(seconds, ip) }
}

fn host() -> HostGuards {
    HostGuards {
        addresses: vec![[192, 0, 2, 10].into()],
        gateways: vec![[192, 0, 2, 1].into()],
        resolvers: vec![[192, 0, 2, 53].into()],
    }
}

/// TTL 600 s, fourfold for repeaters, at most 3,000 s, remembered for 1,000 s.
fn config() -> Config {
    let mut config = Config::default();
    config.decide.max_ttl = Duration::from_secs(3_000);
    config.decide.memory = Duration::from_secs(1_000);
    config.guards.allow = vec!["198.51.100.0/24".parse().unwrap()];
    config.guards.trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()];
    config
}

fn order(target: IpNet, ttl: Option<Duration>) -> Order {
    Order { ttl, ..Order::drop(target) }
}

/// A drop that is found in the kernel.
fn found(
    target: IpNet,
    rule_id: u64,
    remaining: Option<Duration>,
    origin: Origin,
    now: Timestamp,
) -> Decision {
    let block = Block {
        target: target.into(),
        effect: Effect::Drop,
        service: None,
        remaining,
        rule_id,
        origin,
        count_only: false,
        packets: 0,
        bytes: 0,
        exceeded: 0,
        no_room: 0,
    };
    recovered(&block, now)
}

/// When the last enforced drop of a subject ends.
fn dropped_until(decider: &Decider, subject: &Subject, now: Timestamp) -> Option<Timestamp> {
    let (target, kind) = (subject.target().unwrap(), Kind::Drop);
    decider.holder(&RuleName { target, kind, service: None }, now).map(|(_, end)| end)
}

fn decider(config: Config) -> Decider {
    Decider::new(Arc::new(config), host(), 7)
}

fn ids(lifted: &[Lifted]) -> Vec<&str> {
    lifted.iter().map(|one| one.lift.id.as_str()).collect()
}

#[test]
fn a_finding_becomes_a_drop() {
    let mut decider = decider(config());
    let found = finding(1.234_567, ATTACKER);
    let decision = decider.decide(&found).unwrap();
    let id = decision.id.clone();
    assert_eq!(
        serde_json::to_string(&decision).unwrap(),
        format!(
            concat!(
                r#"{{"ts":1700000001.235,"id":"{id}","action":"drop","#,
                r#""subject":{{"ip":"203.0.113.66"}},"service":null,"ttl_s":600,"#,
                r#""detector":"credential_stuffing","owasp":"API2:2023","score":0.97,"#,
                r#""reason":"ten of ten logins failed","evidence":{{"failures":10}},"mode":"enforce"}}"#
            ),
            id = id
        )
    );
    assert_eq!(decision.rule_id(), u64::from_str_radix(&id, 16).ok());
    assert!(decision.rule_id().is_some());
    assert_eq!(decider.in_force().collect::<Vec<_>>(), [&decision]);
    assert_eq!(dropped_until(&decider, &decision.subject, at(2.0)), Some(at(601.235)));
}

#[test]
fn an_ipv6_client_is_its_64() {
    let decision = decider(config()).decide(&finding(0.0, "2001:db8:1:2::")).unwrap();
    assert_eq!(
        serde_json::to_string(&decision.subject).unwrap(),
        r#"{"cidr":"2001:db8:1:2::/64"}"#
    );
}

#[test]
fn ids_are_deterministic_and_distinct() {
    let run = |seed| {
        let mut decider = Decider::new(Arc::new(config()), host(), seed);
        let ips = ["203.0.113.1", "203.0.113.2", "2001:db8:1::"];
        ips.map(|ip| decider.decide(&finding(0.0, ip)).unwrap().id)
    };
    assert_eq!(run(1), run(1));
    let mut all = [run(1), run(2)].concat();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 6);
}

#[test]
fn guarded_subjects_are_reported_once() {
    for (ip, guard) in [
        ("198.51.100.9", "allow_list"),
        ("10.1.1.1", "trusted_proxy"),
        ("192.0.2.10", "host"),
        ("192.0.2.1", "gateway"),
        ("192.0.2.53", "resolver"),
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("169.254.3.4", "link_local"),
        ("fe80::", "link_local"),
        ("0.0.0.0", "unspecified"),
        ("224.0.0.5", "multicast"),
        ("255.255.255.255", "broadcast"),
    ] {
        let mut decider = decider(config());
        let decision = decider.decide(&finding(0.0, ip)).unwrap();
        assert_eq!(decision.action, Action::Alert, "{ip}");
        assert_eq!(decision.evidence["guard"], guard, "{ip}");
        assert_eq!(decider.decide(&finding(599.0, ip)), None, "{ip}");
        assert!(decider.decide(&rate(599.0, ip)).is_some(), "one per detector: {ip}");
        let again = decider.decide(&finding(600.0, ip)).unwrap();
        assert_eq!((again.action, again.ttl_s), (Action::Alert, 600), "{ip}");
        assert_eq!(dropped_until(&decider, &again.subject, at(600.0)), None);
    }
}

#[test]
fn a_guarded_address_guards_its_whole_64() {
    let mut config = config();
    config.guards.allow = vec!["2001:db8:1:2::7/128".parse().unwrap()];
    let decision = decider(config).decide(&finding(0.0, "2001:db8:1:2::")).unwrap();
    assert_eq!(decision.action, Action::Alert);
    assert_eq!(decision.evidence["guard"], "allow_list");
}

#[test]
fn a_service_on_failsafe_ports_gets_an_alert() {
    let mut config = config();
    let mut admin = service("admin", None);
    admin.ports = vec![22];
    config.services = vec![admin];
    let found = Finding { service: Some("admin".into()), ..finding(0.0, ATTACKER) };
    let decision = decider(config).decide(&found).unwrap();
    assert_eq!(decision.action, Action::Alert);
    assert_eq!(decision.evidence["guard"], "failsafe_ports");
}

#[test]
fn a_client_behind_a_trusted_proxy_is_reported() {
    let mut decider = decider(config());
    let mut found = finding(0.0, ATTACKER);
    found.actor.via = Some([10, 1, 1, 1].into());
    let decision = decider.decide(&found).unwrap();
    assert_eq!(decision.action, Action::Alert);
    assert_eq!(decision.subject, Subject::client(ATTACKER.parse().unwrap()));
    assert_eq!(decision.evidence["via"], "10.1.1.1");
    assert!(!decision.evidence.contains_key("guard"));
    assert_eq!(decider.decide(&found), None);
    let direct = decider.decide(&finding(1.0, ATTACKER)).unwrap();
    assert_eq!(direct.action, Action::Drop, "an alert does not stand in the way of a drop");
}

#[test]
fn one_decision_at_a_time() {
    let mut decider = decider(config());
    assert!(decider.decide(&finding(0.0, ATTACKER)).is_some());
    assert_eq!(decider.covered_until(&finding(1.0, ATTACKER)), Some(at(600.0)));
    assert_eq!(decider.decide(&finding(1.0, ATTACKER)), None);
    assert_eq!(decider.decide(&rate(1.0, ATTACKER)), None, "as long, by another detector");
    assert_eq!(decider.decide(&finding(-5.0, ATTACKER)), None, "evidence from before");
    assert!(decider.decide(&finding(1.0, "203.0.113.67")).is_some(), "another subject");
    assert_eq!(decider.counters().covered, 3);

    let mut longer = config();
    longer.decide.ttl = Duration::from_secs(900);
    assert_eq!(decider.reconfigure(Arc::new(longer), at(2.0)), []);
    assert_eq!(decider.decide(&finding(3.0, ATTACKER)), None, "the same detector never");
    let second = decider.decide(&rate(3.0, ATTACKER)).unwrap();
    assert_eq!(second.ttl_s, 900, "no escalation while the first is in force");
    assert_eq!(dropped_until(&decider, &second.subject, at(4.0)), Some(at(903.0)));
}

#[test]
fn repeat_offenders_stay_away_longer() {
    let mut decider = decider(config());
    let mut ttl = |seconds| decider.decide(&finding(seconds, ATTACKER)).map(|d| d.ttl_s);
    assert_eq!(ttl(0.0), Some(600));
    assert_eq!(ttl(599.9), None);
    assert_eq!(ttl(600.0), Some(2_400));
    assert_eq!(ttl(3_000.0), Some(3_000), "at most max_ttl");
    assert_eq!(ttl(6_999.0), Some(3_000), "999 s after the last ended");
    assert_eq!(ttl(10_999.0), Some(600), "forgotten 1,000 s after the last ended");
}

#[test]
fn ttls_saturate() {
    let mut settings = Config::default().decide;
    for (ttl, escalation, max, ended, expected) in [
        (0, 4.0, 0, 0, 1),
        (600, 4.0, 100_000, 2, 9_600),
        (600, 0.5, 100_000, 3, 600),
        (600, 4.0, 60, 3, 600),
        (600, f64::NAN, 100_000, 3, 600),
        (600, 1e300, u64::MAX, u32::MAX, u64::MAX),
        (600, f64::INFINITY, 7_000, 1, 7_000),
    ] {
        settings.ttl = Duration::from_secs(ttl);
        settings.escalation = escalation;
        settings.max_ttl = Duration::from_secs(max);
        assert_eq!(strikes::ttl_s(&settings, ended), expected, "{ttl} {escalation} {ended}");
    }
    settings.ttl = Duration::from_millis(1_500);
    assert_eq!(strikes::ttl_s(&settings, 0), 2, "rounded up to whole seconds");
}

#[test]
fn observing_changes_the_stamp_and_nothing_else() {
    let mut config = config();
    config.services = vec![service("beta", Some(Mode::Observe)), service("shop", None)];
    let on =
        |name: &str, seconds| Finding { service: Some(name.into()), ..finding(seconds, ATTACKER) };
    let mut decider = decider(config);
    let observed = decider.decide(&on("beta", 0.0)).unwrap();
    assert_eq!((observed.action, observed.mode), (Action::Drop, Mode::Observe));
    assert_eq!(observed.service.as_deref(), Some("beta"));
    assert_eq!(dropped_until(&decider, &observed.subject, at(0.0)), None);
    assert_eq!(decider.decide(&on("beta", 1.0)), None);
    let enforced = decider.decide(&on("shop", 2.0)).unwrap();
    assert_eq!(enforced.mode, Mode::Enforce, "the observed one does not stand in its way");
    assert_eq!(enforced.ttl_s, 600, "nor does it escalate it");
    assert_eq!(decider.decide(&on("beta", 600.5)), None, "an enforced one covers both");
}

#[test]
fn going_over_to_observing_lifts_what_detectors_blocked() {
    let mut decider = decider(config());
    let automatic = decider.decide(&finding(0.0, ATTACKER)).unwrap();
    let target: IpNet = "203.0.113.99/32".parse().unwrap();
    let manual = decider.operator_block(&order(target, None), "by hand", at(0.0)).unwrap();
    let lifted = decider.reconfigure(Arc::new(Config { mode: Mode::Observe, ..config() }), at(5.0));
    assert_eq!(ids(&lifted), [&automatic.id]);
    assert_eq!(
        serde_json::to_string(&lifted[0].lift).unwrap(),
        format!(r#"{{"ts":1700000005.0,"id":"{}","action":"lift"}}"#, automatic.id)
    );
    assert_eq!(decider.in_force().collect::<Vec<_>>(), [&manual]);
}

#[test]
fn new_guards_lift_what_they_cover() {
    let mut decider = decider(config());
    let automatic = decider.decide(&finding(0.0, ATTACKER)).unwrap();
    let target: IpNet = "203.0.113.99/32".parse().unwrap();
    let manual = decider.operator_block(&order(target, None), "by hand", at(0.0)).unwrap();
    let mut allowing = config();
    allowing.guards.allow.push("203.0.113.96/28".parse().unwrap());
    assert_eq!(ids(&decider.reconfigure(Arc::new(allowing), at(1.0))), [&manual.id]);
    let moved = HostGuards { addresses: vec![ATTACKER.parse().unwrap()], ..host() };
    assert_eq!(ids(&decider.set_host(moved, at(1.0))), [&automatic.id]);
}

#[test]
fn operators_block_within_the_guards() {
    let mut decider = decider(config());
    let mut block = |target: &str, ttl| {
        let target: IpNet = target.parse().unwrap();
        decider.operator_block(&order(target, ttl), "by hand", at(0.0)).map_err(|e| e.to_string())
    };
    let decision = block("::ffff:203.0.113.7/128", Some(Duration::from_millis(1_200))).unwrap();
    assert_eq!(decision.subject, Subject::client([203, 0, 113, 7].into()));
    assert_eq!((decision.ttl_s, decision.mode), (2, Mode::Enforce));
    assert_eq!((&*decision.detector, &*decision.owasp), ("operator", ""));
    let decision = block("2001:db8:9:9::1/64", None).unwrap();
    assert_eq!(decision.subject.network().unwrap().to_string(), "2001:db8:9:9::/64");
    assert_eq!(decision.ttl_s, UNTIL_LIFTED.as_secs());
    for (target, sentence) in [
        ("198.51.100.3/32", "198.51.100.3 can't be blocked: 198.51.100.0/24 is on the allow list"),
        ("192.0.2.1/32", "192.0.2.1 can't be blocked: 192.0.2.1 is this host's gateway"),
        ("127.0.0.0/16", "127.0.0.0/16 can't be blocked: 127.0.0.0/8 is this host's loopback"),
        (
            "198.51.100.0/25",
            "198.51.100.0/25 can't be blocked: 198.51.100.0/24 is on the allow list",
        ),
    ] {
        assert_eq!(block(target, None), Err(sentence.to_owned()));
    }
}

#[test]
fn an_operators_block_covers_shorter_automatic_ones() {
    let mut decider = decider(config());
    let target: IpNet = format!("{ATTACKER}/32").parse().unwrap();
    let block = |decider: &mut Decider, seconds, now| {
        let ttl = Some(Duration::from_secs(seconds));
        decider.operator_block(&order(target, ttl), "by hand", at(now)).unwrap()
    };
    block(&mut decider, 60, 0.0);
    let automatic = decider.decide(&finding(1.0, ATTACKER)).unwrap();
    assert_eq!(dropped_until(&decider, &automatic.subject, at(2.0)), Some(at(601.0)));
    block(&mut decider, 86_400, 2.0);
    assert_eq!(decider.in_force().count(), 2, "a second block by hand replaces the first");
    assert_eq!(decider.decide(&finding(700.0, ATTACKER)), None);
}

#[test]
fn lifting_ends_decisions_and_clears_the_record() {
    let mut decider = decider(config());
    let first = decider.decide(&finding(0.0, ATTACKER)).unwrap();
    assert_eq!(decider.lift(Which::Id("0000000000000000"), at(1.0)), []);
    let lifted = decider.lift(Which::Id(&first.id), at(1.0));
    assert_eq!(ids(&lifted), [&first.id]);
    assert_eq!(lifted[0].decision, first);
    let second = decider.decide(&finding(2.0, ATTACKER)).unwrap();
    assert_eq!(second.ttl_s, 600, "a lifted decision is no strike");
    assert_ne!(second.id, first.id);
    assert_eq!(ids(&decider.lift(Which::Subject(&second.subject), at(3.0))), [&second.id]);
    assert_eq!(decider.in_force().count(), 0);
    let third = decider.decide(&finding(4.0, ATTACKER)).unwrap();
    assert_eq!(decider.lift(Which::Id(&third.id), at(604.0)), [], "it has ended by itself");
}

#[test]
fn what_was_not_enforced_never_was() {
    let mut decider = decider(config());
    let first = decider.decide(&finding(0.0, ATTACKER)).unwrap();
    assert!(decider.not_enforced(&first));
    assert!(!decider.not_enforced(&first), "it is forgotten");
    assert_eq!((decider.in_force().count(), decider.offenders()), (0, 0));
    assert_eq!(decider.covered_until(&finding(1.0, ATTACKER)), None);
    let second = decider.decide(&finding(1.0, ATTACKER)).unwrap();
    assert_eq!(second.ttl_s, 600);

    // Strikes from before remain, and their memory is as long as it was.
    let third = decider.decide(&finding(601.0, ATTACKER)).unwrap();
    assert_eq!(third.ttl_s, 2_400);
    assert!(decider.not_enforced(&third));
    let again = decider.decide(&finding(1_600.0, ATTACKER)).unwrap();
    assert_eq!(again.ttl_s, 2_400);
    assert!(decider.not_enforced(&again));
    assert_eq!(decider.decide(&finding(1_602.0, ATTACKER)).unwrap().ttl_s, 600);
}

#[test]
fn an_operators_block_that_was_not_enforced_leaves_the_detectors_alone() {
    let mut decider = decider(config());
    let automatic = decider.decide(&finding(0.0, ATTACKER)).unwrap();
    let target: IpNet = format!("{ATTACKER}/32").parse().unwrap();
    let manual = decider.operator_block(&order(target, None), "by hand", at(1.0)).unwrap();
    assert!(decider.not_enforced(&manual));
    assert_eq!(decider.in_force().collect::<Vec<_>>(), [&automatic]);
    assert_eq!(decider.decide(&finding(600.0, ATTACKER)).unwrap().ttl_s, 2_400);
    let alert = decider.decide(&finding(0.0, "10.1.1.1")).unwrap();
    assert!(!decider.not_enforced(&alert));
    assert_eq!(decider.decide(&finding(1.0, "10.1.1.1")), None);
}

#[test]
fn decisions_expire() {
    let mut decider = decider(config());
    decider.decide(&finding(0.0, ATTACKER)).unwrap();
    decider.decide(&finding(0.0, "10.1.1.1")).unwrap();
    decider.expire(at(599.9));
    assert_eq!((decider.in_force().count(), decider.offenders()), (2, 1));
    decider.expire(at(600.0));
    assert_eq!((decider.in_force().count(), decider.offenders()), (0, 1));
    decider.expire(at(1_600.0));
    assert_eq!(decider.offenders(), 0);
}

#[test]
fn a_restarted_agent_takes_over() {
    let target: IpNet = format!("{ATTACKER}/32").parse().unwrap();
    let mut decider = decider(config());
    let remaining = Some(Duration::from_secs(300));
    let block = found(target, 0xabc, remaining, Origin::Automatic, at(0.0));
    assert_eq!((&*block.id, block.rule_id()), ("0000000000000abc", Some(0xabc)));
    decider.restore(block.clone(), at(0.0)).unwrap();
    assert_eq!(dropped_until(&decider, &block.subject, at(0.0)), Some(at(300.0)));
    assert_eq!(ids(&decider.lift(Which::Subject(&block.subject), at(1.0))), ["0000000000000abc"]);

    decider.restore(block, at(0.0)).unwrap();
    let next = decider.decide(&finding(300.0, ATTACKER)).unwrap();
    assert_eq!(next.ttl_s, 2_400, "what was taken over is a strike");
    let over = found(
        "203.0.113.1/32".parse().unwrap(),
        1,
        Some(Duration::ZERO),
        Origin::Automatic,
        at(0.0),
    );
    decider.restore(over, at(0.0)).unwrap();
    assert_eq!(decider.in_force().filter(|d| d.id.ends_with('1')).count(), 0);
    let guarded = found("192.0.2.1/32".parse().unwrap(), 2, remaining, Origin::Automatic, at(0.0));
    assert!(matches!(decider.restore(guarded, at(0.0)), Err(Refused::Guarded { .. })));
}

#[test]
fn an_observing_agent_takes_over_operators_blocks_only() {
    let mut decider = decider(Config { mode: Mode::Observe, ..config() });
    let target = |last: u8| format!("203.0.113.{last}/32").parse::<IpNet>().unwrap();
    let minute = Some(Duration::from_secs(60));
    let automatic = found(target(1), 1, minute, Origin::Automatic, at(0.0));
    let refused = decider.restore(automatic, at(0.0)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "203.0.113.1 stays unblocked: a detector blocked it, and the mode is observe"
    );
    assert_eq!((decider.in_force().count(), decider.offenders()), (0, 0));
    for (last, remaining) in [(2, minute), (3, None)] {
        let manual = found(target(last), 2, remaining, Origin::Operator, at(0.0));
        decider.restore(manual, at(0.0)).unwrap();
    }
    // What is known to be of a service follows the service's mode.
    let mut enforcing = config();
    enforcing.services = vec![service("beta", Some(Mode::Observe))];
    let mut of_beta = found(target(4), 4, minute, Origin::Automatic, at(0.0));
    of_beta.service = Some("beta".into());
    let mut other = Decider::new(Arc::new(enforcing), host(), 7);
    assert_eq!(other.restore(of_beta, at(0.0)), Err(Refused::Observing(target(4).into())));
    assert_eq!(decider.in_force().count(), 2);
}

#[test]
fn operators_blocks_stay_theirs_over_a_restart() {
    let mut decider = decider(config());
    let target: IpNet = format!("{ATTACKER}/32").parse().unwrap();
    let forever = found(target, 0xabc, None, Origin::Operator, at(0.0));
    assert_eq!((&*forever.detector, forever.ttl_s), (OPERATOR, UNTIL_LIFTED.as_secs()));
    decider.restore(forever.clone(), at(0.0)).unwrap();
    assert_eq!(decider.offenders(), 0, "an operator's block is no strike");
    let observing = Config { mode: Mode::Observe, ..config() };
    assert_eq!(decider.reconfigure(Arc::new(observing), at(1.0)), []);
    assert_eq!(decider.in_force().collect::<Vec<_>>(), [&forever]);

    let automatic = found(target, 0xabd, None, Origin::Automatic, at(0.0));
    assert_eq!(automatic.detector, RECOVERED);
}

#[test]
fn the_operators_reserve_is_theirs_and_nothing_is_evicted() {
    let mut config = config();
    config.kernel.max_blocks = 5;
    config.kernel.operator_reserve = 2;
    let mut decider = decider(config);
    let ip = |n: u8| format!("203.0.113.{n}");
    let decided = (0..9).filter(|n| decider.decide(&finding(0.0, &ip(*n))).is_some()).count();
    assert_eq!((decided, decider.counters().no_room), (3, 6));
    let blocked = (10..19)
        .filter(|n| {
            let target = format!("{}/32", ip(*n)).parse().unwrap();
            decider.operator_block(&order(target, None), "by hand", at(1.0)).is_ok()
        })
        .count();
    assert_eq!(blocked, 2);
    assert_eq!(decider.decide(&finding(2.0, "10.0.0.1")).map(|d| d.action), Some(Action::Alert));
    decider.expire(at(600.0));
    assert!(decider.decide(&finding(600.0, &ip(0))).is_some(), "those that ended make room");
}

#[test]
fn alerts_and_strikes_are_bounded() {
    let mut config = config();
    config.detect.max_actors = 100;
    let mut decider = decider(config);
    for n in 0..1_000u32 {
        let ip = |first: u8| IpAddr::from([first, 0, (n >> 8) as u8, n as u8]).to_string();
        assert!(decider.decide(&finding(f64::from(n) / 10.0, &ip(10))).is_some());
        assert!(decider.decide(&finding(f64::from(n) / 10.0, &ip(11))).is_some());
    }
    let alerts = decider.in_force().filter(|d| d.action == Action::Alert).count();
    assert_eq!((alerts, decider.offenders()), (100, 100));
    let counters = decider.counters();
    assert_eq!((counters.noted_evicted, counters.strikes_evicted), (900, 900));
    assert_eq!(decider.decide(&finding(100.0, "10.0.3.231")), None, "the latest are remembered");
}

proptest! {
    /// Whatever is found and whatever is configured, no drop touches a guarded address; but for
    /// operators' of larger networks, in which the kernel lets it in.
    #[test]
    fn no_drop_covers_a_guarded_address(
        allow in prop::collection::vec(any::<(IpAddr, u8)>(), 0..5),
        guarded in prop::collection::vec(any::<IpAddr>(), 3),
        near in prop::collection::vec((0usize..8, any::<u64>(), any::<bool>()), 0..40),
        far in prop::collection::vec(any::<IpAddr>(), 0..5),
    ) {
        let mut config = config();
        config.guards.allow = allow.iter().map(|(ip, len)| {
            let most = if ip.is_ipv4() { 32 } else { 128 };
            IpNet::new_assert(*ip, len % (most + 1))
        }).collect();
        let host = HostGuards {
            addresses: guarded[..1].to_vec(),
            gateways: guarded[1..2].to_vec(),
            resolvers: guarded[2..].to_vec(),
        };
        let nets = config.guards.allow.iter().copied()
            .chain(config.guards.trusted_proxies.iter().copied())
            .chain(guarded.iter().map(|ip| IpNet::from(*ip)))
            .collect::<Vec<_>>();
        // Clients within or next to what is guarded, and anywhere.
        let near = near.iter().filter_map(|(n, bits, flip)| {
            let ip = nets.get(*n)?.addr();
            Some(match ip {
                IpAddr::V4(v4) => {
                    IpAddr::from((v4.to_bits() ^ u32::from(*flip)).to_be_bytes())
                }
                IpAddr::V6(v6) => {
                    IpAddr::from((v6.to_bits() ^ u128::from(*bits)).to_be_bytes())
                }
            })
        });
        let mut decider = Decider::new(Arc::new(config), host, 0);
        for ip in near.chain(far).collect::<Vec<_>>() {
            let found = finding(0.0, &ip.to_string());
            decider.decide(&found);
            if let Some(subject) = Subject::client(ip).network() {
                let _ = decider.operator_block(&order(subject, None), "by hand", at(0.0));
            }
        }
        for decision in decider.in_force().filter(|d| d.action == Action::Drop) {
            let net = decision.subject.network().unwrap();
            for guarded in nets.iter().map(|net| guards::canonical(*net)) {
                prop_assert!(!guarded.contains(&net));
                prop_assert!(decision.detector == OPERATOR || !net.contains(&guarded));
            }
            prop_assert!(!net.addr().is_loopback() && !net.addr().is_multicast());
        }
    }
}

#[test]
fn operators_block_around_the_guards() {
    let mut decider = decider(config());
    for target in ["198.51.0.0/16", "0.0.0.0/0", "::/0", "::/64", "192.0.2.0/24"] {
        let target: IpNet = target.parse().unwrap();
        assert!(decider.operator_block(&order(target, None), "by hand", at(0.0)).is_ok());
    }
    let ja4: Target = "t13d1516h2_8daaf6152771_e5627efa2ab1".parse().unwrap();
    let decision = decider.operator_block(&Order::drop(ja4.clone()), "by hand", at(0.0)).unwrap();
    assert_eq!((decision.subject.target(), decision.subject.network()), (Some(ja4), None));
    for target in
        ["10.1.0.0/16 with t13d1516h2_8daaf6152771_e5627efa2ab1", "10.1.1.1:5>192.0.2.10:443"]
    {
        let order = Order::drop(target.parse::<Target>().unwrap());
        let refused = decider.operator_block(&order, "by hand", at(0.0)).unwrap_err().to_string();
        let sentence = format!("{target} can't be blocked: 10.0.0.0/8 is a trusted proxy");
        assert_eq!(refused, sentence);
    }
    let deceived = Order { effect: Effect::Steer, ..Order::drop(free()) };
    let refused = decider.operator_block(&deceived, "by hand", at(0.0)).unwrap_err();
    assert_eq!(refused, Refused::NoDecoy(free()));
}

fn free() -> Target {
    "203.0.113.200".parse().unwrap()
}

#[test]
fn a_target_has_blocks_of_different_kinds_and_services() {
    let mut decider = decider(config());
    let speed: crate::rule::Speed = "10/s".parse().unwrap();
    let everywhere = Order::drop(free());
    let of_shop = Order { service: Some("shop".into()), ..everywhere.clone() };
    let limited = Order { effect: Effect::Limit(speed.rate(None, true)), ..everywhere.clone() };
    let orders = [&everywhere, &of_shop, &limited];
    let made = orders.map(|order| decider.operator_block(order, "by hand", at(0.0)).unwrap());
    let json = serde_json::to_value(&made[2]).unwrap();
    assert_eq!(json["action"], "rate_limit");
    assert_eq!(
        json["rate"],
        json!({"per_s": 10, "burst": 10, "unit": "packets", "each": {"client": {"v4": 32, "v6": 64}}})
    );
    assert_eq!(serde_json::to_value(&made[1]).unwrap()["scope"], "service");
    for (order, made) in orders.iter().zip(&made) {
        let holder = decider.holder(&order.rule(), at(1.0)).map(|(held, _)| held.clone());
        assert_eq!(holder.as_ref(), Some(made));
    }
    let subject = Subject::from(free());
    let which = Which::Rules { subject: &subject, kind: None, service: Some("shop") };
    assert_eq!(ids(&decider.lift(which, at(1.0))), [&made[1].id]);
    let which = Which::Rules { subject: &subject, kind: Some(Kind::Limit), service: None };
    assert_eq!(ids(&decider.lift(which, at(1.0))), [&made[2].id]);
    assert_eq!(ids(&decider.lift(Which::Subject(&subject), at(1.0))), [&made[0].id]);
}

#[test]
fn the_configuration_says_what_becomes_of_offenders() {
    let mut config = config();
    config.decide.action = Kind::Limit;
    config.decoy.enabled = true;
    let mut shop = service("shop", None);
    (shop.action, shop.scope, shop.ports) = (Some(Kind::Steer), Scope::Service, vec![443]);
    config.services = vec![shop];
    let mut decider = decider(config);
    let limited = decider.decide(&finding(0.0, ATTACKER)).unwrap();
    let rate = limited.rate.unwrap();
    assert_eq!((limited.action, rate.per_s, rate.burst), (Action::RateLimit, 100, 100));
    assert_eq!((limited.scope, limited.rule().unwrap().service), (Scope::Host, None));
    assert_eq!(decider.decide(&finding(1.0, ATTACKER)), None, "it is limited");

    let on_shop = |seconds| Finding { service: Some("shop".into()), ..finding(seconds, ATTACKER) };
    let deceived = decider.decide(&on_shop(2.0)).unwrap();
    assert_eq!((deceived.action, deceived.rate), (Action::Deceive, None));
    assert_eq!(deceived.rule().unwrap().service.as_deref(), Some("shop"));
    assert_eq!(decider.decide(&on_shop(3.0)), None, "it is deceived");
    assert_eq!(decider.decide(&finding(3.0, ATTACKER)), None, "and limited everywhere else");
    assert_eq!(decider.in_force().count(), 2);
}

#[test]
fn all_kinds_of_rules_are_taken_over() {
    let mut decider = decider(config());
    let speed: crate::rule::Speed = "10/s".parse().unwrap();
    let block = |target: &str, effect, rule_id| Block {
        target: target.parse().unwrap(),
        effect,
        service: Some("shop".into()),
        remaining: None,
        rule_id,
        origin: Origin::Operator,
        count_only: false,
        packets: 0,
        bytes: 0,
        exceeded: 0,
        no_room: 0,
    };
    let blocks = [
        block("198.51.0.0/16", Effect::Count, 1),
        block("203.0.113.0/24", Effect::Limit(speed.rate(None, false)), 2),
        block("t13d1516h2_8daaf6152771_e5627efa2ab1", Effect::Drop, 3),
        block("203.0.113.7:5>192.0.2.10:443", Effect::Drop, 4),
    ];
    for block in &blocks {
        decider.restore(recovered(block, at(0.0)), at(0.0)).unwrap();
        let (held, _) = decider.holder(&block.name(), at(1.0)).unwrap();
        assert_eq!((held.rule_id(), held.rate), (Some(block.rule_id), block.effect.rate()));
    }
    let steered = recovered(&block("203.0.113.9", Effect::Steer, 5), at(0.0));
    assert!(matches!(decider.restore(steered, at(0.0)), Err(Refused::NoDecoy(_))));
}
