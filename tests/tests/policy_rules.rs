//! Several rules on one packet: of one target, and of networks around it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use portcullis::enforce::{Effect, EnforceError, NewBlock, PolicyMaps as _};
use portcullis_common::policy::Reason;
use portcullis_tests::packet::harness::{BLOCK, Hook, Kernel, assert_judged, from, net, on_cpu};

const COUNTS: NewBlock = NewBlock { effect: Effect::Count, ..BLOCK };
const STEERS: NewBlock = NewBlock { effect: Effect::Steer, ..BLOCK };
const OBSERVED: NewBlock = NewBlock { count_only: true, ..BLOCK };

#[test]
fn rules_of_a_target_apply_in_the_order_of_their_kinds() -> Result<()> {
    let mut kernel = Kernel::new()?;
    for source in ["203.0.113.9", "2001:db8::9"] {
        kernel.block_as(source, COUNTS)?;
        assert_judged(&kernel, &from(source), Reason::PassCountOnly);
        kernel.block_as(source, STEERS)?;
        assert_judged(&kernel, &from(source), Reason::PassSteered);
        kernel.block_as(source, OBSERVED)?;
        assert_judged(&kernel, &from(source), Reason::PassSteered);
        kernel.block_as(source, BLOCK)?;
        assert_judged(&kernel, &from(source), Reason::DropDenied);
        let blocks = kernel.loaded.policy.blocks()?;
        let packets = |effect: Effect| {
            let mut of_it = blocks
                .iter()
                .filter(|block| block.target == net(source).into() && block.effect == effect);
            of_it.next().map(|block| block.packets)
        };
        // What a drop ends does not reach those behind it. The drop is one rule, observed and not.
        assert_eq!(packets(Effect::Drop), Some(4));
        assert_eq!(packets(Effect::Steer), Some(4));
        assert_eq!(packets(Effect::Count), Some(6));
    }
    Ok(())
}

#[test]
fn the_longest_prefix_goes_first_and_a_drop_is_the_last_word() -> Result<()> {
    let mut kernel = Kernel::new()?;
    for (nets, source) in [
        (["203.0.113.9", "203.0.113.0/24", "203.0.0.0/15"], "203.0.113.9"),
        (["2001:db8::9", "2001:db8::/61", "2001:db8::/29"], "2001:db8::9"),
    ] {
        let [address, middle, wide] = nets;
        for (blocks, expected) in [
            ([COUNTS, COUNTS, BLOCK], Reason::DropDenied),
            ([COUNTS, BLOCK, STEERS], Reason::DropDenied),
            ([STEERS, COUNTS, OBSERVED], Reason::PassSteered),
            ([OBSERVED, COUNTS, STEERS], Reason::PassSteered),
        ] {
            for (net, block) in [address, middle, wide].into_iter().zip(blocks) {
                kernel.block_as(net, block)?;
            }
            assert_judged(&kernel, &from(source), expected);
            for text in nets {
                kernel.loaded.policy.unblock(net(text))?;
            }
        }
        assert_judged(&kernel, &from(source), Reason::PassNoMatch);
    }
    Ok(())
}

#[test]
fn a_target_has_four_rules_at_most_and_expired_ones_make_room() -> Result<()> {
    let mut kernel = Kernel::new()?;
    let scope = |service: &str, port| portcullis::enforce::Scope {
        service: service.into(),
        ports: vec![port],
        addresses: Vec::new(),
    };
    let names = ["a", "b", "c", "d", "e"];
    let scopes: Vec<_> = names.into_iter().zip(1..).map(|(name, port)| scope(name, port)).collect();
    kernel.loaded.policy.set_scopes(&scopes)?;
    let on = |service: &str, ttl| NewBlock { service: Some(service.into()), ttl, ..BLOCK };
    let target = net("203.0.113.9");
    for name in &names[..4] {
        let ttl = (*name == "b").then_some(Duration::from_secs(3_600));
        kernel.loaded.policy.block(target, on(name, ttl))?;
    }
    let refused = kernel.loaded.policy.block(target, on("e", None));
    assert!(matches!(refused, Err(EnforceError::TooManyRules { limit: 4, .. })), "{refused:?}");
    let judged = |kernel: &Kernel, expected: [Reason; 5]| {
        for (port, expected) in (1..).zip(expected) {
            assert_judged(kernel, &from("203.0.113.9").tcp(port), expected);
        }
    };
    let (dies, passes) = (Reason::DropDenied, Reason::PassNoMatch);
    judged(&kernel, [dies, dies, dies, dies, passes]);
    kernel.loaded.policy.block(target, on("b", Some(Duration::ZERO)))?;
    judged(&kernel, [dies, Reason::PassExpired, dies, dies, passes]);
    kernel.loaded.policy.block(target, on("e", None))?;
    judged(&kernel, [dies, passes, dies, dies, dies]);
    assert_eq!(kernel.loaded.policy.usage().used, 4);
    Ok(())
}

