//! From subjects to their rules: the maps that the kernel looks a packet up in.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use aya::maps::MapError;
use ipnet::IpNet;
use portcullis_common::gate;
use portcullis_common::net::{FlowInfo, FlowKey, TCP, UDP};
use portcullis_common::policy::{
    ConjunctionKey, FingerprintRules, NO_RULE, PrefixKey, PrefixRules,
};
use portcullis_common::settings::{Settings, feature};

use super::addresses::{addr, network_of, prefix_key};
use super::conjunctions::Conjunctions;
use super::known::Known;
use super::prefixes::Prefixes;
use super::shared::Shared;
use super::table::{Table, is_full};
use crate::enforce::{EnforceError, Flow, Target};

pub(super) struct Subjects {
    pub prefixes: Prefixes,
    pub flow_rules: Table<FlowKey, u32>,
    pub fingerprints: Table<u64, FingerprintRules>,
    pub conjunctions: Conjunctions,
    pub known: Known,
    pub flows: Table<FlowKey, FlowInfo>,
    pub flow_gate: Shared<u64>,
}

impl Subjects {
    /// Lets the chain of rules that begins at `head` hold for `target`; [`NO_RULE`] for none.
    pub fn set(
        &mut self,
        target: &Target,
        head: u32,
        settings: &Shared<Settings>,
    ) -> Result<(), EnforceError> {
        match target {
            Target::Network(net) => {
                let key = prefix_key(*net);
                let listed = self.prefixes.get(&key).listed;
                let rules = PrefixRules { own: head, listed };
                self.prefixes.set(key, rules, settings).map_err(EnforceError::Kernel)
            }
            Target::Fingerprint(ja4) => {
                for fingerprint in self.keys_for(ja4, head)? {
                    let mut rules = self.rules_of(fingerprint)?;
                    rules.own = head;
                    self.set_fingerprint(fingerprint, rules, settings)?;
                }
                self.forget_stand_in(ja4)
            }
            Target::Conjunction(net, ja4) => {
                for fingerprint in self.keys_for(ja4, head)? {
                    self.set_conjunction(*net, fingerprint, head, settings)?;
                }
                self.forget_stand_in(ja4)
            }
            Target::Flow(flow) => {
                let key = flow_key(flow);
                if head == NO_RULE {
                    self.flow_rules.remove(&key).map_err(refused("rules of flows"))?;
                } else {
                    open_flow_gate(&self.flow_gate, &key, &settings.get(0));
                    self.flow_rules.insert(key, head).map_err(refused("rules of flows"))?;
                    settings.update(0, |settings| settings.features |= feature::FLOW_RULES);
                }
                Ok(())
            }
        }
    }

    /// The keys of `ja4`; if rules are to hold for it, at least one.
    fn keys_for(&mut self, ja4: &Arc<str>, head: u32) -> Result<Vec<u64>, EnforceError> {
        if head != NO_RULE {
            self.known.stand_in(ja4).map_err(refused("fingerprints seen"))?;
        }
        Ok(self.known.keys_of(ja4))
    }

    fn rules_of(&self, fingerprint: u64) -> Result<FingerprintRules, EnforceError> {
        let rules = self.fingerprints.get(&fingerprint).map_err(refused("fingerprints"))?;
        Ok(rules.unwrap_or_default())
    }

    fn set_conjunction(
        &mut self,
        net: IpNet,
        fingerprint: u64,
        head: u32,
        settings: &Shared<Settings>,
    ) -> Result<(), EnforceError> {
        let PrefixKey { addr, prefix_len } = prefix_key(net);
        let key = ConjunctionKey { fingerprint, addr, prefix_len, reserved: 0 };
        self.conjunctions.set(key, head).map_err(refused("conjunctions"))?;
        let mut rules = self.rules_of(fingerprint)?;
        rules.lengths = self.conjunctions.lengths_with(fingerprint);
        self.set_fingerprint(fingerprint, rules, settings)
    }

    /// Flows that have the fingerprint already come under its rules too.
    fn set_fingerprint(
        &mut self,
        fingerprint: u64,
        rules: FingerprintRules,
        settings: &Shared<Settings>,
    ) -> Result<(), EnforceError> {
        if rules == FingerprintRules::default() {
            self.fingerprints.remove(&fingerprint).map_err(refused("fingerprints"))?;
            return Ok(());
        }
        let is_new = self.rules_of(fingerprint)? == FingerprintRules::default();
        self.fingerprints.insert(fingerprint, rules).map_err(refused("fingerprints"))?;
        if is_new {
            settings.update(0, |settings| {
                settings.features |= feature::FLOW_RULES | feature::FINGERPRINT_RULES;
            });
            let now = settings.get(0);
            for (flow, info) in self.flows.entries()? {
                if info.fingerprint == fingerprint {
                    open_flow_gate(&self.flow_gate, &flow, &now);
                }
            }
        }
        Ok(())
    }

