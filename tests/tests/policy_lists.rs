//! Lists: many networks that share one rule, replaced in one step.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use ipnet::IpNet;
use portcullis::enforce::{Each, Effect, Scope, Unit};
use portcullis::enforce::{EnforceError, List, NewBlock, PolicyMaps as _, Rate};
use portcullis_common::policy::Reason;
use portcullis_tests::packet::frame::Frame;
use portcullis_tests::packet::harness::{
    BLOCK, Hook, Input, Kernel, Verdict, assert_judged, from, net, on_cpu,
};

fn list(name: &str, id: u64, networks: &[&str]) -> List {
    let networks = networks.iter().map(|text| net(text)).collect();
    List { name: name.into(), rule: NewBlock { rule_id: id, ..BLOCK }, networks }
}

fn counting(list: List) -> List {
    List { rule: NewBlock { effect: Effect::Count, ..list.rule }, ..list }
}

#[test]
fn a_list_holds_for_all_its_networks_until_it_is_replaced() -> Result<()> {
    let mut kernel = Kernel::new()?;
    let maps = &mut kernel.loaded.policy;
    maps.set_lists(&[
        list("one", 1, &["203.0.113.0/24", "198.51.100.7", "2001:db8:1::/48"]),
        counting(list("two", 2, &["203.0.113.9", "198.51.100.8", "2001:db8:2::/56"])),
    ])?;
    assert_eq!(maps.usage().used, 0, "lists take no room of blocks");
    assert_eq!(maps.blocks()?, []);
    for (source, expected) in [
        ("203.0.113.1", Reason::DropDenied),
        // What counts only does not end the search.
        ("203.0.113.9", Reason::DropDenied),
        ("198.51.100.7", Reason::DropDenied),
        ("198.51.100.8", Reason::PassCountOnly),
        ("198.51.100.9", Reason::PassNoMatch),
        ("2001:db8:1:ffff::1", Reason::DropDenied),
        ("2001:db8:2:ff::1", Reason::PassCountOnly),
        ("2001:db8:2:100::1", Reason::PassNoMatch),
    ] {
        assert_judged(&kernel, &from(source), expected);
    }
    kernel.loaded.policy.set_lists(&[list("two", 2, &["198.51.100.8"])])?;
    assert_judged(&kernel, &from("198.51.100.8"), Reason::DropDenied);
    for source in ["203.0.113.1", "198.51.100.7", "2001:db8:1::1", "2001:db8:2::1"] {
        assert_judged(&kernel, &from(source), Reason::PassNoMatch);
    }
    kernel.loaded.policy.set_lists(&[])?;
    assert_judged(&kernel, &from("198.51.100.8"), Reason::PassNoMatch);
    Ok(())
}

#[test]
fn own_rules_and_a_lists_rule_share_a_prefix() -> Result<()> {
    let mut kernel = Kernel::new()?;
    let target = "203.0.113.0/24";
    let source = from("203.0.113.1");
    let listed = || [list("one", 1, &[target])];
    let counts = NewBlock { effect: Effect::Count, rule_id: 9, ..BLOCK };
    kernel.block_as(target, counts)?;
    kernel.loaded.policy.set_lists(&listed())?;
    assert_judged(&kernel, &source, Reason::DropDenied);
    assert_eq!(kernel.entry(target)?.packets, 2, "the own rule comes first");
    kernel.loaded.policy.set_lists(&[])?;
    assert_judged(&kernel, &source, Reason::PassCountOnly);
    kernel.loaded.policy.set_lists(&listed())?;
    kernel.loaded.policy.unblock(net(target))?;
    assert_judged(&kernel, &source, Reason::DropDenied);
    kernel.loaded.policy.set_lists(&[])?;
    assert_judged(&kernel, &source, Reason::PassNoMatch);
    Ok(())
}

