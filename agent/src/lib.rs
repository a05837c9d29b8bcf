//! The userspace side of Portcullis.
//!
//! `flow → http → detect → decide` is the pure pipeline: it owns no IO and never reads the
//! clock. Everything else surrounds it: `capture` and `kernel` feed it, `enforce` carries its
//! decisions out, `report` tells people.

pub mod capture;
pub mod cli;
pub mod config;
pub mod decide;
pub mod decision;
pub mod decoy;
pub mod detect;
pub mod enforce;
pub mod finding;
pub mod fingerprint;
pub mod flow;
pub mod host;
pub mod http;
pub mod kernel;
mod lists;
pub mod pipeline;
pub mod replay;
pub mod report;
pub mod rule;
pub mod runtime;
pub mod time;
pub mod transaction;
