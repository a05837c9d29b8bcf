//! What right configurations mean.

use std::net::IpAddr;
use std::time::Duration;

use super::super::{
    Config, FailureMatch, ListFile, Purpose, Service, StaticBlock, changes_that_need_restart, load,
    parse,
};
use super::{good, warnings};
use crate::decision::{Action, Mode, Scope};
use crate::rule::{Each, Effect, Kind, Rate, Unit};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn interfaces_are_all_that_must_be_set() {
    let loaded = parse("interfaces = ['eth0', 'eth1']", "f", Purpose::Run).unwrap();
    let interfaces = vec!["eth0".to_owned(), "eth1".to_owned()];
    assert_eq!(loaded.config, Config { interfaces, ..Config::default() });
    assert_eq!(loaded.warnings, []);
}

#[test]
fn replay_needs_no_interface() {
    assert_eq!(parse("", "f", Purpose::Replay).unwrap().config, Config::default());
    assert!(parse("", "f", Purpose::Run).is_err());
}

#[test]
fn every_form_of_a_service_is_read() {
    let config = good(
        "[[service]]\nname='a'\nhosts=['Shop.Example.com.', '*.x.org', '[2001:DB8::1]']\nmode='observe'\n\
         [[service.login]]\nmethod='PUT'\npath='/in*'\nuser_field='u'\n\
         failure=[{status=422},{body_contains='no'},{location_contains='err'}]\n\
         [[service.login]]\npath='/other'\n[[service]]\nname='b'\nports=[8443]\n",
    )
    .config;
    let [a, b] = config.services.as_slice() else { panic!("{:?}", config.services) };
    assert_eq!(a.hosts, ["shop.example.com", "*.x.org", "[2001:db8::1]"]);
    assert_eq!((a.mode, b.mode), (Some(Mode::Observe), None));
    assert_eq!(b.ports, [8443]);
    let [login, other] = a.logins.as_slice() else { panic!("{:?}", a.logins) };
    assert_eq!(login.method.as_deref(), Some("PUT"));
    assert_eq!((login.path.as_str(), other.path.as_str()), ("/in*", "/other"));
    assert_eq!(login.user_field.as_deref(), Some("u"));
    let failure = [
        FailureMatch::Status(422),
        FailureMatch::BodyContains("no".into()),
        FailureMatch::LocationContains("err".into()),
    ];
    assert_eq!(login.failure, failure);
    assert_eq!(other.failure, []);
}

#[test]
fn durations_and_sizes_have_units() {
    let config = good(
        "[capture]\nring_bytes=65536\nbody_excerpt='2KiB'\nidle_timeout='1h 30m'\n\
         [decide]\nttl='90s'\nmax_ttl='7d'\n",
    )
    .config;
    assert_eq!((config.capture.ring_bytes, config.capture.body_excerpt), (65_536, 2_048));
    assert_eq!(config.capture.idle_timeout, Duration::from_secs(5_400));
    assert_eq!(config.decide.ttl, Duration::from_secs(90));
    assert_eq!(config.decide.max_ttl, Duration::from_secs(7 * 86_400));
}

#[test]
fn the_empty_string_switches_off() {
    let report =
        good("[report]\nmetrics_listen=''\nevent_log='/var/log/p.jsonl'\ncontrol_group='adm'")
            .config
            .report;
    assert_eq!(report.metrics_listen, None);
    assert_eq!(report.event_log, Some("/var/log/p.jsonl".into()));
    assert_eq!(report.control_group.as_deref(), Some("adm"));
}

#[test]
fn blocks_are_strings_or_tables() {
    let block = |target: &str, reason: Option<&str>| StaticBlock {
        target: target.parse().unwrap(),
        effect: Effect::Drop,
        service: None,
        reason: reason.map(str::to_owned),
    };
    let mixed =
        "block = ['203.0.113.9', {target='2001:db8:0:7::/64', reason='r'}, '::ffff:10.0.0.1']";
    let expected = [
        block("203.0.113.9/32", None),
        block("2001:db8:0:7::/64", Some("r")),
        block("10.0.0.1/32", None),
    ];
    assert_eq!(good(mixed).config.blocked, expected);
    let headers = "[[block]]\ntarget='203.0.113.9'\n[[block]]\ntarget='2001:db8::1'\nreason='r'\n";
    let expected = [block("203.0.113.9/32", None), block("2001:db8::1/128", Some("r"))];
    assert_eq!(good(headers).config.blocked, expected);
}

