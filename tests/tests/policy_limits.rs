//! Rate limits: what they count, how exact they are, and that no number of clients puts another out.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map};
use portcullis::enforce::{
    Each, Effect, EnforceError, NewBlock, PolicyMaps as _, Rate, RuleName, Unit,
};
use portcullis_common::names::{capacity, pinned};
use portcullis_common::policy::{BUCKETS_OF_SET, Limit, Reason};
use portcullis_tests::packet::frame::{Fragment, Frame};
use portcullis_tests::packet::harness::{
    BLOCK, Hook, Kernel, Verdict, assert_judged, from, net, on_cpu,
};
use portcullis_tests::packet::limiter;

const CLIENTS: Each = Each::Client { v4: 32, v6: 64 };

fn limit(unit: Unit, burst: u64, each: Each) -> NewBlock {
    NewBlock { effect: Effect::Limit(Rate { unit, per_s: 1, burst, each }), ..BLOCK }
}

/// A kernel with this limit, which regains nothing.
fn kernel_with(target: &str, block: NewBlock) -> Result<Kernel> {
    let mut kernel = Kernel::new()?;
    kernel.block_as(target, block)?;
    kernel.stop_limits()?;
    Ok(kernel)
}

/// The sum of all limits' counts of packets without a bucket.
fn without_bucket(kernel: &Kernel) -> Result<u64> {
    let limits = Array::<_, Limit>::try_from(Map::Array(kernel.pinned(pinned::LIMITS)?))?;
    limits.iter().try_fold(0, |sum, limit| Ok(sum + limit?.no_room))
}

/// How many of the frames pass, one after the other.
fn passing(kernel: &Kernel, frame: &Frame, frames: u32) -> Result<u32> {
    let mut passed = 0;
    for number in 0..frames {
        let hook = Hook::ALL[number as usize % 2];
        match kernel.judge(hook, &frame.bytes())? {
            (Verdict::Pass, Reason::PassWithinLimit) => passed += 1,
            (Verdict::Drop, Reason::DropLimited) => {}
            other => anyhow::bail!("{other:?}"),
        }
    }
    Ok(passed)
}

#[test]
fn a_burst_passes_and_nothing_beyond() -> Result<()> {
    let mut kernel = Kernel::new()?;
    let cases = [
        ("203.0.113.9", "203.0.113.9", 1),
        ("198.51.100.0/24", "198.51.100.7", 2),
        ("2001:db8::9", "2001:db8::9", 7),
        ("2001:db9::/33", "2001:db9:7fff::1", 100),
    ];
    for (target, _, burst) in cases {
        kernel.block_as(target, limit(Unit::Packets, burst, Each::Target))?;
    }
    kernel.stop_limits()?;
    for (target, source, burst) in cases {
        let passed = passing(&kernel, &from(source), burst as u32 + 20)?;
        assert_eq!(u64::from(passed), burst, "{target}");
        let entry = kernel.entry(target)?;
        assert_eq!((entry.packets, entry.exceeded), (burst + 20, 20), "{target}");
    }
    Ok(())
}

#[test]
fn bytes_count_with_the_link_header() -> Result<()> {
    let mut kernel = Kernel::new()?;
    // As long as anything is left a packet passes, however long it is.
    let cases = [(1, 1), (1_000, 1), (1_001, 2), (10_000, 10), (10_001, 11)];
    let source = |number| format!("203.0.113.{number}");
    for (number, (burst, _)) in cases.into_iter().enumerate() {
        kernel.block_as(&source(number), limit(Unit::Bytes, burst, Each::Target))?;
    }
    kernel.stop_limits()?;
    for (number, (burst, expected)) in cases.into_iter().enumerate() {
        let frame = from(&source(number)).payload(vec![0; 946]);
        assert_eq!(frame.bytes().len(), 1_000);
        assert_eq!(passing(&kernel, &frame, 20)?, expected, "{burst}");
    }
    Ok(())
}

