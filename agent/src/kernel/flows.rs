//! Which connections have which TLS fingerprint, as the kernel's programs saw it.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use portcullis_common::names::pinned;
use portcullis_common::net::{FlowInfo, FlowKey, TCP};

use super::addresses::flow_addresses;
use super::sockets::{FindFingerprints, Fingerprints, Flow};
use super::table::Table;

/// The kernel's table of flows, for a thread that has nothing to do with the policy. It holds the
/// latest flows, of which most are over.
pub struct Flows(Table<FlowKey, FlowInfo>);

impl Flows {
    /// Of the maps that are pinned in `dir`.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(pinned::FLOWS);
        let map = MapData::from_pin(&path)
            .with_context(|| format!("can't open the pinned map {}", path.display()))?;
        Ok(Self(Table::new(map)?))
    }
}

impl FindFingerprints for Flows {
    fn find(&self, keys: &HashSet<u64>) -> Result<Fingerprints> {
        let flows = self.0.entries().context("can't read the flows")?;
        let asked_for = flows
            .into_iter()
            .filter(|(flow, info)| flow.protocol == TCP && keys.contains(&info.fingerprint));
        Ok(asked_for
            .map(|(flow, info)| {
                let (local, remote) = flow_addresses(&flow);
                (Flow { local, remote }, info.fingerprint)
            })
            .collect())
    }
}
