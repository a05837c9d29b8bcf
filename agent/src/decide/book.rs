//! The decisions in force.

use std::collections::{BTreeMap, HashMap};

use crate::decision::{Decision, Subject};
use crate::time::Timestamp;

/// A decision, when it ends and its place in the order of ends.
struct Held {
    decision: Decision,
    end: Timestamp,
    number: u64,
}

/// Decisions by subject, at most `limit`.
pub(super) struct Book {
    by_subject: HashMap<Subject, Vec<Held>>,
    /// What ends when; the number tells apart what ends together.
    ends: BTreeMap<(Timestamp, u64), Subject>,
    limit: usize,
    next_number: u64,
}

impl Book {
    pub fn new(limit: usize) -> Self {
        Self { by_subject: HashMap::new(), ends: BTreeMap::new(), limit, next_number: 0 }
    }

    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    /// Adds `decision`, in the place of one that differs only in its time. The caller has made
    /// room.
    pub fn insert(&mut self, decision: Decision, end: Timestamp) {
        self.take(&decision.subject.clone(), |held| {
            held.detector == decision.detector
                && held.action == decision.action
                && held.mode == decision.mode
                && held.scope() == decision.scope()
        });
        let number = self.next_number;
        self.next_number = self.next_number.wrapping_add(1);
        self.ends.insert((end, number), decision.subject.clone());
        let subject = decision.subject.clone();
        self.by_subject.entry(subject).or_default().push(Held { decision, end, number });
    }

    /// When the last decision on `subject` that `covers` ends, if that is after `now`.
    pub fn covered_until(
        &self,
        subject: &Subject,
        now: Timestamp,
        covers: impl Fn(&Decision) -> bool,
    ) -> Option<Timestamp> {
        let held = self.by_subject.get(subject)?;
        let covering = held.iter().filter(|held| held.end > now && covers(&held.decision));
        covering.map(|held| held.end).max()
    }

    /// The decision on `subject` that ends last, of those that are `wanted` and have not ended.
    pub fn last(
        &self,
        subject: &Subject,
        now: Timestamp,
        wanted: impl Fn(&Decision) -> bool,
    ) -> Option<(&Decision, Timestamp)> {
        let held = self.by_subject.get(subject)?.iter();
        held.filter(|held| held.end > now && wanted(&held.decision))
            .max_by_key(|held| (held.end, held.number))
            .map(|held| (&held.decision, held.end))
    }

    pub fn of(&self, subject: &Subject) -> impl Iterator<Item = &Decision> {
        self.by_subject.get(subject).into_iter().flatten().map(|held| &held.decision)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Decision> {
        self.by_subject.values().flatten().map(|held| &held.decision)
    }

    /// Removes the decisions that have ended.
    pub fn expire(&mut self, now: Timestamp) {
        while let Some((&(end, _), _)) = self.ends.first_key_value()
            && end <= now
        {
            self.take_first();
        }
    }

    /// Removes the decision that ends first.
    pub fn take_first(&mut self) -> Option<Decision> {
        let ((_, number), subject) = self.ends.pop_first()?;
        self.take_where(&subject, |held| held.number == number).pop()
    }

    /// Removes the decisions on `subject` that are `wanted`.
    pub fn take(&mut self, subject: &Subject, wanted: impl Fn(&Decision) -> bool) -> Vec<Decision> {
        self.take_where(subject, |held| wanted(&held.decision))
    }

    /// Removes the decisions that are `wanted`. Looks at all of them.
    pub fn take_any(&mut self, wanted: impl Fn(&Decision) -> bool) -> Vec<Decision> {
        let subjects: Vec<Subject> =
            self.iter().filter(|d| wanted(d)).map(|d| d.subject.clone()).collect();
        subjects.iter().flat_map(|subject| self.take(subject, &wanted)).collect()
    }

    fn take_where(&mut self, subject: &Subject, wanted: impl Fn(&Held) -> bool) -> Vec<Decision> {
        let Some(held) = self.by_subject.get_mut(subject) else { return Vec::new() };
        let taken: Vec<Held> = held.extract_if(.., |held| wanted(held)).collect();
        if held.is_empty() {
            self.by_subject.remove(subject);
        }
        for held in &taken {
            self.ends.remove(&(held.end, held.number));
        }
        taken.into_iter().map(|held| held.decision).collect()
    }
}
