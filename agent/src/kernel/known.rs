//! The JA4 of each TLS fingerprint that has been seen.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use anyhow::Result;
use aya::maps::{MapData, MapError};

use super::table::{Table, is_full};

/// A JA4 as the kernel's map keeps it, with zeros behind.
type Name = [[u8; 8]; 5];

/// In the last byte of a name, behind the zeros: the key is no fingerprint's, but made up so that a rule of
/// a JA4 that nobody has shown yet stands in the maps too, for the next agent to find.
const STANDS_IN: u8 = 1;

/// Fingerprints looked at for one that can be forgotten.
const TRIES: usize = 64;

pub(super) struct Known {
    map: Table<u64, Name>,
    keys: HashMap<Arc<str>, Vec<u64>>,
    stand_ins: HashMap<Arc<str>, u64>,
    /// In the order in which they came; those of the last agent in any.
    order: VecDeque<(u64, Arc<str>)>,
}

impl Known {
    /// Takes over what the map holds.
    pub fn new(map: MapData) -> Result<Self> {
        let map = Table::<u64, Name>::new(map)?;
        let (keys, stand_ins, order) = (HashMap::new(), HashMap::new(), VecDeque::new());
        let entries = map.entries()?;
        let mut known = Self { map, keys, stand_ins, order };
        for (fingerprint, name) in entries {
            if let Some(ja4) = ja4_of(&name) {
                known.note(fingerprint, &ja4, name[4][7] == STANDS_IN);
            }
        }
        Ok(known)
    }

    /// Every key, with its JA4; those that stand in are among them.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Arc<str>)> {
        self.keys.iter().flat_map(|(ja4, all)| all.iter().map(move |key| (*key, ja4.clone())))
    }

    /// The same without those that stand in.
    pub fn seen(&self) -> impl Iterator<Item = (u64, &Arc<str>)> {
        self.order.iter().map(|(key, ja4)| (*key, ja4))
    }

    pub fn keys_of(&self, ja4: &str) -> Vec<u64> {
        self.keys.get(ja4).cloned().unwrap_or_default()
    }

    pub fn has(&self, fingerprint: u64, ja4: &str) -> bool {
        self.keys.get(ja4).is_some_and(|keys| keys.contains(&fingerprint))
    }

    /// Remembers the JA4 of a fingerprint. When there is no room, one for which `is_needed` says no is
    /// forgotten.
    pub fn learn(
        &mut self,
        fingerprint: u64,
        ja4: &str,
        is_needed: impl Fn(u64) -> bool,
    ) -> Result<(), MapError> {
        match self.map.insert(fingerprint, name(ja4, 0)) {
            Err(error) if is_full(&error) => {
                if !self.forget_one(is_needed)? {
                    return Err(error);
                }
                self.map.insert(fingerprint, name(ja4, 0))?;
            }
            result => result?,
        }
        self.note(fingerprint, &Arc::from(ja4), false);
        Ok(())
    }

    /// Forgets the JA4 of a fingerprint.
    pub fn forget(&mut self, fingerprint: u64, ja4: &str) -> Result<(), MapError> {
        self.map.remove(&fingerprint)?;
        self.order.retain(|(key, _)| *key != fingerprint);
        self.drop_key(fingerprint, ja4);
        Ok(())
    }

    /// Makes sure that there is a key of `ja4`.
    pub fn stand_in(&mut self, ja4: &Arc<str>) -> Result<(), MapError> {
        if self.keys.contains_key(ja4) {
            return Ok(());
        }
        // Without random numbers the seed could not have been made, so there are some.
        let Ok(key) = getrandom::u64() else { return Ok(()) };
        self.map.insert(key, name(ja4, STANDS_IN))?;
        self.note(key, ja4, true);
        Ok(())
    }

    /// The key that stands in for fingerprints of `ja4`, if one does.
    pub fn stand_in_of(&self, ja4: &str) -> Option<u64> {
        self.stand_ins.get(ja4).copied()
    }

    pub fn forget_stand_in(&mut self, ja4: &str) -> Result<(), MapError> {
        let Some(key) = self.stand_ins.get(ja4).copied() else { return Ok(()) };
        self.map.remove(&key)?;
        self.stand_ins.remove(ja4);
        self.drop_key(key, ja4);
        Ok(())
    }

    fn note(&mut self, key: u64, ja4: &Arc<str>, stands_in: bool) {
        self.keys.entry(ja4.clone()).or_default().push(key);
        if stands_in {
            self.stand_ins.insert(ja4.clone(), key);
        } else {
            self.order.push_back((key, ja4.clone()));
        }
    }

    /// Whether one could be.
    fn forget_one(&mut self, is_needed: impl Fn(u64) -> bool) -> Result<bool, MapError> {
        for _ in 0..TRIES.min(self.order.len()) {
            let Some((key, ja4)) = self.order.pop_front() else { return Ok(false) };
            if is_needed(key) {
                self.order.push_back((key, ja4));
                continue;
            }
            self.drop_key(key, &ja4);
            self.map.remove(&key)?;
            return Ok(true);
        }
        Ok(false)
    }

    fn drop_key(&mut self, key: u64, ja4: &str) {
        if let Some(keys) = self.keys.get_mut(ja4) {
            keys.retain(|one| *one != key);
            if keys.is_empty() {
                self.keys.remove(ja4);
            }
        }
    }
}

fn name(ja4: &str, mark: u8) -> Name {
    let mut name = Name::default();
    for (to, from) in name.as_flattened_mut().iter_mut().zip(ja4.bytes()) {
        *to = from;
    }
    if mark != 0 {
        name[4][7] = mark;
    }
    name
}

fn ja4_of(name: &Name) -> Option<Arc<str>> {
    let name = name.as_flattened();
    let len = name.iter().position(|byte| *byte <= STANDS_IN).unwrap_or(name.len());
    std::str::from_utf8(&name[..len]).ok().filter(|ja4| !ja4.is_empty()).map(Arc::from)
}