#[test]
fn what_is_odd_is_a_warning() {
    let everything = "guards.allow = ['0.0.0.0/0', '::/0', '10.0.0.0/8', '10.0.0.0/8']";
    let expected = [
        "2:17: guards.allow[0]: 0.0.0.0/0 covers every address: nothing would be blocked",
        "2:30: guards.allow[1]: ::/0 covers every address: nothing would be blocked",
        "2:52: guards.allow[3]: \"10.0.0.0/8\" is listed twice, first on line 2",
    ];
    assert_eq!(warnings(everything), expected);
    let shadowed = "[[service]]\nname='a'\nhosts=['*.x.org']\n[[service]]\nname='b'\nhosts=['y.x.org']\n\
                    ports=[443]\n[[service]]\nname='c'\nhosts=['x.org']\n";
    let expected = "6:6: service[1].name: no request reaches \"b\": the service on line 3 takes all of its hosts \
         and ports";
    assert_eq!(warnings(shadowed), [expected]);
    let forgetful = warnings("decide.memory = '1m'");
    assert_eq!(forgetful.len(), 1, "{forgetful:?}");
    assert!(forgetful.concat().starts_with("2:17: decide.memory: is shorter than decide.ttl"));
}

#[test]
fn a_service_covers_its_hosts_and_ports() {
    let service = |hosts: &[&str], ports: &[u16]| Service {
        name: "s".into(),
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        ports: ports.to_vec(),
        ..Service::default()
    };
    type Case = (&'static [&'static str], &'static [u16], &'static str, Option<u16>, bool);
    let cases: &[Case] = &[
        (&[], &[], "any.example", None, true),
        (&[], &[], "", Some(1), true),
        (&["a.example"], &[], "a.example", Some(443), true),
        (&["a.example"], &[], "A.Example", None, true),
        (&["a.example"], &[], "a.example.", None, true),
        (&["a.example"], &[], "a.example..", None, false),
        (&["a.example"], &[], "b.a.example", None, false),
        (&["a.example"], &[], "", None, false),
        (&["*.a.example"], &[], "b.a.example", None, true),
        (&["*.a.example"], &[], "C.B.A.EXAMPLE.", None, true),
        (&["*.a.example"], &[], "a.example", None, false),
        (&["*.a.example"], &[], ".a.example", None, false),
        (&["*.a.example"], &[], "ba.example", None, false),
        (&["*.a.example"], &[], "b.a.example.org", None, false),
        (&["*.a.example"], &[], "é.a.example", None, true),
        (&["*.a.example"], &[], "éa.example", None, false),
        (&["x", "*.y"], &[], "z.y", None, true),
        (&["x"], &[443, 8443], "x", Some(8443), true),
        (&["x"], &[443], "x", Some(80), false),
        (&["x"], &[443], "x", None, false),
        (&[], &[443], "y", Some(443), true),
    ];
    for (hosts, ports, host, port, expected) in cases {
        let covers = service(hosts, ports).covers(host, *port);
        assert_eq!(covers, *expected, "{hosts:?} {ports:?} {host:?} {port:?}");
    }
}

#[test]
fn the_first_matching_service_sets_the_mode() {
    let config =
        good("[[service]]\nname='a'\nhosts=['a']\nmode='observe'\n[[service]]\nname='all'\n")
            .config;
    let mode = |host| config.mode_of(config.service_of(host, None).map(|service| &*service.name));
    assert_eq!((mode("a"), mode("b")), (Mode::Observe, Mode::Enforce));
}

#[test]
fn allowed_addresses_are_those_the_kernel_allows() {
    let config = good("guards.allow = ['10.0.0.0/8', '2001:db8::/32']").config;
    for (address, allowed) in [
        ("10.1.2.3", true),
        ("::ffff:10.1.2.3", true),
        ("11.0.0.1", false),
        ("2001:db8::1", true),
        ("2001:db9::1", false),
    ] {
        assert_eq!(config.is_allowed(ip(address)), allowed, "{address}");
        assert!(!config.is_trusted_proxy(ip(address)), "{address}");
    }
    // In the kernel's allow list, IPv4 addresses are IPv4-mapped ones.
    let config = good("guards.allow = ['::/0']").config;
    assert!(config.is_allowed(ip("192.0.2.1")));
    let config = good("guards.trusted_proxies = ['::ffff:10.0.0.0/104']").config;
    assert!(config.is_trusted_proxy(ip("10.255.0.1")) && !config.is_trusted_proxy(ip("11.0.0.1")));
}

