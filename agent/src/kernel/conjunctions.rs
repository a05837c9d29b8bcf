//! The rules of networks and fingerprints together, and which lengths of prefix each fingerprint has.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use aya::maps::{MapData, MapError};
use portcullis_common::policy::{ConjunctionKey, Lengths, NO_RULE, PrefixKey};

use super::prefixes::{family_and_length, lengths_of};
use super::table::Table;

pub(super) struct Conjunctions {
    map: Table<ConjunctionKey, u32>,
    /// Conjunctions of each fingerprint, by the length of the prefix; IPv4's first.
    by_length: HashMap<u64, BTreeMap<(bool, u32), u32>>,
}

impl Conjunctions {
    /// Takes over what the map holds.
    pub fn new(map: MapData) -> Result<Self> {
        let mut all = Self { map: Table::new(map)?, by_length: HashMap::new() };
        for (key, _) in all.entries()? {
            *all.count(&key) += 1;
        }
        Ok(all)
    }

    pub fn entries(&self) -> Result<Vec<(ConjunctionKey, u32)>> {
        self.map.entries()
    }

    /// Lets the chain of rules that begins at `head` hold for `key`; [`NO_RULE`] for none.
    pub fn set(&mut self, key: ConjunctionKey, head: u32) -> Result<(), MapError> {
        if head == NO_RULE {
            if self.map.remove(&key)? {
                self.uncount(&key);
            }
            return Ok(());
        }
        let is_new = self.map.get(&key)?.is_none();
        self.map.insert(key, head)?;
        if is_new {
            *self.count(&key) += 1;
        }
        Ok(())
    }

    /// The lengths of the prefixes that have rules with `fingerprint`.
    pub fn lengths_with(&self, fingerprint: u64) -> Lengths {
        let lengths = self.by_length.get(&fingerprint);
        lengths_of(lengths.into_iter().flat_map(|lengths| lengths.keys().copied()))
    }

    fn count(&mut self, key: &ConjunctionKey) -> &mut u32 {
        self.by_length.entry(key.fingerprint).or_default().entry(length_of(key)).or_default()
    }

    fn uncount(&mut self, key: &ConjunctionKey) {
        let count = self.count(key);
        *count = count.saturating_sub(1);
        if let Some(lengths) = self.by_length.get_mut(&key.fingerprint) {
            lengths.retain(|_, count| *count > 0);
            if lengths.is_empty() {
                self.by_length.remove(&key.fingerprint);
            }
        }
    }
}

fn length_of(key: &ConjunctionKey) -> (bool, u32) {
    family_and_length(&PrefixKey { addr: key.addr, prefix_len: key.prefix_len })
}
