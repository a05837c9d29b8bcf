//! The policy maps behind the trait that `enforce` writes through.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use portcullis_common::policy::{
    EVERYWHERE, Limit, MAX_RULES_OF_SUBJECT, NEVER_EXPIRES, NO_RULE, PrefixKey, PrefixRules, Rule,
    flag, origin,
};
use portcullis_common::settings::{Settings, feature};

use super::addresses::{network_of, prefix_key};
use super::allowed::{Allowed, Nets};
use super::book::{Book, Entry};
use super::clock::coarse_now;
use super::rules::{effect_of, limit_of, written};
use super::scopes::Scopes;
use super::shared::Shared;
use super::slots::Slots;
use super::subjects::Subjects;
use crate::decision::Origin;
use crate::enforce::{
    Block, Effect, EnforceError, Kind, List, NewBlock, PolicyMaps, RuleName, Scope, Tally, Target,
    Usage,
};

pub struct KernelPolicy {
    pub(super) rules: Slots<Rule>,
    pub(super) limits: Slots<Limit>,
    pub(super) subjects: Subjects,
    pub(super) scopes: Scopes,
    pub(super) allowed: Allowed,
    pub(super) settings: Shared<Settings>,
    pub(super) book: Book,
    /// The rule of each list, by its number.
    pub(super) lists: HashMap<u64, u32>,
    pub(super) capacity: u32,
    pub(super) reserve: u32,
    pub(super) sweeps: u32,
}

/// One sweep of so many also looks after the gate of flows.
const SWEEPS_TO_TIDY: u32 = 30;

impl PolicyMaps for KernelPolicy {
    fn block(&mut self, target: impl Into<Target>, block: NewBlock) -> Result<(), EnforceError> {
        let target = canonical(target.into());
        let name = RuleName { target, kind: block.effect.kind(), service: block.service.clone() };
        match self.book.position(&name) {
            Ok(at) => self.renew(&name, at, &block),
            Err(_) => self.insert(&name, &block),
        }
    }

    fn remove(&mut self, name: &RuleName) -> Result<(), EnforceError> {
        let name = RuleName { target: canonical(name.target.clone()), ..name.clone() };
        match self.book.position(&name) {
            Ok(at) => self.remove_at(&name.target, at),
            Err(_) => Err(EnforceError::NotBlocked(name.target)),
        }
    }

    fn unblock(&mut self, target: impl Into<Target>) -> Result<(), EnforceError> {
        let target = canonical(target.into());
        if self.book.of(&target).is_empty() {
            return Err(EnforceError::NotBlocked(target));
        }
        while !self.book.of(&target).is_empty() {
            self.remove_at(&target, 0)?;
        }
        Ok(())
    }

    fn blocks(&self) -> Result<Vec<Block>, EnforceError> {
        let now = coarse_now();
        let live = self.book.iter().filter(|(_, entry)| entry.expires_ns > now);
        Ok(live.map(|(target, entry)| self.block_of(target, entry, now)).collect())
    }

    fn sweep(&mut self) -> Result<u32, EnforceError> {
        let now = coarse_now();
        let mut swept = 0;
        while let Some(name) = self.book.expired(now) {
            self.remove(&name)?;
            swept += 1;
        }
        if self.subjects.prefixes.are_gates_stale() {
            self.rebuild_prefixes(|rules| rules.listed, Vec::new())?;
        }
        if self.sweeps.is_multiple_of(SWEEPS_TO_TIDY) {
            self.subjects.tidy(self.sweeps / SWEEPS_TO_TIDY, &self.settings)?;
        }
        self.sweeps = self.sweeps.wrapping_add(1);
        Ok(swept)
    }

    fn usage(&self) -> Usage {
        Usage { used: self.book.len(), capacity: self.capacity, reserve: self.reserve }
    }

    fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for (_, entry) in self.book.iter() {
            for (kind, count) in Kind::ALL.iter().zip(&mut tally.rules) {
                *count += u64::from(*kind == entry.kind);
            }
            if let Some(limit) = entry.limit {
                let limit = self.limits.get(limit);
                tally.exceeded = tally.exceeded.saturating_add(limit.exceeded);
                tally.no_room = tally.no_room.saturating_add(limit.no_room);
            }
        }
        tally
    }

    fn set_lists(&mut self, lists: &[List]) -> Result<(), EnforceError> {
        let mut listed = Vec::new();
        let mut kept = HashMap::new();
        for list in lists {
            let index = self.rule_of_list(&list.rule)?;
            kept.insert(list.rule.rule_id, index);
            for net in &list.networks {
                listed.push((prefix_key(*net), index));
            }
        }
        self.rebuild_prefixes(|_| NO_RULE, listed)?;
        let gone: Vec<u32> = (self.lists.iter())
            .filter(|(id, _)| !kept.contains_key(*id))
            .map(|(_, index)| *index)
            .collect();
        gone.into_iter().for_each(|index| self.free_rule(index, None));
        self.lists = kept;
        Ok(())
    }

    fn set_scopes(&mut self, scopes: &[Scope]) -> Result<(), EnforceError> {
        let own = self.book.iter().map(|(_, entry)| entry.index);
        let used = own.chain(self.lists.values().copied());
        let used = used.map(|index| self.rules.get(index).scopes);
        let used = used.filter(|bits| *bits != EVERYWHERE).fold(0, |all, bits| all | bits);
        Ok(self.scopes.set(scopes, used, &self.settings)?)
    }

    fn blocks_of(&self, ja4: &str) -> Vec<Block> {
        let now = coarse_now();
        let all = self.book.naming(ja4);
        let all = all.flat_map(|(target, rules)| rules.iter().map(move |rule| (target, rule)));
        let live = all.filter(|(_, entry)| entry.expires_ns > now);
        live.map(|(target, entry)| self.block_of(target, entry, now)).collect()
    }

    fn learn(&mut self, fingerprint: u64, ja4: &str) -> Result<bool, EnforceError> {
        if !self.subjects.learn(fingerprint, ja4)? {
            return Ok(false);
        }
        for (target, rules) in self.book.naming(ja4) {
            let head = rules.first().map_or(NO_RULE, |first| first.index);
            self.subjects.set(target, head, &self.settings)?;
        }
        Ok(true)
    }

    fn set_allowed(&mut self, nets: &[IpNet]) -> Result<(), EnforceError> {
        let nets = Nets::of(nets);
        // First the flags of rules that the list now stands before, then the list, then the flags
        // that are needed no longer.
        self.flag_allowed(|net| nets.intersect(net), true);
        self.allowed.replace(nets.clone())?;
        self.flag_allowed(|net| !nets.intersect(net), false);
        Ok(())
    }

    fn set_failsafe(&mut self, tcp: &[u16], udp: &[u16]) -> Result<(), EnforceError> {
        self.scopes.set_failsafe(tcp, udp);
        Ok(())
    }

    fn set_tunnels(&mut self, judged: bool) -> Result<(), EnforceError> {
        self.settings.update(0, |settings| {
            settings.features &= !feature::TUNNELS;
            if judged {
                settings.features |= feature::TUNNELS;
            }
        });
        Ok(())
    }
}

impl KernelPolicy {
    fn insert(&mut self, name: &RuleName, block: &NewBlock) -> Result<(), EnforceError> {
        if self.book.of(&name.target).len() >= MAX_RULES_OF_SUBJECT {
            // Some may have expired.
            self.sweep()?;
        }
        if self.book.of(&name.target).len() >= MAX_RULES_OF_SUBJECT {
            let target = name.target.clone();
            return Err(EnforceError::TooManyRules { target, limit: MAX_RULES_OF_SUBJECT });
        }
        self.make_room(block)?;
        let limit = match limit_of(block.effect) {
            Some(limit) => {
                let index = self.limits.insert(limit);
                Some(index.ok_or(EnforceError::NoRoom { what: "limits" })?)
            }
            None => None,
        };
        // Making room may have taken rules of the target away.
        let Err(at) = self.book.position(name) else {
            return Err(EnforceError::Kernel(anyhow::anyhow!("two rules of one name")));
        };
        let next = self.book.of(&name.target).get(at).map_or(NO_RULE, |entry| entry.index);
        let rule = match self.new_rule(&name.target, block) {
            Ok(rule) => Rule { next, limit: limit.unwrap_or(0), ..rule },
            Err(error) => {
                limit.into_iter().for_each(|limit| self.limits.remove(limit));
                return Err(error);
            }
        };
        let Some(index) = self.rules.insert(rule) else {
            limit.into_iter().for_each(|limit| self.limits.remove(limit));
            return Err(EnforceError::Full(self.usage()));
        };
        if let Err(error) = self.link(&name.target, at, index) {
            // A JA4 can have several keys, of which the first may lead to the rule already.
            self.link(&name.target, at, next)?;
            self.free_rule(index, limit);
            return Err(error);
        }
        let entry = Entry {
            kind: name.kind,
            service: name.service.clone(),
            index,
            limit,
            expires_ns: rule.expires_ns,
            count_only: block.count_only,
        };
        self.book.insert(&name.target, at, entry);
        Ok(())
    }

