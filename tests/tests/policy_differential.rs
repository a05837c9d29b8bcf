//! The programs and the plain reference of the policy, side by side on frames made at random.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use portcullis::enforce::{Each, Effect, Flow, List, NewBlock, Rate, Scope, Target, Unit};
use portcullis_common::policy::Reason;
use portcullis_tests::packet::differential::{
    Comparison, Mixture, frames_in, max_len, regressions, seeds,
};
use portcullis_tests::packet::harness::{BLOCK, Hook, Kernel, net};
use portcullis_tests::packet::random::Frames;
use portcullis_tests::packet::reference::{Policy, Reference};

const FRAMES: u32 = 200_000;

const ALLOWED: [&str; 7] = [
    "198.51.100.0/29",
    "198.51.100.8",
    "2001:db8:0:7::/64",
    "2001:db8:0:4::5",
    "2001:db8:0:8::8000/113",
    "10.200.100.48/30",
    "203.0.113.54",
];
/// Sources beside those that the policy names.
const MORE_SOURCES: [&str; 18] = [
    "203.0.113.4",
    "::ffff:203.0.113.1",
    "::ffff:198.51.100.7",
    "::ffff:10.200.100.50",
    "::203.0.113.1",
    "2001:db8:0:4::1",
    "2001:db8:0:4::5",
    "2001:db8:0:5::1",
    "2001:db8:0:6::1",
    "2001:db8:0:7::1",
    "192.0.2.77",
    "192.0.2.78",
    "192.0.2.141",
    "172.16.5.9",
    "172.16.7.1",
    "2001:db8:aaaa::7",
    "2001:db8:bbbb:1::7",
    "::",
];
const FAILSAFE_TCP: [u16; 3] = [22, 443, 65_535];
const FAILSAFE_UDP: [u16; 2] = [53, 68];
const SERVER_V4: &str = "192.0.2.200";
const MAPPED_SERVER: &str = "::ffff:192.0.2.200";
const SERVER_V6: &str = "2001:db8:ffff::200";
const JA4: [&str; 4] = ["t13d_one", "t13d_two", "t13d_three", "t13d_four"];

fn drops() -> NewBlock {
    BLOCK
}

fn counts() -> NewBlock {
    NewBlock { effect: Effect::Count, ..BLOCK }
}

fn observed() -> NewBlock {
    NewBlock { count_only: true, ..BLOCK }
}

fn expired() -> NewBlock {
    NewBlock { ttl: Some(Duration::ZERO), ..BLOCK }
}

fn steers() -> NewBlock {
    NewBlock { effect: Effect::Steer, ..BLOCK }
}

fn limits(unit: Unit, burst: u64, each: Each) -> NewBlock {
    NewBlock { effect: Effect::Limit(Rate { unit, per_s: 1, burst, each }), ..BLOCK }
}

fn on(service: &str, block: NewBlock) -> NewBlock {
    NewBlock { service: Some(service.into()), ..block }
}

const CLIENTS: Each = Each::Client { v4: 30, v6: 64 };

fn networks() -> Vec<(&'static str, NewBlock)> {
    vec![
        ("203.0.113.1", drops()),
        ("203.0.113.2", observed()),
        ("203.0.113.3", expired()),
        ("198.51.100.7", drops()),
        ("198.51.100.8", counts()),
        ("2001:db8:0:1::1", drops()),
        ("2001:db8:0:2::2", observed()),
        ("2001:db8:0:3::3", expired()),
        // Within networks that are denied too, in every pairing of different rules.
        ("2001:db8:0:4::/64", drops()),
        ("2001:db8:0:4::2", counts()),
        ("2001:db8:0:5::/64", counts()),
        ("2001:db8:0:5::3", expired()),
        ("2001:db8:0:6::/64", expired()),
        ("2001:db8:0:6::2", observed()),
        // Several rules of one target, in another order than they are applied.
        ("203.0.113.20", counts()),
        ("203.0.113.20", limits(Unit::Packets, 900, Each::Target)),
        ("203.0.113.20", on("web", steers())),
        ("203.0.113.20", on("host", drops())),
        ("2001:db8:0:8::/64", limits(Unit::Bytes, 900_000, CLIENTS)),
        ("2001:db8:0:8::/64", on("both", drops())),
        ("2001:db8:0:8::1", limits(Unit::Connections, 300, Each::Target)),
        ("2001:db8:0:8::2", steers()),
        ("2001:db8:0:8::2", expired()),
        ("2001:db8:0:8::3", NewBlock { count_only: true, ..limits(Unit::Packets, 9, CLIENTS) }),
        ("192.0.2.64/26", limits(Unit::Packets, 700, CLIENTS)),
        ("192.0.2.128/26", limits(Unit::Connections, 40, CLIENTS)),
        ("192.0.2.128/25", limits(Unit::Bytes, 300_000, Each::Target)),
        // Own rules where there are a list's too.
        ("172.16.5.0/24", counts()),
        ("172.16.6.0/24", drops()),
        ("172.16.7.0/24", limits(Unit::Packets, 500, Each::Target)),
        // All of IPv6, which IPv4 is none of.
        ("::/0", on("alt", steers())),
        ("0.0.0.0/0", on("alt", counts())),
    ]
}

