//! What the agent remembers of the rules in the kernel.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use portcullis_common::policy::NEVER_EXPIRES;

use crate::enforce::{Kind, RuleName, Target};

/// One rule of a target.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub kind: Kind,
    pub service: Option<Arc<str>>,
    /// Its slot among the rules, and among the limits for one that has a limit.
    pub index: u32,
    pub limit: Option<u32>,
    pub expires_ns: u64,
    pub count_only: bool,
}

/// Rules by target, those of one target in the order in which they are applied.
#[derive(Default)]
pub(super) struct Book {
    by_target: HashMap<Target, Vec<Entry>>,
    /// Targets by the JA4 that they name.
    by_ja4: HashMap<Arc<str>, HashSet<Target>>,
    by_expiry: BTreeSet<(u64, RuleName)>,
    /// Rules that only count.
    observed: BTreeSet<RuleName>,
    len: u32,
}

impl Book {
    pub fn len(&self) -> u32 {
        self.len
    }

    pub fn of(&self, target: &Target) -> &[Entry] {
        self.by_target.get(target).map_or(&[], Vec::as_slice)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Target, &Entry)> {
        self.by_target.iter().flat_map(|(target, entries)| entries.iter().map(move |e| (target, e)))
    }

    /// The targets that name `ja4`, with their rules.
    pub fn naming(&self, ja4: &str) -> impl Iterator<Item = (&Target, &[Entry])> {
        let targets = self.by_ja4.get(ja4).into_iter().flatten();
        targets.map(|target| (target, self.of(target)))
    }

    /// Where among the target's rules the one of this name is, or else would be.
    pub fn position(&self, name: &RuleName) -> Result<usize, usize> {
        let wanted = (name.kind, &name.service);
        self.of(&name.target).binary_search_by(|entry| (entry.kind, &entry.service).cmp(&wanted))
    }

    pub fn insert(&mut self, target: &Target, at: usize, entry: Entry) {
        self.index(target, &entry);
        self.by_target.entry(target.clone()).or_default().insert(at, entry);
        if let Some(ja4) = target.ja4() {
            self.by_ja4.entry(Arc::clone(ja4)).or_default().insert(target.clone());
        }
        self.len += 1;
    }

    pub fn remove(&mut self, target: &Target, at: usize) -> Option<Entry> {
        let entries = self.by_target.get_mut(target)?;
        if at >= entries.len() {
            return None;
        }
        let entry = entries.remove(at);
        if entries.is_empty() {
            self.by_target.remove(target);
            self.forget_name(target);
        }
        self.len -= 1;
        self.unindex(target, &entry);
        Some(entry)
    }

    fn forget_name(&mut self, target: &Target) {
        let Some(ja4) = target.ja4() else { return };
        if let Some(targets) = self.by_ja4.get_mut(ja4) {
            targets.remove(target);
            if targets.is_empty() {
                self.by_ja4.remove(ja4);
            }
        }
    }

    /// Changes what may change while the rule stays where it is.
    pub fn renew(&mut self, target: &Target, at: usize, expires_ns: u64, count_only: bool) {
        let Some(entry) = self.by_target.get(target).and_then(|all| all.get(at)).cloned() else {
            return;
        };
        self.unindex(target, &entry);
        let renewed = Entry { expires_ns, count_only, ..entry };
        self.index(target, &renewed);
        if let Some(slot) = self.by_target.get_mut(target).and_then(|all| all.get_mut(at)) {
            *slot = renewed;
        }
    }

    /// A rule that has expired by `now_ns`.
    pub fn expired(&self, now_ns: u64) -> Option<RuleName> {
        let (expires_ns, name) = self.by_expiry.first()?;
        (*expires_ns <= now_ns).then(|| name.clone())
    }

    /// A rule that only counts.
    pub fn observed(&self) -> Option<RuleName> {
        self.observed.first().cloned()
    }

    fn index(&mut self, target: &Target, entry: &Entry) {
        let name = name_of(target, entry);
        if entry.count_only {
            self.observed.insert(name.clone());
        }
        if entry.expires_ns != NEVER_EXPIRES {
            self.by_expiry.insert((entry.expires_ns, name));
        }
    }

    fn unindex(&mut self, target: &Target, entry: &Entry) {
        let name = name_of(target, entry);
        self.observed.remove(&name);
        self.by_expiry.remove(&(entry.expires_ns, name));
    }
}

pub(super) fn name_of(target: &Target, entry: &Entry) -> RuleName {
    RuleName { target: target.clone(), kind: entry.kind, service: entry.service.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_found_by_their_ja4_as_long_as_they_have_rules() {
        let ja4 = "t13d1516h2_8daaf6152771_e5627efa2ab1";
        let [alone, within, address]: [Target; 3] =
            [ja4.to_owned(), format!("192.0.2.0/24 with {ja4}"), "192.0.2.7".to_owned()]
                .map(|text| text.parse().unwrap());
        let entry = |kind| Entry {
            kind,
            service: None,
            index: 1,
            limit: None,
            expires_ns: NEVER_EXPIRES,
            count_only: false,
        };
        let mut book = Book::default();
        for target in [&alone, &within, &address] {
            book.insert(target, 0, entry(Kind::Drop));
        }
        book.insert(&alone, 1, entry(Kind::Count));
        let named = |book: &Book| -> BTreeSet<(Target, usize)> {
            book.naming(ja4).map(|(target, rules)| (target.clone(), rules.len())).collect()
        };
        assert_eq!(named(&book), [(alone.clone(), 2), (within.clone(), 1)].into());
        book.remove(&alone, 0);
        book.remove(&within, 0);
        assert_eq!(named(&book), [(alone.clone(), 1)].into());
        book.remove(&alone, 0);
        assert!(book.by_ja4.is_empty());
    }
}
