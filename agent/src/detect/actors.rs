//! A bounded table of what a detector knows of each actor.

use std::hash::RandomState;
use std::net::IpAddr;
use std::time::Duration;

use lru::LruCache;

use crate::decision::Mode;
use crate::finding::Actor;
use crate::time::Timestamp;

/// What is counted together. Behind which of the trusted proxies a client is makes no
/// difference, but that it is behind one does: it can't be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ActorKey {
    ip: IpAddr,
    proxied: bool,
    observed: bool,
}

impl ActorKey {
    pub fn new(actor: &Actor, mode: Mode) -> Self {
        let observed = match mode {
            Mode::Enforce => false,
            Mode::Observe => true,
        };
        Self { ip: actor.ip, proxied: actor.via.is_some(), observed }
    }
}

struct Entry<V> {
    last: Timestamp,
    value: V,
}

/// At most `limit` actors; a new one takes the place of the least recently seen. Every
/// operation on one actor takes constant time.
pub(super) struct ActorTable<V> {
    // Clients choose the keys, so the hash is a keyed one. Unbounded only to the crate: the
    // limit is kept here, so that it can change and evictions can be counted.
    entries: LruCache<ActorKey, Entry<V>, RandomState>,
    limit: usize,
    evicted: u64,
}

impl<V> ActorTable<V> {
    pub fn new(limit: usize) -> Self {
        let entries = LruCache::unbounded_with_hasher(RandomState::new());
        Self { entries, limit: limit.max(1), evicted: 0 }
    }

    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit.max(1);
        while self.entries.len() > self.limit {
            self.evict();
        }
    }

    /// The entry of `key`, made by `new` if there is none, as seen at `now`.
    pub fn seen(&mut self, key: ActorKey, now: Timestamp, new: impl FnOnce() -> V) -> &mut V {
        if self.entries.len() >= self.limit && !self.entries.contains(&key) {
            self.evict();
        }
        let entry = self
            .entries
            .get_or_insert_mut(key, || Entry { last: Timestamp::default(), value: new() });
        entry.last = entry.last.max(now);
        &mut entry.value
    }

    /// The entry of `key` without marking it as seen.
    pub fn peek_mut(&mut self, key: &ActorKey) -> Option<&mut V> {
        self.entries.peek_mut(key).map(|entry| &mut entry.value)
    }

    pub fn remove(&mut self, key: &ActorKey) {
        self.entries.pop(key);
    }

    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Removes what was last seen `idle` or longer before `now`. Goes through the entries from
    /// the least recently seen and stops at the first that stays.
    pub fn expire(&mut self, now: Timestamp, idle: Duration) {
        while let Some((_, entry)) = self.entries.peek_lru()
            && entry.last.saturating_add(idle) <= now
        {
            self.entries.pop_lru();
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Entries removed to make room.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn evict(&mut self) {
        if self.entries.pop_lru().is_some() {
            self.evicted = self.evicted.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(last: u8) -> ActorKey {
        let actor = Actor { ip: [192, 0, 2, last].into(), via: None };
        ActorKey::new(&actor, Mode::Enforce)
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn the_least_recently_seen_makes_room() {
        let mut table = ActorTable::new(2);
        *table.seen(key(1), at(1), || 0) = 10;
        *table.seen(key(2), at(2), || 0) = 20;
        assert_eq!(*table.seen(key(1), at(3), || 0), 10);
        table.seen(key(3), at(4), || 30);
        assert_eq!((table.len(), table.evicted()), (2, 1));
        assert_eq!(table.peek_mut(&key(1)).copied(), Some(10));
        assert_eq!(table.peek_mut(&key(2)), None);
    }

    #[test]
    fn entries_expire_after_the_idle_time() {
        let mut table = ActorTable::new(10);
        table.seen(key(1), at(10), || ());
        table.seen(key(2), at(12), || ());
        table.expire(at(19), Duration::from_secs(10));
        assert_eq!(table.len(), 2);
        table.expire(at(20), Duration::from_secs(10));
        assert_eq!(table.len(), 1);
        assert!(table.peek_mut(&key(2)).is_some());
        assert_eq!(table.evicted(), 0, "expiry is not eviction");
    }

    #[test]
    fn a_lower_limit_holds_at_once() {
        let mut table = ActorTable::new(10);
        for last in 0..10 {
            table.seen(key(last), at(1), || ());
        }
        table.set_limit(3);
        assert_eq!((table.len(), table.evicted()), (3, 7));
        assert!(table.peek_mut(&key(9)).is_some());
    }

    #[test]
    fn traffic_that_must_not_mix_is_kept_apart() {
        let direct = Actor { ip: [192, 0, 2, 1].into(), via: None };
        let proxied = Actor { via: Some([192, 0, 2, 9].into()), ..direct };
        let other_proxy = Actor { via: Some([192, 0, 2, 8].into()), ..direct };
        let enforced = ActorKey::new(&direct, Mode::Enforce);
        assert_ne!(enforced, ActorKey::new(&direct, Mode::Observe));
        assert_ne!(enforced, ActorKey::new(&proxied, Mode::Enforce));
        assert_eq!(
            ActorKey::new(&other_proxy, Mode::Enforce),
            ActorKey::new(&proxied, Mode::Enforce)
        );
    }
}
