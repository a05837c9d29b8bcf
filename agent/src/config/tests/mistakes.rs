//! Wrong configurations and the exact words they are refused with.

use proptest::prelude::*;

use super::super::{Purpose, parse};
use super::{good, mistakes};

fn refuses(text: &str, expected: &[&str]) {
    assert_eq!(mistakes(text), expected, "{text}");
}

#[test]
fn namespaces_are_checked() {
    refuses(
        "[[namespace]]\npath = 'run/netns/a'\ninterfaces = ['!']\n[[namespace]]\n[[namespace]]\n\
         path = '/a'\ninterfaces = ['eth0']\n[[namespace]]\npath = '/a'\ninterfaces = ['*', '!lo']",
        &[
            r#"2:8: namespace[0].path: is "run/netns/a", but must be an absolute path without "..", of at most 60 bytes"#,
            r#"3:15: namespace[0].interfaces[0]: is "!", but must be the name of a network interface, of 1 to 15 bytes, or a pattern such as "eth*" or "!eth1""#,
            r#"4:1: namespace[1].path: is missing: must be an absolute path without "..", of at most 60 bytes"#,
            r#"4:1: namespace[1].interfaces: names no network interface: write for example interfaces = ["eth0"]"#,
            r#"9:8: namespace[3].path: "/a" is the namespace on line 6 already"#,
        ],
    );
    // A namespace is enough.
    refuses("[[namespace]]\npath = '/a'\ninterfaces = ['eth0']", &[]);
    let long =
        format!("interfaces = []\n[[namespace]]\npath = '/{}'\ninterfaces = ['a']", "a".repeat(60));
    // The path, and that nothing else names an interface.
    assert_eq!(mistakes(&long).len(), 2, "{:?}", mistakes(&long));
}

#[test]
fn interfaces_are_checked() {
    refuses(
        "",
        &[
            r#"1:1: interfaces: names no network interface: write for example interfaces = ["eth0"]"#,
        ],
    );
    refuses(
        "interfaces = []",
        &[
            r#"1:14: interfaces: names no network interface: write for example interfaces = ["eth0"]"#,
        ],
    );
    refuses(
        "interfaces = 'eth0'",
        &[
            r#"1:14: interfaces: is "eth0", but must be a list, each entry the name of a network interface, of 1 to 15 bytes, or a pattern such as "eth*" or "!eth1": write ["eth0"]"#,
        ],
    );
    refuses(
        "interfaces = ['', 'eth0', 'a name', 'sixteen_bytes_xx', 'eth0']",
        &[
            r#"1:15: interfaces[0]: is "", but must be the name of a network interface, of 1 to 15 bytes, or a pattern such as "eth*" or "!eth1""#,
            r#"1:27: interfaces[2]: is "a name", but must be the name of a network interface, of 1 to 15 bytes, or a pattern such as "eth*" or "!eth1""#,
            r#"1:37: interfaces[3]: is "sixteen_bytes_xx", but must be the name of a network interface, of 1 to 15 bytes, or a pattern such as "eth*" or "!eth1""#,
            r#"1:57: interfaces[4]: "eth0" is listed twice, first on line 1"#,
        ],
    );
}

#[test]
fn unknown_keys_are_refused_with_what_was_meant() {
    refuses(
        "moed = 'enforce'\ninterfaces=['a']",
        &[r"1:1: moed: unknown key; did you mean `mode`?"],
    );
    refuses(
        "interfaces=['a']\n[kernel]\npin-dir='/x'\nmax_block=1\nfoo=1",
        &[
            r"3:1: kernel.pin-dir: unknown key; did you mean `pin_dir`?",
            r"4:1: kernel.max_block: unknown key; did you mean `max_blocks`?",
            r"5:1: kernel.foo: unknown key; known here: attach, pin_dir, max_blocks, operator_reserve, max_allowed, tunnels",
        ],
    );
    refuses(
        "[kernel]\ninterfaces=['a']\nwindow='1s'",
        &[
            r#"1:1: interfaces: names no network interface: write for example interfaces = ["eth0"]"#,
            r"2:1: kernel.interfaces: unknown key; `interfaces` belongs at the top of the file, before the first [table]",
            r"3:1: kernel.window: unknown key; did you mean `detect.request_rate.window`?",
        ],
    );
}

