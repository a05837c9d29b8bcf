//! A hash map of the kernel's, one element at a time or all at once.

use std::marker::PhantomData;

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::{HashMap as BpfHashMap, Map, MapData, MapError};

use super::batch;

pub(super) struct Table<K, V> {
    map: Map,
    elements: PhantomData<(K, V)>,
}

impl<K: Pod + Default, V: Pod + Default> Table<K, V> {
    pub fn new(data: MapData) -> Result<Self> {
        let map = Map::from_map_data(data)?;
        BpfHashMap::<_, K, V>::try_from(&map)?;
        Ok(Self { map, elements: PhantomData })
    }

    pub fn data(&self) -> &MapData {
        match &self.map {
            Map::HashMap(data) | Map::LruHashMap(data) => data,
            _ => unreachable!("`new` has checked that it is a hash map"),
        }
    }

    pub fn get(&self, key: &K) -> Result<Option<V>, MapError> {
        match BpfHashMap::<_, K, V>::try_from(&self.map)?.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn insert(&mut self, key: K, value: V) -> Result<(), MapError> {
        BpfHashMap::<_, K, V>::try_from(&mut self.map)?.insert(key, value, 0)
    }

    /// Whether it was there.
    pub fn remove(&mut self, key: &K) -> Result<bool, MapError> {
        match BpfHashMap::<_, K, V>::try_from(&mut self.map)?.remove(key) {
            Ok(()) => Ok(true),
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Every element. Those that come or go meanwhile may be among them or not.
    pub fn entries(&self) -> Result<Vec<(K, V)>> {
        batch::entries(self.data())
    }

    /// Inserts all.
    pub fn fill(&mut self, keys: &[K], values: &[V]) -> Result<()> {
        batch::update(self.data(), keys, values).context("can't fill a map")
    }
}

fn is_missing(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(call) => call.io_error.raw_os_error() == Some(libc::ENOENT),
        _ => false,
    }
}

/// Whether the map has no room.
pub(super) fn is_full(error: &MapError) -> bool {
    let MapError::SyscallError(call) = error else { return false };
    // E2BIG for a preallocated map, ENOMEM where the kernel could not allocate an element.
    matches!(call.io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOMEM))
}
