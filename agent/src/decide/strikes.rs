//! Who was decided on before, so that repeat offenders are kept away longer.

use std::time::Duration;

use lru::LruCache;

use crate::config;
use crate::decision::{Mode, Subject};
use crate::time::Timestamp;

#[derive(Clone, Copy, Debug)]
struct Strike {
    /// Decisions so far, the last included.
    count: u32,
    /// When the last ends or ended.
    end: Timestamp,
    /// Count and end before the last, to take that back.
    before: Option<(u32, Timestamp)>,
}

/// Strikes are remembered for `decide.memory` from the end of the last decision: counted from
/// its beginning, a long block would wipe out its own memory. Decisions that are only observed
/// are counted apart, so that going over to enforcing starts with a clean slate. At most `limit`
/// subjects; the one longest without a strike goes first.
pub(super) struct Strikes {
    known: LruCache<(Subject, Mode), Strike>,
    limit: usize,
    evicted: u64,
}

impl Strikes {
    pub fn new(limit: usize) -> Self {
        Self { known: LruCache::unbounded(), limit: limit.max(1), evicted: 0 }
    }

    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit.max(1);
        self.make_room(self.limit);
    }

    /// Decisions on `subject` that count and have ended. One still in force is none, so that two
    /// detectors that see the same abuse do not escalate it.
    pub fn ended(
        &self,
        subject: &Subject,
        mode: Mode,
        now: Timestamp,
        settings: &config::Decide,
    ) -> u32 {
        match self.known.peek(&(subject.clone(), mode)) {
            Some(strike) if now < strike.end => strike.count.saturating_sub(1),
            Some(strike) if now < strike.end.saturating_add(settings.memory) => strike.count,
            _ => 0,
        }
    }

    /// Notes that a decision after `ended` others lasts until `end`.
    pub fn note(&mut self, subject: &Subject, mode: Mode, ended: u32, end: Timestamp) {
        let key = (subject.clone(), mode);
        if !self.known.contains(&key) {
            self.make_room(self.limit - 1);
        }
        let before = self.known.peek(&key).map(|strike| (strike.count, strike.end));
        self.known.put(key, Strike { count: ended.saturating_add(1), end, before });
    }

    /// Takes back the decision that was noted last, if it is the one that lasts until `end`.
    pub fn take_back(&mut self, subject: &Subject, mode: Mode, end: Timestamp) {
        let key = (subject.clone(), mode);
        let Some(strike) = self.known.peek_mut(&key).filter(|strike| strike.end == end) else {
            return;
        };
        match strike.before {
            Some((count, end)) => *strike = Strike { count, end, before: None },
            None => _ = self.known.pop(&key),
        }
    }

    pub fn forget(&mut self, subject: &Subject) {
        for mode in [Mode::Enforce, Mode::Observe] {
            self.known.pop(&(subject.clone(), mode));
        }
    }

    /// Forgets what no longer counts, from the longest unchanged to the first that does.
    pub fn expire(&mut self, now: Timestamp, memory: Duration) {
        while let Some((_, strike)) = self.known.peek_lru()
            && strike.end.saturating_add(memory) <= now
        {
            self.known.pop_lru();
        }
    }

    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Subjects forgotten before their time.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn make_room(&mut self, limit: usize) {
        while self.known.len() > limit && self.known.pop_lru().is_some() {
            self.evicted = self.evicted.saturating_add(1);
        }
    }
}

/// The TTL after `ended` earlier decisions, in whole seconds, at least one.
pub(super) fn ttl_s(settings: &config::Decide, ended: u32) -> u64 {
    let exponent = i32::try_from(ended).unwrap_or(i32::MAX);
    let factor = settings.escalation.max(1.0).powi(exponent);
    // A float saturates when it becomes an integer, so no escalation is too high for this.
    let ttl = (settings.ttl.as_secs_f64() * factor).ceil() as u64;
    let most = whole_seconds(settings.max_ttl.max(settings.ttl));
    ttl.clamp(1, most.max(1))
}

/// `duration` in seconds, rounded up.
pub(super) fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))
}