/// One network of each length around `address`, the shortest of them only for one port, so that not
/// everything matches.
fn nested(address: IpAddr, shortest: u8) -> impl Iterator<Item = (Target, NewBlock)> {
    let longest = IpNet::from(address).prefix_len();
    (1..=longest).map(move |len| {
        let block = match len % 8 {
            0 => counts(),
            1 => expired(),
            2 => limits(Unit::Packets, 4_000, Each::Target),
            3 => on("web", drops()),
            4 => steers(),
            5 => on("v6", drops()),
            6 => on("host", limits(Unit::Connections, 500, Each::Target)),
            _ => observed(),
        };
        let block = if len < shortest { on("alt", block) } else { block };
        (Target::Network(IpNet::new(address, len).expect("a length").trunc()), block)
    })
}

fn lists() -> Vec<List> {
    let list = |name: &str, rule: NewBlock, networks: &[&str]| List {
        name: name.into(),
        rule,
        networks: networks.iter().map(|text| net(text)).collect(),
    };
    vec![
        list(
            "first",
            NewBlock { rule_id: 101, ..drops() },
            &["172.16.5.0/24", "172.16.7.0/24", "2001:db8:aaaa::/48", "::ffff:172.17.0.0/112"],
        ),
        list(
            "second",
            NewBlock { rule_id: 102, ..counts() },
            &["172.16.0.0/16", "172.16.6.0/24", "172.16.7.0/24", "2001:db8:bbbb::/48"],
        ),
        list("third", NewBlock { rule_id: 103, ..on("web", drops()) }, &["2001:db8:bbbb::/47"]),
    ]
}

fn scopes() -> Vec<Scope> {
    let scope = |service: &str, ports: &[u16], addresses: &[&str]| Scope {
        service: service.into(),
        ports: ports.to_vec(),
        addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
    };
    vec![
        scope("web", &[80, 8_080], &[]),
        scope("alt", &[8_443], &[]),
        scope("host", &[], &[SERVER_V4, SERVER_V6]),
        scope("both", &[80, 443], &[SERVER_V6]),
        scope("v6", &[], &["2001:db8:ffff::1", MAPPED_SERVER]),
    ]
}

fn flow(client: &str, server: &str, is_udp: bool) -> Flow {
    let [client, server] = [client, server].map(|text| text.parse().expect("an end of a flow"));
    Flow { client, server, is_udp }
}

fn flows() -> Vec<(Flow, Option<u64>)> {
    vec![
        (flow("203.0.113.50:50001", "192.0.2.1:8444", false), Some(11)),
        (flow("203.0.113.50:50001", "192.0.2.1:8444", true), None),
        (flow("203.0.113.50:50002", "192.0.2.200:80", false), Some(12)),
        (flow("203.0.113.51:50003", "192.0.2.200:80", true), Some(21)),
        (flow("203.0.113.20:50004", "192.0.2.1:8444", false), Some(21)),
        (flow("203.0.113.52:50005", "192.0.2.1:8444", false), Some(31)),
        (flow("203.0.113.53:50006", "192.0.2.1:8444", false), Some(41)),
        (flow("203.0.113.54:50007", "192.0.2.1:8444", false), Some(99)),
        (flow("[2001:db8:50::1]:50008", "[2001:db8:ffff::1]:8444", false), Some(11)),
        (flow("[2001:db8:50::1]:50009", "[2001:db8:ffff::1]:8444", true), Some(31)),
        (flow("[2001:db8:51::1]:50010", "[2001:db8:ffff::200]:80", false), Some(31)),
        (flow("[2001:db8:52::1]:50011", "[2001:db8:ffff::1]:8444", false), Some(41)),
    ]
}

