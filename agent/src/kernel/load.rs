//! The eBPF object into the kernel, on top of the policy maps that an earlier agent left.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, RingBuf};
use aya::{Ebpf, EbpfLoader};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use portcullis_common::names::{capacity, global, map, pinned};

use super::bpffs::make_pin_dir;
use super::btf::{Btf, sock_offsets, system_calls};
use super::counters::{AnswerCounters, HelloCounters, LossCounters, ReasonCounters};
use super::flows::Flows;
use super::open::Sizes;
use super::pins::{PinDir, remove_maps};
use super::policy::KernelPolicy;
use crate::config::{Answer, Config, Enforce, Namespaces};

/// The eBPF programs and maps, as the build made them.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("PORTCULLIS_EBPF_OBJECT"));

/// The object in the kernel, its maps taken out. Nothing is attached yet.
pub struct Loaded {
    /// The programs.
    pub ebpf: Ebpf,
    pub policy: KernelPolicy,
    pub flows: Flows,
    pub reasons: ReasonCounters,
    pub losses: LossCounters,
    pub answers: AnswerCounters,
    pub hellos: HelloCounters,
    pub events: RingBuf<MapData>,
    /// What a person should know about what was found and done.
    pub notes: Vec<String>,
}

pub fn load(config: &Config) -> Result<Loaded> {
    let pins = PinDir::make(&config.kernel.pin_dir)?;
    let unfinished = pins.unfinished_maps();
    // Of an agent that ended while it made them.
    remove_maps(&unfinished)?;
    let resize = differ(&pins.maps(), config)?;
    let dir = if resize { unfinished.clone() } else { pins.maps() };
    make_pin_dir(&dir)?;
    let mut ebpf = load_object(config, &dir)?;

    let sizes = Sizes { blocks: config.kernel.max_blocks, reserve: config.kernel.operator_reserve };
    let mut policy = KernelPolicy::open(&dir, sizes)?;
    let mut notes = Vec::new();
    if resize {
        let old = KernelPolicy::open(&pins.maps(), sizes)?;
        let copied = policy.copy_from(&old)?;
        // In one step, so that at every moment a whole policy is pinned. The attached programs go on
        // with the old maps until they are replaced.
        exchange(&unfinished, &pins.maps())?;
        remove_maps(&unfinished)?;
        notes.push(format!("resized the maps; {copied} blocks carried over"));
    }
    for dir in pins.foreign_maps()? {
        let maps = remove_maps(&dir)?;
        notes.push(format!(
            "replaced {} maps of another version of Portcullis in {}; its blocks are gone",
            maps.len(),
            dir.display()
        ));
    }
    Ok(Loaded {
        policy,
        flows: Flows::open(&pins.maps())?,
        reasons: ReasonCounters::new(take(&mut ebpf, pinned::REASONS)?),
        answers: AnswerCounters::new(take(&mut ebpf, map::ANSWERS)?),
        hellos: HelloCounters::new(take(&mut ebpf, map::HELLO_COUNTS)?),
        losses: LossCounters::new(take(&mut ebpf, map::LOSSES)?),
        events: take(&mut ebpf, map::EVENTS)?,
        ebpf,
        notes,
    })
}

/// The object, with its policy maps pinned in `dir` or taken from there.
fn load_object(config: &Config, dir: &Path) -> Result<Ebpf> {
    let btf = Btf::of_running_kernel()?;
    let offsets = sock_offsets(&btf)?;
    let calls = system_calls(&btf)?;
    let only_namespace = match config.capture.network_namespaces {
        Namespaces::All => 0,
        Namespaces::Own => own_network_namespace()?,
    };
    super::prefixes::prepare(&dir.join(pinned::PREFIXES))?;
    let mut loader = EbpfLoader::new();
    for name in pinned::ALL {
        loader.map_pin_path(name, dir.join(name));
    }
    for (name, entries) in entries_of(config) {
        loader.map_max_entries(name, entries);
    }
    loader
        .map_max_entries(map::EVENTS, config.capture.ring_bytes)
        .map_max_entries(map::CONNECTIONS, config.capture.max_connections)
        .map_max_entries(map::GOROUTINES, config.capture.max_connections)
        .map_max_entries(map::SOCKETS, config.capture.max_connections)
        .map_max_entries(map::CREATED, config.capture.max_connections)
        .override_global(global::SOCK_OFFSETS, &offsets, true)
        .override_global(global::SYSTEM_CALLS, &calls, true)
        .override_global(global::ANSWER_INTERVAL, &answer_interval_ns(&config.enforce), true)
        .override_global(global::ONLY_NAMESPACE, &only_namespace, true)
        .load(OBJECT)
        .context("the kernel does not accept Portcullis' maps; `portcullis doctor` may say why")
}

/// The pinned maps whose size the configuration sets.
fn entries_of(config: &Config) -> [(&'static str, u32); 2] {
    let blocks = config.kernel.max_blocks;
    [
        // One more, since the first is none.
        (pinned::RULES, blocks + capacity::LIST_RULES + 1),
        (pinned::ALLOW, config.kernel.max_allowed),
    ]
}

/// From one answer to the next, on each processor; 0 for none.
fn answer_interval_ns(enforce: &Enforce) -> u64 {
    match enforce.answer {
        Answer::Silence => 0,
        Answer::Reset => 1_000_000_000 / u64::from(enforce.answers_per_second.max(1)),
    }
}

/// The number that the kernel knows the agent's network namespace by (namespaces(7)).
fn own_network_namespace() -> Result<u32> {
    let path = "/proc/self/ns/net";
    let inode = std::fs::metadata(path).with_context(|| format!("can't stat {path}"))?.ino();
    u32::try_from(inode).with_context(|| format!("{path} has an inode of more than 32 bits"))
}

pub(super) fn take<M>(ebpf: &mut Ebpf, name: &str) -> Result<M>
where
    M: TryFrom<Map, Error = aya::maps::MapError>,
{
    let map = ebpf.take_map(name).with_context(|| format!("the object has no map {name}"))?;
    map.try_into().with_context(|| format!("map {name} is of another kind"))
}

/// Whether one of the maps pinned in `dir` has another size than configured, or is missing. The kernel
/// can't resize a map: all are made anew then.
fn differ(dir: &Path, config: &Config) -> Result<bool> {
    if !dir.join(pinned::SETTINGS).exists() {
        return Ok(false);
    }
    for (name, entries) in entries_of(config) {
        let path = dir.join(name);
        let info = MapData::from_pin(&path)
            .and_then(|map| map.info())
            .with_context(|| format!("can't open the pinned map {}", path.display()))?;
        if info.max_entries() != entries {
            return Ok(true);
        }
    }
    Ok(false)
}

fn exchange(one: &Path, other: &Path) -> Result<()> {
    renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE)
        .with_context(|| format!("can't exchange {} and {}", one.display(), other.display()))
}