    /// Lets what stands before place `at` of the target's rules lead to the one at `index`.
    fn link(&mut self, target: &Target, at: usize, index: u32) -> Result<(), EnforceError> {
        match at.checked_sub(1).and_then(|before| self.book.of(target).get(before)) {
            Some(before) => {
                self.rules.update(before.index, |rule| rule.next = index);
                Ok(())
            }
            None => self.subjects.set(target, index, &self.settings),
        }
    }

    fn renew(&mut self, name: &RuleName, at: usize, block: &NewBlock) -> Result<(), EnforceError> {
        let Some(entry) = self.book.of(&name.target).get(at).cloned() else { return Ok(()) };
        let new = self.new_rule(&name.target, block)?;
        let old = self.rules.get(entry.index);
        // The same rule, but for another time: its counters go on. One that the configuration
        // lists is the same over restarts too.
        let is_same = old.id == new.id
            || old.origin == origin::CONFIGURED && new.origin == origin::CONFIGURED;
        self.rules.update(entry.index, |rule| {
            let (packets, bytes) = if is_same { (rule.packets, rule.bytes) } else { (0, 0) };
            *rule = Rule { packets, bytes, next: rule.next, limit: rule.limit, ..new };
        });
        if let (Some(limit), Some(new)) = (entry.limit, limit_of(block.effect)) {
            self.limits.update(limit, |limit| *limit = renewed_limit(limit, new, is_same));
        }
        self.book.renew(&name.target, at, new.expires_ns, block.count_only);
        Ok(())
    }

    fn new_rule(&self, target: &Target, block: &NewBlock) -> Result<Rule, EnforceError> {
        let scopes = self.scopes.bits_of(block.service.as_deref());
        let no_scope = || EnforceError::NoScope(block.service.clone().unwrap_or_default());
        let mut rule = written(block, scopes.ok_or_else(no_scope)?);
        let may_be_allowed = match target {
            Target::Network(net) | Target::Conjunction(net, _) => {
                self.allowed.nets().intersect(*net)
            }
            Target::Fingerprint(_) | Target::Flow(_) => true,
        };
        if may_be_allowed {
            rule.flags |= flag::CHECK_ALLOWED;
        }
        Ok(rule)
    }

    fn remove_at(&mut self, target: &Target, at: usize) -> Result<(), EnforceError> {
        let entries = self.book.of(target);
        let next = entries.get(at + 1).map_or(NO_RULE, |entry| entry.index);
        self.link(target, at, next)?;
        if let Some(entry) = self.book.remove(target, at) {
            self.free_rule(entry.index, entry.limit);
        }
        Ok(())
    }

    /// Nothing leads to the rule any more.
    fn free_rule(&mut self, index: u32, limit: Option<u32>) {
        // A packet that has come upon it already finds it expired, not half gone.
        self.rules.update(index, |rule| rule.expires_ns = 0);
        self.rules.remove(index);
        limit.into_iter().for_each(|limit| self.limits.remove(limit));
    }

    /// Makes sure that there is room for one more rule: first what has expired goes, then one that
    /// only counts, if the new one is to do more.
    fn make_room(&mut self, block: &NewBlock) -> Result<(), EnforceError> {
        if self.has_room(block.origin) {
            return Ok(());
        }
        self.sweep()?;
        if !block.count_only
            && !self.has_room(block.origin)
            && let Some(observed) = self.book.observed()
        {
            self.remove(&observed)?;
        }
        if self.has_room(block.origin) { Ok(()) } else { Err(EnforceError::Full(self.usage())) }
    }

    fn has_room(&self, origin: Origin) -> bool {
        let limit = match origin {
            Origin::Operator | Origin::Configured => self.capacity,
            Origin::Automatic => self.capacity.saturating_sub(self.reserve),
        };
        self.book.len() < limit
    }