#[test]
fn a_reload_names_the_keys_that_wait_for_a_restart() {
    let old = good("").config;
    assert_eq!(changes_that_need_restart(&old, &old), Vec::<&str>::new());
    let reloadable = good(
        "mode='observe'\nblock=['192.0.2.1']\nguards.allow=['192.0.2.2']\ndecide.ttl='5m'\n\
         report.event_log='/x'\n[[service]]\nname='s'\n",
    );
    assert_eq!(changes_that_need_restart(&old, &reloadable.config), Vec::<&str>::new());
    let new = good("kernel.max_blocks=200000\ncapture.ring_bytes='1MiB'\nreport.metrics_listen=''");
    let changed = changes_that_need_restart(&old, &new.config);
    let expected = ["kernel.max_blocks", "capture.ring_bytes", "report.metrics_listen"];
    assert_eq!(changed, expected);
}

#[test]
fn a_file_is_loaded_or_its_failure_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    let failure = |path| load(path, Purpose::Run).unwrap_err().to_string();
    assert!(failure(&path).starts_with(&format!("{}: can't be read: ", path.display())));
    std::fs::write(&path, "interfaces = ['eth0']\n# \u{fc}\n").unwrap();
    assert_eq!(load(&path, Purpose::Run).unwrap().config.interfaces, ["eth0"]);
    std::fs::write(&path, b"interfaces = ['eth0']\n# \xff\n").unwrap();
    let expected = format!("{}:2:3: not valid TOML: a byte that is not UTF-8", path.display());
    assert_eq!(failure(&path), expected);
    std::fs::write(&path, " ".repeat(5 * 1024 * 1024)).unwrap();
    assert!(failure(&path).ends_with("longer than 4194304 bytes"));
}

#[test]
fn blocks_have_every_target_and_action() {
    let text = "decoy.enabled=true\n\
        block=['198.51.100.0/24','t13d1516h2_8daaf6152771_e5627efa2ab1',\
        {target='0.0.0.0/0',service='shop',action='rate_limit',rate='50 connections/s',each=true},\
        {target='203.0.113.0/24',ja4='t13d1516h2_8daaf6152771_e5627efa2ab1',action='deceive'},\
        {ja4='q13d0312h3_55b375c5d22e_06cda9e17597',action='count'},\
        {target='203.0.113.7',action='rate_limit',rate='10MiB/s',burst=4096}]\n\
        [[service]]\nname='shop'\naddresses=['192.0.2.1','2001:db8::1']\n";
    let blocked = good(text).config.blocked;
    let shown: Vec<_> = blocked.iter().map(|block| block.target.to_string()).collect();
    assert_eq!(
        shown,
        [
            "198.51.100.0/24",
            "t13d1516h2_8daaf6152771_e5627efa2ab1",
            "0.0.0.0/0",
            "203.0.113.0/24 with t13d1516h2_8daaf6152771_e5627efa2ab1",
            "q13d0312h3_55b375c5d22e_06cda9e17597",
            "203.0.113.7",
        ]
    );
    let connections = Rate {
        unit: Unit::Connections,
        per_s: 50,
        burst: 50,
        each: Each::Client { v4: 32, v6: 64 },
    };
    let bytes = Rate { unit: Unit::Bytes, per_s: 10 << 20, burst: 4_096, each: Each::Target };
    let effects: Vec<_> = blocked.iter().map(|block| block.effect).collect();
    let limits = [connections, bytes].map(Effect::Limit);
    let expected = [Effect::Drop, Effect::Drop, limits[0], Effect::Steer, Effect::Count, limits[1]];
    assert_eq!(effects, expected);
    assert_eq!(blocked[2].service.as_deref(), Some("shop"));
}

#[test]
fn lists_and_responses_are_read() {
    let config = good(
        "[[list]]\nname='a'\nfile='/x'\n[[list]]\nname='b'\nfile='/y'\naction='count'\nreason='r'\n\
         [decide]\naction='rate_limit'\nrate='5 connections/s'\n[decoy]\nenabled=true\n\
         [[service]]\nname='s'\nports=[443]\nscope='service'\naction='deceive'\n[[service]]\nname='t'\n",
    )
    .config;
    let list = |name: &str, file: &str, effect, reason: Option<&str>| ListFile {
        name: name.into(),
        file: file.into(),
        effect,
        reason: reason.map(Into::into),
    };
    let expected = [list("a", "/x", Effect::Drop, None), list("b", "/y", Effect::Count, Some("r"))];
    assert_eq!(config.lists, expected);
    let [s, t] = config.services.as_slice() else { panic!("{:?}", config.services) };
    assert_eq!((s.scope, s.action), (Scope::Service, Some(Kind::Steer)));
    assert_eq!(config.response_of(Some(s)), (Action::Deceive, None));
    let (action, rate) = config.response_of(Some(t));
    let rate = rate.map(|rate| (rate.unit, rate.per_s, rate.burst));
    assert_eq!((action, rate), (Action::RateLimit, Some((Unit::Connections, 5, 5))));
    assert_eq!(Config::default().response_of(None), (Action::Drop, None));
}