#[test]
fn the_allow_list_goes_before_lists() -> Result<()> {
    let mut kernel = Kernel::new()?;
    kernel.loaded.policy.set_lists(&[list("one", 1, &["203.0.113.0/24"])])?;
    kernel.allow(&["203.0.113.9"])?;
    assert_judged(&kernel, &from("203.0.113.9"), Reason::PassAllowed);
    assert_judged(&kernel, &from("203.0.113.8"), Reason::DropDenied);
    Ok(())
}

#[test]
fn lists_have_no_limits() -> Result<()> {
    let mut kernel = Kernel::new()?;
    let rate = Rate { unit: Unit::Packets, per_s: 1, burst: 1, each: Each::Target };
    let mut limiting = list("one", 1, &["203.0.113.0/24"]);
    limiting.rule.effect = Effect::Limit(rate);
    let error = kernel.loaded.policy.set_lists(&[limiting]).unwrap_err();
    assert!(matches!(error, EnforceError::Kernel(_)), "{error}");
    assert_judged(&kernel, &from("203.0.113.9"), Reason::PassNoMatch);
    Ok(())
}

#[test]
fn the_next_agent_takes_lists_over_and_resizing_carries_them() -> Result<()> {
    let scope =
        |name: &str, port| Scope { service: name.into(), ports: vec![port], addresses: Vec::new() };
    let mut kernel = Kernel::new()?;
    kernel.loaded.policy.set_scopes(&[scope("gone", 1), scope("web", 80)])?;
    // So that the number of the service that stays is not the first.
    kernel.loaded.policy.set_scopes(&[scope("web", 80)])?;
    let mut scoped = list("one", 1, &["203.0.113.0/24", "2001:db8:1::/48"]);
    scoped.rule.service = Some("web".into());
    let lists = [scoped, list("two", 2, &["198.51.100.7"])];
    kernel.loaded.policy.set_lists(&lists)?;
    kernel.block("198.51.100.9")?;

    for max_blocks in [1_024, 2_048] {
        let mut next = kernel.successor(|config| config.kernel.max_blocks = max_blocks)?;
        for source in ["203.0.113.1", "2001:db8:1::1"] {
            assert_judged(&next, &from(source).tcp(80), Reason::DropDenied);
            assert_judged(&next, &from(source).tcp(81), Reason::PassNoMatch);
        }
        assert_judged(&next, &from("198.51.100.7"), Reason::DropDenied);
        // A service that a list's rule names stays what it was, whatever others come.
        next.loaded.policy.set_scopes(&[scope("new", 81)])?;
        assert_judged(&next, &from("203.0.113.1").tcp(81), Reason::PassNoMatch);
        assert_judged(&next, &from("203.0.113.1").tcp(80), Reason::DropDenied);
        next.loaded.policy.set_scopes(&[scope("web", 80)])?;
        // It knows which they are: with one less they are one less.
        next.loaded.policy.set_lists(&lists[..1])?;
        assert_judged(&next, &from("198.51.100.7"), Reason::PassNoMatch);
        assert_judged(&next, &from("198.51.100.9"), Reason::DropDenied);
        next.loaded.policy.set_lists(&lists)?;
        kernel = next;
    }
    Ok(())
}

/// Networks that hold the same sources, in ways as different as they can be: by addresses, by longer
/// and by shorter prefixes; with others that come and go.
fn generation(number: u32) -> Vec<List> {
    let shapes: [&[&str]; 3] = [
        &["203.0.113.9/32", "2001:db8:1:2::9/128"],
        &["203.0.112.0/20", "2001:db8:1::/48"],
        &["203.0.113.0/27", "2001:db8:1:2::/61"],
    ];
    let mut networks: Vec<IpNet> =
        shapes[number as usize % 3].iter().map(|text| net(text)).collect();
    networks.extend((0..300 * (number % 4)).map(|at| {
        let v4 = Ipv4Addr::from_bits(0x0a00_0000 | at << 8 | number & 0xff);
        IpNet::new(v4.into(), 25 + (at % 8) as u8).expect("a length").trunc()
    }));
    networks.extend((0..300 * (number % 3)).map(|at| {
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0xff, at as u16, number as u16, 0, 0, 1);
        IpNet::new(v6.into(), 40 + (at % 80) as u8).expect("a length").trunc()
    }));
    let rule = NewBlock { rule_id: u64::from(number % 5), ..BLOCK };
    vec![List { name: "list".into(), rule, networks }]
}

