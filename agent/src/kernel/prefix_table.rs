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
    places: Places<Shared<Bucket>>,
}

/// Which prefix lies where in some buckets.
struct Places<B> {
    buckets: B,
    seed: [u64; 2],
}

/// Buckets that programs may read while they are written.
trait Buckets {
    fn len(&self) -> u32;
    fn get(&self, index: u32) -> Bucket;
    /// Writes the words that `change` changes.
    fn update(&self, index: u32, change: impl FnOnce(&mut Bucket));
}

impl Buckets for Shared<Bucket> {
    fn len(&self) -> u32 {
        self.len()
    }

    fn get(&self, index: u32) -> Bucket {
        self.get(index)
    }

    fn update(&self, index: u32, change: impl FnOnce(&mut Bucket)) {
        self.update(index, change);
    }
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
        Ok(Self { data, places: Places { buckets, seed } })
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
        Self::create(capacity, seed)?.or_larger_with(entries)
    }

    /// One with more buckets and the same prefixes.
    pub fn grown(&self) -> Result<Self> {
        self.larger_and_empty()?.or_larger_with(&self.entries())
    }

    /// This table, which is empty, or a larger one, with all of `entries`.
    fn or_larger_with(mut self, entries: &[(PrefixKey, PrefixRules)]) -> Result<Self> {
        loop {
            match entries.iter().try_for_each(|(key, rules)| self.places.insert_new(key, *rules)) {
                Ok(()) => return Ok(self),
                Err(Crowded) => self = self.larger_and_empty()?,
            }
        }
    }

    fn larger_and_empty(&self) -> Result<Self> {
        let buckets = self.buckets();
        let larger = (u64::from(buckets) * u64::from(GROWTH.0) / u64::from(GROWTH.1)) as u32;
        ensure!(larger >= buckets, "more prefixes than a table can hold");
        Self::with_buckets(larger + 1, self.places.seed)
    }

    pub fn data(&self) -> &MapData {
        &self.data
    }

    /// Number of buckets.
    pub fn buckets(&self) -> u32 {
        self.places.buckets.len()
    }

    pub fn get(&self, key: &PrefixKey) -> Option<PrefixRules> {
        self.places.get(key)
    }

    /// Every prefix.
    pub fn entries(&self) -> Vec<(PrefixKey, PrefixRules)> {
        self.places.entries()
    }

    /// Gives the prefix its rules, of which it must have one.
    pub fn insert(&mut self, key: &PrefixKey, rules: PrefixRules) -> Result<(), Crowded> {
        self.places.insert(key, rules)
    }

    /// Whether it was there.
    pub fn remove(&mut self, key: &PrefixKey) -> bool {
        self.places.remove(key)
    }
}

impl<B: Buckets> Places<B> {
    fn get(&self, key: &PrefixKey) -> Option<PrefixRules> {
        let place = self.place_of(key)?;
        Some(Said(self.buckets.get(place.bucket).slots[place.slot].said).rules())
    }

    fn entries(&self) -> Vec<(PrefixKey, PrefixRules)> {
        let buckets = (0..self.buckets.len()).map(|index| self.buckets.get(index));
        buckets
            .flat_map(|bucket| bucket.slots)
            .filter(|slot| !Said(slot.said).is_nothing())
            .map(|slot| (key_of(&slot), Said(slot.said).rules()))
            .collect()
    }