#[test]
fn connections_are_segments_that_open_one() -> Result<()> {
    let kernel = kernel_with("203.0.113.9", limit(Unit::Connections, 3, Each::Target))?;
    let (other, opening) = (from("203.0.113.9"), from("203.0.113.9").opening());
    assert_eq!(passing(&kernel, &other, 10)?, 10);
    assert_eq!(passing(&kernel, &opening, 10)?, 3);
    for frame in [other.clone(), opening.clone().udp(443), other.fragment(Fragment::LAST)] {
        assert_eq!(passing(&kernel, &frame, 4)?, 4);
    }
    assert_eq!(passing(&kernel, &opening, 2)?, 0);
    Ok(())
}

#[test]
fn each_client_has_a_bucket_of_its_own() -> Result<()> {
    let each = Each::Client { v4: 30, v6: 56 };
    for (target, clients, same) in [
        ("203.0.113.0/24", ["203.0.113.4", "203.0.113.8"], "203.0.113.7"),
        ("2001:db8::/32", ["2001:db8:0:100::1", "2001:db8:0:200::1"], "2001:db8:0:1ff::2"),
    ] {
        let kernel = kernel_with(target, limit(Unit::Packets, 5, each))?;
        for client in clients {
            assert_eq!(passing(&kernel, &from(client), 9)?, 5, "{client}");
        }
        assert_eq!(passing(&kernel, &from(same), 3)?, 0, "{same} is the same client");
        assert_eq!(kernel.entry(target)?.exceeded, 11);
    }
    Ok(())
}

#[test]
fn an_observed_limit_only_counts() -> Result<()> {
    let block = NewBlock { count_only: true, ..limit(Unit::Packets, 2, Each::Target) };
    let kernel = kernel_with("203.0.113.9", block)?;
    assert_judged(&kernel, &from("203.0.113.9"), Reason::PassWithinLimit);
    assert_judged(&kernel, &from("203.0.113.9"), Reason::PassCountOnly);
    assert_eq!(kernel.entry("203.0.113.9")?.exceeded, 2);
    Ok(())
}

#[test]
fn allowed_addresses_and_failsafe_ports_take_nothing() -> Result<()> {
    let mut kernel = kernel_with("203.0.113.0/24", limit(Unit::Packets, 4, Each::Target))?;
    kernel.allow(&["203.0.113.9"])?;
    kernel.loaded.policy.set_failsafe(&[22], &[])?;
    for _ in 0..10 {
        assert_judged(&kernel, &from("203.0.113.9"), Reason::PassAllowed);
        assert_judged(&kernel, &from("203.0.113.8").tcp(22), Reason::PassFailsafe);
    }
    assert_eq!(passing(&kernel, &from("203.0.113.8"), 10)?, 4);
    Ok(())
}

#[test]
fn another_rate_begins_anew_and_the_same_goes_on() -> Result<()> {
    for each in [Each::Target, CLIENTS] {
        let mut kernel = Kernel::new()?;
        // A burst in an hour, so that nothing is regained here.
        let slow = |burst| {
            let rate = Rate { unit: Unit::Bytes, per_s: 1, burst, each };
            NewBlock { effect: Effect::Limit(rate), ..BLOCK }
        };
        let frame = from("203.0.113.9").payload(vec![0; 1_946]);
        kernel.block_as("203.0.113.9", slow(6_000))?;
        assert_eq!(passing(&kernel, &frame, 9)?, 3);
        kernel.block_as("203.0.113.9", NewBlock { ttl: Some(Duration::MAX), ..slow(6_000) })?;
        assert_eq!(passing(&kernel, &frame, 2)?, 0, "the same rule");
        assert_eq!(kernel.entry("203.0.113.9")?.exceeded, 8);
        kernel.block_as("203.0.113.9", slow(4_000))?;
        assert_eq!(passing(&kernel, &frame, 9)?, 2, "another rate");
        kernel.block_as("203.0.113.9", NewBlock { rule_id: 99, ..slow(4_000) })?;
        assert_eq!(passing(&kernel, &frame, 2)?, 0);
        let entry = kernel.entry("203.0.113.9")?;
        assert_eq!((entry.packets, entry.exceeded), (2, 2), "another rule's counters begin anew");
    }
    Ok(())
}