fn flow_blocks() -> Vec<(Target, NewBlock)> {
    let of_flow = |number: usize, block| (Target::Flow(flows()[number].0), block);
    let of_ja4 = |number: usize, block| (Target::Fingerprint(JA4[number].into()), block);
    let of_both = |text: &str, number: usize, block| {
        (Target::Conjunction(net(text), JA4[number].into()), block)
    };
    vec![
        of_flow(0, counts()),
        of_flow(1, drops()),
        of_flow(2, on("host", limits(Unit::Packets, 200, Each::Target))),
        of_flow(8, expired()),
        of_flow(8, steers()),
        of_ja4(0, on("host", drops())),
        of_ja4(0, limits(Unit::Packets, 2_000, Each::Target)),
        of_ja4(1, steers()),
        of_both("203.0.113.51", 1, drops()),
        of_both("203.0.113.0/24", 1, counts()),
        of_both("203.0.113.0/24", 2, expired()),
        of_both("0.0.0.0/0", 2, limits(Unit::Connections, 100, CLIENTS)),
        of_both("2001:db8:50::/64", 2, limits(Unit::Bytes, 90_000, CLIENTS)),
        of_both("2001:db8:51::/63", 2, on("web", drops())),
        of_both("2001:db8:51::1", 2, observed()),
        of_both("::/0", 2, counts()),
    ]
}

fn policy(tunnels: bool) -> Policy {
    let networks = networks().into_iter().map(|(text, block)| (net(text).into(), block));
    let nested = nested(net("10.200.100.50").addr(), 8)
        .chain(nested(net("2a01:4f8:c17:b8f:1234:5678:9abc:def0").addr(), 20));
    Policy {
        blocks: networks.chain(nested).chain(flow_blocks()).collect(),
        lists: lists(),
        scopes: scopes(),
        known: vec![(11, JA4[0]), (21, JA4[1]), (12, JA4[0]), (31, JA4[2]), (41, JA4[3])],
        seen: flows().into_iter().filter_map(|(flow, key)| Some((flow, key?))).collect(),
        allowed: ALLOWED.iter().map(|text| net(text)).collect(),
        failsafe_tcp: FAILSAFE_TCP.into(),
        failsafe_udp: FAILSAFE_UDP.into(),
        tunnels,
    }
}

fn kernel_with(policy: &Policy) -> Result<Kernel> {
    let mut kernel = Kernel::new()?;
    kernel.enforce(policy)?;
    Ok(kernel)
}

fn frames(policy: &Policy, hook: Hook, seed: u64) -> Frames {
    let named = policy.blocks.iter().filter_map(|(target, _)| match target {
        Target::Network(net) | Target::Conjunction(net, _) => Some(net.addr()),
        Target::Fingerprint(_) | Target::Flow(_) => None,
    });
    let named: BTreeSet<_> = named.collect();
    let more = MORE_SOURCES.iter().map(|text| net(text).addr());
    let ports = [FAILSAFE_TCP.as_slice(), &FAILSAFE_UDP, &[80, 8_080, 8_443]].concat();
    let sources = named.into_iter().chain(more).collect();
    let mut frames = Frames::new(seed, sources, ports, max_len(hook));
    frames.destinations = [SERVER_V4, SERVER_V6, MAPPED_SERVER].map(|to| net(to).addr()).into();
    frames.flows = flows().into_iter().map(|(flow, _)| flow).collect();
    frames
}

fn judge(reference: &mut Reference<'_>, hook: Hook, frame: &[u8]) -> Reason {
    match hook {
        Hook::Xdp | Hook::Tc => reference.judge(frame),
        Hook::TcL3 => reference.judge_l3(frame),
    }
}

