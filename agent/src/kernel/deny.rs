//! The deny map, and when its entries expire.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::{HashMap as BpfHashMap, MapData, MapError};
use ipnet::IpNet;
use portcullis_common::policy::{DenyEntry, DenyKey, NEVER_EXPIRES, action, origin};

use super::addresses::{deny_key, network_of};
use super::clock::coarse_now;
use crate::decision::Origin;
use crate::enforce::{Block, EnforceError, NewBlock, Usage};

pub(super) struct DenyMap {
    map: BpfHashMap<MapData, DenyKey, DenyEntry>,
    /// Every entry, with its expiry on the coarse clock.
    expiries: HashMap<IpNet, u64>,
    by_expiry: BTreeSet<(u64, IpNet)>,
    /// The entries that only count.
    observed: BTreeSet<IpNet>,
    capacity: u32,
    reserve: u32,
}

impl DenyMap {
    /// Takes over what the map holds.
    pub fn new(
        map: BpfHashMap<MapData, DenyKey, DenyEntry>,
        capacity: u32,
        reserve: u32,
    ) -> Result<Self> {
        let mut deny = Self {
            map,
            expiries: HashMap::new(),
            by_expiry: BTreeSet::new(),
            observed: BTreeSet::new(),
            capacity,
            reserve,
        };
        for (net, entry) in deny.entries()? {
            deny.remember(net, &entry);
        }
        Ok(deny)
    }

    pub fn insert(&mut self, target: IpNet, block: NewBlock) -> Result<(), EnforceError> {
        let (key, target) = identify(target)?;
        let old = self.lookup(&key)?;
        if old.is_none() {
            self.make_room(&block)?;
        }
        // The same block, but for another time: its counters go on. One that the configuration
        // lists is the same over restarts too.
        let same = old.filter(|old| {
            old.rule_id == block.rule_id
                || old.origin == origin::CONFIGURED && block.origin == Origin::Configured
        });
        let entry = DenyEntry {
            expires_ns: block.ttl.map_or(NEVER_EXPIRES, expiry_after),
            rule_id: block.rule_id,
            // What the kernel adds between the look-up and the insertion, well under a
            // microsecond, is not carried over.
            packets: same.map_or(0, |old| old.packets),
            bytes: same.map_or(0, |old| old.bytes),
            action: if block.count_only { action::COUNT } else { action::DROP },
            origin: block.origin.to_kernel(),
        };
        match self.map.insert(key, entry, 0) {
            Ok(()) => {
                self.remember(target, &entry);
                Ok(())
            }
            Err(error) if is_full(&error) => Err(EnforceError::Full(self.usage())),
            Err(error) => Err(kernel_error(error, "can't write to the deny map")),
        }
    }

    pub fn remove(&mut self, target: IpNet) -> Result<(), EnforceError> {
        let (key, target) = identify(target)?;
        self.forget(target);
        match self.map.remove(&key) {
            Ok(()) => Ok(()),
            Err(error) if is_missing(&error) => Err(EnforceError::NotBlocked(target)),
            Err(error) => Err(kernel_error(error, "can't remove from the deny map")),
        }
    }

