//! What a flood from blocked sources leaves of a server's answers: wrk and NGINX share one processor,
//! the flood has the other.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::{Context as _, Result, ensure};

use super::field::Flood;
use super::flood::{attach, detach};
use super::nftables::Nftables;
use super::policy::DENIED;
use super::{Better, Case, Plan, Summary, alone, last_cpu, stay_on};
use crate::bench::wrk;
use crate::netns::Lab;
use crate::nginx::{Nginx, Options};
use crate::packet::harness::Kernel;
use crate::switch_port::OneQueue;

/// Of the answers without a flood and without a filter.
const KEPT: f64 = 0.90;
const NO_WORSE: f64 = 1.0;
const SERVED_BY: usize = 0;
/// Packets in one system call, about a fifth of a second. Each call takes some 20 ms besides, in which
/// the kernel changes its dispatcher of XDP programs.
const BURST: u32 = 500_000;

/// Answers per second, by round.
#[derive(Default)]
struct Measured {
    unloaded: Vec<f64>,
    ours: Vec<f64>,
    nft: Vec<f64>,
    nothing: Vec<f64>,
}

pub fn run(kernel: &mut Kernel, plan: Plan) -> Result<Vec<Case>> {
    ensure!(last_cpu()? != SERVED_BY, "a flood beside a server takes two processors");
    let lab = Lab::with_queues("pcbench", 1, last_cpu()? + 1)?;
    // As a network card would do for the connections of one processor; a flood takes the queue of the one
    // that sends it.
    let _one_queue = OneQueue::on_the_way_to_the_server(&lab, SERVED_BY)?;
    let nginx = Nginx::start(&lab, &Options::default())?;
    nginx.workers().into_iter().try_for_each(|worker| wrk::pin(worker, SERVED_BY))?;
    let flood = Flood::prepare(&lab)?;
    let seconds = if plan.quick { 1 } else { 4 };
    let load = || wrk::answers_per_second(&lab, &nginx, seconds, SERVED_BY);
    load().context("warm-up")?;

    let mut measured = Measured::default();
    for round in 0..plan.rounds {
        measured.unloaded.push(load()?);
        let link = attach(&mut kernel.loaded.ebpf, &lab)?;
        let ours = under(&flood, load);
        detach(&mut kernel.loaded.ebpf, link)?;
        let (ours, sent) = ours?;
        measured.ours.push(ours);
        let nft = Nftables::load(&lab, DENIED)?;
        let (by_nft, sent_to_nft) = under(&flood, load)?;
        measured.nft.push(by_nft);
        drop(nft);
        let (by_nothing, sent_to_nothing) = under(&flood, load)?;
        measured.nothing.push(by_nothing);
        eprintln!(
            "xdp: round {round}: goodput: {:.0}/s; under a flood of {:.2} Mpps {ours:.0}/s, nftables \
             ({:.2} Mpps) {by_nft:.0}/s, no filter ({:.2} Mpps) {by_nothing:.0}/s",
            measured.unloaded[round],
            sent / f64::from(seconds) / 1e6,
            sent_to_nft / f64::from(seconds) / 1e6,
            sent_to_nothing / f64::from(seconds) / 1e6,
        );
    }
    Ok(cases(&measured))
}

fn cases(measured: &Measured) -> Vec<Case> {
    let kept: Vec<f64> =
        measured.ours.iter().zip(&measured.unloaded).map(|(ours, all)| ours / all).collect();
    let against = |name, peer, theirs: &[f64]| Case {
        name,
        unit: "answers/s",
        ours: Summary::of(&measured.ours),
        peer: Some((peer, Summary::of(theirs))),
        target: NO_WORSE,
        better: Better::Higher,
    };
    vec![
        alone("goodput_under_flood", "share of unloaded", &kept, KEPT, Better::Higher),
        against("goodput_vs_nft", "nft netdev set", &measured.nft),
        against("goodput_vs_no_filter", "no filter", &measured.nothing),
    ]
}

/// What `load` measures under the flood, and how many packets were sent meanwhile.
fn under(flood: &Flood, load: impl Fn() -> Result<f64>) -> Result<(f64, f64)> {
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            flood.run_here(|| {
                stay_on(last_cpu()?)?;
                while !stop.load(Ordering::Relaxed) {
                    flood.send(BURST)?;
                    sent.fetch_add(u64::from(BURST), Ordering::Relaxed);
                }
                Ok(())
            })
        });
        let rate = load();
        stop.store(true, Ordering::Relaxed);
        sending.join().expect("the flooding thread panicked")?;
        Ok((rate?, sent.load(Ordering::Relaxed) as f64))
    })
}