/// Compares on `FRAMES` frames; returns how many of them had each reason.
fn compare(hook: Hook, tunnels: bool, seed: u64) -> Result<BTreeMap<&'static str, u64>> {
    let policy = policy(tunnels);
    let kernel = kernel_with(&policy)?;
    let mut frames = frames(&policy, hook, seed);
    let mut reference = Reference::new(&policy);
    let mut comparison = Comparison::new(hook, &kernel, |frame| judge(&mut reference, hook, frame));
    for _ in 0..FRAMES {
        let frame = frames.next_frame();
        let linear = frames.linear(frame.len());
        comparison.show(&frame, linear).with_context(|| format!("seed {seed}"))?;
    }
    comparison.check()?;
    Ok(comparison.tally())
}

fn has_reasons(tally: &BTreeMap<&str, u64>, reasons: impl IntoIterator<Item = Reason>) {
    for reason in reasons {
        let frames = tally.get(reason.name()).copied().unwrap_or(0);
        assert!(frames >= 500, "only {frames} frames were {}", reason.name());
    }
}

#[test]
fn xdp_agrees_with_the_reference() -> Result<()> {
    has_reasons(&compare(Hook::Xdp, false, 0x0070_6f72_7463)?, Reason::ALL);
    Ok(())
}

#[test]
fn xdp_agrees_with_the_reference_in_tunnels() -> Result<()> {
    has_reasons(&compare(Hook::Xdp, true, 0x7475_6e6e_656c)?, Reason::ALL);
    Ok(())
}

#[test]
fn tc_agrees_with_the_reference() -> Result<()> {
    has_reasons(&compare(Hook::Tc, true, 0x7563_6c6c_6973)?, Reason::ALL);
    Ok(())
}

#[test]
fn tc_without_link_headers_agrees_with_the_reference() -> Result<()> {
    // Tags are part of a link header, and the kernel runs it on whole IP headers only.
    let is_possible =
        |reason: &Reason| !matches!(reason, Reason::PassTooManyTags | Reason::PassTruncated);
    let reasons = Reason::ALL.into_iter().filter(is_possible);
    has_reasons(&compare(Hook::TcL3, true, 0x6c61_7965_7233)?, reasons);
    Ok(())
}

