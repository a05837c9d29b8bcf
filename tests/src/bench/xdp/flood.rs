//! How many packets of a blocked source one processor gets rid of.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::programs::xdp::XdpLinkId;
use aya::programs::{Xdp, XdpMode};
use aya::{TestRun as _, TestRunOptions};
use portcullis_common::names::program;
use portcullis_common::policy::Reason;

use super::field::{Flood, received};
use super::nftables::Nftables;
use super::policy::DENIED;
use super::xdp_filter::{Mode, XdpFilter};
use super::{Better, Case, Plan, Summary, XDP_DROP, last_cpu, stay_on};
use crate::netns::{INTERFACE, Lab};
use crate::packet::harness::Kernel;

const VS_XDP_FILTER: f64 = 1.0;
const VS_NFT: f64 = 2.5;

/// Millions of packets a second, by round.
#[derive(Default)]
struct Measured {
    ours: Vec<f64>,
    xdp_filter: Vec<f64>,
    nft: Vec<f64>,
}

pub fn run(kernel: &mut Kernel, plan: Plan) -> Result<Vec<Case>> {
    let lab = Lab::new("pcbench", 0)?;
    let flood = Flood::prepare(&lab)?;
    let packets = if plan.quick { 3_000_000 } else { 10_000_000 };
    let mut measured = Measured::default();
    for round in 0..plan.rounds {
        // Who goes first changes from round to round.
        for turn in 0..3 {
            match (round + turn) % 3 {
                0 => measured.ours.push(by_us(kernel, &lab, &flood, packets)?),
                1 => measured.xdp_filter.push(by_xdp_filter(&lab, &flood, packets)?),
                _ => measured.nft.push(by_nft(&lab, &flood, packets)?),
            }
        }
        eprintln!(
            "xdp: round {round}: flood: {:.2} Mpps, xdp-filter {:.2}, nftables {:.2}",
            measured.ours[round], measured.xdp_filter[round], measured.nft[round]
        );
    }
    let case = |name, peer, theirs: &[f64], target| Case {
        name,
        unit: "Mpps",
        ours: Summary::of(&measured.ours),
        peer: Some((peer, Summary::of(theirs))),
        target,
        better: Better::Higher,
    };
    Ok(vec![
        case("veth_flood_xdp_filter", "xdp-filter", &measured.xdp_filter, VS_XDP_FILTER),
        case("veth_flood_nft", "nft netdev set", &measured.nft, VS_NFT),
    ])
}

fn by_us(kernel: &mut Kernel, lab: &Lab, flood: &Flood, packets: u32) -> Result<f64> {
    let link = attach(&mut kernel.loaded.ebpf, lab)?;
    let dropped = |kernel: &Kernel| -> Result<u64> {
        Ok(kernel.loaded.reasons.all()?[Reason::DropDenied as usize].packets)
    };
    let before = dropped(kernel)?;
    let (seen, rate) = rate(lab, flood, packets)?;
    ensure_all("Portcullis", dropped(kernel)? - before, seen)?;
    detach(&mut kernel.loaded.ebpf, link)?;
    Ok(rate)
}

fn by_xdp_filter(lab: &Lab, flood: &Flood, packets: u32) -> Result<f64> {
    let filter = XdpFilter::load(lab.server(), Mode::Native)?;
    filter.deny_source(DENIED)?;
    let mut options = TestRunOptions::new();
    options.data_in = Some(flood.frame());
    let verdict = filter.program()?.test_run(options)?.return_value;
    ensure!(verdict == XDP_DROP, "xdp-filter returned {verdict}");
    Ok(rate(lab, flood, packets)?.1)
}

fn by_nft(lab: &Lab, flood: &Flood, packets: u32) -> Result<f64> {
    let nft = Nftables::load(lab, DENIED)?;
    let (seen, rate) = rate(lab, flood, packets)?;
    ensure_all("nftables", nft.dropped()?, seen)?;
    Ok(rate)
}

/// One in a hundred may be of another sort: neighbours discover each other.
fn ensure_all(who: &str, dropped: u64, received: u64) -> Result<()> {
    ensure!(dropped >= received / 100 * 99, "{who} dropped {dropped} of {received} packets");
    Ok(())
}

/// Packets received, and millions of them a second, with sender and receiver on one processor.
fn rate(lab: &Lab, flood: &Flood, packets: u32) -> Result<(u64, f64)> {
    flood.run_here(|| {
        stay_on(last_cpu()?)?;
        flood.send(packets / 10).context("warm-up")?;
        let before = received(lab)?;
        let start = Instant::now();
        flood.send(packets)?;
        let taken = start.elapsed().as_secs_f64();
        let seen = received(lab)? - before;
        ensure!(seen >= u64::from(packets) / 10, "{seen} of {packets} packets arrived");
        Ok((seen, seen as f64 / taken / 1e6))
    })
}

/// The policy onto the server's interface.
pub fn attach(ebpf: &mut Ebpf, lab: &Lab) -> Result<XdpLinkId> {
    let program: &mut Xdp = ebpf.program_mut(program::XDP).context("no program")?.try_into()?;
    lab.server().run(|| Ok(program.attach(INTERFACE, XdpMode::Driver)?))
}

pub fn detach(ebpf: &mut Ebpf, link: XdpLinkId) -> Result<()> {
    let program: &mut Xdp = ebpf.program_mut(program::XDP).context("no program")?.try_into()?;
    Ok(program.detach(link)?)
}
