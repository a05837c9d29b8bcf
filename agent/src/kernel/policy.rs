//! The policy maps behind the trait that `enforce` writes through.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, LpmTrie, MapData};
use ipnet::IpNet;
use portcullis_common::net::Addr;
use portcullis_common::policy::ALLOWED;
use portcullis_common::settings::{MAX_FAILSAFE_PORTS, Settings};

use super::addresses::mapped;
use super::deny::DenyMap;
use crate::enforce::{Block, EnforceError, NewBlock, PolicyMaps, Usage};

pub struct KernelPolicy {
    pub(super) deny: DenyMap,
    pub(super) allow: LpmTrie<MapData, Addr, u32>,
    pub(super) settings: Array<MapData, Settings>,
}

impl PolicyMaps for KernelPolicy {
    fn block(&mut self, target: IpNet, block: NewBlock) -> Result<(), EnforceError> {
        self.deny.insert(target, block)
    }

    fn unblock(&mut self, target: IpNet) -> Result<(), EnforceError> {
        self.deny.remove(target)
    }

    fn blocks(&self) -> Result<Vec<Block>, EnforceError> {
        Ok(self.deny.blocks()?)
    }

    fn sweep(&mut self) -> Result<u32, EnforceError> {
        self.deny.sweep()
    }

    fn usage(&self) -> Usage {
        self.deny.usage()
    }

    fn set_allowed(&mut self, nets: &[IpNet]) -> Result<(), EnforceError> {
        Ok(self.replace_allow_list(nets)?)
    }

    fn set_failsafe(&mut self, tcp: &[u16], udp: &[u16]) -> Result<(), EnforceError> {
        let mut settings = Settings::default();
        settings.failsafe_tcp_len = fill(&mut settings.failsafe_tcp, tcp);
        settings.failsafe_udp_len = fill(&mut settings.failsafe_udp, udp);
        self.settings.set(0, settings, 0).context("can't write the settings map")?;
        Ok(())
    }
}

impl KernelPolicy {
    fn replace_allow_list(&mut self, nets: &[IpNet]) -> Result<()> {
        let wanted: BTreeSet<_> = nets.iter().map(|net| lpm_parts(*net)).collect();
        let mut present = BTreeSet::new();
        for key in self.allow.keys() {
            let key = key.context("can't read the allow list")?;
            present.insert((key.prefix_len(), key.data().0));
        }
        for &(len, bytes) in wanted.difference(&present) {
            self.allow
                .insert(&Key::new(len, Addr(bytes)), ALLOWED, 0)
                .context("can't write to the allow list")?;
        }
        for &(len, bytes) in present.difference(&wanted) {
            self.allow
                .remove(&Key::new(len, Addr(bytes)))
                .context("can't remove from the allow list")?;
        }
        Ok(())
    }
}

fn lpm_parts(net: IpNet) -> (u32, [u8; 16]) {
    let (addr, len) = mapped(net);
    (len, addr.0)
}

/// Copies as many ports as there is room for (the configuration refuses more).
fn fill(to: &mut [u16; MAX_FAILSAFE_PORTS], from: &[u16]) -> u32 {
    let mut len = 0;
    for (slot, port) in to.iter_mut().zip(from) {
        *slot = *port;
        len += 1;
    }
    len
}