#[test]
fn the_next_agent_goes_on_with_limits() -> Result<()> {
    for max_blocks in [1_024, 2_048] {
        let kernel = kernel_with("203.0.113.9", limit(Unit::Packets, 5, Each::Target))?;
        assert_eq!(passing(&kernel, &from("203.0.113.9"), 9)?, 5);
        let next = kernel.successor(|config| config.kernel.max_blocks = max_blocks)?;
        let (old, new) = (kernel.entry("203.0.113.9")?, next.entry("203.0.113.9")?);
        assert_eq!((new.packets, new.bytes, new.exceeded), (9, old.bytes, 4));
        assert_eq!(new.effect, old.effect);
        assert_eq!(passing(&next, &from("203.0.113.9"), 3)?, 0);
    }
    Ok(())
}

#[test]
fn a_full_table_of_limits_refuses() -> Result<()> {
    // The first is none.
    const LIMITS: u32 = capacity::LIMITS - 1;
    let mut kernel = Kernel::with(|config| config.kernel.max_blocks = 20_000)?;
    let address = |number: u32| net(&Ipv4Addr::from_bits(0x0a00_0000 + number).to_string());
    let policy = &mut kernel.loaded.policy;
    for number in 0..LIMITS {
        policy.block(address(number), limit(Unit::Packets, 1, Each::Target))?;
    }
    let refused = limit(Unit::Packets, 1, Each::Target);
    let error = policy.block(address(LIMITS), refused.clone()).unwrap_err();
    assert!(matches!(error, EnforceError::NoRoom { what: "limits" }), "{error}");
    assert_eq!(policy.usage().used, LIMITS);
    // Other rules need none, and one that is removed leaves its place.
    policy.block(address(LIMITS), BLOCK)?;
    let kind = refused.effect.kind();
    policy.remove(&RuleName { target: address(3).into(), kind, service: None })?;
    policy.block(address(LIMITS + 1), refused)?;
    kernel.stop_limits()?;
    assert_eq!(passing(&kernel, &Frame::from(address(LIMITS + 1).addr()), 3)?, 1);
    assert_judged(&kernel, &Frame::from(address(3).addr()), Reason::PassNoMatch);
    assert_judged(&kernel, &Frame::from(address(LIMITS).addr()), Reason::DropDenied);
    Ok(())
}

/// In real time, and with both CPUs at one bucket. How exact it is when nothing else runs, the
/// benchmarks say.
#[test]
fn two_cpus_share_a_limit() -> Result<()> {
    const BOUND: f64 = 0.05;
    for (per_s, each, duration) in [
        (10, Each::Target, Duration::from_secs(3)),
        (1_000, CLIENTS, Duration::from_secs(1)),
        (100_000, Each::Target, Duration::from_secs(1)),
        (1_000_000, CLIENTS, Duration::from_secs(1)),
    ] {
        let measured = limiter::measure(per_s, each, duration)?;
        println!("{measured:?}: {:+.3} %", measured.error() * 100.0);
        let difference = measured.passed as f64 - measured.expected();
        // One packet more or less is what a count can differ by.
        assert!(difference.abs() <= 1.0 + BOUND * measured.expected(), "{measured:?}");
    }
    Ok(())
}

/// Sends one packet of each of so many sources that nobody else has, with two threads; every
/// `between` of them, `also` runs.
fn flood(
    kernel: &Kernel,
    sources: u32,
    between: u32,
    also: impl Fn() -> Result<()> + Sync,
) -> Result<()> {
    let program = Hook::Xdp.program(&kernel.loaded.ebpf)?;
    let next = AtomicU32::new(0);
    let send = |cpu| -> Result<()> {
        on_cpu(cpu)?;
        let mut frame = from("16.0.0.0").bytes();
        loop {
            let begin = next.fetch_add(between, Ordering::Relaxed);
            if begin >= sources {
                return Ok(());
            }
            for number in begin..(begin + between).min(sources) {
                frame[26..30].copy_from_slice(&(0x1000_0000 + number).to_be_bytes());
                program.run_once(&frame)?;
            }
            also()?;
        }
    };
    std::thread::scope(|scope| {
        let send = &send;
        let threads = [0, 1].map(|cpu| scope.spawn(move || send(cpu)));
        threads.into_iter().try_for_each(|thread| thread.join().expect("the thread panicked"))
    })
}

