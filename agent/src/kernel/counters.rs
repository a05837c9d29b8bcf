//! The per-CPU counters.

use std::marker::PhantomData;

use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData, PerCpuArray};
use portcullis_common::answer::Answered;
use portcullis_common::event::{HelloCount, Loss};
use portcullis_common::policy::{PacketCount, Reason};

/// An enum whose values are the slots of a counter map.
pub trait Slot: Copy + 'static {
    const ALL: &'static [Self];
    fn index(self) -> u32;
    fn name(self) -> &'static str;
}

impl Slot for Reason {
    const ALL: &'static [Self] = &Reason::ALL;
    fn index(self) -> u32 {
        self as u32
    }
    fn name(self) -> &'static str {
        self.name()
    }
}

impl Slot for Loss {
    const ALL: &'static [Self] = &Loss::ALL;
    fn index(self) -> u32 {
        self as u32
    }
    fn name(self) -> &'static str {
        self.name()
    }
}

/// One counter, summed over CPUs. For losses, `packets` are calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub name: &'static str,
    pub packets: u64,
    pub bytes: u64,
}

pub struct Counters<S> {
    map: PerCpuArray<MapData, PacketCount>,
    slots: PhantomData<S>,
}

/// Frames by what became of them. Pinned: counts go on over restarts of the agent.
pub type ReasonCounters = Counters<Reason>;
/// What capture lost since the agent started.
pub type LossCounters = Counters<Loss>;

/// What became of dropped packets that could be answered, since the agent started.
pub struct AnswerCounters(Array<MapData, u64>);

impl AnswerCounters {
    pub(super) fn new(map: Array<MapData, u64>) -> Self {
        Self(map)
    }

    /// By [`Answered::name`].
    pub fn all(&self) -> Result<[(&'static str, u64); Answered::COUNT as usize]> {
        let mut counts = Answered::ALL.map(|what| (what.name(), 0));
        for ((name, count), what) in counts.iter_mut().zip(Answered::ALL) {
            let read = self.0.get(&(what as u32), 0);
            *count = read.with_context(|| format!("can't read the counter {name}"))?;
        }
        Ok(counts)
    }
}

impl<S: Slot> Counters<S> {
    pub(super) fn new(map: PerCpuArray<MapData, PacketCount>) -> Self {
        Self { map, slots: PhantomData }
    }

    pub fn get(&self, slot: S) -> Result<Count> {
        let per_cpu = self
            .map
            .get(&slot.index(), 0)
            .with_context(|| format!("can't read counter {}", slot.name()))?;
        let mut sum = Count { name: slot.name(), ..Count::default() };
        for count in per_cpu.iter() {
            sum.packets = sum.packets.wrapping_add(count.packets);
            sum.bytes = sum.bytes.wrapping_add(count.bytes);
        }
        Ok(sum)
    }

    pub fn all(&self) -> Result<Vec<Count>> {
        S::ALL.iter().map(|&slot| self.get(slot)).collect()
    }
}

/// What became of ClientHellos since the programs were loaded.
pub struct HelloCounters(PerCpuArray<MapData, u64>);

impl HelloCounters {
    pub(super) fn new(map: PerCpuArray<MapData, u64>) -> Self {
        Self(map)
    }

    pub fn get(&self, what: HelloCount) -> Result<u64> {
        let per_cpu = self.0.get(&(what as u32), 0);
        let per_cpu = per_cpu.with_context(|| format!("can't read counter {}", what.name()))?;
        Ok(per_cpu.iter().fold(0, |sum, count| sum.wrapping_add(*count)))
    }

    /// By [`HelloCount::name`].
    pub fn all(&self) -> Result<Vec<(&'static str, u64)>> {
        HelloCount::ALL.iter().map(|&what| Ok((what.name(), self.get(what)?))).collect()
    }
}
