//! Lists of a million entries: how long they take to load and to replace, and what they weigh.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use fastrand::Rng;
use portcullis::enforce::{List, PolicyMaps as _};
use portcullis_common::names::capacity;
use portcullis_common::policy::Reason;

use super::networks::{list, mixed};
use super::{Better, Case, Plan, alone};
use crate::packet::frame::Frame;
use crate::packet::harness::{Hook, Kernel};

/// Seconds.
const TARGET: f64 = 1.0;
/// MiB.
const MEMORY: f64 = 200.0;

pub fn run(plan: Plan) -> Result<Vec<Case>> {
    let lists = [4, 5].map(half_and_half);
    let (mut loads, mut replaces) = (Vec::new(), Vec::new());
    for round in 0..plan.rounds {
        let mut kernel = Kernel::with(|config| config.kernel.max_blocks = capacity::BLOCKS)?;
        loads.push(set(&mut kernel, &lists[0])?);
        replaces.push(set(&mut kernel, &lists[1])?);
        eprintln!(
            "xdp: round {round}: {} entries: load {:.2} s, replace {:.2} s",
            lists[0].networks.len(),
            loads[round],
            replaces[round]
        );
    }
    Ok(vec![
        alone("load_1m", "s", &loads, TARGET, Better::Lower),
        alone("replace_1m", "s", &replaces, TARGET, Better::Lower),
    ])
}

/// A million networks, of IPv4 and of IPv6.
fn half_and_half(seed: u64) -> List {
    let mut random = Rng::with_seed(seed);
    let mut networks = Vec::new();
    for is_v4 in [true, false] {
        let mut all = mixed(is_v4, &mut random);
        random.shuffle(&mut all);
        networks.extend(all.into_iter().take(500_000));
    }
    list("million", 1, networks)
}

/// Seconds until the list is in force; it must be then.
fn set(kernel: &mut Kernel, list: &List) -> Result<f64> {
    let lists = std::slice::from_ref(list);
    let start = Instant::now();
    kernel.loaded.policy.set_lists(lists)?;
    let taken = start.elapsed().as_secs_f64();
    for net in list.networks.iter().step_by(99_991) {
        let (_, reason) = kernel.judge(Hook::Xdp, &Frame::from(net.addr()).bytes())?;
        ensure!(reason == Reason::DropDenied, "{net} is on the list, but judged {reason:?}");
    }
    Ok(taken)
}

/// MiB of kernel memory for all maps that this process holds, of which there must be one policy.
pub fn memory() -> Result<Case> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        // The listing's own descriptor is gone by now.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name))?;
            value.trim_start_matches(':').trim().parse::<u64>().ok()
        };
        if let (Some(id), Some(bytes)) = (field("map_id"), field("memlock")) {
            maps.insert(id, (bytes, field("max_entries").unwrap_or(0)));
        }
    }
    let total: u64 = maps.values().map(|(bytes, _)| bytes).sum();
    let largest = maps.values().max().context("this process holds no maps")?;
    eprintln!(
        "xdp: {} maps have {:.1} MiB; the largest, of {} entries, {:.1} MiB",
        maps.len(),
        mib(total),
        largest.1,
        mib(largest.0)
    );
    Ok(alone("memory_1m_100k", "MiB", &[mib(total)], MEMORY, Better::Lower))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
