//! What a block, the allow list and the failsafe ports make of a packet.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use portcullis::enforce::{NewBlock, PolicyMaps as _};
use portcullis::kernel::{coarse_now, network_of};
use portcullis_common::policy::Reason;
use portcullis_tests::packet::frame::{Fragment, Frame, Transport};
use portcullis_tests::packet::harness::{BLOCK, Hook, Input, Kernel, Verdict, net};

fn from(source: &str) -> Frame {
    Frame::from(source.parse::<IpAddr>().unwrap())
}

/// Asserts what both programs say of the frame.
#[track_caller]
fn assert_judged(kernel: &Kernel, frame: &Frame, expected: Reason) {
    for hook in Hook::ALL {
        let judged = kernel.judge(hook, &frame.bytes()).unwrap();
        assert_eq!(judged, (Verdict::of(expected), expected), "{hook:?} {frame:?}");
    }
}

#[test]
fn a_64_block_covers_its_addresses_and_not_its_neighbours() -> Result<()> {
    let mut kernel = Kernel::new()?;
    kernel.block("2001:db8:1:2::/64")?;
    for inside in ["2001:db8:1:2::", "2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff"] {
        assert_judged(&kernel, &from(inside), Reason::DropDenied);
    }
    for outside in ["2001:db8:1:1:ffff:ffff:ffff:ffff", "2001:db8:1:3::", "2001:db9:1:2::1"] {
        assert_judged(&kernel, &from(outside), Reason::PassNoMatch);
    }
    assert_eq!(kernel.entry("2001:db8:1:2::/64")?.packets, 6);
    Ok(())
}

#[test]
fn an_ipv4_address_and_its_mapped_form_are_one() -> Result<()> {
    let mut kernel = Kernel::new()?;
    kernel.block("::ffff:203.0.113.9")?;
    kernel.block("203.0.113.10")?;
    for source in ["203.0.113.9", "::ffff:203.0.113.9", "203.0.113.10", "::ffff:203.0.113.10"] {
        assert_judged(&kernel, &from(source), Reason::DropDenied);
    }
    // The deprecated IPv4-compatible form is another address (RFC 4291, section 2.5.5.1).
    assert_judged(&kernel, &from("::203.0.113.9"), Reason::PassNoMatch);
    Ok(())
}

#[test]
fn a_block_of_the_zero_64_leaves_ipv4_alone() -> Result<()> {
    let mut kernel = Kernel::new()?;
    kernel.block("::/64")?;
    assert_judged(&kernel, &from("203.0.113.9"), Reason::PassNoMatch);
    assert_judged(&kernel, &from("::1"), Reason::DropDenied);
    Ok(())
}

#[test]
fn a_block_ends_when_it_expires_and_is_swept() -> Result<()> {
    let mut kernel = Kernel::new()?;
    let ttl = Duration::from_secs(1);
    for target in ["203.0.113.9", "2001:db8:1:2::/64"] {
        kernel.block_as(target, NewBlock { ttl: Some(ttl), ..BLOCK })?;
    }
    let expired = coarse_now() + ttl.as_nanos() as u64;
    let frames = [from("203.0.113.9"), from("2001:db8:1:2::1")];
    for frame in &frames {
        assert_judged(&kernel, frame, Reason::DropDenied);
    }
    assert_eq!(kernel.loaded.policy.sweep()?, 0);

    while coarse_now() < expired {
        std::hint::spin_loop();
    }
    for frame in &frames {
        assert_judged(&kernel, frame, Reason::PassExpired);
    }
    assert_eq!(kernel.loaded.policy.blocks()?, []);
    assert_eq!(kernel.loaded.policy.usage().used, 2);
    assert_eq!(kernel.loaded.policy.sweep()?, 2);
    assert_eq!(kernel.loaded.policy.usage().used, 0);
    for frame in &frames {
        assert_judged(&kernel, frame, Reason::PassNoMatch);
    }
    Ok(())
}

