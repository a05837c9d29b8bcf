//! The policy as it is pinned: taken over by the next agent, or copied into maps of other sizes.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapData;
use portcullis_common::names::pinned;
use portcullis_common::policy::{
    EVERYWHERE, Limit, MAX_RULES_OF_SUBJECT, NO_RULE, PrefixKey, PrefixRules, Rule, action, flag,
    origin,
};
use portcullis_common::settings::Settings;

use super::addresses::network_of;
use super::allowed::Allowed;
use super::book::{Book, Entry, name_of};
use super::clock::coarse_now;
use super::conjunctions::Conjunctions;
use super::known::Known;
use super::policy::KernelPolicy;
use super::prefixes::{Gates, Prefixes};
use super::rules::effect_of;
use super::scopes::Scopes;
use super::shared::Shared;
use super::slots::Slots;
use super::subjects::{Subjects, conjunction_of, flow_of};
use super::table::Table;
use crate::decision::Origin;
use crate::enforce::{NewBlock, PolicyMaps as _, Target};

/// Sizes that the configuration sets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub blocks: u32,
    pub reserve: u32,
}

impl KernelPolicy {
    /// Opens what is pinned in `dir`, and prepares maps that are new.
    pub(super) fn open(dir: &Path, sizes: Sizes) -> Result<Self> {
        let map = |name: &str| -> Result<MapData> {
            let path = dir.join(name);
            MapData::from_pin(&path)
                .with_context(|| format!("can't open the pinned map {}", path.display()))
        };
        let settings = Shared::<Settings>::new(&map(pinned::SETTINGS)?)?;
        prepare(&settings, &map)?;
        let scopes = Scopes::new(
            map(pinned::SCOPE_NAMES)?,
            Shared::new(&map(pinned::PORTS)?)?,
            Table::new(map(pinned::SCOPE_ADDRESSES)?)?,
            &settings.get(0),
        )?;
        let prefixes = Prefixes::new(
            map(pinned::PREFIXES)?,
            Gates {
                v4: Shared::new(&map(pinned::V4_GATE)?)?,
                v4_lengths: Shared::new(&map(pinned::V4_LENGTHS)?)?,
                v6: Shared::new(&map(pinned::V6_GATE)?)?,
                v6_lengths: Shared::new(&map(pinned::V6_LENGTHS)?)?,
                v6_wide: Shared::new(&map(pinned::V6_WIDE)?)?,
            },
            &settings,
            sizes.blocks,
        )?;
        let subjects = Subjects {
            prefixes,
            flow_rules: Table::new(map(pinned::FLOW_RULES)?)?,
            fingerprints: Table::new(map(pinned::FINGERPRINTS)?)?,
            conjunctions: Conjunctions::new(map(pinned::CONJUNCTIONS)?)?,
            known: Known::new(map(pinned::KNOWN)?)?,
            flows: Table::new(map(pinned::FLOWS)?)?,
            flow_gate: Shared::new(&map(pinned::FLOW_GATE)?)?,
        };
        let rules = Shared::<Rule>::new(&map(pinned::RULES)?)?;
        let (book, lists) = recall(&subjects, &scopes, &rules)?;
        let mut taken: HashSet<u32> = book.iter().map(|(_, entry)| entry.index).collect();
        taken.extend(lists.values());
        let limits: HashSet<u32> = book.iter().filter_map(|(_, entry)| entry.limit).collect();
        Ok(Self {
            rules: Slots::new(rules, |index| taken.contains(&index)),
            limits: Slots::new(Shared::<Limit>::new(&map(pinned::LIMITS)?)?, |index| {
                limits.contains(&index)
            }),
            subjects,
            scopes,
            allowed: Allowed::new(map(pinned::ALLOW)?)?,
            settings,
            book,
            lists,
            capacity: sizes.blocks,
            reserve: sizes.reserve,
            sweeps: 0,
        })
    }

    /// Copies what holds in `old` into these maps, which are new.
    pub(super) fn copy_from(&mut self, old: &Self) -> Result<usize> {
        let before = old.settings.get(0);
        self.settings.update(0, |settings| {
            settings.seed = before.seed;
            settings.features = before.features;
        });
        // So far it is empty, and by another seed.
        self.rebuild_prefixes(|_| NO_RULE, Vec::new())?;
        self.allowed.replace(old.allowed.nets().clone())?;
        self.scopes.copy_from(&old.scopes, &self.settings)?;
        self.subjects.copy_seen(&old.subjects)?;
        let now = coarse_now();
        let live: Vec<_> = old.book.iter().filter(|(_, entry)| entry.expires_ns > now).collect();
        ensure!(
            live.len() <= self.capacity as usize,
            "kernel.max_blocks is {}, but {} blocks are in force",
            self.capacity,
            live.len()
        );
        for (target, entry) in &live {
            self.copy_rule(old, target, entry).context("can't carry a block over")?;
        }
        self.copy_lists(old)?;
        Ok(live.len())
    }

