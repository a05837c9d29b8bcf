//! TLS fingerprints of clients: what they are called, and whose flows have them.

use std::sync::Arc;

use anyhow::Context as _;
use portcullis_common::fingerprint::{NO_KEY, Seed};
use portcullis_common::net::FlowInfo;
use portcullis_common::settings::feature;

use super::policy::KernelPolicy;
use super::subjects::flow_key;
use crate::enforce::{EnforceError, FingerprintMaps, Flow};

impl FingerprintMaps for KernelPolicy {
    fn set_fingerprinting(&mut self, on: bool) {
        self.settings.update(0, |settings| {
            settings.features &= !feature::FINGERPRINTS;
            settings.features |= if on { feature::FINGERPRINTS } else { 0 };
        });
    }

    fn seed(&self) -> Seed {
        Seed(self.settings.get(0).seed)
    }

    fn known(&self) -> Vec<(u64, Arc<str>)> {
        self.subjects.known.seen().map(|(key, ja4)| (key, Arc::clone(ja4))).collect()
    }

    fn keys_of(&self, ja4: &str) -> Vec<u64> {
        self.subjects.known.keys_of(ja4)
    }

    fn forget(&mut self, fingerprint: u64, ja4: &str) -> Result<bool, EnforceError> {
        self.subjects.forget(fingerprint, ja4)
    }

    fn fingerprint_of(&self, flow: &Flow) -> Option<u64> {
        // A map that can't be read is as one that has nothing.
        let info = self.subjects.flows.get(&flow_key(flow)).ok().flatten()?;
        (info.fingerprint != NO_KEY).then_some(info.fingerprint)
    }

    fn set_fingerprint_of(
        &mut self,
        flow: &Flow,
        fingerprint: u64,
        seen_ns: u64,
    ) -> Result<(), EnforceError> {
        self.subjects
            .note(flow_key(flow), FlowInfo { fingerprint, seen_ns }, &self.settings)
            .context("can't write to the table of flows")
            .map_err(EnforceError::Kernel)
    }
}
