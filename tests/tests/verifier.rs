//! How much work are the programs for the verifier of the running kernel?

use std::collections::BTreeMap;
use std::io::Write as _;

use anyhow::{Context as _, Result, bail};
use aya::Btf;
use aya::programs::Program;
use portcullis::capture::probes::{GO_TRACEPOINTS, missing_tracepoints};
use portcullis::kernel;
use portcullis_common::names::program;
use portcullis_tests::packet::harness::Kernel;

/// Instructions that the verifier may go through, far below its own limit of 1,000,000: about
/// twice what the most laborious of the kernels tested takes. A change that exceeds one of them
/// has to make the program simpler, or to say why not.
const BOUNDS: [(&str, u32); 25] = [
    (program::XDP, PACKET),
    (program::TC, PACKET),
    (program::TC_L3, PACKET),
    (program::STEER, 400),
    (program::SSL_ENTER_READ, ENTRY),
    (program::SSL_ENTER_READ_EX, ENTRY),
    (program::SSL_ENTER_WRITE, ENTRY),
    (program::SSL_ENTER_WRITE_EX, ENTRY),
    (program::SSL_ENTER_WRITE_EX2, ENTRY),
    (program::SSL_ENTER_HANDSHAKE, ENTRY),
    (program::BIO_WRITTEN, 400),
    (program::SSL_CREATED, STATE),
    (program::SSL_CLEARED, STATE),
    (program::SSL_RETURN, 21_000),
    (program::GO_ENTER_READ, GO_ENTRY),
    (program::GO_ENTER_WRITE, GO_ENTRY),
    (program::GO_ENTER_SHAKE, GO_ENTRY),
    (program::GO_LEAVE, 21_000),
    (program::GO_LEAVE_SHAKE, ENTRY),
    (program::GO_SOCK_SEND, SOCKET),
    (program::GO_SOCK_RECV, SOCKET),
    (program::SOCK_SEND, SOCKET),
    (program::SOCK_RECV, SOCKET),
    (program::SOCK_STATE, STATE),
    (program::EXEC, ENTRY),
];
/// Less than twice, since a tunnel has them go through the policy twice.
const PACKET: u32 = 700_000;
const ENTRY: u32 = 250;
const GO_ENTRY: u32 = 600;
const STATE: u32 = 200;
const SOCKET: u32 = 7_000;

/// Loads a program that is not loaded yet.
fn load(name: &str, program: &mut Program, btf: &Btf) -> Result<()> {
    match program {
        // The harness has loaded these.
        Program::Xdp(_) | Program::SchedClassifier(_) => {}
        Program::UProbe(probe) => probe.load()?,
        Program::SkLookup(steer) => steer.load()?,
        Program::BtfTracePoint(tracepoint) => tracepoint.load(tracepoint_of(name), btf)?,
        _ => bail!("a program of a kind that is new here"),
    }
    Ok(())
}

/// The tracepoint of a program, which is called like it unless it is for Go.
fn tracepoint_of(name: &str) -> &str {
    let for_go = GO_TRACEPOINTS.iter().find(|(program, _)| *program == name);
    for_go.map_or(name, |(_, tracepoint)| tracepoint)
}

/// Instructions gone through for each program that this kernel can load.
fn verified() -> Result<BTreeMap<String, u32>> {
    let mut loaded = Kernel::new()?;
    let btf = Btf::from_sys_fs()?;
    let absent = missing_tracepoints(&kernel::Btf::of_running_kernel()?);
    let mut verified = BTreeMap::new();
    for (name, program) in loaded.loaded.ebpf.programs_mut() {
        if absent.contains(&tracepoint_of(name)) {
            continue;
        }
        load(name, program, &btf).with_context(|| format!("the program {name}"))?;
        let count = program.info()?.verified_instruction_count();
        verified.insert(name.to_owned(), count.context("the kernel does not count")?);
    }
    Ok(verified)
}

#[test]
fn no_program_takes_the_verifier_long() -> Result<()> {
    let release = nix::sys::utsname::uname()?.release().display().to_string();
    let verified = verified()?;
    let mut above = Vec::new();
    let mut out = std::io::stdout().lock();
    for (name, count) in &verified {
        // Also shown when the test passes, as what is printed otherwise is not.
        writeln!(out, "{release}: {name}: {count} instructions verified")?;
        match BOUNDS.iter().find(|(bounded, _)| bounded == name) {
            Some((_, bound)) if count <= bound => {}
            Some((_, bound)) => above.push(format!("{name}: {count}, more than {bound}")),
            None => above.push(format!("{name}: {count}, and it has no bound here")),
        }
    }
    drop(out);
    assert!(above.is_empty(), "{release}: {above:#?}");
    for hook in [program::XDP, program::TC] {
        assert!(verified.contains_key(hook), "{hook} is not loaded");
    }
    Ok(())
}