#[test]
fn wrong_types_are_refused() {
    refuses(
        "interfaces=['a']\nkernel=3\nservice='x'\n",
        &[
            r"2:8: kernel: is 3, but must be a table: write [kernel]",
            r#"3:9: service: is "x", but must be a list of tables: write [[service]]"#,
        ],
    );
    refuses(
        "interfaces=['a']\n[service]\nname='x'",
        &[r"2:1: service: is a table, but must be a list of tables: write [[service]]"],
    );
    refuses(
        "interfaces=['a']\n[detect.request_rate]\nwindow=60\nrequests='x'\nenabled='yes'",
        &[
            r#"3:8: detect.request_rate.window: is 60 without a unit: write "60s" for seconds"#,
            r#"4:10: detect.request_rate.requests: is "x", but must be a whole number from 1 to 1000000000"#,
            r#"5:9: detect.request_rate.enabled: is "yes", but must be true or false"#,
        ],
    );
}

#[test]
fn values_out_of_range_are_refused() {
    refuses(
        "interfaces=['a']\n[detect.request_rate]\nwindow='0s'\nrequests=0",
        &[
            r#"3:8: detect.request_rate.window: is "0s", but must be a duration from "1s" to "1d""#,
            r"4:10: detect.request_rate.requests: is 0, but must be a whole number from 1 to 1000000000",
        ],
    );
    refuses(
        "interfaces=['a']\n[detect.request_rate]\nwindow='10M'\nrequests=-1",
        &[
            r#"3:8: detect.request_rate.window: is "10M", but must be a duration from "1s" to "1d"; units are ms, s, m, h and d"#,
            r"4:10: detect.request_rate.requests: is -1, but must be a whole number from 1 to 1000000000",
        ],
    );
    refuses(
        "interfaces=['a']\n[detect.request_rate]\nwindow='ten'\nrequests=99999999999999999999999999999999999999999999",
        &[
            r#"3:8: detect.request_rate.window: is "ten", but must be a duration from "1s" to "1d"; units are ms, s, m, h and d"#,
            r"4:10: detect.request_rate.requests: is 99999999999999999999999999999999999999999999, but must be a whole number from 1 to 1000000000",
        ],
    );
}

