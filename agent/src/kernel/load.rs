//! The eBPF object into the kernel, on top of the policy maps that an earlier agent left.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap as BpfHashMap, Map, MapData, RingBuf};
use aya::{Ebpf, EbpfLoader};
use portcullis_common::names::{global, map, pinned};
use portcullis_common::policy::{DenyEntry, DenyKey};

use super::btf::{Btf, sock_offsets};
use super::clock::coarse_now;
use super::counters::{AnswerCounters, LossCounters, ReasonCounters};
use super::deny::DenyMap;
use super::pins::{PinDir, remove_file, remove_maps};
use super::policy::KernelPolicy;
use crate::config::{Answer, Config, Enforce, Namespaces};

/// The eBPF programs and maps, as the build made them.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("PORTCULLIS_EBPF_OBJECT"));

/// The object in the kernel, its maps taken out. Nothing is attached yet.
pub struct Loaded {
    /// The programs.
    pub ebpf: Ebpf,
    pub policy: KernelPolicy,
    pub reasons: ReasonCounters,
    pub losses: LossCounters,
    pub answers: AnswerCounters,
    pub events: RingBuf<MapData>,
    /// What a person should know about what was found and done.
    pub notes: Vec<String>,
}

pub fn load(config: &Config) -> Result<Loaded> {
    let kernel = &config.kernel;
    let pins = PinDir::make(&kernel.pin_dir)?;
    let mut notes = Vec::new();
    let resized = Resized::look(&pins, config)?;
    let offsets = sock_offsets(&Btf::of_running_kernel()?)?;
    let only_namespace = match config.capture.network_namespaces {
        Namespaces::All => 0,
        Namespaces::Own => own_network_namespace()?,
    };

    let mut loader = EbpfLoader::new();
    for name in pinned::ALL {
        loader.map_pin_path(name, resized.pin_of(&pins, name));
    }
    let mut ebpf = loader
        .map_max_entries(pinned::DENY, kernel.max_blocks)
        .map_max_entries(pinned::ALLOW, kernel.max_allowed)
        .map_max_entries(map::EVENTS, config.capture.ring_bytes)
        .map_max_entries(map::CONNECTIONS, config.capture.max_connections)
        .map_max_entries(map::SOCKETS, config.capture.max_connections)
        .override_global(global::SOCK_OFFSETS, &offsets, true)
        .override_global(global::ANSWER_INTERVAL, &answer_interval_ns(&config.enforce), true)
        .override_global(global::ONLY_NAMESPACE, &only_namespace, true)
        .load(OBJECT)
        .context("the kernel does not accept Portcullis' maps; `portcullis doctor` may say why")?;

    let mut deny: BpfHashMap<MapData, DenyKey, DenyEntry> = take(&mut ebpf, pinned::DENY)?;
    notes.extend(resized.finish(&pins, &mut deny)?);
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
        answers: AnswerCounters::new(take(&mut ebpf, map::ANSWERS)?),
        losses: LossCounters::new(take(&mut ebpf, map::LOSSES)?),
        events: take(&mut ebpf, map::EVENTS)?,
        ebpf,
        notes,
    })
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

/// The kernel can't resize a map. One whose configured size differs from the pinned one's is
/// made anew under another name, filled, and put in the place of the old by a rename, so that at
/// every moment a whole one is pinned. The attached programs go on with the old map until they
/// are replaced.
struct Resized {
    maps: Vec<&'static str>,
    blocks: Vec<(DenyKey, DenyEntry)>,
}

impl Resized {
    fn look(pins: &PinDir, config: &Config) -> Result<Self> {
        let sizes =
            [(pinned::DENY, config.kernel.max_blocks), (pinned::ALLOW, config.kernel.max_allowed)];
        let mut maps = Vec::new();
        for (name, size) in sizes {
            // Of an agent that ended while it made one.
            let unfinished = pins.unfinished_map(name);
            if unfinished.exists() {
                remove_file(&unfinished)?;
            }
            if differs(&pins.map(name), size)? {
                maps.push(name);
            }
        }
        let mut blocks = Vec::new();
        if maps.contains(&pinned::DENY) {
            blocks = pinned_entries(&pins.map(pinned::DENY))?;
            let now = coarse_now();
            blocks.retain(|(_, entry)| entry.expires_ns > now);
        }
        ensure!(
            blocks.len() <= config.kernel.max_blocks as usize,
            "kernel.max_blocks is {}, but {} blocks are in force",
            config.kernel.max_blocks,
            blocks.len()
        );
        Ok(Self { maps, blocks })
    }

    /// Where to pin the map `name` while loading.
    fn pin_of(&self, pins: &PinDir, name: &str) -> PathBuf {
        if self.maps.contains(&name) { pins.unfinished_map(name) } else { pins.map(name) }
    }

    /// Fills the new deny map and puts what is new in its place.
    fn finish(
        self,
        pins: &PinDir,
        deny: &mut BpfHashMap<MapData, DenyKey, DenyEntry>,
    ) -> Result<Option<String>> {
        for (key, entry) in &self.blocks {
            deny.insert(key, entry, 0).context("can't carry a block over to the resized map")?;
        }
        for name in &self.maps {
            let (from, to) = (pins.unfinished_map(name), pins.map(name));
            std::fs::rename(&from, &to)
                .with_context(|| format!("can't rename {} to {}", from.display(), to.display()))?;
        }
        let resized = !self.maps.is_empty();
        let note = || {
            format!("resized {}; {} blocks carried over", self.maps.join(", "), self.blocks.len())
        };
        Ok(resized.then(note))
    }
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