#[test]
fn gates_that_are_stale_are_made_anew_and_keep_what_holds() -> Result<()> {
    const GONE: u32 = 66_000;
    let mut kernel = Kernel::new()?;
    kernel.block("203.0.113.9")?;
    kernel.block("2001:db8::/48")?;
    let policy = &mut kernel.loaded.policy;
    for number in 0..GONE {
        let target = net(&std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).to_string());
        policy.block(target, BLOCK)?;
        policy.unblock(target)?;
    }
    policy.sweep()?;
    assert_judged(&kernel, &from("203.0.113.9"), Reason::DropDenied);
    assert_judged(&kernel, &from("2001:db8::1"), Reason::DropDenied);
    assert_judged(&kernel, &from("10.0.0.1"), Reason::PassNoMatch);
    kernel.block("10.0.0.1")?;
    assert_judged(&kernel, &from("10.0.0.1"), Reason::DropDenied);
    Ok(())
}

/// While the allow list changes around it and rules come and go, an address that stays on it is never dropped,
/// and one that is never on it is never let pass.
#[test]
fn changes_of_the_allow_list_drop_nobody_on_it() -> Result<()> {
    const CHANGES: u32 = 2_000;
    const LEAST_FRAMES: u64 = 50_000;
    let (allowed, denied) = ("203.0.113.9", "198.51.100.7");
    let mut kernel = Kernel::new()?;
    kernel.allow(&[allowed])?;
    for target in ["203.0.113.0/24", "203.0.113.9", "198.51.100.0/24"] {
        kernel.block(target)?;
    }
    let loaded = &mut kernel.loaded;
    let program = Hook::Xdp.program(&loaded.ebpf)?;
    let policy = &mut loaded.policy;
    let (is_over, sent) = (AtomicBool::new(false), [AtomicU64::new(0), AtomicU64::new(0)]);
    std::thread::scope(|scope| -> Result<()> {
        let senders = [(0, allowed), (1, denied)].map(|(cpu, source)| {
            let (is_over, sent) = (&is_over, &sent[cpu]);
            scope.spawn(move || -> Result<()> {
                on_cpu(cpu)?;
                let frame = from(source).bytes();
                while !is_over.load(Ordering::Relaxed) {
                    program.run_once(&frame)?;
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        });
        let lists = [
            vec![net(allowed)],
            vec![net(allowed), net("203.0.113.0/28"), net("198.51.100.8")],
            vec![net("203.0.112.0/20"), net(allowed)],
        ];
        let mut number = 0;
        let result = loop {
            let changed = policy
                .set_allowed(&lists[number as usize % lists.len()])
                .and_then(|()| policy.block(net("203.0.112.0/22"), BLOCK))
                .and_then(|()| policy.unblock(net("203.0.112.0/22")));
            number += 1;
            let least = sent.iter().map(|sent| sent.load(Ordering::Relaxed)).min();
            let has_ended = senders.iter().any(|sender| sender.is_finished());
            if changed.is_err() || has_ended || number >= CHANGES && least >= Some(LEAST_FRAMES) {
                break changed;
            }
        };
        is_over.store(true, Ordering::Relaxed);
        for sender in senders {
            sender.join().expect("the thread panicked")?;
        }
        Ok(result?)
    })?;
    let [sent_allowed, sent_denied] = sent.map(AtomicU64::into_inner);
    let packets = |reason| Ok::<_, anyhow::Error>(kernel.loaded.reasons.get(reason)?.packets);
    ensure!(packets(Reason::PassAllowed)? == sent_allowed, "{:?}", kernel.loaded.reasons.all()?);
    ensure!(packets(Reason::DropDenied)? == sent_denied, "{:?}", kernel.loaded.reasons.all()?);
    // The counters of rules lose nothing when their flags change.
    ensure!(kernel.entry("198.51.100.0/24")?.packets == sent_denied, "the rule's counter");
    Ok(())
}
