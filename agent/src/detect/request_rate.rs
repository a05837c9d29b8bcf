//! `request_rate`: more requests from one client than the API can afford (OWASP API4:2023).
//!
//! Memory per actor is constant; see [`slots`](super::slots) for the algorithm and its bound:
//! every finding is right, and a client is found at the latest when it exceeds the limit within
//! 15/16 of the window.

use serde_json::json;

use super::actors::{ActorKey, ActorTable};
use super::slots::{SlotClock, Slots};
use super::{Counter, Detector, Seen, counter};
use crate::config::Config;
use crate::finding::{DetectorName, Finding};
use crate::time::Timestamp;

const NAME: DetectorName = DetectorName::RequestRate;

#[derive(Default)]
struct State {
    requests: Slots<u32>,
    quiet_until: Timestamp,
}

pub(super) struct RequestRate {
    clock: SlotClock,
    window: std::time::Duration,
    actors: ActorTable<State>,
    too_late: u64,
    findings: u64,
}

impl RequestRate {
    pub fn new(config: &Config) -> Self {
        let window = config.detect.request_rate.window;
        Self {
            clock: SlotClock::new(window),
            window,
            actors: ActorTable::new(config.detect.max_actors),
            too_late: 0,
            findings: 0,
        }
    }
}

impl Detector for RequestRate {
    fn name(&self) -> DetectorName {
        NAME
    }

    fn reconfigure(&mut self, config: &Config) {
        let settings = &config.detect.request_rate;
        let clock = SlotClock::new(settings.window);
        if clock != self.clock || !settings.enabled {
            self.actors.clear();
        }
        self.clock = clock;
        self.window = settings.window;
        self.actors.set_limit(config.detect.max_actors);
    }

    fn observe(&mut self, seen: &Seen<'_>, out: &mut Vec<Finding>) {
        let settings = &seen.config.detect.request_rate;
        if !settings.enabled {
            return;
        }
        let ts = seen.tx.ts;
        let state = self.actors.seen(seen.key, ts, State::default);
        let Some(count) = state.requests.at(self.clock.slot(ts)) else {
            self.too_late = self.too_late.saturating_add(1);
            return;
        };
        *count = count.saturating_add(1);
        if ts < state.quiet_until {
            return;
        }
        let requests: u64 = state.requests.counts().map(u64::from).sum();
        let limit = u64::from(settings.requests);
        if requests <= limit {
            return;
        }
        state.requests.reset();
        state.quiet_until = ts.saturating_add(self.window);
        self.findings = self.findings.saturating_add(1);
        out.push(finding(seen, requests, limit));
    }

    fn quiet(&mut self, key: &ActorKey, until: Timestamp) {
        if let Some(state) = self.actors.peek_mut(key) {
            state.quiet_until = until;
        }
    }

    fn forget(&mut self, key: &ActorKey) {
        self.actors.remove(key);
    }

    fn expire(&mut self, now: Timestamp) {
        self.actors.expire(now, self.window);
    }

    fn actors(&self) -> usize {
        self.actors.len()
    }

    fn counters(&self) -> Vec<Counter> {
        [
            (counter::ACTORS_EVICTED, self.actors.evicted()),
            (counter::TOO_LATE, self.too_late),
            (counter::FINDINGS, self.findings),
        ]
        .map(|(name, value)| Counter { name, detector: NAME, value })
        .to_vec()
    }
}

/// The score is 0.5 at the limit and goes to 1 as the excess grows.
fn finding(seen: &Seen<'_>, requests: u64, limit: u64) -> Finding {
    let window_s = seen.config.detect.request_rate.window.as_secs_f64();
    let score = 1.0 - 0.5 * limit as f64 / requests.max(1) as f64;
    let reason =
        format!("{requests} requests within {window_s} s, where {limit} are allowed to one client");
    let mut finding = seen.finding(NAME, score, reason);
    finding.evidence.extend([
        ("requests".to_owned(), json!(requests)),
        ("requests_allowed".to_owned(), json!(limit)),
        ("window_s".to_owned(), json!(window_s)),
    ]);
    finding
}