const BLOCKED: &str = "198.51.100.1";
const ALLOWED: &str = "198.51.100.2";
const HITTER: &str = "198.51.100.3";

fn guarded_with(rate: Rate) -> Result<Kernel> {
    let mut kernel = Kernel::new()?;
    kernel.block(BLOCKED)?;
    kernel.block_as("0.0.0.0/0", NewBlock { effect: Effect::Limit(rate), ..BLOCK })?;
    kernel.allow(&[ALLOWED])?;
    Ok(kernel)
}

/// Ten million clients, none of whom ever gives its bucket back: most get none, and are counted; those that
/// have one keep it.
#[test]
fn spoofed_sources_evict_nothing() -> Result<()> {
    const SOURCES: u32 = 10_000_000;
    const BURST: u64 = 5;
    let rate = Rate { unit: Unit::Packets, per_s: 1, burst: BURST, each: CLIENTS };
    let kernel = guarded_with(rate)?;
    kernel.stop_limits()?;
    assert_eq!(passing(&kernel, &from(HITTER), 9)?, BURST as u32);
    let within = || kernel.loaded.reasons.get(Reason::PassWithinLimit);
    let before = within()?.packets;
    let begin = Instant::now();
    flood(&kernel, SOURCES, 10_000, || Ok(()))?;
    let elapsed = begin.elapsed().as_secs_f64();
    println!("{SOURCES} sources, {:.0} a second", f64::from(SOURCES) / elapsed);
    assert_eq!(within()?.packets - before, u64::from(SOURCES));
    let buckets = u64::from(capacity::BUCKET_SETS) * BUCKETS_OF_SET as u64;
    // The hitter has one.
    assert_eq!(without_bucket(&kernel)?, u64::from(SOURCES) - (buckets - 1));
    assert_eq!(passing(&kernel, &from(HITTER), 20)?, 0);
    assert_judged(&kernel, &from(BLOCKED), Reason::DropDenied);
    assert_judged(&kernel, &from(ALLOWED), Reason::PassAllowed);
    Ok(())
}

/// In real time: what a heavy hitter gets is the same with others coming and going as without.
#[test]
fn a_heavy_hitter_is_limited_exactly_among_spoofed_sources() -> Result<()> {
    const SOURCES: u32 = 1_000_000;
    let rate = Rate { unit: Unit::Packets, per_s: 1_000, burst: 100, each: CLIENTS };
    let kernel = guarded_with(rate)?;
    let hitter: IpAddr = HITTER.parse()?;
    let frame = Frame::from(hitter).bytes();
    let program = Hook::Xdp.program(&kernel.loaded.ebpf)?;
    const AT_ONCE: u32 = 10;
    let offered = AtomicU32::new(0);
    let begin = Instant::now();
    flood(&kernel, SOURCES, 20, || {
        offered.fetch_add(AT_ONCE, Ordering::Relaxed);
        (0..AT_ONCE).try_for_each(|_| program.run_once(&frame).map(drop))
    })?;
    let elapsed = begin.elapsed().as_secs_f64();
    let blocks = kernel.loaded.policy.blocks()?;
    let limit = blocks.iter().find(|block| block.effect.kind() == Effect::Limit(rate).kind());
    let limit = limit.context("the limit is gone")?;
    // All that exceeds it is the hitter's.
    let passed = u64::from(offered.into_inner()) - limit.exceeded;
    let expected = rate.burst as f64 + rate.per_s as f64 * elapsed;
    println!("{passed} of the hitter's packets passed in {elapsed:.3} s, expected {expected:.0}");
    assert!((passed as f64 / expected - 1.0).abs() <= 0.05, "{passed} passed, not {expected:.0}");
    assert_eq!(without_bucket(&kernel)?, 0);
    Ok(())
}