/// Frames that were judged wrongly once, and those that fuzzing begins with, whatever part of them
/// can be read in place.
#[test]
fn seeds_and_regressions_hold() -> Result<()> {
    let policy = policy(true);
    let mut inputs = frames_in(&regressions())?;
    inputs.extend(frames_in(&seeds())?);
    ensure!(inputs.len() >= 8, "{} inputs", inputs.len());
    for hook in [Hook::Xdp, Hook::Tc, Hook::TcL3] {
        let kernel = kernel_with(&policy)?;
        let mut reference = Reference::new(&policy);
        let mut comparison =
            Comparison::new(hook, &kernel, |frame| judge(&mut reference, hook, frame));
        for (path, frame) in &inputs {
            let linear = (0..=frame.len().min(128)).map(Some);
            for linear in std::iter::once(None).chain(linear) {
                comparison.show(frame, linear).with_context(|| path.display().to_string())?;
            }
            comparison.check().with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// The comparison itself: it finds a verdict that differs, and a reason that differs where the
/// verdict does not, and keeps the very frame.
#[test]
fn a_wrong_reference_is_found_out() -> Result<()> {
    let wrong: [fn(Reason) -> Reason; 2] = [
        |reason| if reason == Reason::DropDenied { Reason::PassNoMatch } else { reason },
        |reason| if reason == Reason::PassExpired { Reason::PassNoMatch } else { reason },
    ];
    let policy = policy(true);
    for wrong in wrong {
        let kernel = kernel_with(&policy)?;
        let dir = tempfile::tempdir()?;
        let mut frames = frames(&policy, Hook::Xdp, 1);
        let mut reference = Reference::new(&policy);
        let mut comparison =
            Comparison::new(Hook::Xdp, &kernel, |frame| wrong(reference.judge(frame)))
                .keeping_in(dir.path().to_owned());
        let result = (0..FRAMES).try_for_each(|_| {
            let frame = frames.next_frame();
            comparison.show(&frame, None).map(drop)
        });
        result.and_then(|()| comparison.check()).err().context("nothing was found")?;
        let kept = frames_in(dir.path())?;
        ensure!(kept.len() == 1, "{} frames were kept", kept.len());
        for frame in kept.values() {
            let right = Reference::new(&policy).judge(frame);
            ensure!(wrong(right) != right, "a frame of {right:?} was kept");
        }
    }
    Ok(())
}

/// How long `cargo xtask fuzz policy` goes on, and what with.
struct Plan {
    seed: u64,
    /// Judged by all threads together, at least.
    frames: u64,
    duration: Duration,
}

impl Plan {
    fn from_environment() -> Result<Self> {
        let number = |name: &str| -> Result<u64> {
            let text = std::env::var(name).with_context(|| format!("{name} is not set"))?;
            text.parse().with_context(|| format!("{name} is {text:?}"))
        };
        Ok(Self {
            seed: number("PORTCULLIS_FUZZ_SEED")?,
            frames: number("PORTCULLIS_FUZZ_FRAMES")?,
            duration: Duration::from_secs(number("PORTCULLIS_FUZZ_SECONDS")?),
        })
    }
}

/// What the threads of a long run share.
struct Progress {
    begin: Instant,
    frames: AtomicU64,
    is_over: AtomicBool,
}

impl Progress {
    /// Adds up, and says now and then how it goes.
    fn add(&self, frames: u64, plan: &Plan) {
        const SHOWN_EVERY: u64 = 2_000_000;
        let before = self.frames.fetch_add(frames, Ordering::Relaxed);
        let total = before + frames;
        let elapsed = self.begin.elapsed();
        if before / SHOWN_EVERY != total / SHOWN_EVERY {
            println!("{total} frames, {:.0} a second", total as f64 / elapsed.as_secs_f64());
        }
        if total >= plan.frames && elapsed >= plan.duration {
            self.is_over.store(true, Ordering::Relaxed);
        }
    }
}

/// One thread's part, which its seed alone decides; how many frames had each reason.
fn fuzz(
    hook: Hook,
    seed: u64,
    plan: &Plan,
    progress: &Progress,
) -> Result<BTreeMap<&'static str, u64>> {
    const STEP: u64 = 10_000;
    let policy = policy(true);
    let kernel = kernel_with(&policy)?;
    let mut mixture = Mixture::new(frames(&policy, hook, seed), seed);
    let mut reference = Reference::new(&policy);
    let mut comparison = Comparison::new(hook, &kernel, |frame| judge(&mut reference, hook, frame));
    for frame in frames_in(&seeds())?.values().chain(frames_in(&regressions())?.values()) {
        if let Some(reason) = comparison.show(frame, None)? {
            mixture.met(frame, reason);
        }
    }
    while !progress.is_over.load(Ordering::Relaxed) {
        let before = comparison.frames();
        for number in 0..STEP {
            let (frame, linear) = mixture.next_frame(number);
            let shown = comparison.show(&frame, linear).with_context(|| format!("seed {seed}"))?;
            if let Some(reason) = shown {
                mixture.met(&frame, reason);
            }
        }
        progress.add(comparison.frames() - before, plan);
    }
    comparison.check()?;
    println!(
        "{hook:?}, seed {seed}: {} frames, {} kept",
        comparison.frames(),
        mixture.corpus_len()
    );
    Ok(comparison.tally())
}

#[test]
#[ignore = "takes minutes: `cargo xtask fuzz policy` runs it"]
fn long_run() -> Result<()> {
    let plan = Plan::from_environment()?;
    let progress = Progress {
        begin: Instant::now(),
        frames: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
    };
    let threads = std::thread::available_parallelism()?.get().max(Hook::ALL.len());
    std::thread::scope(|scope| {
        let run = |(thread, hook): (usize, Hook)| {
            let (plan, progress) = (&plan, &progress);
            scope.spawn(move || {
                let result = fuzz(hook, plan.seed.wrapping_add(thread as u64), plan, progress);
                // A difference ends the run; so does the end.
                progress.is_over.store(true, Ordering::Relaxed);
                result
            })
        };
        let hooks = Hook::ALL.into_iter().cycle().take(threads);
        let running: Vec<_> = hooks.enumerate().map(run).collect();
        for thread in running {
            has_reasons(&thread.join().expect("the thread panicked")?, Reason::ALL);
        }
        Ok::<_, anyhow::Error>(())
    })?;
    let (frames, elapsed) = (progress.frames.load(Ordering::Relaxed), progress.begin.elapsed());
    println!(
        "{frames} frames without a difference in {:.0} s, {:.0} a second",
        elapsed.as_secs_f64(),
        frames as f64 / elapsed.as_secs_f64()
    );
    Ok(())
}
