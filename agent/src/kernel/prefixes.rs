//! The prefixes that have rules, with the gates in front of them: two sets, one of which is in
//! force, so that everything can be replaced in one step while packets are judged.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::maps::{ArrayOfMaps, Map, MapData, MapError};
use portcullis_common::gate::{self, Bit, CLASSES, V4_BLOCK_LEN, V4_BLOCKS, V4_WORDS};
use portcullis_common::names::map;
use portcullis_common::policy::{Lengths, PrefixKey, PrefixRules};
use portcullis_common::settings::{PrefixSet, Settings};

use super::shared::Shared;
use super::table::Table;

type Outer = ArrayOfMaps<MapData, MapData>;
type Inner = Table<PrefixKey, PrefixRules>;

/// Bits that belong to no prefix any more may stay set until they are so many.
const STALE_BITS: u32 = 65_536;

pub(super) struct Prefixes {
    outer: Outer,
    inner: Inner,
    gates: Gates,
    /// Which of the two sets is in force.
    set: u32,
    capacity: u32,
    used: u32,
    /// Prefixes by length, IPv4's first.
    by_length: BTreeMap<(bool, u32), u32>,
    /// Removed since the gates were made.
    stale: u32,
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
        let set = settings.get(0).active_set & 1;
        let inner = match outer.get(&set, 0) {
            Ok(inner) => Inner::new(inner)?,
            Err(_) => {
                let inner = create(capacity)?;
                outer.set(set, inner.data(), 0).context("can't put a set of prefixes in place")?;
                inner
            }
        };
        let mut prefixes = Self {
            outer,
            inner,
            gates,
            set,
            capacity,
            used: 0,
            by_length: BTreeMap::new(),
            stale: 0,
        };
        prefixes.recount()?;
        Ok(prefixes)
    }

    fn recount(&mut self) -> Result<()> {
        for (key, _) in self.entries()? {
            self.count(&key);
        }
        let info = self.inner.data().info().context("can't ask for the size of a map")?;
        self.capacity = info.max_entries();
        Ok(())
    }

    fn count(&mut self, key: &PrefixKey) {
        self.used += 1;
        *self.by_length.entry(family_and_length(key)).or_default() += 1;
    }

    /// Every prefix, with its rules.
    pub fn entries(&self) -> Result<Vec<(PrefixKey, PrefixRules)>> {
        self.inner.entries()
    }

    pub fn get(&self, key: &PrefixKey) -> Result<PrefixRules, MapError> {
        Ok(self.inner.get(key)?.unwrap_or_default())
    }

    /// Replaces the rules of a prefix; without any, it goes.
    pub fn set(
        &mut self,
        key: PrefixKey,
        rules: PrefixRules,
        settings: &Shared<Settings>,
    ) -> Result<(), MapError> {
        let is_known = self.get(&key)? != PrefixRules::default();
        if rules == PrefixRules::default() {
            if is_known {
                self.inner.remove(&key)?;
                self.uncount(&key, settings);
            }
            return Ok(());
        }
        if !is_known {
            self.gates.open(&key, self.set, &settings.get(0));
        }
        self.inner.insert(key, rules)?;
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
        let capacity = u32::try_from(entries.len())
            .ok()
            .and_then(|len| len.checked_add(spare))
            .context("more prefixes than a map can hold")?;
        let mut inner = create(capacity.max(1))?;
        let (keys, values): (Vec<_>, Vec<_>) = entries.iter().copied().unzip();
        inner.fill(&keys, &values)?;

        let next = 1 - self.set;
        self.gates.fill(&keys, next, &settings.get(0));
        self.outer.set(next, inner.data(), 0).context("can't put a set of prefixes in place")?;
        (self.used, self.stale, self.capacity) = (0, 0, capacity);
        self.by_length.clear();
        keys.iter().for_each(|key| self.count(key));
        self.write_lengths(next, settings);
        settings.update(0, |settings| settings.active_set = next);
        // An update of a map of maps returns when no program is at work any more that has begun before
        // it (kernel/bpf/syscall.c, `maybe_wait_bpf_programs`): until then one may go on with the old set.
        self.outer.set(next, inner.data(), 0).context("can't put a set of prefixes in place")?;
        let old = create(1)?;
        self.outer.set(self.set, old.data(), 0).context("can't let the old set of prefixes go")?;
        self.inner = inner;
        self.set = next;
        Ok(())
    }

    fn write_lengths(&self, set: u32, settings: &Shared<Settings>) {
        let lengths = lengths_of(self.by_length.keys().copied());
        let classes = self.by_length.keys().filter(|(is_v4, _)| !is_v4);
        let classes = classes.fold(0, |classes, (_, len)| classes | 1 << gate::class_of(*len));
        settings.update(0, |settings| {
            settings.prefixes[set as usize] = PrefixSet { lengths, classes, reserved: 0 };
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
    pub prefixes: Shared<u64>,
}

impl Gates {
    /// Lets through to `keys`, and to nothing else.
    fn fill(&self, keys: &[PrefixKey], set: u32, settings: &Settings) {
        let words = settings.prefix_gate_words;
        for (gate, words) in
            [(&self.v4, V4_WORDS), (&self.v4_lengths, V4_BLOCKS), (&self.prefixes, words)]
        {
            (set * words..(set + 1) * words).for_each(|word| gate.set(word, 0));
        }
        keys.iter().for_each(|key| self.open(key, set, settings));
    }

    fn open(&self, key: &PrefixKey, set: u32, settings: &Settings) {
        let words = settings.prefix_gate_words;
        let open = |bit: Bit| self.prefixes.set_bits(set * words + bit.word, bit.mask);
        let halves = key.addr.halves();
        match family_and_length(key) {
            (true, len) => {
                self.open_v4(halves[1] as u32, len, set);
                self.note_length(halves[1] as u32, len, set);
            }
            (false, len) => {
                let class = gate::class_of(len).min(CLASSES - 1);
                open(gate::class_bit(gate::masked(halves, class * 8), class, words));
            }
        }
        open(gate::prefix_bit(halves, key.prefix_len, words));
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
    fn note_length(&self, address: u32, len: u32, set: u32) {
        let first = set * V4_BLOCKS + (address >> (32 - V4_BLOCK_LEN));
        for block in 0..1 << V4_BLOCK_LEN.saturating_sub(len) {
            self.v4_lengths.set_bits(first + block, 1 << len);
        }
    }
}

fn create(capacity: u32) -> Result<Inner> {
    Inner::create(map::PREFIX_SET, capacity)
}