#[test]
fn the_allow_list_beats_the_deny_list() -> Result<()> {
    let mut kernel = Kernel::new()?;
    let denied = ["203.0.113.9", "198.51.100.77", "2001:db8::9", "2001:db8:5:6::/64"];
    for target in denied {
        kernel.block(target)?;
    }
    let sources = ["203.0.113.9", "198.51.100.77", "2001:db8::9", "2001:db8:5:6::7"];
    for source in sources {
        assert_judged(&kernel, &from(source), Reason::DropDenied);
    }
    kernel.allow(&["203.0.113.9", "198.51.100.64/26", "2001:db8::9", "2001:db8:5::/48"])?;
    for source in sources {
        assert_judged(&kernel, &from(source), Reason::PassAllowed);
    }
    // Its /64 stays blocked where the allow list names one address of it.
    kernel.allow(&["2001:db8:5:6::7"])?;
    assert_judged(&kernel, &from("2001:db8:5:6::7"), Reason::PassAllowed);
    assert_judged(&kernel, &from("2001:db8:5:6::8"), Reason::DropDenied);
    assert_judged(&kernel, &from("203.0.113.9"), Reason::DropDenied);
    for target in denied {
        assert!(kernel.entry(target)?.packets <= 4, "{target} counted packets that passed");
    }
    Ok(())
}

#[test]
fn failsafe_ports_pass_and_no_others() -> Result<()> {
    let mut kernel = Kernel::new()?;
    kernel.loaded.policy.set_failsafe(&[22, 2222], &[68])?;
    for source in ["203.0.113.9", "2001:db8::9"] {
        kernel.block(source)?;
        let frame = from(source);
        for passes in [frame.clone().tcp(22), frame.clone().tcp(2222), frame.clone().udp(68)] {
            assert_judged(&kernel, &passes, Reason::PassFailsafe);
            assert_judged(&kernel, &passes.fragment(Fragment::FIRST), Reason::PassFailsafe);
        }
        for (dies, port) in [(frame.clone().tcp(68), 68), (frame.clone().udp(22), 22)] {
            assert_judged(&kernel, &dies, Reason::DropDenied);
            // A source port is the client's choice.
            let swapped = Transport::Tcp { source: port, destination: 443 };
            assert_judged(&kernel, &dies.transport(swapped), Reason::DropDenied);
        }
        for later in [Fragment::MIDDLE, Fragment::LAST] {
            // What lies where the ports would be names a failsafe port.
            let payload = [[0, 22, 0, 22]; 8].concat();
            let fragment = frame.clone().tcp(22).fragment(later).payload(payload);
            assert_judged(&kernel, &fragment, Reason::DropDenied);
        }
        assert_judged(&kernel, &frame.transport(Transport::Icmp), Reason::DropDenied);
    }
    kernel.loaded.policy.set_failsafe(&[], &[])?;
    assert_judged(&kernel, &from("203.0.113.9").tcp(22), Reason::DropDenied);
    Ok(())
}

#[test]
fn a_counting_block_passes_and_counts() -> Result<()> {
    let mut kernel = Kernel::new()?;
    kernel.block_as("203.0.113.9", NewBlock { count_only: true, ..BLOCK })?;
    let frame = from("203.0.113.9");
    assert_judged(&kernel, &frame, Reason::PassCountOnly);
    let entry = kernel.entry("203.0.113.9")?;
    assert!(entry.count_only);
    assert_eq!((entry.packets, entry.bytes), (2, 2 * frame.bytes().len() as u64));
    assert!(kernel.first_drops().is_empty(), "nothing was dropped");
    Ok(())
}

