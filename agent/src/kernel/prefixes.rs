//! The prefixes that have rules, with the gates in front of them: two sets, one of which is in
//! force, so that everything can be replaced in one step while packets are judged.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::{ArrayOfMaps, Map, MapData};
use portcullis_common::gate::{
    self, V4_BLOCK_LEN, V4_BLOCKS, V4_WORDS, V6_BLOCK_LEN, V6_BLOCKS, V6_SHORTEST, V6_WHOLE,
    V6_WIDE, V6_WORDS,
};
use portcullis_common::names::pinned;
use portcullis_common::policy::{Lengths, PrefixKey, PrefixRules};
use portcullis_common::settings::{PrefixSet, Settings};

use super::batch;
use super::prefix_table::PrefixTable;
use super::shared::Shared;

type Outer = ArrayOfMaps<MapData, MapData>;

const SETS: u32 = 2;

/// Bits that belong to no prefix any more may stay set until they are so many.
const STALE_BITS: u32 = 65_536;

pub(super) struct Prefixes {
    outer: Outer,
    table: PrefixTable,
    gates: Gates,
    /// Which of the two sets is in force.
    set: u32,
    used: u32,
    /// Prefixes by length, IPv4's first.
    by_length: BTreeMap<(bool, u32), u32>,
    /// Removed since the gates were made.
    stale: u32,
}

/// Makes the map of sets at `pin`, unless it is there.
pub(super) fn prepare(pin: &Path) -> Result<()> {
    if pin.exists() {
        return Ok(());
    }
    let like = PrefixTable::create(1, [0; 2])?;
    let outer = batch::array_of_maps(pinned::PREFIXES, like.data(), SETS)
        .context("can't make a map of maps")?;
    let outer = MapData::from_fd(outer).context("can't use a map of maps")?;
    outer.pin(pin).with_context(|| format!("can't pin a map at {}", pin.display()))
}

impl Prefixes {
    /// Takes over what the maps hold, or makes a first set with room for `capacity` prefixes.
    pub fn new(
        outer: MapData,
        gates: Gates,
        settings: &Shared<Settings>,
        capacity: u32,
    ) -> Result<Self> {
        let mut outer = Outer::try_from(Map::ArrayOfMaps(outer))?;
        let Settings { active_set, seed, .. } = settings.get(0);
        let set = active_set & 1;
        let table = match outer.get(&set, 0) {
            Ok(inner) => PrefixTable::open(inner, seed)?,
            Err(_) => {
                let table = PrefixTable::create(capacity, seed)?;
                outer.set(set, table.data(), 0).context("can't put a set of prefixes in place")?;
                table
            }
        };
        let mut prefixes =
            Self { outer, table, gates, set, used: 0, by_length: BTreeMap::new(), stale: 0 };
        prefixes.entries().iter().for_each(|(key, _)| prefixes.count(key));
        prefixes.write_lengths(set, settings);
        Ok(prefixes)
    }

    fn count(&mut self, key: &PrefixKey) {
        self.used += 1;
        *self.by_length.entry(family_and_length(key)).or_default() += 1;
    }

    /// Every prefix, with its rules.
    pub fn entries(&self) -> Vec<(PrefixKey, PrefixRules)> {
        self.table.entries()
    }

    pub fn get(&self, key: &PrefixKey) -> PrefixRules {
        self.table.get(key).unwrap_or_default()
    }

    /// Replaces the rules of a prefix; without any, it goes.
    ///
    /// # Errors
    /// When the table has to grow, and there is no memory for it.
    pub fn set(
        &mut self,
        key: PrefixKey,
        rules: PrefixRules,
        settings: &Shared<Settings>,
    ) -> Result<()> {
        let is_known = self.get(&key) != PrefixRules::default();
        if rules == PrefixRules::default() {
            if is_known {
                self.table.remove(&key);
                self.uncount(&key, settings);
            }
            return Ok(());
        }
        if !is_known {
            self.gates.open(&key, self.set);
        }
        while self.table.insert(&key, rules).is_err() {
            let table = self.table.grown()?;
            let entries = table.entries();
            self.put_in_force(table, &entries, settings)?;
            self.gates.open(&key, self.set);
        }
        if !is_known {
            self.count(&key);
            self.write_lengths(self.set, settings);
        }
        Ok(())
    }

