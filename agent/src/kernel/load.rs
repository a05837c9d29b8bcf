//! The eBPF object into the kernel, on top of the policy maps that an earlier agent left.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap as BpfHashMap, Map, MapData, RingBuf};
use aya::{Ebpf, EbpfLoader};
use portcullis_common::names::{global, map, pinned};
use portcullis_common::policy::{DenyEntry, DenyKey};

use super::btf::{Btf, sock_offsets};
use super::counters::{LossCounters, ReasonCounters};
use super::deny::DenyMap;
use super::pins::{PinDir, remove_maps};
use super::policy::KernelPolicy;
use crate::config::{Config, Namespaces};

/// The eBPF programs and maps, as the build made them.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("PORTCULLIS_EBPF_OBJECT"));

/// The object in the kernel, its maps taken out. Nothing is attached yet.
pub struct Loaded {
    /// The programs.
    pub ebpf: Ebpf,
    pub policy: KernelPolicy,
    pub reasons: ReasonCounters,
    pub losses: LossCounters,
    pub events: RingBuf<MapData>,
    /// What a person should know about what was found and done.
    pub notes: Vec<String>,
}

pub fn load(config: &Config) -> Result<Loaded> {
    let kernel = &config.kernel;
    let pins = PinDir::make(&kernel.pin_dir)?;
    let mut notes = Vec::new();
    let carried_over = set_aside_if_resized(&pins, config, &mut notes)?;
    let offsets = sock_offsets(&Btf::of_running_kernel()?)?;
    let only_namespace = match config.capture.network_namespaces {
        Namespaces::All => 0,
        Namespaces::Own => own_network_namespace()?,
    };

    let mut loader = EbpfLoader::new();
    for name in pinned::ALL {
        loader.map_pin_path(name, pins.map(name));
    }
    let mut ebpf = loader
        .map_max_entries(pinned::DENY, kernel.max_blocks)
        .map_max_entries(pinned::ALLOW, kernel.max_allowed)
        .map_max_entries(map::EVENTS, config.capture.ring_bytes)
        .map_max_entries(map::CONNECTIONS, config.capture.max_connections)
        .map_max_entries(map::SOCKETS, config.capture.max_connections)
        .override_global(global::SOCK_OFFSETS, &offsets, true)
        .override_global(global::ONLY_NAMESPACE, &only_namespace, true)
        .load(OBJECT)
        .context("the kernel does not accept Portcullis' maps; `portcullis doctor` may say why")?;

    let mut deny: BpfHashMap<MapData, DenyKey, DenyEntry> = take(&mut ebpf, pinned::DENY)?;
    for (key, entry) in carried_over {
        deny.insert(key, entry, 0).context("can't carry a block over to the resized map")?;
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
        policy: KernelPolicy {
            deny: DenyMap::new(deny, kernel.max_blocks, kernel.operator_reserve)?,
            allow: take(&mut ebpf, pinned::ALLOW)?,
            settings: take(&mut ebpf, pinned::SETTINGS)?,
        },
        reasons: ReasonCounters::new(take(&mut ebpf, pinned::REASONS)?),
        losses: LossCounters::new(take(&mut ebpf, map::LOSSES)?),
        events: take(&mut ebpf, map::EVENTS)?,
        ebpf,
        notes,
    })
}

/// The number that the kernel knows the agent's network namespace by (namespaces(7)).
fn own_network_namespace() -> Result<u32> {
    let path = "/proc/self/ns/net";
    let inode = std::fs::metadata(path).with_context(|| format!("can't stat {path}"))?.ino();
    u32::try_from(inode).with_context(|| format!("{path} has an inode of more than 32 bits"))
}

fn take<M>(ebpf: &mut Ebpf, name: &str) -> Result<M>
where
    M: TryFrom<Map, Error = aya::maps::MapError>,
{
    let map = ebpf.take_map(name).with_context(|| format!("the object has no map {name}"))?;
    map.try_into().with_context(|| format!("map {name} is of another kind"))
}

/// The kernel can't resize a map. When the configured sizes differ from the pinned ones, reads
/// the blocks and removes the pins, so that new maps are made; the attached programs go on with
/// the old ones until they are replaced.
fn set_aside_if_resized(
    pins: &PinDir,
    config: &Config,
    notes: &mut Vec<String>,
) -> Result<Vec<(DenyKey, DenyEntry)>> {
    let deny = pins.map(pinned::DENY);
    let resized = differs(&deny, config.kernel.max_blocks)?
        || differs(&pins.map(pinned::ALLOW), config.kernel.max_allowed)?;
    if !resized {
        return Ok(Vec::new());
    }
    let entries = if deny.exists() { pinned_entries(&deny)? } else { Vec::new() };
    ensure!(
        entries.len() <= config.kernel.max_blocks as usize,
        "kernel.max_blocks is {}, but {} blocks are in force",
        config.kernel.max_blocks,
        entries.len()
    );
    remove_maps(&pins.maps())?;
    PinDir::make(&config.kernel.pin_dir)?;
    notes.push(format!("resized the policy maps; {} blocks carried over", entries.len()));
    Ok(entries)
}

fn differs(path: &PathBuf, max_entries: u32) -> Result<bool> {
    if !path.exists() {
        return Ok(false);
    }
    let info = MapData::from_pin(path)
        .and_then(|map| map.info())
        .with_context(|| format!("can't open the pinned map {}", path.display()))?;
    Ok(info.max_entries() != max_entries)
}

fn pinned_entries(path: &PathBuf) -> Result<Vec<(DenyKey, DenyEntry)>> {
    let context = || format!("can't read the pinned map {}", path.display());
    let data = MapData::from_pin(path).with_context(context)?;
    let map =
        BpfHashMap::<_, DenyKey, DenyEntry>::try_from(Map::HashMap(data)).with_context(context)?;
    map.iter().collect::<Result<_, _>>().with_context(context)
}