#[test]
fn the_kernels_limits_hold() {
    refuses(
        "interfaces=['a']\n[kernel]\nmax_blocks=4096",
        &[
            r"3:12: kernel.max_blocks: kernel.operator_reserve is 4096 and kernel.max_blocks 4096, but the reserve must be smaller: nothing would be left for detectors",
        ],
    );
    refuses(
        "interfaces=['a']\n[kernel]\nmax_blocks=10\noperator_reserve=10",
        &[
            r"4:18: kernel.operator_reserve: kernel.operator_reserve is 10 and kernel.max_blocks 10, but the reserve must be smaller: nothing would be left for detectors",
        ],
    );
    refuses(
        "interfaces=['a']\n[kernel]\nmax_blocks='x'\noperator_reserve=200000",
        &[r#"3:12: kernel.max_blocks: is "x", but must be a whole number from 1 to 16777216"#],
    );
    refuses(
        "interfaces=['a']\n[capture]\nring_bytes=100000\nbody_excerpt='1MiB'\nlibraries=['lib.so','/a/../b']",
        &[
            r#"3:12: capture.ring_bytes: is 100000, but must be a number of bytes or a string with a unit, from "64KiB" to "1GiB", a power of two"#,
            r#"4:14: capture.body_excerpt: is "1MiB", but must be a number of bytes or a string with a unit, from 0 to "16KiB""#,
            r#"5:12: capture.libraries[0]: is "lib.so", but must be an absolute path without "..""#,
            r#"5:21: capture.libraries[1]: is "/a/../b", but must be an absolute path without "..""#,
        ],
    );
    refuses(
        "interfaces=['a']\n[capture]\nring_bytes=4096",
        &[
            r#"3:12: capture.ring_bytes: is 4096, but must be a number of bytes or a string with a unit, from "64KiB" to "1GiB", a power of two"#,
        ],
    );
}

#[test]
fn thresholds_make_sense() {
    refuses(
        "interfaces=['a']\n[detect.credential_stuffing]\nfailure_ratio=1.5\nfailures=3\ndistinct_users=4",
        &[
            r"3:15: detect.credential_stuffing.failure_ratio: is 1.5, but must be a number from 0.0 to 1.0",
            r"5:16: detect.credential_stuffing.distinct_users: distinct_users is 4 and failures 3, but distinct_users must not be larger: each failed login names one user",
        ],
    );
    refuses(
        "interfaces=['a']\n[detect.credential_stuffing]\nfailure_ratio=nan",
        &[
            r"3:15: detect.credential_stuffing.failure_ratio: is nan, but must be a number from 0.0 to 1.0",
        ],
    );
    refuses(
        "interfaces=['a']\n[decide]\nescalation=0.5\nttl='8d'",
        &[
            r"3:12: decide.escalation: is 0.5, but must be a number from 1.0 to 1000.0",
            r#"4:5: decide.ttl: decide.ttl is "8d" and decide.max_ttl "7d", but max_ttl must not be shorter"#,
        ],
    );
    refuses(
        "interfaces=['a']\n[decide]\nescalation=inf\nttl='2m'\nmax_ttl='1m'",
        &[
            r"3:12: decide.escalation: is inf, but must be a number from 1.0 to 1000.0",
            r#"5:9: decide.max_ttl: decide.ttl is "2m" and decide.max_ttl "1m", but max_ttl must not be shorter"#,
        ],
    );
}

#[test]
fn guards_are_checked() {
    refuses(
        "interfaces=['a']\nguards.allow=['10.0.0.1/8','300.1.1.1','2001:db8::1/32','host']",
        &[
            r#"2:15: guards.allow[0]: is "10.0.0.1/8", but must be an IP address, or a network such as "192.0.2.0/24" or "2001:db8::/32": it has bits set after its prefix, write "10.0.0.0/8" or "10.0.0.1""#,
            r#"2:28: guards.allow[1]: is "300.1.1.1", but must be an IP address, or a network such as "192.0.2.0/24" or "2001:db8::/32""#,
            r#"2:40: guards.allow[2]: is "2001:db8::1/32", but must be an IP address, or a network such as "192.0.2.0/24" or "2001:db8::/32": it has bits set after its prefix, write "2001:db8::/32" or "2001:db8::1""#,
            r#"2:57: guards.allow[3]: is "host", but must be an IP address, or a network such as "192.0.2.0/24" or "2001:db8::/32""#,
        ],
    );
    refuses(
        "interfaces=['a']\nguards.failsafe_tcp_ports=[0,65536,22,22,'ssh']",
        &[
            r"2:28: guards.failsafe_tcp_ports[0]: is 0, but must be a whole number from 1 to 65535",
            r"2:30: guards.failsafe_tcp_ports[1]: is 65536, but must be a whole number from 1 to 65535",
            r"2:39: guards.failsafe_tcp_ports[3]: 22 is listed twice, first on line 2",
            r#"2:42: guards.failsafe_tcp_ports[4]: is "ssh", but must be a whole number from 1 to 65535"#,
        ],
    );
}

#[test]
fn services_are_checked() {
    refuses(
        "interfaces=['a']\n[[service]]\nhosts=['*','http://x','a:80','-','a..b']\nports=['x']\n",
        &[
            r"2:1: service[0].name: is missing: must be a name of 1 to 64 letters, digits, '-', '_' and '.'",
            r#"3:8: service[0].hosts[0]: is "*", but must be a host name without port, or "*." and a domain: leave `hosts` out for all hosts"#,
            r#"3:12: service[0].hosts[1]: is "http://x", but must be a host name without port, or "*." and a domain: write the name alone, without the scheme"#,
            r#"3:23: service[0].hosts[2]: is "a:80", but must be a host name without port, or "*." and a domain"#,
            r#"3:30: service[0].hosts[3]: is "-", but must be a host name without port, or "*." and a domain"#,
            r#"3:34: service[0].hosts[4]: is "a..b", but must be a host name without port, or "*." and a domain"#,
            r#"4:8: service[0].ports[0]: is "x", but must be a whole number from 1 to 65535"#,
        ],
    );
    refuses(
        "interfaces=['a']\n[[service]]\nname='x'\n[[service]]\nname='x'\nmode='on'\n[[service]]\nname='a b'",
        &[
            r#"5:6: service[1].name: "x" is the service on line 3 already"#,
            r#"6:6: service[1].mode: is "on", but must be "enforce" or "observe""#,
            r#"8:6: service[2].name: is "a b", but must be a name of 1 to 64 letters, digits, '-', '_' and '.'"#,
        ],
    );
    refuses(
        "interfaces=['a']\n[[service]]\nname='x'\n[[service.login]]\nmethod='post'\npath='login?x'\nuser_field=''\nfailure=[{},{status=42},{status=401,body_contains='x'},'x',{statsu=1}]",
        &[
            r#"5:8: service[0].login[0].method: is "post", but must be an HTTP method in capital letters"#,
            r#"6:6: service[0].login[0].path: is "login?x", but must be a path that begins with '/' and has no query, with '*' only at its end"#,
            r#"7:12: service[0].login[0].user_field: is "", but must be a string that is not empty"#,
            r"8:10: service[0].login[0].failure[0]: has 0 of the keys status, body_contains and location_contains, but must have exactly one",
            r"8:21: service[0].login[0].failure[1].status: is 42, but must be a whole number from 100 to 599",
            r"8:25: service[0].login[0].failure[2]: has 2 of the keys status, body_contains and location_contains, but must have exactly one",
            r#"8:56: service[0].login[0].failure[3]: is "x", but must be a table"#,
            r"8:60: service[0].login[0].failure[4]: has 0 of the keys status, body_contains and location_contains, but must have exactly one",
            r"8:61: service[0].login[0].failure[4].statsu: unknown key; did you mean `status`?",
        ],
    );
    refuses(
        "interfaces=['a']\n[[service]]\nname='x'\n[[service.login]]\nmethod='POST'\n",
        &[
            r"4:1: service[0].login[0].path: is missing: must be a path that begins with '/' and has no query, with '*' only at its end",
        ],
    );
}

#[test]
fn blocks_are_checked() {
    refuses(
        "interfaces=['a']\nblock=['10.0.0.1/24','127.0.0.0/9','::/128',7,{reason='x'},{target='1.1.1.1',why='x'}]",
        &[
            r#"2:8: block[0]: is "10.0.0.1/24", but must be TARGET: it has bits set after its prefix, write "10.0.0.0/24" or "10.0.0.1""#,
            r#"2:22: block[1]: is "127.0.0.0/9", but must be TARGET: no client has such an address"#,
            r#"2:36: block[2]: is "::/128", but must be TARGET: no client has such an address"#,
            r"2:45: block[3]: is 7, but must be a string or a table",
            r"2:47: block[4].target: is missing, and so is ja4: one of them must be there",
            r"2:78: block[5].why: unknown key; known here: target, ja4, service, action, rate, burst, each, reason",
        ]
        .map(|line| line.replace("TARGET", r#"an IP address, a network such as "192.0.2.0/24", or a JA4"#))
        .each_ref()
        .map(String::as_str),
    );
    refuses(
        "interfaces=['a']\nblock=[\n'203.0.113.9',\n{target='203.0.113.9'},\n'10.1.1.1',\n'2001:db8::/64',\n]\n[guards]\nallow=['10.0.0.0/8']\ntrusted_proxies=['2001:db8::5']",
        &[
            r"4:9: block[1].target: 203.0.113.9 is blocked on line 3 already",
            r"5:1: block[2]: 10.1.1.1 is blocked on line 5, but 10.0.0.0/8 is allowed on line 9",
        ],
    );
}

#[test]
fn what_a_block_does_is_checked() {
    refuses(
        "interfaces=['a']\n[[block]]\ntarget='1.1.1.1'\naction='rate_limit'\n\
         [[block]]\ntarget='1.1.1.2'\nrate='10/s'\nburst=5\neach=true\n\
         [[block]]\ntarget='1.1.1.3'\nservice='shop'\n\
         [[block]]\ntarget='1.1.1.4'\naction='deceive'\n\
         [[block]]\ntarget='1.1.1.5'\naction='rate_limit'\nrate='fast'\n\
         [[block]]\ntarget='t13d1516h2_8daaf6152771_e5627efa2ab1'\nja4='t13d1516h2_8daaf6152771_e5627efa2ab1'\n\
         [[block]]\ntarget='1.1.1.6'\nja4='Firefox'\n\
         [[service]]\nname='shop'\nscope='service'\naction='deceive'\n\
         [[list]]\nname='l'\nfile='relative'\n[[list]]\nname='m'\nfile='/m'\naction='deceive'\n\
         [decide]\naction='deceive'\nrate='0/s'\n",
        &[
            r#"4:8: block[0].action: is "rate_limit", but there is no rate"#,
            r#"7:6: block[1].rate: is for the action "rate_limit" alone"#,
            r#"8:7: block[1].burst: is for the action "rate_limit" alone"#,
            r#"9:6: block[1].each: is for the action "rate_limit" alone"#,
            r#"12:9: block[2].service: there is no service "shop" with ports or addresses"#,
            r#"15:8: block[3].action: is "deceive", but decoy.enabled is false"#,
            r#"19:6: block[4].rate: is "fast", but must be a rate such as "100/s" (packets), "50 connections/s" or "10MiB/s""#,
            r"22:5: block[5].ja4: is given beside a target that is a JA4 itself",
            r#"25:5: block[6].ja4: is "Firefox", but must be a JA4 such as "t13d1516h2_8daaf6152771_e5627efa2ab1""#,
            r#"28:7: service[0].scope: is "service", but the service has neither ports nor addresses"#,
            r#"29:8: service[0].action: is "deceive", but decoy.enabled is false"#,
            r#"32:6: list[0].file: is "relative", but must be an absolute path without "..""#,
            r#"36:8: list[1].action: is "deceive", but must be "drop" or "count""#,
            r#"38:8: decide.action: is "deceive", but decoy.enabled is false"#,
            r#"39:6: decide.rate: is "0/s", but must be a rate such as "100/s" (packets), "50 connections/s" or "10MiB/s""#,
        ],
    );
}

#[test]
fn report_is_checked() {
    refuses(
        "interfaces=['a']\n[report]\ncontrol_socket='x.sock'\nmetrics_listen='9464'\nevent_log=false\ncontrol_group='a:b'",
        &[
            r#"3:16: report.control_socket: is "x.sock", but must be an absolute path without "..", of at most 107 bytes"#,
            r#"4:16: report.metrics_listen: is "9464", but must be an IP address and a port such as "127.0.0.1:9464" or "[::]:9464", or "" for none"#,
            r#"5:11: report.event_log: is false, but must be an absolute path without "..", or "" for none"#,
            r#"6:15: report.control_group: is "a:b", but must be the name of a group, or "" for none"#,
        ],
    );
    refuses(
        "interfaces=['a']\nreport.event_log='/run/portcullis/portcullis.sock'",
        &[r"2:18: report.event_log: report.event_log and report.control_socket are the same file"],
    );
}

#[test]
fn mistakes_in_the_toml_come_with_the_others() {
    refuses(
        "interfaces=['a'\nmode='x'\n",
        &[r"2:1: not valid TOML: missing comma between array elements, expected `,`"],
    );
    refuses(
        "interfaces=['a']\nmode='x\n[decide]\nttl=5\n",
        &[
            r"2:8: not valid TOML: invalid literal string, expected `'`",
            r#"4:5: decide.ttl: is 5 without a unit: write "5s" for seconds"#,
        ],
    );
    refuses(
        "interfaces=['a']\n[decide]\nttl=60s\nmax_ttl='1m'\nescalation=0.5",
        &[
            r"3:5: not valid TOML: string values must be quoted, expected literal string",
            r"5:12: decide.escalation: is 0.5, but must be a number from 1.0 to 1000.0",
        ],
    );
    refuses(
        "interfaces=['a']\nmode='x'\n[decide\nttl=5\n",
        &[
            r#"2:6: mode: is "x", but must be "enforce" or "observe""#,
            r"3:8: not valid TOML: unclosed table, expected `]`",
        ],
    );
    refuses(
        "interfaces=['a']\nmode='observe'\nmode='x'\n[[decide]]\n",
        &[
            r"3:1: `mode` is already defined",
            r"4:1: decide: is a list, but must be a table: write [decide]",
        ],
    );
    refuses("interfaces=['a']\n[decide]\n[decide]\n", &[r"3:2: `decide` is already defined"]);
    refuses(
        "a\nb\n\0",
        &[
            r"1:2: not valid TOML: key with no value, expected `=`",
            r"2:2: not valid TOML: key with no value, expected `=`",
            r"3:2: not valid TOML: key with no value, expected `=`",
        ],
    );
}

#[test]
fn damage_hides_only_what_it_may_have_caused() {
    // What the broken lines may have said is not complained about …
    refuses(
        "interfaces=['a']\n[kernel]\nmax_blocks=\noperator_reserve=200000\n",
        &["3:12: not valid TOML: string values must be quoted, expected literal string"],
    );
    refuses("interfaces=['a\n", &["1:15: not valid TOML: invalid literal string, expected `'`"]);
    // … nor what a broken header put into another table, but what stands before it is.
    refuses(
        "mode='x'\n[[service]\nname='a'\n",
        &[
            r#"1:6: mode: is "x", but must be "enforce" or "observe""#,
            "2:11: not valid TOML: unclosed array table, expected `]`",
        ],
    );
}

#[test]
fn lists_fit_into_the_kernels_maps() {
    let list =
        |count: u8| (0..count).map(|n| format!("'10.0.0.{n}'")).collect::<Vec<_>>().join(",");
    let allowing = |allow, proxies| {
        format!(
            "interfaces=['a']\nkernel.max_allowed=64\n[guards]\nallow=[{}]\ntrusted_proxies=[{}]",
            list(allow),
            list(proxies)
        )
    };
    refuses(&allowing(40, 24), &[]);
    refuses(
        &allowing(40, 25),
        &["4:7: guards.allow: guards.allow and guards.trusted_proxies name 65 networks, but \
           kernel.max_allowed is 64"],
    );
    let blocking = |count| {
        let list = list(count);
        format!("interfaces=['a']\nblock=[{list}]\n[kernel]\nmax_blocks=2\noperator_reserve=1")
    };
    refuses(&blocking(2), &[]);
    refuses(&blocking(3), &["2:8: block[0]: 3 targets are blocked, but kernel.max_blocks is 2"]);
}

#[test]
fn what_the_kernel_would_allow_cannot_be_blocked() {
    refuses(
        "interfaces=['a']\nblock=['203.0.113.9']\nguards.allow=['::/0']",
        &["2:8: block[0]: 203.0.113.9 is blocked on line 2, but ::/0 is allowed on line 3"],
    );
}

/// One file with a mistake of every sort: none hides another.
#[test]
fn all_mistakes_are_reported_together() {
    refuses(
        "mode = 'enforced'
interfaces = ['eth0', 'eth0']
block = ['203.0.113.9']
[kernel]
max_blocks = 100
pin_dri = '/x'
[guards]
allow = ['203.0.113.0/24', '10.0.0.1/8']
[detect.request_rate]
window = 60
requests = 0
[[service]]
name = 'shop'
[[service]]
name = 'shop'
[[service.login]]
path = '/login'
failure = [{ status = 99 }]
[decide]
ttl = '8d'
[report]
metrics_listen = 9464
event_log = \"/var/log/x
",
        &[
            r#"1:8: mode: is "enforced", but must be "enforce" or "observe""#,
            r#"2:23: interfaces[1]: "eth0" is listed twice, first on line 2"#,
            "3:10: block[0]: 203.0.113.9 is blocked on line 3, but 203.0.113.0/24 is allowed on line 8",
            "5:14: kernel.max_blocks: kernel.operator_reserve is 4096 and kernel.max_blocks 100, \
             but the reserve must be smaller: nothing would be left for detectors",
            "6:1: kernel.pin_dri: unknown key; did you mean `pin_dir`?",
            r#"8:28: guards.allow[1]: is "10.0.0.1/8", but must be an IP address, or a network such as "192.0.2.0/24" or "2001:db8::/32": it has bits set after its prefix, write "10.0.0.0/8" or "10.0.0.1""#,
            r#"10:10: detect.request_rate.window: is 60 without a unit: write "60s" for seconds"#,
            "11:12: detect.request_rate.requests: is 0, but must be a whole number from 1 to 1000000000",
            r#"15:8: service[1].name: "shop" is the service on line 13 already"#,
            "18:23: service[1].login[0].failure[0].status: is 99, but must be a whole number from 100 to 599",
            r#"20:7: decide.ttl: decide.ttl is "8d" and decide.max_ttl "7d", but max_ttl must not be shorter"#,
            r#"22:18: report.metrics_listen: is 9464, but must be an IP address and a port such as "127.0.0.1:9464" or "[::]:9464", or "" for none"#,
            r#"23:24: not valid TOML: invalid basic string, expected `"`"#,
        ],
    );
}

#[test]
fn long_and_strange_values_are_quoted_and_cut() {
    let lines = mistakes(&format!("interfaces=['a']\nmode=\"\\u001b[2J{}\"\n", "x".repeat(1_000)));
    let cut = format!(
        r#"2:6: mode: is "\u{{1b}}[2J{}…", but must be "enforce" or "observe""#,
        "x".repeat(56)
    );
    assert_eq!(lines, [cut]);
    let long_key = "k".repeat(100_000);
    assert_eq!(mistakes(&format!("interfaces=['a']\n{long_key}=1\n")).len(), 1);
}

#[test]
fn deep_nesting_is_refused() {
    for text in ["a=".to_owned() + &"[".repeat(100_000), "a=".to_owned() + &"{a=".repeat(100_000)] {
        assert!(!mistakes(&text).is_empty());
    }
    for text in [format!("{}a=1", "a.".repeat(100_000)), format!("[{}a]", "a.".repeat(100_000))] {
        assert!(!mistakes(&text).is_empty());
    }
}

#[test]
fn problems_are_json() {
    let invalid = parse("interfaces=['a']\nmode='x'", "f.toml", Purpose::Run).unwrap_err();
    let expected = serde_json::json!({"problems": [{
        "file": "f.toml", "line": 2, "column": 6, "key": "mode",
        "message": "is \"x\", but must be \"enforce\" or \"observe\"",
    }]});
    assert_eq!(serde_json::to_value(&invalid).unwrap(), expected);
}

#[test]
fn columns_count_characters() {
    refuses(
        "interfaces=['a']\n# ü\n\"ü\" = 1\nkernel = { \"ü\" = 1, attach = 'x' }",
        &[
            r#"3:1: "ü": unknown key; known here: mode, interfaces, namespace, block, list, kernel, capture, guards, service, detect, decide, enforce, decoy, report"#,
            r#"4:12: kernel."ü": unknown key; known here: attach, pin_dir, max_blocks, operator_reserve, max_allowed, tunnels"#,
            r#"4:30: kernel.attach: is "x", but must be "auto", "xdp-native", "xdp-generic", "tc" or "clsact""#,
        ],
    );
    let with_mark = mistakes("\u{feff}mode='x'\ninterfaces=['a']");
    assert_eq!(with_mark, [r#"1:6: mode: is "x", but must be "enforce" or "observe""#]);
}

/// Text that is nearly a configuration, so that all checks are reached.
fn nearly_toml() -> impl Strategy<Value = String> {
    let keys: Vec<String> = super::super::reference()
        .iter()
        .flat_map(|doc| [doc.key, doc.key.rsplit('.').next().unwrap_or_default()])
        .map(str::to_owned)
        .collect();
    let value = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| format!("{number:?}")),
        any::<bool>().prop_map(|flag| flag.to_string()),
        "'[ -&(-~]{0,12}'",
        "'[0-9]{1,20} ?[a-zA-Z]{0,3}'",
        "'[0-9a-f:.]{1,20}/[0-9]{1,3}'",
        "\\[('[0-9.:/a-z*]{0,12}',){0,3}\\]",
        "\\{[a-z]{1,4} = [0-9]{1,3}\\}",
        "\\PC{0,8}",
    ];
    let line =
        (prop::sample::select(keys), value, 0..10).prop_map(|(key, value, form)| match form {
            0 => format!("[{key}]\n"),
            1 => format!("[[{key}]]\n"),
            2 => format!("{value}\n"),
            _ => format!("{key} = {value}\n"),
        });
    prop::collection::vec(line, 0..12).prop_map(|lines| lines.concat())
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in any::<String>()) {
        let _ = parse(&text, "f", Purpose::Run);
    }

    #[test]
    fn arbitrary_configurations_have_places(text in nearly_toml()) {
        match parse(&text, "f", Purpose::Run) {
            Ok(loaded) => prop_assert!(!loaded.config.interfaces.is_empty()),
            Err(invalid) => {
                prop_assert!(!invalid.problems.is_empty());
                let lines = text.lines().count() + 1;
                for problem in &invalid.problems {
                    prop_assert!(problem.line.is_some_and(|line| (1..=lines).contains(&line)));
                    prop_assert!(problem.column.is_some_and(|column| column >= 1));
                }
            }
        }
    }
}

#[test]
fn a_right_file_has_no_mistakes() {
    assert_eq!(good("").warnings, []);
}
