//! The benchmarks, by the names that `cargo xtask bench` takes.

pub mod report;
mod xdp;
mod xdp_filter;

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
pub const ALL: [Bench; 1] = [Bench { name: "xdp", run: xdp::run }];