    /// Removes what has expired; returns how many entries that were.
    pub fn sweep(&mut self) -> Result<u32, EnforceError> {
        let now = coarse_now();
        let mut swept = 0;
        while let Some(&(expires_ns, target)) = self.by_expiry.first()
            && expires_ns <= now
        {
            match self.remove(target) {
                Ok(()) => swept += 1,
                // Somebody else was quicker.
                Err(EnforceError::NotBlocked(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(swept)
    }

    pub fn blocks(&self) -> Result<Vec<Block>> {
        let now = coarse_now();
        let live = |entry: &DenyEntry| entry.expires_ns > now;
        let block = |(target, entry): (IpNet, DenyEntry)| Block {
            target,
            remaining: (entry.expires_ns != NEVER_EXPIRES)
                .then(|| Duration::from_nanos(entry.expires_ns.saturating_sub(now))),
            rule_id: entry.rule_id,
            origin: Origin::from_kernel(entry.origin),
            count_only: entry.action == action::COUNT,
            packets: entry.packets,
            bytes: entry.bytes,
        };
        Ok(self.entries()?.into_iter().filter(|(_, entry)| live(entry)).map(block).collect())
    }

    pub fn usage(&self) -> Usage {
        let used = u32::try_from(self.expiries.len()).unwrap_or(u32::MAX);
        Usage { used, capacity: self.capacity, reserve: self.reserve }
    }

    fn entries(&self) -> Result<Vec<(IpNet, DenyEntry)>> {
        let mut entries = Vec::new();
        for item in self.map.iter() {
            let (key, entry) = item.context("can't read the deny map")?;
            // Keys of other lengths are never written.
            if let Some(net) = network_of(key.addr, key.prefix_len) {
                entries.push((net, entry));
            }
        }
        Ok(entries)
    }

    fn lookup(&self, key: &DenyKey) -> Result<Option<DenyEntry>, EnforceError> {
        match self.map.get(key, 0) {
            Ok(entry) => Ok(Some(entry)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(kernel_error(error, "can't read the deny map")),
        }
    }

    /// Makes sure that there is room for one more entry: first what has expired goes, then one
    /// that only counts, if the new one is to drop.
    fn make_room(&mut self, block: &NewBlock) -> Result<(), EnforceError> {
        if self.has_room(block.origin) {
            return Ok(());
        }
        self.sweep()?;
        if !block.count_only
            && !self.has_room(block.origin)
            && let Some(&observed) = self.observed.first()
        {
            self.remove(observed)?;
        }
        if self.has_room(block.origin) { Ok(()) } else { Err(EnforceError::Full(self.usage())) }
    }

    fn has_room(&self, origin: Origin) -> bool {
        let limit = match origin {
            Origin::Operator | Origin::Configured => self.capacity,
            Origin::Automatic => self.capacity.saturating_sub(self.reserve),
        };
        self.usage().used < limit
    }

    fn remember(&mut self, target: IpNet, entry: &DenyEntry) {
        self.forget(target);
        self.expiries.insert(target, entry.expires_ns);
        if entry.expires_ns != NEVER_EXPIRES {
            self.by_expiry.insert((entry.expires_ns, target));
        }
        if entry.action == action::COUNT {
            self.observed.insert(target);
        }
    }

    fn forget(&mut self, target: IpNet) {
        if let Some(expires_ns) = self.expiries.remove(&target) {
            self.by_expiry.remove(&(expires_ns, target));
        }
        self.observed.remove(&target);
    }
}

impl Origin {
    fn to_kernel(self) -> u32 {
        match self {
            Self::Automatic => origin::AUTOMATIC,
            Self::Operator => origin::OPERATOR,
            Self::Configured => origin::CONFIGURED,
        }
    }

    /// What no version has written is taken for an operator's: those are never thrown away.
    fn from_kernel(value: u32) -> Self {
        match value {
            origin::AUTOMATIC => Self::Automatic,
            origin::CONFIGURED => Self::Configured,
            _ => Self::Operator,
        }
    }
}

/// The key of a network, and the form of it that its entry is remembered under: one for an IPv4
/// address and its mapped form, as they share a key.
fn identify(target: IpNet) -> Result<(DenyKey, IpNet), EnforceError> {
    deny_key(target)
        .and_then(|key| Some((key, network_of(key.addr, key.prefix_len)?)))
        .ok_or(EnforceError::Unsupported(target))
}

fn expiry_after(ttl: Duration) -> u64 {
    let ttl = u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX);
    // One below "never", which an absurd TTL must not become.
    coarse_now().saturating_add(ttl).min(NEVER_EXPIRES - 1)
}

fn kernel_error(error: MapError, context: &'static str) -> EnforceError {
    EnforceError::Kernel(anyhow::Error::new(error).context(context))
}

fn is_missing(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(call) => call.io_error.raw_os_error() == Some(libc::ENOENT),
        _ => false,
    }
}

fn is_full(error: &MapError) -> bool {
    let MapError::SyscallError(call) = error else { return false };
    // E2BIG for a preallocated map, ENOMEM where the kernel could not allocate an element.
    matches!(call.io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOMEM))
}