    fn insert(&mut self, key: &PrefixKey, rules: PrefixRules) -> Result<(), Crowded> {
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

    fn remove(&mut self, key: &PrefixKey) -> bool {
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;

    use portcullis_common::policy::NO_RULE;

    use super::*;

    impl Buckets for RefCell<Vec<Bucket>> {
        fn len(&self) -> u32 {
            self.borrow().len() as u32
        }

        fn get(&self, index: u32) -> Bucket {
            self.borrow()[index as usize]
        }

        fn update(&self, index: u32, change: impl FnOnce(&mut Bucket)) {
            change(&mut self.borrow_mut()[index as usize]);
        }
    }

    type Memory = Places<RefCell<Vec<Bucket>>>;

    fn places(buckets: usize) -> Memory {
        Places { buckets: RefCell::new(vec![Bucket::default(); buckets]), seed: [3, 5] }
    }

    fn key(number: u64) -> PrefixKey {
        let halves = [0x2001_0db8_0000_0000 | number >> 8, number << 56];
        PrefixKey { addr: Addr::from_halves(halves), prefix_len: 72 }
    }

    fn rules(own: u32) -> PrefixRules {
        PrefixRules { own, listed: NO_RULE }
    }

    /// What the programs would find, who look into the second bucket only when the first says so.
    fn found(places: &Memory, key: &PrefixKey) -> Option<PrefixRules> {
        let halves = key.addr.halves();
        let hash = hash(halves, key.prefix_len, places.seed);
        let look = |bucket: Bucket| {
            let is_it = |slot: &&Slot| {
                slot.said & 0xff == Said::tag(key.prefix_len) && slot.halves == halves
            };
            bucket.slots.iter().find(is_it).map(|slot| Said(slot.said).rules())
        };
        let one = places.buckets.get(first(hash, places.buckets.len()));
        look(one).or_else(|| {
            (one.overflows != 0)
                .then(|| look(places.buckets.get(second(hash, places.buckets.len()))))
                .flatten()
        })
    }

    #[test]
    fn all_find_room_at_the_usual_load_and_are_found() {
        const BUCKETS: usize = 20_000;
        let count = BUCKETS as u64 * SLOTS as u64 * LOAD.0 / LOAD.1;
        let mut places = places(BUCKETS);
        for number in 1..=count {
            places.insert(&key(number), rules(number as u32)).expect("room");
        }
        let overflows =
            places.buckets.borrow().iter().filter(|bucket| bucket.overflows != 0).count();
        assert!(overflows > 0 && overflows < BUCKETS / 4, "{overflows}");
        for number in 1..=count {
            assert_eq!(found(&places, &key(number)), Some(rules(number as u32)));
        }
        assert_eq!(found(&places, &key(count + 1)), None);
    }

    #[test]
    fn a_table_that_is_too_small_says_so_and_loses_nothing() {
        let mut places = places(10);
        let mut held = HashMap::new();
        for number in 1..=200 {
            if places.insert(&key(number), rules(number as u32)).is_ok() {
                held.insert(key(number), rules(number as u32));
            }
        }
        assert!(held.len() >= 40 && held.len() <= 10 * SLOTS, "{}", held.len());
        for (key, rules) in &held {
            assert_eq!(found(&places, key), Some(*rules));
        }
        let entries: HashMap<_, _> = places.entries().into_iter().collect();
        assert_eq!(entries, held);
    }

    #[test]
    fn what_is_removed_or_replaced_is_gone_and_the_rest_stays() {
        let mut places = places(50);
        (1..=150).for_each(|number| places.insert(&key(number), rules(1)).expect("room"));
        for number in (1..=150).step_by(2) {
            assert!(places.remove(&key(number)));
            assert!(!places.remove(&key(number)));
        }
        (2..=150)
            .step_by(4)
            .for_each(|number| places.insert(&key(number), rules(2)).expect("room"));
        (151..=220).for_each(|number| places.insert(&key(number), rules(3)).expect("room"));
        for number in 1..=220 {
            let expected = match number {
                151.. => Some(rules(3)),
                _ if number % 2 == 1 => None,
                _ if number % 4 == 2 => Some(rules(2)),
                _ => Some(rules(1)),
            };
            assert_eq!(found(&places, &key(number)), expected, "{number}");
            assert_eq!(places.get(&key(number)), expected, "{number}");
        }
    }

    #[test]
    fn the_prefix_of_length_0_is_none_of_the_free_slots() {
        let mut places = places(1);
        let everything = PrefixKey::default();
        assert_eq!(found(&places, &everything), None);
        places.insert(&everything, rules(7)).expect("room");
        assert_eq!(found(&places, &everything), Some(rules(7)));
        assert_eq!(places.entries(), [(everything, rules(7))]);
    }
}
