//! The allow list, and which networks it has addresses of.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use aya::maps::lpm_trie::Key;
use aya::maps::{LpmTrie, Map, MapData};
use ipnet::IpNet;
use portcullis_common::net::Addr;
use portcullis_common::policy::ALLOWED;

use super::addresses::mapped;

pub(super) struct Allowed {
    map: LpmTrie<MapData, Addr, u32>,
    nets: Nets,
}

impl Allowed {
    /// Takes over what the map holds.
    pub fn new(map: MapData) -> Result<Self> {
        let map: LpmTrie<_, Addr, u32> = LpmTrie::try_from(Map::from_map_data(map)?)?;
        let mut nets = Nets::default();
        for key in map.keys() {
            let key = key.context("can't read the allow list")?;
            nets.0.insert((u128::from_be_bytes(key.data().0), key.prefix_len()));
        }
        Ok(Self { map, nets })
    }

    /// What is on the list.
    pub fn nets(&self) -> &Nets {
        &self.nets
    }

    /// Replaces the list. What stays on it is never off it in between.
    pub fn replace(&mut self, nets: Nets) -> Result<()> {
        let key = |&(start, len): &(u128, u32)| Key::new(len, Addr(start.to_be_bytes()));
        // One by one, so that after an error it is still known what the map holds.
        let (new, old): (Vec<_>, Vec<_>) = (
            nets.0.difference(&self.nets.0).copied().collect(),
            self.nets.0.difference(&nets.0).copied().collect(),
        );
        for net in new {
            self.map.insert(&key(&net), ALLOWED, 0).context("can't write to the allow list")?;
            self.nets.0.insert(net);
        }
        for net in old {
            self.map.remove(&key(&net)).context("can't remove from the allow list")?;
            self.nets.0.remove(&net);
        }
        Ok(())
    }
}

/// Networks in mapped form: first address and length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Nets(BTreeSet<(u128, u32)>);

impl Nets {
    pub fn of(nets: &[IpNet]) -> Self {
        Self(nets.iter().map(|net| start_and_len(*net)).collect())
    }

    /// Whether there is an address that is of `net` and of one of these.
    pub fn intersect(&self, net: IpNet) -> bool {
        let (start, len) = start_and_len(net);
        let end = start | u128::MAX.checked_shr(len).unwrap_or(0);
        let within = self.0.range((start, 0)..=(end, 128)).next();
        let around = |around: u32| {
            let mask = !u128::MAX.checked_shr(around).unwrap_or(0);
            self.0.contains(&(start & mask, around))
        };
        within.is_some() || (0..len).any(around)
    }
}

fn start_and_len(net: IpNet) -> (u128, u32) {
    let (addr, len) = mapped(net);
    (u128::from_be_bytes(addr.0), len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_intersect_when_one_holds_the_other() {
        let nets = ["198.51.100.0/24", "203.0.113.9/32", "2001:db8:7::/48", "::1/128"];
        let nets = Nets::of(&nets.map(|net| net.parse().unwrap()));
        for (net, intersects) in [
            ("198.51.100.7/32", true),
            ("198.51.0.0/16", true),
            ("198.51.100.0/24", true),
            ("198.51.101.0/24", false),
            ("203.0.113.9/32", true),
            ("203.0.113.8/32", false),
            ("203.0.113.8/31", true),
            ("0.0.0.0/0", true),
            ("2001:db8:7:1::/64", true),
            ("2001:db8:8::/48", false),
            ("2001:db8::/32", true),
            ("::/0", true),
            ("::/64", true),
        ] {
            assert_eq!(nets.intersect(net.parse().unwrap()), intersects, "{net}");
        }
    }
}