    /// Remembers the JA4 of a fingerprint; whether that is news.
    pub fn learn(&mut self, fingerprint: u64, ja4: &str) -> Result<bool, EnforceError> {
        if self.known.has(fingerprint, ja4) {
            return Ok(false);
        }
        let fingerprints = &self.fingerprints;
        // One that can't be looked up may have rules.
        let has_rules = |key| fingerprints.get(&key).map_or(true, |rules| rules.is_some());
        self.known.learn(fingerprint, ja4, has_rules).map_err(refused("fingerprints seen"))?;
        Ok(true)
    }

    /// Forgets the JA4 of a fingerprint without rules; whether it did.
    pub fn forget(&mut self, fingerprint: u64, ja4: &str) -> Result<bool, EnforceError> {
        if self.fingerprints.get(&fingerprint).map_err(refused("fingerprints"))?.is_some() {
            return Ok(false);
        }
        self.known.forget(fingerprint, ja4).map_err(refused("fingerprints seen"))?;
        Ok(true)
    }

    /// Notes what is known of a flow, and lets its packets through the gate to the rules of its
    /// fingerprint, if there are any.
    pub fn note(
        &mut self,
        flow: FlowKey,
        info: FlowInfo,
        settings: &Shared<Settings>,
    ) -> Result<(), MapError> {
        self.flows.insert(flow, info)?;
        if self.fingerprints.get(&info.fingerprint)?.is_some() {
            open_flow_gate(&self.flow_gate, &flow, &settings.get(0));
        }
        Ok(())
    }

    /// A JA4 that no rule names any more needs nothing to stand in for its fingerprints.
    fn forget_stand_in(&mut self, ja4: &str) -> Result<(), EnforceError> {
        if let Some(key) = self.known.stand_in_of(ja4)
            && self.rules_of(key)? == FingerprintRules::default()
        {
            self.known.forget_stand_in(ja4).map_err(refused("fingerprints seen"))?;
        }
        Ok(())
    }

    /// Copies what `old` knows of fingerprints and flows, but no rules.
    pub fn copy_seen(&mut self, old: &Self) -> Result<()> {
        for (fingerprint, ja4) in old.known.seen() {
            self.learn(fingerprint, ja4)?;
        }
        let (flows, seen): (Vec<_>, Vec<_>) = old.flows.entries()?.into_iter().unzip();
        self.flows.fill(&flows, &seen)
    }

    /// Turns features off that no rule needs, and makes the gate of flows anew, of one generation:
    /// the other lets pass what this one misses meanwhile.
    pub fn tidy(&self, generation: u32, settings: &Shared<Settings>) -> Result<()> {
        let fingerprints = self.fingerprints.entries()?;
        let flow_rules = self.flow_rules.entries()?;
        let mut features = 0;
        if !fingerprints.is_empty() {
            features |= feature::FLOW_RULES | feature::FINGERPRINT_RULES;
        }
        if !flow_rules.is_empty() {
            features |= feature::FLOW_RULES;
        }
        let turned_off = (feature::FLOW_RULES | feature::FINGERPRINT_RULES) & !features;
        settings.update(0, |settings| settings.features &= !turned_off);
        let now = settings.get(0);
        let words = now.flow_gate_words;
        let generation = generation & 1;
        (0..words).for_each(|at| self.flow_gate.set(2 * at + generation, 0));
        for (flow, _) in &flow_rules {
            open_flow_gate(&self.flow_gate, flow, &now);
        }
        if !fingerprints.is_empty() {
            let fingerprints: HashSet<u64> = fingerprints.iter().map(|(key, _)| *key).collect();
            let named = |info: &FlowInfo| fingerprints.contains(&info.fingerprint);
            let flows = self.flows.entries().context("can't read the flows")?;
            for (flow, _) in flows.iter().filter(|(_, info)| named(info)) {
                open_flow_gate(&self.flow_gate, flow, &now);
            }
        }
        Ok(())
    }
}

fn open_flow_gate(gate: &Shared<u64>, flow: &FlowKey, settings: &Settings) {
    let bit = gate::flow_bit(flow.hash(settings.seed), settings.flow_gate_words);
    gate.set_bits(bit.word, bit.mask);
    gate.set_bits(bit.word + 1, bit.mask);
}

pub(super) fn flow_key(flow: &Flow) -> FlowKey {
    FlowKey {
        local: addr(flow.server.ip()),
        remote: addr(flow.client.ip()),
        local_port: flow.server.port(),
        remote_port: flow.client.port(),
        protocol: if flow.is_udp { UDP } else { TCP },
    }
}

pub fn flow_of(key: &FlowKey) -> Flow {
    let (server, client) = super::addresses::flow_addresses(key);
    Flow { client, server, is_udp: key.protocol == UDP }
}

/// The target of a conjunction's key, by the JA4 of its fingerprint.
pub(super) fn conjunction_of(key: &ConjunctionKey, ja4: Arc<str>) -> Option<Target> {
    Some(Target::Conjunction(network_of(key.addr, key.prefix_len)?, ja4))
}

/// What the caller is told when a map of `what` does not take an element.
fn refused(what: &'static str) -> impl FnOnce(MapError) -> EnforceError {
    move |error| {
        if is_full(&error) {
            EnforceError::NoRoom { what }
        } else {
            EnforceError::Kernel(
                anyhow::Error::new(error).context(format!("can't write to the table of {what}")),
            )
        }
    }
}