#[test]
fn of_two_blocks_the_stronger_acts() -> Result<()> {
    let mut kernel = Kernel::new()?;
    let count = NewBlock { count_only: true, ..BLOCK };
    let expired = NewBlock { ttl: Some(Duration::ZERO), ..BLOCK };
    for (subnet, address, expected) in [
        (BLOCK, count.clone(), Reason::DropDenied),
        (BLOCK, expired.clone(), Reason::DropDenied),
        (count.clone(), BLOCK, Reason::DropDenied),
        (count.clone(), expired.clone(), Reason::PassCountOnly),
        (expired.clone(), BLOCK, Reason::DropDenied),
        (expired.clone(), count.clone(), Reason::PassCountOnly),
    ] {
        kernel.block_as("2001:db8:1:2::/64", subnet)?;
        kernel.block_as("2001:db8:1:2::9", address)?;
        assert_judged(&kernel, &from("2001:db8:1:2::9"), expected);
    }
    Ok(())
}

#[test]
fn lifting_a_block_lets_packets_pass_at_once() -> Result<()> {
    let mut kernel = Kernel::new()?;
    kernel.block("203.0.113.9")?;
    assert_judged(&kernel, &from("203.0.113.9"), Reason::DropDenied);
    kernel.loaded.policy.unblock(net("203.0.113.9"))?;
    assert_judged(&kernel, &from("203.0.113.9"), Reason::PassNoMatch);
    Ok(())
}

#[test]
fn each_entry_reports_its_first_drop_once() -> Result<()> {
    let mut kernel = Kernel::new()?;
    let targets = ["203.0.113.9/32", "2001:db8::9/128", "2001:db8:1:2::/64"];
    for (rule_id, target) in (100..).zip(targets) {
        kernel.block_as(target, NewBlock { rule_id, ..BLOCK })?;
    }
    assert!(kernel.first_drops().is_empty(), "before any packet");
    for source in ["203.0.113.9", "2001:db8::9", "2001:db8:1:2::7", "2001:db8:1:2::8"] {
        assert_judged(&kernel, &from(source), Reason::DropDenied);
    }
    let drops = kernel.first_drops();
    let reported: BTreeSet<_> =
        drops.iter().map(|drop| (drop.rule_id, network_of(drop.addr, 128).unwrap())).collect();
    let sources = ["203.0.113.9/32", "2001:db8::9/128", "2001:db8:1:2::7/128"];
    assert_eq!(reported, (100..).zip(sources.map(net)).collect());
    assert_eq!(drops.len(), targets.len(), "each once");

    // A block that is renewed goes on where it was; another rule's has a first drop of its own.
    for (rule_id, expected) in [(100, 0), (200, 1)] {
        kernel.block_as(targets[0], NewBlock { rule_id, ..BLOCK })?;
        assert_judged(&kernel, &from("203.0.113.9"), Reason::DropDenied);
        let drops = kernel.first_drops();
        assert_eq!(drops.len(), expected, "rule {rule_id}");
        assert!(drops.iter().all(|drop| drop.rule_id == rule_id));
    }
    Ok(())
}

#[test]
fn counters_are_exact_when_two_cpus_count_at_once() -> Result<()> {
    const REPEAT: u32 = 500_000;
    let mut kernel = Kernel::new()?;
    kernel.block("203.0.113.9")?;
    let bytes = from("203.0.113.9").bytes();
    let run_on = |cpu: usize, hook: Hook| -> Result<()> {
        let mut cpus = CpuSet::new();
        cpus.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &cpus)?;
        kernel.run(hook, Input { repeat: REPEAT, ..(&bytes).into() })?;
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads = [(0, Hook::Xdp), (1, Hook::Xdp), (0, Hook::Tc), (1, Hook::Tc)];
        let threads = threads.map(|(cpu, hook)| scope.spawn(move || run_on(cpu, hook)));
        threads.into_iter().try_for_each(|thread| thread.join().expect("the thread panicked"))
    })?;
    let packets = 4 * u64::from(REPEAT);
    let total = packets * bytes.len() as u64;
    let entry = kernel.entry("203.0.113.9")?;
    assert_eq!((entry.packets, entry.bytes), (packets, total), "the entry");
    let reason = kernel.loaded.reasons.get(Reason::DropDenied)?;
    assert_eq!((reason.packets, reason.bytes), (packets, total), "the reason");
    assert_eq!(kernel.first_drops().len(), 1);
    Ok(())
}