/// While lists are replaced by others with the same sources on them, no packet of those passes.
#[test]
fn replacing_lists_lets_nothing_pass() -> Result<()> {
    const REPLACEMENTS: u32 = 60;
    /// Frames that a thread sends at the least between the first replacement and the last.
    const LEAST_FRAMES: u64 = 100_000;
    let mut kernel = Kernel::new()?;
    kernel.loaded.policy.set_lists(&generation(0))?;
    let before = kernel.loaded.reasons.get(Reason::DropDenied)?.packets;
    let Kernel { loaded, .. } = &mut kernel;
    let programs = Hook::ALL.map(|hook| hook.program(&loaded.ebpf));
    let policy = &mut loaded.policy;
    let (is_over, sent) = (AtomicBool::new(false), [AtomicU64::new(0), AtomicU64::new(0)]);
    std::thread::scope(|scope| -> Result<()> {
        let senders = [0, 1].map(|cpu| {
            let (is_over, sent, programs) = (&is_over, &sent[cpu], &programs);
            scope.spawn(move || -> Result<()> {
                const REPEAT: u32 = 500;
                on_cpu(cpu)?;
                let frames = ["203.0.113.9", "2001:db8:1:2::9"].map(|text| from(text).bytes());
                while !is_over.load(Ordering::Relaxed) {
                    for (program, frame) in
                        programs.iter().zip(&frames).chain(programs.iter().rev().zip(&frames))
                    {
                        let input = Input { repeat: REPEAT, ..frame.into() };
                        program.as_ref().map_err(|e| anyhow::anyhow!("{e:#}"))?.run(input)?;
                        sent.fetch_add(u64::from(REPEAT), Ordering::Relaxed);
                    }
                }
                Ok(())
            })
        });
        let mut number = 0;
        let result = loop {
            number += 1;
            if let Err(error) = policy.set_lists(&generation(number)) {
                break Err(error.into());
            }
            let least = sent.iter().map(|sent| sent.load(Ordering::Relaxed)).min();
            let has_ended = senders.iter().any(|sender| sender.is_finished());
            if has_ended || number >= REPLACEMENTS && least >= Some(LEAST_FRAMES) {
                break Ok(());
            }
        };
        is_over.store(true, Ordering::Relaxed);
        for sender in senders {
            sender.join().expect("the thread panicked")?;
        }
        result
    })?;
    let sent: u64 = sent.iter().map(|sent| sent.load(Ordering::Relaxed)).sum();
    let dropped = kernel.loaded.reasons.get(Reason::DropDenied)?.packets - before;
    let reasons = kernel.loaded.reasons.all()?;
    ensure!(dropped == sent, "{} of {sent} frames passed: {reasons:?}", sent - dropped);
    Ok(())
}

#[test]
fn an_expired_list_lets_pass() -> Result<()> {
    let mut kernel = Kernel::new()?;
    let mut expired = list("one", 1, &["203.0.113.0/24"]);
    expired.rule.ttl = Some(Duration::ZERO);
    kernel.loaded.policy.set_lists(&[expired])?;
    let source: IpAddr = Ipv4Addr::new(203, 0, 113, 9).into();
    for hook in Hook::ALL {
        let judged = kernel.judge(hook, &Frame::from(source).bytes())?;
        assert_eq!(judged, (Verdict::Pass, Reason::PassExpired));
    }
    Ok(())
}
