//! The table of prefixes, as [`portcullis_common::prefix_table`] has it: the side that writes.

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapData;
use aya_obj::generated::{BPF_F_INNER_MAP, BPF_F_MMAPABLE, bpf_map_type};
use portcullis_common::names::map;
use portcullis_common::net::Addr;
use portcullis_common::policy::{PrefixKey, PrefixRules};
use portcullis_common::prefix_table::{Bucket, SLOTS, Said, Slot, first, hash, second};

use super::shared::Shared;

/// Of five slots, so many are taken when a table is as full as it was made for.
const LOAD: (u64, u64) = (13, 20);
/// A table without room for a prefix is made anew with so many times its buckets.
const GROWTH: (u32, u32) = (5, 4);

pub(super) struct PrefixTable {
    data: MapData,
    buckets: Shared<Bucket>,
    seed: [u64; 2],
}

/// Both buckets of a prefix are full, and so are those that others could make way to.
#[derive(Debug)]
pub(super) struct Crowded;

/// Where a prefix is.
#[derive(Clone, Copy)]
struct Place {
    bucket: u32,
    slot: usize,
}

impl PrefixTable {
    /// With room for `capacity` prefixes, and mostly for more.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn create(capacity: u32, seed: [u64; 2]) -> Result<Self> {
        let slots = u64::from(capacity) * LOAD.1 / LOAD.0;
        let buckets = u32::try_from(slots / SLOTS as u64 + 1).context("too many prefixes")?;
        Self::with_buckets(buckets, seed)
    }

    fn with_buckets(buckets: u32, seed: [u64; 2]) -> Result<Self> {
        let kind = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
        let flags = BPF_F_MMAPABLE | BPF_F_INNER_MAP;
        let size = size_of::<Bucket>() as u32;
        let definition = aya_obj::Map::new_from_params(kind, 4, size, buckets, flags);
        let data = MapData::create(definition, map::PREFIX_SET, None)
            .with_context(|| format!("no memory for a table of {buckets} buckets"))?;
        Self::open(data, seed)
    }

    pub fn open(data: MapData, seed: [u64; 2]) -> Result<Self> {
        let buckets = Shared::new(&data)?;
        Ok(Self { data, buckets, seed })
    }

    /// A table with all of `entries`, of different prefixes, and room for `spare` more.
    pub fn filled(
        entries: &[(PrefixKey, PrefixRules)],
        spare: u32,
        seed: [u64; 2],
    ) -> Result<Self> {
        let capacity = u32::try_from(entries.len())
            .ok()
            .and_then(|len| len.checked_add(spare))
            .context("more prefixes than a table can hold")?;
        let mut table = Self::create(capacity, seed)?;
        loop {
            match entries.iter().try_for_each(|(key, rules)| table.insert_new(key, *rules)) {
                Ok(()) => return Ok(table),
                Err(Crowded) => table = table.larger_and_empty()?,
            }
        }
    }

    /// One with more buckets and the same prefixes.
    pub fn grown(&self) -> Result<Self> {
        let entries = self.entries();
        let mut table = self.larger_and_empty()?;
        while entries.iter().try_for_each(|(key, rules)| table.insert_new(key, *rules)).is_err() {
            table = table.larger_and_empty()?;
        }
        Ok(table)
    }

    fn larger_and_empty(&self) -> Result<Self> {
        let buckets = self.buckets.len();
        let larger = (u64::from(buckets) * u64::from(GROWTH.0) / u64::from(GROWTH.1)) as u32;
        ensure!(larger >= buckets, "more prefixes than a table can hold");
        Self::with_buckets(larger + 1, self.seed)
    }

    pub fn data(&self) -> &MapData {
        &self.data
    }

    /// Number of buckets.
    pub fn buckets(&self) -> u32 {
        self.buckets.len()
    }

    pub fn get(&self, key: &PrefixKey) -> Option<PrefixRules> {
        let place = self.place_of(key)?;
        Some(Said(self.buckets.get(place.bucket).slots[place.slot].said).rules())
    }

    /// Every prefix.
    pub fn entries(&self) -> Vec<(PrefixKey, PrefixRules)> {
        let buckets = (0..self.buckets.len()).map(|index| self.buckets.get(index));
        buckets
            .flat_map(|bucket| bucket.slots)
            .filter(|slot| !Said(slot.said).is_nothing())
            .map(|slot| (key_of(&slot), Said(slot.said).rules()))
            .collect()
    }

    /// Gives the prefix its rules, of which it must have one.
    pub fn insert(&mut self, key: &PrefixKey, rules: PrefixRules) -> Result<(), Crowded> {
        match self.place_of(key) {
            Some(place) => {
                self.put(place, slot_of(key, rules));
                Ok(())
            }
            None => self.insert_new(key, rules),
        }
    }

    /// As [`Self::insert`], for a prefix that is not there.
    fn insert_new(&mut self, key: &PrefixKey, rules: PrefixRules) -> Result<(), Crowded> {
        let slot = slot_of(key, rules);
        let (one, other) = self.buckets_of(&slot);
        if let Some(place) = self.room_in(one) {
            self.put(place, slot);
            return Ok(());
        }
        if let Some(place) = self.room_in(other) {
            self.put_second(one, place, slot);
            return Ok(());
        }
        let (bucket, free) = match (self.make_room(one), self.make_room(other)) {
            (Some(place), _) => (one, place),
            (None, Some(place)) => (other, place),
            (None, None) => return Err(Crowded),
        };
        if bucket == one {
            self.put(free, slot)
        } else {
            self.put_second(one, free, slot)
        }
        Ok(())
    }

    /// Whether it was there.
    pub fn remove(&mut self, key: &PrefixKey) -> bool {
        let Some(Place { bucket, slot }) = self.place_of(key) else { return false };
        self.buckets.update(bucket, |bucket| bucket.slots[slot].said = Said::NOTHING.0);
        true
    }

    fn place_of(&self, key: &PrefixKey) -> Option<Place> {
        let halves = key.addr.halves();
        let hash = hash(halves, key.prefix_len, self.seed);
        let in_bucket = |bucket| {
            let is_it = |slot: &Slot| {
                let said = Said(slot.said);
                !said.is_nothing() && said.prefix_len() == key.prefix_len && slot.halves == halves
            };
            let slot = self.buckets.get(bucket).slots.iter().position(is_it)?;
            Some(Place { bucket, slot })
        };
        let len = self.buckets.len();
        in_bucket(first(hash, len)).or_else(|| in_bucket(second(hash, len)))
    }

    /// Both buckets of the prefix in `slot`.
    fn buckets_of(&self, slot: &Slot) -> (u32, u32) {
        let hash = hash(slot.halves, Said(slot.said).prefix_len(), self.seed);
        (first(hash, self.buckets.len()), second(hash, self.buckets.len()))
    }

    fn room_in(&self, bucket: u32) -> Option<Place> {
        let slots = self.buckets.get(bucket).slots;
        let slot = slots.iter().position(|slot| Said(slot.said).is_nothing())?;
        Some(Place { bucket, slot })
    }

    /// Moves a prefix whose first bucket this full one is into its second, if that has room; its
    /// place.
    fn make_room(&self, bucket: u32) -> Option<Place> {
        let slots = self.buckets.get(bucket).slots;
        for (at, slot) in slots.iter().enumerate() {
            let (one, other) = self.buckets_of(slot);
            if one != bucket || other == bucket {
                continue;
            }
            if let Some(place) = self.room_in(other) {
                // It is in both for a moment, and the rules are the same.
                self.put_second(one, place, *slot);
                return Some(Place { bucket, slot: at });
            }
        }
        None
    }

    /// Puts a prefix whose first bucket is `one` into another.
    fn put_second(&self, one: u32, place: Place, slot: Slot) {
        self.put(place, slot);
        self.buckets.update(one, |bucket| bucket.overflows = 1);
    }

    fn put(&self, Place { bucket, slot }: Place, new: Slot) {
        let Slot { said, halves } = new;
        if self.buckets.get(bucket).slots[slot].halves != halves {
            // Nobody may take the old rules for those of the new address.
            self.buckets.update(bucket, |bucket| bucket.slots[slot].said = Said::NOTHING.0);
            self.buckets.update(bucket, |bucket| bucket.slots[slot].halves = halves);
        }
        self.buckets.update(bucket, |bucket| bucket.slots[slot].said = said);
    }
}

fn slot_of(key: &PrefixKey, rules: PrefixRules) -> Slot {
    Slot { said: Said::new(key.prefix_len, rules).0, halves: key.addr.halves() }
}

fn key_of(slot: &Slot) -> PrefixKey {
    PrefixKey { addr: Addr::from_halves(slot.halves), prefix_len: Said(slot.said).prefix_len() }
}
