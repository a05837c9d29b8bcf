//! Another random source with every packet, against a million random networks.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, ensure};
use aya::programs::Xdp;
use fastrand::Rng;
use portcullis::enforce::PolicyMaps as _;
use portcullis_common::names::{capacity, program};
use portcullis_common::policy::Reason;

use super::driver::{Driver, Trie};
use super::networks::{list, mixed};
use super::{Better, Case, Plan, XDP_DROP, XDP_PASS, alone, mean_of, on_last_cpu};
use crate::assembled::Program;
use crate::packet::frame::Frame;
use crate::packet::harness::Kernel;

/// Nanoseconds.
const TARGET_V4: f64 = 60.0;
const TARGET_V6: f64 = 120.0;
/// The kernel's trie takes so much longer that the times are worth a ratio.
const TARGET_OF_TRIE: f64 = 0.25;

pub fn run(plan: Plan) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (name, is_v4, target) in
        [("pass_random_1m_v4", true, TARGET_V4), ("pass_random_1m_v6", false, TARGET_V6)]
    {
        let measured = family(name, is_v4, plan)?;
        cases.push(alone(name, "ns/packet", &measured.ours, target, Better::Lower));
        if !measured.trie.is_empty() {
            cases.push(Case {
                name: "pass_random_vs_trie",
                peer: Some(("LPM trie", super::Summary::of(&measured.trie))),
                ..alone(name, "ns/packet", &measured.ours, TARGET_OF_TRIE, Better::Lower)
            });
        }
    }
    Ok(cases)
}

/// Nanoseconds, net of making the source, by round.
#[derive(Default)]
struct Measured {
    ours: Vec<f64>,
    /// IPv4 only.
    trie: Vec<f64>,
}

fn family(name: &str, is_v4: bool, plan: Plan) -> Result<Measured> {
    let networks = mixed(is_v4, &mut Rng::with_seed(3));
    let trie = if is_v4 { Some(Trie::new(&networks)?) } else { None };
    let mut kernel = Kernel::with(|config| config.kernel.max_blocks = capacity::BLOCKS)?;
    kernel.loaded.policy.set_lists(&[list("mixed", 1, networks)])?;
    let ours: &Xdp = kernel.loaded.ebpf.program(program::XDP).context("no program")?.try_into()?;
    let driver = Driver::new(is_v4, ours.fd()?.as_fd())?;
    let source = if is_v4 { "198.51.100.1" } else { "2001:db8::1" };
    let frame = Frame::from(source.parse()?).bytes();

    let dropped = || -> Result<(u64, u64)> {
        let all = kernel.loaded.reasons.all()?;
        let packets = |reason: Reason| all[reason as usize].packets;
        Ok((packets(Reason::DropDenied), packets(Reason::PassNoMatch)))
    };
    let before = dropped()?;
    let measured = on_last_cpu(|| {
        let mut measured = Measured::default();
        let net = |program: &Program, repeat: u32| -> Result<(f64, f64)> {
            // Before and after, so that a machine that changes its speed does not show.
            let first = time(driver.nothing(), &frame, repeat)?;
            let whole = time(program, &frame, repeat)?;
            let base = (first + time(driver.nothing(), &frame, repeat)?) / 2.0;
            Ok((whole - base, base))
        };
        for round in 0..plan.rounds {
            let (ours, base) = net(driver.measured(), plan.repeat)?;
            measured.ours.push(ours);
            let by_trie = match &trie {
                Some(trie) => {
                    let (by_trie, _) = net(trie.program(), plan.repeat)?;
                    measured.trie.push(by_trie);
                    format!(", the kernel's trie {by_trie:.1} ns")
                }
                None => String::new(),
            };
            eprintln!(
                "xdp: round {round}: {name}: {ours:.1} ns beside {base:.1} ns for the source{by_trie}"
            );
        }
        Ok(measured)
    })?;
    let after = dropped()?;
    let (denied, passed) = (after.0 - before.0, after.1 - before.1);
    ensure!(passed > 0 && denied > 0, "no variety: {denied} denied, {passed} passed");
    let share = denied as f64 / (denied + passed) as f64;
    eprintln!("xdp: {name}: {:.1} % of the sources were denied", share * 100.0);
    ensure!(share < 0.05, "too many of the sources are on the list");
    Ok(measured)
}

/// Mean time of one run, in nanoseconds, whichever the verdicts.
fn time(program: &Program, frame: &[u8], repeat: u32) -> Result<f64> {
    mean_of(repeat, |repeat| {
        let (returned, time) = program.run(frame, repeat)?;
        ensure!([XDP_DROP, XDP_PASS].contains(&returned), "returned {returned}");
        Ok(f64::from(time))
    })
}
