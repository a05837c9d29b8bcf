//! The packet path: time per packet beside xdp-filter by BPF_PROG_TEST_RUN, floods on a real
//! interface beside xdp-filter and nftables, limits under contention, and lists of a million.

mod client_hello;
mod driver;
mod field;
mod flood;
mod goodput;
mod hot;
mod limiter;
mod lists;
mod networks;
mod nftables;
mod policy;
mod random;
pub mod xdp_filter;

use std::thread;

use anyhow::Result;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::Effort;
use super::report::{Better, Case, Report, Summary};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

/// How much is measured.
#[derive(Clone, Copy)]
struct Plan {
    rounds: usize,
    /// Runs of a program that make one figure.
    repeat: u32,
    quick: bool,
}

pub fn run(effort: Effort) -> Result<Report> {
    let Effort { quick } = effort;
    let plan = if quick {
        Plan { rounds: 2, repeat: 100_000, quick }
    } else {
        Plan { rounds: 8, repeat: 1_000_000, quick }
    };
    let mut cases = Vec::new();
    {
        let mut kernel = policy::everything()?;
        cases.extend(hot::run(&kernel, plan)?);
        cases.push(lists::memory()?);
        cases.extend(flood::run(&mut kernel, plan)?);
        cases.extend(goodput::run(&mut kernel, plan)?);
    }
    cases.extend(client_hello::run(plan)?);
    cases.push(limiter::run(plan)?);
    cases.extend(random::run(plan)?);
    cases.extend(lists::run(plan)?);
    Ok(Report { bench: "xdp", rounds: plan.rounds, cases })
}

/// A figure that is held against its target itself.
fn alone(
    name: &'static str,
    unit: &'static str,
    measured: &[f64],
    target: f64,
    better: Better,
) -> Case {
    Case { name, unit, ours: Summary::of(measured), peer: None, target, better }
}

/// The processor that interrupts prefer least.
fn last_cpu() -> Result<usize> {
    Ok(thread::available_parallelism()?.get() - 1)
}

/// This thread stays on one processor from now on.
fn stay_on(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cpus)?)
}

/// Runs `work` on a thread that stays on the last processor.
fn on_last_cpu<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let pinned = || stay_on(last_cpu()?).and_then(|()| work());
    thread::scope(|scope| scope.spawn(pinned).join().expect("the measuring thread panicked"))
}

/// Mean of several runs of `run`, in nanoseconds: the kernel tells whole ones only. It is given how
/// many times to repeat.
fn mean_of(repeat: u32, run: impl Fn(u32) -> Result<f64>) -> Result<f64> {
    const PARTS: u32 = 10;
    let mut sum = 0.0;
    for _ in 0..PARTS {
        sum += run(repeat / PARTS)?;
    }
    Ok(sum / f64::from(PARTS))
}
