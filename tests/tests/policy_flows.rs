//! Rules of flows and of TLS fingerprints.

use std::net::SocketAddr;

use anyhow::Result;
use portcullis::enforce::{Effect, EnforceError, Flow, NewBlock, PolicyMaps as _, Target};
use portcullis_common::policy::Reason;
use portcullis_tests::packet::frame::{Fragment, Frame, Transport};
use portcullis_tests::packet::harness::{BLOCK, Kernel, assert_judged, from, net};

const JA4: &str = "t13d1516h2_8daaf6152771_b186095e22b6";
const OTHER_JA4: &str = "t13d1517h2_8daaf6152771_b1ff8ab2d16f";
const COUNTS: NewBlock = NewBlock { effect: Effect::Count, ..BLOCK };

fn flow(client: &str, server: &str) -> Flow {
    let [client, server] = [client, server].map(|text| text.parse().expect("an end of a flow"));
    Flow { client, server, is_udp: false }
}

fn frame(flow: &Flow) -> Frame {
    let (source, destination) = (flow.client.port(), flow.server.port());
    let transport = match flow.is_udp {
        true => Transport::Udp { source, destination },
        false => Transport::Tcp { source, destination },
    };
    Frame::from(flow.client.ip()).to(flow.server.ip()).transport(transport)
}

fn flows() -> [Flow; 2] {
    [
        flow("203.0.113.9:40000", "192.0.2.1:443"),
        flow("[2001:db8::9]:40000", "[2001:db8:ffff::1]:443"),
    ]
}

/// Every flow that differs in one thing.
fn others(flow: &Flow) -> Vec<Flow> {
    let port = |end: SocketAddr| SocketAddr::new(end.ip(), end.port() + 1);
    let address = |end: SocketAddr| {
        let ip = if end.is_ipv4() { net("203.0.113.77") } else { net("2001:db8::77") };
        SocketAddr::new(ip.addr(), end.port())
    };
    vec![
        Flow { client: port(flow.client), ..*flow },
        Flow { server: port(flow.server), ..*flow },
        Flow { client: address(flow.client), ..*flow },
        Flow { server: address(flow.server), ..*flow },
        Flow { is_udp: !flow.is_udp, ..*flow },
    ]
}

fn ja4(ja4: &str) -> Target {
    Target::Fingerprint(ja4.into())
}

fn conjunction(target: &str, ja4: &str) -> Target {
    Target::Conjunction(net(target), ja4.into())
}

#[test]
fn a_rule_of_a_flow_holds_for_that_flow_alone() -> Result<()> {
    let mut kernel = Kernel::new()?;
    for flow in flows() {
        kernel.loaded.policy.block(Target::Flow(flow), BLOCK)?;
        assert_judged(&kernel, &frame(&flow), Reason::DropDenied);
        for other in others(&flow) {
            assert_judged(&kernel, &frame(&other), Reason::PassNoMatch);
        }
        // A later fragment has no ports.
        assert_judged(&kernel, &frame(&flow).fragment(Fragment::LAST), Reason::PassNoMatch);
    }
    for flow in flows() {
        kernel.loaded.policy.unblock(Target::Flow(flow))?;
        assert_judged(&kernel, &frame(&flow), Reason::PassNoMatch);
    }
    Ok(())
}

#[test]
fn a_rule_of_a_fingerprint_holds_for_the_flows_that_have_shown_it() -> Result<()> {
    let mut kernel = Kernel::new()?;
    let [v4, v6] = flows();
    kernel.show_fingerprint(&v4, 11)?;
    kernel.loaded.policy.learn(11, JA4)?;
    kernel.loaded.policy.block(ja4(JA4), BLOCK)?;
    assert_judged(&kernel, &frame(&v4), Reason::DropDenied);
    assert_judged(&kernel, &frame(&v6), Reason::PassNoMatch);
    for other in others(&v4) {
        assert_judged(&kernel, &frame(&other), Reason::PassNoMatch);
    }
    // Another key of the same JA4 is learnt when the rule is there already.
    kernel.show_fingerprint(&v6, 12)?;
    assert_judged(&kernel, &frame(&v6), Reason::PassNoMatch);
    kernel.loaded.policy.learn(12, JA4)?;
    assert_judged(&kernel, &frame(&v6), Reason::DropDenied);
    assert_eq!(kernel.loaded.policy.usage().used, 1);
    kernel.loaded.policy.unblock(ja4(JA4))?;
    for flow in [v4, v6] {
        assert_judged(&kernel, &frame(&flow), Reason::PassNoMatch);
    }
    Ok(())
}

