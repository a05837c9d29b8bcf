//! Packet tests: frames, the programs that judge them (by BPF_PROG_TEST_RUN), and a plain
//! reference of what the judgement has to be.

pub mod corpus;
pub mod differential;
pub mod extension;
pub mod frame;
pub mod harness;
pub mod hello;
pub mod limiter;
pub mod random;
pub mod reference;
