//! Two processors that take from one limit as fast as they can: what passes, against what should.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::programs::Xdp;
use aya::{TestRun as _, TestRunOptions};
use ipnet::IpNet;
use portcullis::enforce::{Each, Effect, NewBlock, PolicyMaps as _, Rate, Unit};
use portcullis_common::names::program;

use super::flood::{attach, detach};
use super::policy::DENIED;
use super::{Better, Case, Plan, alone, stay_on};
use crate::netns::Lab;
use crate::packet::frame::Frame;
use crate::packet::harness::{BLOCK, Kernel};

/// Per cent, of the worst of the rates.
const TARGET: f64 = 2.0;
/// A second, each with how long it takes to see a hundredth of it.
const RATES: [(u64, Duration); 6] = [
    (10, Duration::from_secs(10)),
    (100, Duration::from_secs(2)),
    (1_000, Duration::from_secs(1)),
    (10_000, Duration::from_secs(1)),
    (100_000, Duration::from_secs(1)),
    (1_000_000, Duration::from_secs(1)),
];
const EACH: [(&str, Each); 2] =
    [("one bucket", Each::Target), ("a client's bucket", Each::Client { v4: 32, v6: 64 })];

pub fn run(plan: Plan) -> Result<Case> {
    let cpus = thread::available_parallelism()?.get();
    ensure!(cpus >= 2, "contention takes two processors");
    let lab = Lab::new("pcbench", 0)?;
    let mut worst = Vec::new();
    for round in 0..plan.rounds.min(3) {
        let mut errors = Vec::new();
        for (rate, time) in RATES {
            for (what, each) in EACH {
                let error = error(&lab, rate, time, each)?;
                eprintln!("xdp: round {round}: limit of {rate}/s, {what}: {error:+.2} %");
                errors.push(error.abs());
            }
        }
        worst.push(errors.into_iter().fold(0.0, f64::max));
    }
    Ok(alone("limiter_error", "% of the limit", &worst, TARGET, Better::Lower))
}

/// By how many per cent more passes than the limit says.
fn error(lab: &Lab, per_s: u64, time: Duration, each: Each) -> Result<f64> {
    let mut kernel = Kernel::new()?;
    // A tenth of a second's: no pause of the machine should be taken for the limit's error.
    let burst = (per_s / 10).max(1);
    let rate = Rate { unit: Unit::Packets, per_s, burst, each };
    let target = IpNet::from(DENIED);
    kernel.loaded.policy.block(target, NewBlock { effect: Effect::Limit(rate), ..BLOCK })?;
    // A program that is on no interface is put into the kernel's dispatcher and taken out again with
    // every call, which takes some 20 ms.
    let link = attach(&mut kernel.loaded.ebpf, lab)?;
    let xdp: &Xdp = kernel.loaded.ebpf.program(program::XDP).context("no program")?.try_into()?;

    let barrier = Barrier::new(2);
    let work = |cpu: usize| -> Result<(Instant, Instant)> {
        let frame = Frame::from(DENIED).bytes();
        let pinned = stay_on(cpu);
        barrier.wait();
        pinned?;
        let start = Instant::now();
        while start.elapsed() < time {
            let mut options = TestRunOptions::new();
            options.data_in = Some(&frame);
            options.repeat = 10_000;
            xdp.test_run(options)?;
        }
        Ok((start, Instant::now()))
    };
    let spans = thread::scope(|scope| {
        let threads = [0, 1].map(|cpu| scope.spawn(move || work(cpu)));
        threads.map(|thread| thread.join().expect("a measuring thread panicked"))
    });
    let [first, second] = spans;
    let (first, second) = (first?, second?);
    let span = first.1.max(second.1) - first.0.min(second.0);

    detach(&mut kernel.loaded.ebpf, link)?;
    let block = kernel.entry(&DENIED.to_string())?;
    let passed = (block.packets - block.exceeded) as f64;
    let allowed = burst as f64 + per_s as f64 * span.as_secs_f64();
    ensure!(block.exceeded > block.packets / 2, "the processors are too slow for {per_s}/s");
    Ok((passed / allowed - 1.0) * 100.0)
}