    /// All of the rule, but for where it lies and what it leads to.
    fn copy_rule(&mut self, old: &Self, target: &Target, entry: &Entry) -> Result<()> {
        let from = old.rules.get(entry.index);
        let limit = entry.limit.map(|limit| old.limits.get(limit));
        let block = NewBlock {
            ttl: None,
            rule_id: from.id,
            // None is refused for the sake of the reserve: it was in force.
            origin: Origin::Operator,
            effect: effect_of(&from, limit.as_ref()),
            count_only: entry.count_only,
            service: entry.service.clone(),
        };
        self.block(target.clone(), block)?;
        let name = name_of(target, entry);
        let at = self.book.position(&name).ok().context("the rule is not there")?;
        let new = self.book.of(target).get(at).context("the rule is not there")?.clone();
        self.rules.update(new.index, |to| {
            let Rule { scopes, flags, next, limit, .. } = *to;
            *to = Rule { scopes, flags, next, limit, ..from };
        });
        if let (Some(at), Some(limit)) = (new.limit, limit) {
            self.limits.update(at, |to| *to = limit);
        }
        self.book.renew(target, at, entry.expires_ns, entry.count_only);
        Ok(())
    }

    fn copy_lists(&mut self, old: &Self) -> Result<()> {
        let mut moved = HashMap::new();
        for (id, index) in &old.lists {
            let rule = old.rules.get(*index);
            // The same service can have another number here.
            let service = old.scopes.service_of(rule.scopes);
            let scopes = match service {
                _ if rule.scopes == EVERYWHERE => EVERYWHERE,
                Some(service) => self.scopes.bits_of(Some(&service)).unwrap_or(0),
                None => 0,
            };
            let rule = Rule { scopes, ..rule };
            let to = self.rules.insert(rule).context("no room for a list")?;
            moved.insert(*index, to);
            self.lists.insert(*id, to);
        }
        let listed: Vec<(PrefixKey, u32)> = (old.subjects.prefixes.entries().into_iter())
            .filter_map(|(key, rules)| Some((key, *moved.get(&rules.listed)?)))
            .collect();
        Ok(self.rebuild_prefixes(|_| NO_RULE, listed)?)
    }
}

/// Gives maps that are new their sizes and their seed.
fn prepare(settings: &Shared<Settings>, map: &impl Fn(&str) -> Result<MapData>) -> Result<()> {
    if settings.get(0).seed != [0; 2] {
        return Ok(());
    }
    let entries = |name: &str| -> Result<u32> {
        Ok(map(name)?.info().context("can't ask for the size of a map")?.max_entries())
    };
    let mut seed = [0; 2];
    for half in &mut seed {
        *half = getrandom::u64().context("no random numbers")? | 1;
    }
    let flow_gate = entries(pinned::FLOW_GATE)?;
    let bucket_sets = entries(pinned::BUCKETS)?;
    settings.update(0, |settings| {
        settings.flow_gate_words = flow_gate / 2;
        settings.bucket_sets = bucket_sets;
        settings.seed = seed;
    });
    Ok(())
}

/// What is in the maps, by the names that the agent has for it.
fn recall(
    subjects: &Subjects,
    scopes: &Scopes,
    rules: &Shared<Rule>,
) -> Result<(Book, HashMap<u64, u32>)> {
    let mut book = Book::default();
    let mut lists = HashMap::new();
    for (key, PrefixRules { own, listed }) in subjects.prefixes.entries() {
        if listed != NO_RULE && listed < rules.len() {
            let rule = rules.get(listed);
            if rule.origin == origin::LISTED {
                lists.insert(rule.id, listed);
            }
        }
        if let Some(net) = network_of(key.addr, key.prefix_len) {
            recall_chain(&mut book, &Target::Network(net), own, scopes, rules);
        }
    }
    for (flow, head) in subjects.flow_rules.entries()? {
        recall_chain(&mut book, &Target::Flow(flow_of(&flow)), head, scopes, rules);
    }
    let ja4_of: HashMap<u64, Arc<str>> = subjects.known.iter().collect();
    for (fingerprint, said) in subjects.fingerprints.entries()? {
        if let Some(ja4) = ja4_of.get(&fingerprint) {
            let target = Target::Fingerprint(ja4.clone());
            recall_chain(&mut book, &target, said.own, scopes, rules);
        }
    }
    for (key, head) in subjects.conjunctions.entries()? {
        if let Some(ja4) = ja4_of.get(&key.fingerprint)
            && let Some(target) = conjunction_of(&key, ja4.clone())
        {
            recall_chain(&mut book, &target, head, scopes, rules);
        }
    }
    Ok((book, lists))
}

fn recall_chain(
    book: &mut Book,
    target: &Target,
    head: u32,
    scopes: &Scopes,
    rules: &Shared<Rule>,
) {
    // Several fingerprints can have one JA4, and share its rules.
    if !book.of(target).is_empty() {
        return;
    }
    let mut index = head;
    for at in 0..MAX_RULES_OF_SUBJECT {
        if index == NO_RULE || index >= rules.len() {
            return;
        }
        let rule = rules.get(index);
        let entry = Entry {
            kind: effect_of(&rule, Some(&Limit::default())).kind(),
            service: scopes.service_of(rule.scopes),
            index,
            limit: (rule.action == action::LIMIT).then_some(rule.limit),
            expires_ns: rule.expires_ns,
            count_only: rule.flags & flag::OBSERVE != 0,
        };
        book.insert(target, at, entry);
        index = rule.next;
    }
}