    fn uncount(&mut self, key: &PrefixKey, settings: &Shared<Settings>) {
        self.used = self.used.saturating_sub(1);
        self.stale = self.stale.saturating_add(1);
        let length = family_and_length(key);
        if let Some(count) = self.by_length.get_mut(&length) {
            *count -= 1;
            if *count == 0 {
                self.by_length.remove(&length);
                self.write_lengths(self.set, settings);
            }
        }
    }

    /// Whether the gates are worth making anew.
    pub fn are_gates_stale(&self) -> bool {
        self.stale > STALE_BITS.max(self.used)
    }

    /// Replaces all prefixes by `entries`, with room for `spare` more, in one step: a packet is judged
    /// by the old ones or by the new ones.
    ///
    /// # Errors
    /// When there is no memory for the new set; the old one is in force then.
    pub fn replace(
        &mut self,
        entries: &[(PrefixKey, PrefixRules)],
        spare: u32,
        settings: &Shared<Settings>,
    ) -> Result<()> {
        let table = PrefixTable::filled(entries, spare, settings.get(0).seed)?;
        self.put_in_force(table, entries, settings)
    }

    /// Lets the other set have this table, which holds `entries`, and puts it in force.
    fn put_in_force(
        &mut self,
        table: PrefixTable,
        entries: &[(PrefixKey, PrefixRules)],
        settings: &Shared<Settings>,
    ) -> Result<()> {
        let next = 1 - self.set;
        self.gates.fill(entries, next);
        self.outer.set(next, table.data(), 0).context("can't put a set of prefixes in place")?;
        self.table = table;
        (self.used, self.stale) = (0, 0);
        self.by_length.clear();
        entries.iter().for_each(|(key, _)| self.count(key));
        self.write_lengths(next, settings);
        settings.update(0, |settings| settings.active_set = next);
        // An update of a map of maps returns when no program is at work any more that has begun before
        // it (kernel/bpf/syscall.c, `maybe_wait_bpf_programs`): until then one may go on with the old set.
        self.outer
            .set(next, self.table.data(), 0)
            .context("can't put a set of prefixes in place")?;
        let nothing = PrefixTable::create(1, settings.get(0).seed)?;
        self.outer
            .set(self.set, nothing.data(), 0)
            .context("can't let the old set of prefixes go")?;
        self.set = next;
        Ok(())
    }

    fn write_lengths(&self, set: u32, settings: &Shared<Settings>) {
        let lengths = lengths_of(self.by_length.keys().copied());
        let buckets = self.table.buckets();
        settings.update(0, |settings| {
            settings.prefixes[set as usize] = PrefixSet { lengths, buckets, reserved: 0 };
        });
    }
}

/// The set of these lengths, each with whether it is IPv4's.
pub(super) fn lengths_of(all: impl IntoIterator<Item = (bool, u32)>) -> Lengths {
    let mut lengths = Lengths::default();
    for (is_v4, len) in all {
        match (is_v4, len) {
            (true, len) => lengths.v4 |= 1 << len,
            (false, 128) => lengths.v6_whole = 1,
            (false, len) => lengths.v6[len as usize / 64] |= 1 << (len % 64),
        }
    }
    lengths
}

/// Whether the prefix is IPv4, and its length as such.
pub(super) fn family_and_length(key: &PrefixKey) -> (bool, u32) {
    let is_mapped = key.addr.halves()[0] == 0 && key.addr.halves()[1] >> 32 == 0xffff;
    match key.prefix_len.checked_sub(96) {
        Some(len) if is_mapped => (true, len),
        _ => (false, key.prefix_len),
    }
}

