//! The policy as it is pinned: taken over by the next agent, or copied into maps of other sizes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapData;
use portcullis_common::names::pinned;
use portcullis_common::policy::{
    Limit, MAX_RULES_OF_SUBJECT, NO_RULE, PrefixKey, PrefixRules, Rule, action, flag, origin,
};
use portcullis_common::settings::Settings;

use super::addresses::network_of;
use super::allowed::Allowed;
use super::book::{Book, Entry};
use super::policy::KernelPolicy;
use super::prefixes::Prefixes;
use super::rules::effect_of;
use super::scopes::Scopes;
use super::shared::Shared;
use super::slots::Slots;
use super::subjects::{Subjects, conjunction_of, flow_of, ja4_of};
use super::table::Table;
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
            Shared::new(&map(pinned::V4_GATE)?)?,
            Shared::new(&map(pinned::PREFIX_GATE)?)?,
            &settings,
            sizes.blocks,
        )?;
        let known = Table::new(map(pinned::KNOWN)?)?;
        let mut keys = HashMap::<Arc<str>, Vec<u64>>::new();
        for (fingerprint, name) in known.entries()? {
            if let Some(ja4) = ja4_of(&name) {
                keys.entry(ja4).or_default().push(fingerprint);
            }
        }
        let subjects = Subjects {
            prefixes,
            flow_rules: Table::new(map(pinned::FLOW_RULES)?)?,
            fingerprints: Table::new(map(pinned::FINGERPRINTS)?)?,
            conjunctions: Table::new(map(pinned::CONJUNCTIONS)?)?,
            known,
            flows: Table::new(map(pinned::FLOWS)?)?,
            flow_gate: Shared::new(&map(pinned::FLOW_GATE)?)?,
            keys,
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
        self.scopes.copy_from(&old.scopes, &self.settings)?;
        for (ja4, fingerprints) in &old.subjects.keys {
            for fingerprint in fingerprints {
                self.subjects.learn(*fingerprint, ja4)?;
            }
        }
        let blocks = old.blocks()?;
        ensure!(
            blocks.len() <= self.capacity as usize,
            "kernel.max_blocks is {}, but {} blocks are in force",
            self.capacity,
            blocks.len()
        );
        for block in &blocks {
            let (name, id) = (block.name(), block.rule_id);
            let new = NewBlock {
                ttl: block.remaining,
                rule_id: id,
                origin: block.origin,
                effect: block.effect,
                count_only: block.count_only,
                service: block.service.clone(),
            };
            self.block(block.target.clone(), new).context("can't carry a block over")?;
            if let Ok(at) = self.book.position(&name)
                && let Some(entry) = self.book.of(&name.target).get(at)
            {
                self.rules.update(entry.index, |rule| {
                    (rule.packets, rule.bytes) = (block.packets, block.bytes);
                });
            }
        }
        self.copy_lists(old)?;
        Ok(blocks.len())
    }

    fn copy_lists(&mut self, old: &Self) -> Result<()> {
        let mut moved = HashMap::new();
        for (id, index) in &old.lists {
            let to = self.rules.insert(old.rules.get(*index)).context("no room for a list")?;
            moved.insert(*index, to);
            self.lists.insert(*id, to);
        }
        let listed: BTreeMap<PrefixKey, u32> = (old.subjects.prefixes.entries()?.into_iter())
            .filter_map(|(key, rules)| Some((key, *moved.get(&rules.listed)?)))
            .collect();
        Ok(self.rebuild_prefixes(|_| NO_RULE, &listed)?)
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
    let (prefix_gate, flow_gate) = (entries(pinned::PREFIX_GATE)?, entries(pinned::FLOW_GATE)?);
    let bucket_sets = entries(pinned::BUCKETS)?;
    settings.update(0, |settings| {
        settings.prefix_gate_words = prefix_gate / 2;
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
    for (key, PrefixRules { own, listed }) in subjects.prefixes.entries()? {
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
    let ja4_of: HashMap<u64, Arc<str>> = (subjects.keys.iter())
        .flat_map(|(ja4, all)| all.iter().map(|fingerprint| (*fingerprint, ja4.clone())))
        .collect();
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
