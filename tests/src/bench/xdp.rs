//! Time per packet of the XDP program and of xdp-filter, by BPF_PROG_TEST_RUN.

use std::net::{IpAddr, Ipv4Addr};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use aya::programs::Xdp;
use aya::{TestRun as _, TestRunOptions};
use ipnet::IpNet;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use portcullis::enforce::PolicyMaps as _;
use portcullis_common::names::{capacity, program};
use portcullis_common::policy::Reason;

use super::Effort;
use super::client_hello;
use super::report::{Better, Case, Report, Summary};
use super::xdp_filter::XdpFilter;
use crate::netns::Lab;
use crate::packet::extension::Extension;
use crate::packet::frame::{Fragment, Frame, Transport, arp, ethertype};
use crate::packet::harness::{BLOCK, Hook, Kernel};

/// Blocks in force beside the one that is hit.
const BLOCKS: u32 = 100_000;
const DENIED: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10));

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

/// Of xdp-filter's time, on a hit as on a miss.
const TARGET: f64 = 0.65;
/// Nanoseconds that a hello may cost.
const CLIENT_HELLO_TARGET: f64 = 1_500.0;

pub fn run(effort: Effort) -> Result<Report> {
    let rounds = if effort.quick { 2 } else { 8 };
    let repeat = if effort.quick { 100_000 } else { 1_000_000 };
    let kernel = kernel_with_blocks()?;
    let ours: &Xdp = kernel.loaded.ebpf.program(program::XDP).context("no program")?.try_into()?;
    let lab = Lab::new("pcbench", 0)?;
    let filter = XdpFilter::load(lab.server())?;
    filter.deny_source(DENIED)?;
    let theirs = filter.program()?;

    let cases = [("pass_hot", OTHER, XDP_PASS), ("drop_hit", DENIED, XDP_DROP)];
    let measured = on_one_cpu(|| {
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
    let mut cases: Vec<_> = cases.collect();
    cases.push(client_hello_case(rounds, repeat)?);
    Ok(Report { bench: "xdp", rounds, cases })
}

fn client_hello_case(rounds: usize, repeat: u32) -> Result<Case> {
    let added = on_one_cpu(|| client_hello::measure(rounds, repeat))?;
    for (what, added) in [("a hello of 1,800 bytes", &added.long_hello), ("no hello", &added.other)]
    {
        eprintln!("xdp: fingerprints, {what}: {:.1} ns more", Summary::of(added).median);
    }
    Ok(Case {
        name: "client_hello",
        unit: "ns/packet",
        ours: Summary::of(&added.hello),
        peer: None,
        target: CLIENT_HELLO_TARGET,
        better: Better::Lower,
    })
}

fn kernel_with_blocks() -> Result<Kernel> {
    let mut kernel = Kernel::with(|config| config.kernel.max_blocks = capacity::BLOCKS)?;
    let policy = &mut kernel.loaded.policy;
    policy.set_failsafe(&[22], &[68, 546])?;
    policy.set_allowed(&["192.0.2.0/24".parse()?, "2001:db8:ffff::/48".parse()?])?;
    policy.block(IpNet::from(DENIED), BLOCK)?;
    for number in 0..BLOCKS {
        let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + number);
        policy.block(IpNet::from(IpAddr::V4(address)), BLOCK)?;
    }
    for (source, expected) in [(OTHER, Reason::PassNoMatch), (DENIED, Reason::DropDenied)] {
        let (_, reason) = kernel.judge(Hook::Xdp, &Frame::from(source).bytes())?;
        ensure!(reason == expected, "{source} is judged {reason:?}");
    }
    Ok(kernel)
}

/// Runs `work` on a thread that stays on the last CPU, which interrupts prefer least.
fn on_one_cpu<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let last = thread::available_parallelism()?.get() - 1;
    let pinned = || {
        let mut cpus = CpuSet::new();
        cpus.set(last)?;
        sched_setaffinity(Pid::from_raw(0), &cpus)?;
        work()
    };
    thread::scope(|scope| scope.spawn(pinned).join().expect("the measuring thread panicked"))
}

/// Mean time of one run, in nanoseconds.
fn time(program: &Xdp, frame: &[u8], repeat: u32, verdict: u32) -> Result<f64> {
    /// The kernel tells whole nanoseconds only; the mean of several runs tells more.
    const PARTS: u32 = 10;
    let mut sum = 0.0;
    for _ in 0..PARTS {
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.repeat = repeat / PARTS;
        let result = program.test_run(options)?;
        ensure!(result.return_value == verdict, "returned {}", result.return_value);
        sum += result.duration.as_nanos() as f64;
    }
    Ok(sum / f64::from(PARTS))
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
