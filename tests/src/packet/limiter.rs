//! How exact a limit is in real time: every CPU sends as fast as it can, all of it under one rule.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use portcullis::enforce::{Each, Effect, NewBlock, PolicyMaps as _, Rate, Unit};

use super::harness::{BLOCK, Hook, Input, Kernel, from, on_cpu};

/// What a limit let pass.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    pub rate: Rate,
    pub offered: u64,
    pub passed: u64,
    pub elapsed: Duration,
}

impl Measured {
    /// The rate times the time, and the burst.
    pub fn expected(&self) -> f64 {
        self.rate.burst as f64 + self.rate.per_s as f64 * self.elapsed.as_secs_f64()
    }

    /// How far what passed is from that, as a part of it.
    pub fn error(&self) -> f64 {
        self.passed as f64 / self.expected() - 1.0
    }
}

/// Has two CPUs send packets of one source for `duration`, under a limit of `per_s` packets that
/// has room for a tenth of a second's.
///
/// # Errors
/// Without root, or with one CPU.
pub fn measure(per_s: u64, each: Each, duration: Duration) -> Result<Measured> {
    const SOURCE: &str = "203.0.113.9";
    /// Packets in about a millisecond, so that all threads end soon after the time is over.
    const REPEAT: u32 = 4_096;
    let rate = Rate { unit: Unit::Packets, per_s, burst: (per_s / 10).max(1), each };
    let mut kernel = Kernel::new()?;
    kernel.block_as(SOURCE, NewBlock { effect: Effect::Limit(rate), ..BLOCK })?;
    let frame = from(SOURCE).bytes();
    // A run of XDP programs would begin and end with the kernel waiting for all CPUs.
    let program = Hook::Tc.program(&kernel.loaded.ebpf)?;
    let is_over = AtomicBool::new(false);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let senders = [0, 1].map(|cpu| {
            let (is_over, frame) = (&is_over, &frame);
            scope.spawn(move || -> Result<()> {
                on_cpu(cpu)?;
                while !is_over.load(Ordering::Relaxed) {
                    program.run(Input { repeat: REPEAT, ..frame.into() })?;
                    if begin.elapsed() >= duration {
                        is_over.store(true, Ordering::Relaxed);
                    }
                }
                Ok(())
            })
        });
        senders.into_iter().try_for_each(|sender| sender.join().expect("the thread panicked"))
    })?;
    let elapsed = begin.elapsed();
    let blocks = kernel.loaded.policy.blocks()?;
    let block = blocks.first().context("the limit is gone")?;
    let (offered, passed) = (block.packets, block.packets - block.exceeded);
    Ok(Measured { rate, offered, passed, elapsed })
}