#[test]
fn conjunctions_hold_within_their_network() -> Result<()> {
    let mut kernel = Kernel::new()?;
    kernel.loaded.policy.learn(11, JA4)?;
    kernel.loaded.policy.learn(21, OTHER_JA4)?;
    let inside = [
        flow("203.0.113.9:40000", "192.0.2.1:443"),
        flow("[2001:db8::9]:40000", "[2001:db8:ffff::1]:443"),
    ];
    let outside = [
        flow("203.0.114.9:40000", "192.0.2.1:443"),
        flow("[2001:db8:1::9]:40000", "[2001:db8:ffff::1]:443"),
    ];
    for flow in inside.iter().chain(&outside) {
        kernel.show_fingerprint(flow, 11)?;
        let other = Flow { client: (flow.client.ip(), 40_001).into(), ..*flow };
        kernel.show_fingerprint(&other, 21)?;
    }
    let targets = ["203.0.113.0/24", "2001:db8::/48"].map(|net| conjunction(net, JA4));
    for target in &targets {
        kernel.loaded.policy.block(target.clone(), BLOCK)?;
    }
    for flow in &inside {
        assert_judged(&kernel, &frame(flow), Reason::DropDenied);
        let other = Flow { client: (flow.client.ip(), 40_001).into(), ..*flow };
        assert_judged(&kernel, &frame(&other), Reason::PassNoMatch);
    }
    for flow in &outside {
        assert_judged(&kernel, &frame(flow), Reason::PassNoMatch);
    }
    // The longest goes first, but a drop of any is the last word.
    kernel.loaded.policy.block(conjunction("203.0.113.9", JA4), COUNTS)?;
    assert_judged(&kernel, &frame(&inside[0]), Reason::DropDenied);
    kernel.loaded.policy.unblock(targets[0].clone())?;
    assert_judged(&kernel, &frame(&inside[0]), Reason::PassCountOnly);
    kernel.loaded.policy.unblock(conjunction("203.0.113.9", JA4))?;
    assert_judged(&kernel, &frame(&inside[0]), Reason::PassNoMatch);
    assert_judged(&kernel, &frame(&inside[1]), Reason::DropDenied);
    Ok(())
}

#[test]
fn flows_of_allowed_addresses_pass() -> Result<()> {
    let mut kernel = Kernel::new()?;
    let [v4, v6] = flows();
    kernel.show_fingerprint(&v6, 11)?;
    kernel.loaded.policy.learn(11, JA4)?;
    kernel.loaded.policy.block(Target::Flow(v4), BLOCK)?;
    kernel.loaded.policy.block(ja4(JA4), BLOCK)?;
    kernel.allow(&["203.0.113.9", "2001:db8::/64"])?;
    for flow in [v4, v6] {
        assert_judged(&kernel, &frame(&flow), Reason::PassAllowed);
    }
    kernel.allow(&[])?;
    for flow in [v4, v6] {
        assert_judged(&kernel, &frame(&flow), Reason::DropDenied);
    }
    Ok(())
}

/// A rule of a JA4 that nobody has shown yet is not lost when the agent starts anew, or with maps of another
/// size; nor is any other.
#[test]
fn the_next_agent_takes_rules_over() -> Result<()> {
    for max_blocks in [1_024, 2_048] {
        let mut kernel = Kernel::new()?;
        let [v4, v6] = flows();
        let of_flow = flow("203.0.113.20:40000", "192.0.2.1:443");
        let policy = &mut kernel.loaded.policy;
        policy.learn(11, JA4)?;
        for target in [
            Target::Flow(of_flow),
            ja4(JA4),
            ja4("unseen"),
            conjunction("2001:db8::/64", JA4),
            conjunction("203.0.113.0/24", "unseen too"),
        ] {
            policy.block(target, COUNTS)?;
        }
        kernel.show_fingerprint(&v6, 11)?;
        kernel.loaded.policy.sweep()?;
        assert_judged(&kernel, &frame(&v6), Reason::PassCountOnly);
        assert_judged(&kernel, &frame(&of_flow), Reason::PassCountOnly);
        let counted = |kernel: &Kernel| -> Result<_> {
            let mut counted: Vec<_> = (kernel.loaded.policy.blocks()?.into_iter())
                .map(|block| (block.target, block.packets, block.bytes, block.rule_id))
                .collect();
            counted.sort();
            Ok(counted)
        };

        let mut next = kernel.successor(|config| config.kernel.max_blocks = max_blocks)?;
        assert_eq!(next.loaded.policy.usage().used, 5);
        assert_eq!(counted(&next)?, counted(&kernel)?);
        assert!(counted(&next)?.iter().filter(|(_, packets, ..)| *packets == 2).count() == 3);
        assert_judged(&next, &frame(&v6), Reason::PassCountOnly);
        assert_judged(&next, &frame(&of_flow), Reason::PassCountOnly);
        for other in others(&of_flow) {
            assert_judged(&next, &frame(&other), Reason::PassNoMatch);
        }
        next.show_fingerprint(&v4, 12)?;
        for unseen in ["unseen", "unseen too"] {
            next.loaded.policy.learn(12, unseen)?;
        }
        assert_judged(&next, &frame(&v4), Reason::PassCountOnly);
        for block in next.loaded.policy.blocks()? {
            next.loaded.policy.unblock(block.target)?;
        }
        for flow in [v4, v6, of_flow] {
            assert_judged(&next, &frame(&flow), Reason::PassNoMatch);
        }
        assert_eq!(next.loaded.policy.usage().used, 0);
    }
    Ok(())
}

