//! One packet again and again: what is asked of memory is in the processor's caches.

use anyhow::{Context as _, Result, ensure};
use aya::programs::Xdp;
use aya::{TestRun as _, TestRunOptions};
use portcullis_common::names::program;

use super::policy::{DENIED, NEIGHBOUR, OTHER};
use super::xdp_filter::{Mode, XdpFilter};
use super::{Better, Case, Plan, Summary, XDP_DROP, XDP_PASS, mean_of, on_last_cpu};
use crate::netns::Lab;
use crate::packet::extension::Extension;
use crate::packet::frame::{Fragment, Frame, Transport, arp, ethertype};
use crate::packet::harness::Kernel;

/// Of xdp-filter's time, on a hit as on a miss.
const TARGET: f64 = 0.65;

pub fn run(kernel: &Kernel, plan: Plan) -> Result<Vec<Case>> {
    let Plan { rounds, repeat, .. } = plan;
    let ours: &Xdp = kernel.loaded.ebpf.program(program::XDP).context("no program")?.try_into()?;
    let lab = Lab::new("pcbench", 0)?;
    let filter = XdpFilter::load(lab.server(), Mode::Generic)?;
    filter.deny_source(DENIED)?;
    let theirs = filter.program()?;

    let cases = [("pass_hot", OTHER, XDP_PASS), ("drop_hit", DENIED, XDP_DROP)];
    let measured = on_last_cpu(|| {
        explain(ours, repeat)?;
        let mut measured = cases.map(|_| (Vec::new(), Vec::new()));
        for round in 0..rounds {
            for ((name, source, verdict), (by_us, by_them)) in cases.iter().zip(&mut measured) {
                let frame = Frame::from(*source).bytes();
                // Who goes first changes from round to round.
                if round % 2 == 0 {
                    by_us.push(time(ours, &frame, repeat, *verdict)?);
                }
                by_them.push(time(&theirs, &frame, repeat, *verdict).context("xdp-filter")?);
                if round % 2 == 1 {
                    by_us.push(time(ours, &frame, repeat, *verdict)?);
                }
                eprintln!(
                    "xdp: round {round}: {name}: {:.1} ns, xdp-filter {:.1} ns",
                    by_us[round], by_them[round]
                );
            }
        }
        Ok(measured)
    })?;
    let cases = cases.iter().zip(measured).map(|((name, ..), (by_us, by_them))| Case {
        name,
        unit: "ns/packet",
        ours: Summary::of(&by_us),
        peer: Some(("xdp-filter", Summary::of(&by_them))),
        target: TARGET,
        better: Better::Lower,
    });
    Ok(cases.collect())
}

/// Mean time of one run, in nanoseconds.
fn time(program: &Xdp, frame: &[u8], repeat: u32, verdict: u32) -> Result<f64> {
    mean_of(repeat, |repeat| {
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.repeat = repeat;
        let result = program.test_run(options)?;
        ensure!(result.return_value == verdict, "returned {}", result.return_value);
        Ok(result.duration.as_nanos() as f64)
    })
}

/// What other packets cost, on stderr: where the time of the cases goes, and what an attacker
/// could choose.
fn explain(ours: &Xdp, repeat: u32) -> Result<()> {
    let v4 = Frame::from(OTHER);
    let v6 = Frame::from("2001:db8:1:2::9".parse()?);
    let chain = Extension::KINDS.map(|(_, extension)| extension);
    let packets = [
        ("not IP", arp(&[])),
        ("IPv4, TCP", v4.bytes()),
        ("IPv4, TCP, a rule in its /24", Frame::from(NEIGHBOUR).bytes()),
        ("IPv4, TCP, 4 tags", v4.clone().tags(&[ethertype::DOT1Q; 4]).bytes()),
        ("IPv4, later fragment", v4.clone().fragment(Fragment::MIDDLE).bytes()),
        ("IPv4, ICMP", v4.transport(Transport::Icmp).bytes()),
        ("IPv6, TCP", v6.bytes()),
        ("IPv6, TCP, 7 extension headers", v6.clone().extensions(&chain).bytes()),
        ("IPv6, ICMP", v6.transport(Transport::Icmp).bytes()),
    ];
    for (name, frame) in packets {
        eprintln!("xdp: no match, {name}: {:.1} ns", time(ours, &frame, repeat, XDP_PASS)?);
    }
    Ok(())
}
