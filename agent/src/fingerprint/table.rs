//! The kernel's numbers of fingerprints, and the names that people know them by.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use lru::LruCache;

use super::client_hello::ClientHello;
use super::ja3::Ja3;
use super::ja4::{Ja4, Transport};

/// The names of one kind of client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub ja4: Arc<str>,
    /// Of the hello that it was learned from: others with the same JA4 may have other JA3s.
    pub ja3: Arc<str>,
}

impl Known {
    pub fn new(hello: &ClientHello, transport: Transport) -> Self {
        Self {
            ja4: Ja4::new(hello, transport).hashed().into(),
            ja3: Ja3::new(hello).hashed().into(),
        }
    }
}

/// What came of learning.
#[derive(Debug, PartialEq, Eq)]
pub struct Learned {
    /// It was not known before.
    pub is_new: bool,
    /// Forgotten to make room for it.
    pub evicted: Option<(u64, Known)>,
}

/// What is known, at most so many; the least recently used goes first.
pub struct Table {
    by_key: LruCache<u64, Known>,
    /// Several keys have one JA4 when its hashes collide.
    by_ja4: HashMap<Arc<str>, BTreeSet<u64>>,
    capacity: usize,
    learned: u64,
    evicted: u64,
}

impl Table {
    pub fn new(capacity: usize) -> Self {
        Self {
            // Bounded by `learn`.
            by_key: LruCache::unbounded(),
            by_ja4: HashMap::new(),
            capacity: capacity.max(1),
            learned: 0,
            evicted: 0,
        }
    }

    /// Remembers that the kernel calls `known` by `key`.
    pub fn learn(&mut self, key: u64, known: Known) -> Learned {
        if let Some(before) = self.by_key.get(&key) {
            // Equal keys mean equal JA4s.
            if before.ja4 == known.ja4 {
                return Learned { is_new: false, evicted: None };
            }
            self.forget(key);
        }
        let mut evicted = None;
        if self.by_key.len() >= self.capacity
            && let Some((&oldest, _)) = self.by_key.peek_lru()
        {
            evicted = self.forget(oldest).map(|known| (oldest, known));
            self.evicted += 1;
        }
        self.by_ja4.entry(Arc::clone(&known.ja4)).or_default().insert(key);
        self.by_key.put(key, known);
        self.learned += 1;
        Learned { is_new: true, evicted }
    }

    fn forget(&mut self, key: u64) -> Option<Known> {
        let known = self.by_key.pop(&key)?;
        if let Some(keys) = self.by_ja4.get_mut(&known.ja4) {
            keys.remove(&key);
            if keys.is_empty() {
                self.by_ja4.remove(&known.ja4);
            }
        }
        Some(known)
    }

    /// What the kernel calls `key`.
    pub fn get(&mut self, key: u64) -> Option<&Known> {
        self.by_key.get(&key)
    }

    /// What the kernel calls the clients with this JA4; nothing if none has been seen.
    pub fn keys_of(&self, ja4: &str) -> impl Iterator<Item = u64> {
        self.by_ja4.get(ja4).into_iter().flatten().copied()
    }

    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// How often something new was learned, and how often something was forgotten for it.
    pub fn counts(&self) -> (u64, u64) {
        (self.learned, self.evicted)
    }
}
