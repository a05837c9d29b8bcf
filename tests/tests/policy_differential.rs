//! The programs and the plain reference of the policy, side by side on frames made at random.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use portcullis::enforce::{NewBlock, PolicyMaps as _};
use portcullis_common::policy::Reason;
use portcullis_tests::packet::differential::{
    Comparison, Mixture, frames_in, max_len, regressions, seeds,
};
use portcullis_tests::packet::harness::{BLOCK, Hook, Kernel, net};
use portcullis_tests::packet::random::Frames;
use portcullis_tests::packet::reference::{Policy, Rule};

const FRAMES: u32 = 200_000;

const DENIED: [(&str, Rule); 14] = [
    ("203.0.113.1", Rule::Drop),
    ("203.0.113.2", Rule::CountOnly),
    ("203.0.113.3", Rule::Expired),
    ("198.51.100.7", Rule::Drop),
    ("198.51.100.8", Rule::CountOnly),
    ("2001:db8:0:1::1", Rule::Drop),
    ("2001:db8:0:2::2", Rule::CountOnly),
    ("2001:db8:0:3::3", Rule::Expired),
    // Within networks that are denied too, in every pairing of different rules.
    ("2001:db8:0:4::/64", Rule::Drop),
    ("2001:db8:0:4::2", Rule::CountOnly),
    ("2001:db8:0:5::/64", Rule::CountOnly),
    ("2001:db8:0:5::3", Rule::Expired),
    ("2001:db8:0:6::/64", Rule::Expired),
    ("2001:db8:0:6::2", Rule::CountOnly),
];
const ALLOWED: [&str; 4] =
    ["198.51.100.0/29", "198.51.100.8", "2001:db8:0:7::/64", "2001:db8:0:4::5"];
/// Sources beside the denied addresses themselves.
const MORE_SOURCES: [&str; 9] = [
    "203.0.113.4",
    "::ffff:203.0.113.1",
    "::ffff:198.51.100.7",
    "2001:db8:0:4::1",
    "2001:db8:0:4::5",
    "2001:db8:0:5::1",
    "2001:db8:0:6::1",
    "2001:db8:0:7::1",
    "::",
];
const FAILSAFE_TCP: [u16; 3] = [22, 443, 65_535];
const FAILSAFE_UDP: [u16; 2] = [53, 68];

fn policy() -> Policy {
    Policy {
        denied: DENIED.iter().map(|&(target, rule)| (net(target), rule)).collect(),
        allowed: ALLOWED.iter().map(|text| net(text)).collect(),
        failsafe_tcp: FAILSAFE_TCP.into(),
        failsafe_udp: FAILSAFE_UDP.into(),
    }
}

fn kernel_with(policy: &Policy) -> Result<Kernel> {
    let mut kernel = Kernel::new()?;
    let maps = &mut kernel.loaded.policy;
    for &(target, rule) in &policy.denied {
        let ttl = (rule == Rule::Expired).then_some(Duration::ZERO);
        maps.block(target, NewBlock { ttl, count_only: rule == Rule::CountOnly, ..BLOCK })?;
    }
    maps.set_allowed(&policy.allowed)?;
    maps.set_failsafe(&policy.failsafe_tcp, &policy.failsafe_udp)?;
    Ok(kernel)
}

fn frames(policy: &Policy, hook: Hook, seed: u64) -> Frames {
    let sources = policy.denied.iter().map(|(net, _)| net.addr());
    let more = MORE_SOURCES.iter().map(|text| net(text).addr());
    let ports = [FAILSAFE_TCP.as_slice(), &FAILSAFE_UDP, &[80]].concat();
    Frames::new(seed, sources.chain(more).collect(), ports, max_len(hook))
}

/// Compares on `FRAMES` frames; returns how many of them had each reason.
fn compare(hook: Hook, seed: u64) -> Result<BTreeMap<&'static str, u64>> {
    let policy = policy();
    let kernel = kernel_with(&policy)?;
    let mut frames = frames(&policy, hook, seed);
    let mut comparison = Comparison::new(hook, &kernel, |frame| policy.judge(frame));
    for _ in 0..FRAMES {
        let frame = frames.next_frame();
        let linear = frames.linear(frame.len());
        comparison.show(&frame, linear).with_context(|| format!("seed {seed}"))?;
    }
    comparison.check()?;
    Ok(comparison.tally())
}

fn has_all_reasons(tally: &BTreeMap<&str, u64>) {
    for reason in Reason::ALL {
        let frames = tally.get(reason.name()).copied().unwrap_or(0);
        assert!(frames >= 1_000, "only {frames} frames were {}", reason.name());
    }
}

#[test]
fn xdp_agrees_with_the_reference() -> Result<()> {
    has_all_reasons(&compare(Hook::Xdp, 0x0070_6f72_7463)?);
    Ok(())
}

#[test]
fn tc_agrees_with_the_reference() -> Result<()> {
    has_all_reasons(&compare(Hook::Tc, 0x7563_6c6c_6973)?);
    Ok(())
}

/// Frames that were judged wrongly once, and those that fuzzing begins with, whatever part of them
/// can be read in place.
#[test]
fn seeds_and_regressions_hold() -> Result<()> {
    let policy = policy();
    let mut inputs = frames_in(&regressions())?;
    inputs.extend(frames_in(&seeds())?);
    ensure!(inputs.len() >= 8, "{} inputs", inputs.len());
    for hook in Hook::ALL {
        let kernel = kernel_with(&policy)?;
        let mut comparison = Comparison::new(hook, &kernel, |frame| policy.judge(frame));
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
    let policy = policy();
    for wrong in wrong {
        let kernel = kernel_with(&policy)?;
        let dir = tempfile::tempdir()?;
        let mut frames = frames(&policy, Hook::Xdp, 1);
        let mut comparison =
            Comparison::new(Hook::Xdp, &kernel, |frame| wrong(policy.judge(frame)))
                .keeping_in(dir.path().to_owned());
        let result = (0..FRAMES).try_for_each(|_| {
            let frame = frames.next_frame();
            comparison.show(&frame, None).map(drop)
        });
        result.and_then(|()| comparison.check()).err().context("nothing was found")?;
        let kept = frames_in(dir.path())?;
        ensure!(kept.len() == 1, "{} frames were kept", kept.len());
        for frame in kept.values() {
            let right = policy.judge(frame);
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
    let policy = policy();
    let kernel = kernel_with(&policy)?;
    let mut mixture = Mixture::new(frames(&policy, hook, seed), seed);
    let mut comparison = Comparison::new(hook, &kernel, |frame| policy.judge(frame));
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
            has_all_reasons(&thread.join().expect("the thread panicked")?);
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
