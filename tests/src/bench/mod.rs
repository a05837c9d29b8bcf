//! The benchmarks, by the names that `cargo xtask bench` takes.

mod block;
mod empty_probes;
pub mod report;
mod tls;
mod wrk;
pub mod xdp;

use anyhow::Result;

use report::Report;

/// How thorough a benchmark has to be.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Fewer and shorter rounds.
    pub quick: bool,
}

pub struct Bench {
    pub name: &'static str,
    pub run: fn(Effort) -> Result<Report>,
}

/// In the order in which they run.
pub const ALL: [Bench; 3] = [
    Bench { name: "xdp", run: xdp::run },
    Bench { name: "tls", run: tls::run },
    Bench { name: "block", run: block::run },
];