/// The gate in front of flows is made anew now and then, one generation at a time.
#[test]
fn tidying_the_gate_keeps_what_rules_need() -> Result<()> {
    let mut kernel = Kernel::new()?;
    let [v4, v6] = flows();
    kernel.loaded.policy.learn(11, JA4)?;
    kernel.loaded.policy.block(Target::Flow(v4), BLOCK)?;
    kernel.loaded.policy.block(ja4(JA4), BLOCK)?;
    // After the rule was made, and so past the gate: a sweep lets it through.
    kernel.show_fingerprint(&v6, 11)?;
    for _ in 0..70 {
        kernel.loaded.policy.sweep()?;
        assert_judged(&kernel, &frame(&v4), Reason::DropDenied);
        assert_judged(&kernel, &frame(&v6), Reason::DropDenied);
    }
    kernel.loaded.policy.unblock(Target::Flow(v4))?;
    kernel.loaded.policy.unblock(ja4(JA4))?;
    for _ in 0..70 {
        kernel.loaded.policy.sweep()?;
    }
    kernel.loaded.policy.block(Target::Flow(v6), BLOCK)?;
    assert_judged(&kernel, &frame(&v4), Reason::PassNoMatch);
    assert_judged(&kernel, &frame(&v6), Reason::DropDenied);
    Ok(())
}

#[test]
fn full_tables_refuse_and_keep_what_they_have() -> Result<()> {
    const FLOW_RULES: u32 = portcullis_common::names::capacity::FLOW_RULES;
    const CONJUNCTIONS: u32 = portcullis_common::names::capacity::CONJUNCTIONS;
    let mut kernel = Kernel::with(|config| {
        config.kernel.max_blocks = FLOW_RULES + CONJUNCTIONS + 100;
    })?;
    let numbered = |number: u32| {
        let client = format!("10.{}.{}.9:40000", number >> 8, number & 255);
        flow(&client, "192.0.2.1:443")
    };
    let network = |number: u32| {
        let number = number * 2;
        conjunction(&format!("11.{}.{}.{}", number >> 16, number >> 8 & 255, number & 255), JA4)
    };
    let policy = &mut kernel.loaded.policy;
    for number in 0..FLOW_RULES {
        policy.block(Target::Flow(numbered(number)), BLOCK)?;
    }
    let error = policy.block(Target::Flow(numbered(FLOW_RULES)), BLOCK).unwrap_err();
    assert!(matches!(error, EnforceError::NoRoom { .. }), "{error}");
    assert_eq!(policy.usage().used, FLOW_RULES);
    policy.learn(11, JA4)?;
    for number in 0..CONJUNCTIONS {
        policy.block(network(number), BLOCK)?;
    }
    let error = policy.block(network(CONJUNCTIONS), BLOCK).unwrap_err();
    assert!(matches!(error, EnforceError::NoRoom { .. }), "{error}");
    assert_eq!(policy.usage().used, FLOW_RULES + CONJUNCTIONS);

    for number in [0, 1, FLOW_RULES / 2, FLOW_RULES - 1] {
        assert_judged(&kernel, &frame(&numbered(number)), Reason::DropDenied);
    }
    assert_judged(&kernel, &frame(&numbered(FLOW_RULES)), Reason::PassNoMatch);
    let policy = &mut kernel.loaded.policy;
    policy.unblock(Target::Flow(numbered(7)))?;
    policy.block(Target::Flow(numbered(FLOW_RULES)), BLOCK)?;
    policy.unblock(network(7))?;
    policy.block(network(CONJUNCTIONS), BLOCK)?;
    assert_judged(&kernel, &frame(&numbered(FLOW_RULES)), Reason::DropDenied);
    assert_judged(&kernel, &frame(&numbered(7)), Reason::PassNoMatch);
    assert_judged(&kernel, &from("203.0.113.1"), Reason::PassNoMatch);
    Ok(())
}

/// More fingerprints than can be remembered: those that no rule names are forgotten.
#[test]
fn a_flood_of_fingerprints_displaces_none_with_rules() -> Result<()> {
    const KNOWN: u64 = portcullis_common::names::capacity::KNOWN as u64;
    let mut kernel = Kernel::new()?;
    let [v4, v6] = flows();
    kernel.show_fingerprint(&v4, 11)?;
    kernel.show_fingerprint(&v6, 9_999_999)?;
    let policy = &mut kernel.loaded.policy;
    policy.learn(11, JA4)?;
    policy.block(ja4(JA4), BLOCK)?;
    policy.block(ja4(OTHER_JA4), BLOCK)?;
    for number in 0..2 * KNOWN {
        policy.learn(1_000_000 + number, &format!("t13d{number}"))?;
    }
    policy.learn(9_999_999, OTHER_JA4)?;
    for flow in [v4, v6] {
        assert_judged(&kernel, &frame(&flow), Reason::DropDenied);
    }
    let next = kernel.successor(|_| ())?;
    for flow in [v4, v6] {
        assert_judged(&next, &frame(&flow), Reason::DropDenied);
    }
    Ok(())
}