/// The bits in front of the sets ([`gate`]), of both.
pub(super) struct Gates {
    pub v4: Shared<u64>,
    pub v4_lengths: Shared<u64>,
    pub v6: Shared<u64>,
    pub v6_lengths: Shared<[u64; 2]>,
    pub v6_wide: Shared<u64>,
}

impl Gates {
    /// Lets through to `entries`, and to nothing else.
    fn fill(&self, entries: &[(PrefixKey, PrefixRules)], set: u32) {
        for (gate, words) in [
            (&self.v4, V4_WORDS),
            (&self.v4_lengths, V4_BLOCKS),
            (&self.v6, V6_WORDS),
            (&self.v6_wide, V6_WIDE),
        ] {
            (set * words..(set + 1) * words).for_each(|word| gate.set(word, 0));
        }
        (set * V6_BLOCKS..(set + 1) * V6_BLOCKS).for_each(|at| self.v6_lengths.set(at, [0; 2]));
        entries.iter().for_each(|(key, _)| self.open(key, set));
    }

    fn open(&self, key: &PrefixKey, set: u32) {
        let halves = key.addr.halves();
        match family_and_length(key) {
            (true, len) => {
                self.open_v4(halves[1] as u32, len, set);
                self.note_v4_length(halves[1] as u32, len, set);
            }
            (false, len) if len < V6_SHORTEST => self.note_wide_length(halves[0], len, set),
            (false, len) => self.open_v6(halves[0], len, set),
        }
    }

    /// Sets the bit of every /24 in the network, or around it.
    fn open_v4(&self, address: u32, len: u32, set: u32) {
        let first = gate::v4_bit(address);
        let base = set * V4_WORDS;
        // A word has the bits of a /18.
        if len > 18 {
            let bits = if len >= 24 { 1 } else { 1 << (24 - len) };
            let run = if bits == 64 { u64::MAX } else { (1_u64 << bits) - 1 };
            self.v4.set_bits(base + first.word, run << first.mask.trailing_zeros());
        } else {
            for word in 0..1 << (18 - len) {
                self.v4.set_bits(base + first.word + word, u64::MAX);
            }
        }
    }

    /// Notes the length for every /20 in the network, or around it.
    fn note_v4_length(&self, address: u32, len: u32, set: u32) {
        let first = set * V4_BLOCKS + (address >> (32 - V4_BLOCK_LEN));
        for block in 0..1 << V4_BLOCK_LEN.saturating_sub(len) {
            self.v4_lengths.set_bits(first + block, 1 << len);
        }
    }

    /// Sets the bit of every /32 in the network, or around it, and notes the length there.
    fn open_v6(&self, first_half: u64, len: u32, set: u32) {
        let network = (first_half >> 32) as u32;
        let lengths = match len {
            128 => [V6_WHOLE, 0],
            0..64 => [1 << len, 0],
            _ => [0, 1 << (len & 63)],
        };
        for network in network..=network | V6_BLOCK_LEN.checked_sub(len).map_or(0, low_bits) {
            let hash = gate::v6_hash(network);
            let bit = gate::v6_bit(hash);
            self.v6.set_bits(set * V6_WORDS + bit.word, bit.mask);
            self.v6_lengths.set_bits_of(set * V6_BLOCKS + gate::v6_block(hash), lengths);
        }
    }

    /// Notes the length for every /16 in the network, or around it.
    fn note_wide_length(&self, first_half: u64, len: u32, set: u32) {
        let network = (first_half >> 48) as u32;
        for network in network..=network | 16_u32.checked_sub(len).map_or(0, low_bits) {
            self.v6_wide.set_bits(set * V6_WIDE + network, 1 << len);
        }
    }
}

/// A mask of the last `count` bits, fewer than 32.
fn low_bits(count: u32) -> u32 {
    (1 << count) - 1
}