    fn block_of(&self, target: &Target, entry: &Entry, now: u64) -> Block {
        let rule = self.rules.get(entry.index);
        let limit = entry.limit.map(|limit| self.limits.get(limit));
        Block {
            target: target.clone(),
            effect: effect_of(&rule, limit.as_ref()),
            service: entry.service.clone(),
            remaining: (entry.expires_ns != NEVER_EXPIRES)
                .then(|| Duration::from_nanos(entry.expires_ns.saturating_sub(now))),
            rule_id: rule.id,
            origin: Origin::from_kernel(rule.origin),
            count_only: entry.count_only,
            packets: rule.packets,
            bytes: rule.bytes,
            exceeded: limit.map_or(0, |limit| limit.exceeded),
            no_room: limit.map_or(0, |limit| limit.no_room),
        }
    }

    /// The slot of a list's rule, which is written.
    fn rule_of_list(&mut self, block: &NewBlock) -> Result<u32, EnforceError> {
        if let Effect::Limit(_) | Effect::Steer = block.effect {
            return Err(EnforceError::Kernel(anyhow::anyhow!("lists only drop and count")));
        }
        let any: Target = Target::Fingerprint(Arc::from(""));
        let mut rule = self.new_rule(&any, block)?;
        rule.origin = origin::LISTED;
        match self.lists.get(&block.rule_id) {
            Some(&index) => {
                self.rules.update(index, |old| {
                    *old = Rule { packets: old.packets, bytes: old.bytes, ..rule };
                });
                Ok(index)
            }
            None => {
                let index =
                    self.rules.insert(rule).ok_or(EnforceError::NoRoom { what: "lists" })?;
                self.lists.insert(block.rule_id, index);
                Ok(index)
            }
        }
    }

    /// Makes the set of prefixes anew: what `kept` leaves of the listed ones, and `listed`. Where it names
    /// a prefix more than once, the first has the say.
    pub(super) fn rebuild_prefixes(
        &mut self,
        kept: impl Fn(&PrefixRules) -> u32,
        listed: Vec<(PrefixKey, u32)>,
    ) -> Result<(), EnforceError> {
        let listed = listed.into_iter();
        let mut all: Vec<_> =
            listed.map(|(key, listed)| (key, PrefixRules { own: NO_RULE, listed })).collect();
        for (key, rules) in self.subjects.prefixes.entries() {
            let rules = PrefixRules { own: rules.own, listed: kept(&rules) };
            if rules != PrefixRules::default() {
                all.push((key, rules));
            }
        }
        // Those of one prefix stay in their order.
        all.sort_by_key(|(key, _)| (key.addr.halves(), key.prefix_len));
        all.dedup_by(|(key, rules), (first, of_all)| {
            let is_same = key == first;
            if is_same {
                let or = |one, other| if one == NO_RULE { other } else { one };
                of_all.own = or(of_all.own, rules.own);
                of_all.listed = or(of_all.listed, rules.listed);
            }
            is_same
        });
        let spare = self.capacity;
        Ok(self.subjects.prefixes.replace(&all, spare, &self.settings)?)
    }

    /// Sets or clears the flag of the rules of networks that `which` picks.
    fn flag_allowed(&self, which: impl Fn(IpNet) -> bool, set: bool) {
        for (target, entry) in self.book.iter() {
            let (Target::Network(net) | Target::Conjunction(net, _)) = target else { continue };
            if which(*net) {
                self.rules.update(entry.index, |rule| {
                    rule.flags &= !flag::CHECK_ALLOWED;
                    if set {
                        rule.flags |= flag::CHECK_ALLOWED;
                    }
                });
            }
        }
    }
}

/// The limit `new` in the place of `old`; whether the rule is the same besides.
fn renewed_limit(old: &Limit, new: Limit, is_same: bool) -> Limit {
    let rate = |limit: &Limit| (limit.cost, limit.tolerance_ns, limit.unit, limit.client_prefix);
    let (exceeded, no_room) = if is_same { (old.exceeded, old.no_room) } else { (0, 0) };
    // An arrival time under another rate may lie too far ahead.
    let arrival_ns = if rate(old) == rate(&new) { old.arrival_ns } else { 0 };
    Limit { arrival_ns, exceeded, no_room, ..new }
}

/// One form for an IPv4 address and its mapped form, as they share a key.
fn canonical(target: Target) -> Target {
    let canonical = |net: IpNet| {
        let key = prefix_key(net);
        network_of(key.addr, key.prefix_len).unwrap_or(net)
    };
    match target {
        Target::Network(net) => Target::Network(canonical(net)),
        Target::Conjunction(net, ja4) => Target::Conjunction(canonical(net), ja4),
        Target::Fingerprint(_) | Target::Flow(_) => target,
    }
}
