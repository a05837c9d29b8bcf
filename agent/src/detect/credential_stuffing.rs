//! `credential_stuffing`: one client tries the credentials of many users, and most fail (OWASP
//! API2:2023).
//!
//! Three thresholds must be reached together within the window: failed logins, different user
//! names among them, and the share of logins that failed. The last is what tells an attack from
//! an office behind one address, the second from one person who forgot a password.
//!
//! Clients choose how they write a user name, and so whether it can be read. Failed logins
//! without a readable name are therefore a finding by themselves, from [`NAMELESS_FACTOR`] times
//! as many failures on: the password of one user is not forgotten that often.
//!
//! A user's success counts once per window: who stuffs credentials has an account too, and must
//! not be able to hide the failures among logins of its own. Users are told apart up to a number
//! per client; who has more accounts than that and logs in to all of them in turn is counted as
//! an office.

use std::hash::RandomState;
use std::time::Duration;

use serde_json::json;

use super::actors::{ActorKey, ActorTable};
use super::distinct::Distinct;
use super::login::{Endpoint, Outcome};
use super::slots::{SLOTS, SlotClock, Slots};
use super::{Counter, Detector, Seen, counter, user_name};
use crate::config::{self, Config};
use crate::finding::{DetectorName, Finding};
use crate::time::Timestamp;

const NAME: DetectorName = DetectorName::CredentialStuffing;

/// User names told apart per client, at most; a higher `distinct_users` means this many.
pub const MAX_DISTINCT_USERS: usize = 1_024;

/// User names told apart per client, at least, so that the evidence says more than the
/// threshold.
const MIN_DISTINCT_USERS: usize = 64;

/// So many times the failures are needed where no user name can be read.
const NAMELESS_FACTOR: u32 = 5;

/// Stands for the users whose names can't be read. Together they count as one: nothing says
/// that they are more.
const NOBODY: u64 = 0;

#[derive(Clone, Copy, Debug, Default)]
struct Logins {
    failed: u32,
    /// Of the failed, those without a readable user name.
    nameless: u32,
    /// Users who logged in, each counted where the window saw them first.
    succeeded: u32,
}

#[derive(Default)]
struct State {
    logins: Slots<Logins>,
    /// Names of users whose login failed.
    users: Distinct,
    /// Those counted as `succeeded`.
    successful: Distinct,
    quiet_until: Timestamp,
}

pub(super) struct CredentialStuffing {
    clock: SlotClock,
    window: Duration,
    actors: ActorTable<State>,
    /// Hashes mean nothing outside this process.
    key: RandomState,
    too_late: u64,
    without_user: u64,
    findings: u64,
}

impl CredentialStuffing {
    pub fn new(config: &Config) -> Self {
        let window = config.detect.credential_stuffing.window;
        Self {
            clock: SlotClock::new(window),
            window,
            actors: ActorTable::new(config.detect.max_actors),
            key: RandomState::new(),
            too_late: 0,
            without_user: 0,
            findings: 0,
        }
    }

    /// Adds a failed login; returns what is now known of its client.
    fn count_failure(&mut self, seen: &Seen<'_>, endpoint: &Endpoint<'_>) -> Option<&mut State> {
        let slot = self.clock.slot(seen.tx.ts);
        let state = self.actors.seen(seen.key, seen.tx.ts, State::default);
        let Some(logins) = state.logins.at(slot) else {
            self.too_late = self.too_late.saturating_add(1);
            return None;
        };
        logins.failed = logins.failed.saturating_add(1);
        match user_name::hashed(seen.tx, endpoint.user_field(), &self.key) {
            Some(user) => {
                state.users.note(user, slot, limit(&seen.config.detect.credential_stuffing));
            }
            None => {
                logins.nameless = logins.nameless.saturating_add(1);
                self.without_user = self.without_user.saturating_add(1);
            }
        }
        Some(state)
    }

    fn count_success(&mut self, seen: &Seen<'_>, endpoint: &Endpoint<'_>) {
        let slot = self.clock.slot(seen.tx.ts);
        let state = self.actors.seen(seen.key, seen.tx.ts, State::default);
        let Some(logins) = state.logins.at(slot) else {
            self.too_late = self.too_late.saturating_add(1);
            return;
        };
        let user = user_name::hashed(seen.tx, endpoint.user_field(), &self.key);
        let oldest = slot.saturating_sub(SLOTS as u64 - 1);
        let limit = limit(&seen.config.detect.credential_stuffing);
        if state.successful.note_first(user.unwrap_or(NOBODY), slot, oldest, limit) {
            logins.succeeded = logins.succeeded.saturating_add(1);
        }
    }
}

impl Detector for CredentialStuffing {
    fn name(&self) -> DetectorName {
        NAME
    }

    fn reconfigure(&mut self, config: &Config) {
        let settings = &config.detect.credential_stuffing;
        let clock = SlotClock::new(settings.window);
        if clock != self.clock || !settings.enabled {
            self.actors.clear();
        }
        self.clock = clock;
        self.window = settings.window;
        self.actors.set_limit(config.detect.max_actors);
    }

    fn observe(&mut self, seen: &Seen<'_>, out: &mut Vec<Finding>) {
        let settings = &seen.config.detect.credential_stuffing;
        if !settings.enabled {
            return;
        }
        let Some(endpoint) = Endpoint::of(seen.tx, seen.service) else { return };
        match endpoint.outcome(seen.tx) {
            None => return,
            Some(Outcome::Success) => return self.count_success(seen, &endpoint),
            Some(Outcome::Failure) => {}
        }
        let window = self.window;
        let Some(state) = self.count_failure(seen, &endpoint) else { return };
        if seen.tx.ts < state.quiet_until {
            return;
        }
        let measured = Measured::of(state);
        let Some(rule) = measured.rule(settings) else { return };
        state.logins.reset();
        state.users.reset();
        state.successful.reset();
        state.quiet_until = seen.tx.ts.saturating_add(window);
        self.findings = self.findings.saturating_add(1);
        out.push(measured.finding(rule, seen, &endpoint));
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
            (counter::LOGINS_WITHOUT_USER, self.without_user),
            (counter::FINDINGS, self.findings),
        ]
        .map(|(name, value)| Counter { name, detector: NAME, value })
        .to_vec()
    }
}

/// How many user names to tell apart per client.
fn limit(settings: &config::CredentialStuffing) -> usize {
    threshold(settings).clamp(MIN_DISTINCT_USERS, MAX_DISTINCT_USERS)
}

/// The threshold of user names that can be told apart.
fn threshold(settings: &config::CredentialStuffing) -> usize {
    usize::try_from(settings.distinct_users).unwrap_or(usize::MAX).min(MAX_DISTINCT_USERS)
}

/// What a finding rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Many user names fail.
    DistinctUsers,
    /// Many logins fail whose user name can't be read.
    NamelessFailures,
}

impl Rule {
    fn as_str(self) -> &'static str {
        match self {
            Self::DistinctUsers => "distinct_users",
            Self::NamelessFailures => "nameless_failures",
        }
    }
}

/// One client's logins within the window.
struct Measured {
    failed: u64,
    nameless: u64,
    logins: u64,
    users: usize,
}

impl Measured {
    fn of(state: &State) -> Self {
        let sum = |of: fn(Logins) -> u32| state.logins.counts().map(|n| u64::from(of(n))).sum();
        let failed: u64 = sum(|n| n.failed);
        let succeeded: u64 = sum(|n| n.succeeded);
        let users = state.users.count(state.logins.oldest());
        let nameless = sum(|n| n.nameless);
        Self { failed, nameless, logins: succeeded.saturating_add(failed), users }
    }

    fn failure_ratio(&self) -> f64 {
        self.failed as f64 / self.logins.max(1) as f64
    }

    /// The rule that fires, if one does.
    fn rule(&self, settings: &config::CredentialStuffing) -> Option<Rule> {
        if self.failure_ratio() < settings.failure_ratio {
            None
        } else if self.failed >= u64::from(settings.failures) && self.users >= threshold(settings) {
            Some(Rule::DistinctUsers)
        } else if self.nameless >= nameless_threshold(settings) {
            Some(Rule::NamelessFailures)
        } else {
            None
        }
    }

    /// When the thresholds are just reached and every login failed, 0.9 if that many users are
    /// known to be concerned, else 0.5; the share of failures takes from it, what goes beyond the
    /// counts adds to it.
    fn score(&self, rule: Rule, settings: &config::CredentialStuffing) -> f64 {
        let doubt = match rule {
            Rule::DistinctUsers => {
                let failures = self.failed as f64 / f64::from(settings.failures.max(1));
                let users = self.users as f64 / threshold(settings).max(1) as f64;
                0.1f64.powf(failures.min(users))
            }
            Rule::NamelessFailures => {
                0.5f64.powf(self.nameless as f64 / nameless_threshold(settings).max(1) as f64)
            }
        };
        (1.0 - doubt) * self.failure_ratio()
    }

    fn finding(&self, rule: Rule, seen: &Seen<'_>, endpoint: &Endpoint<'_>) -> Finding {
        let settings = &seen.config.detect.credential_stuffing;
        let window_s = settings.window.as_secs_f64();
        let Self { failed, nameless, logins, users } = self;
        let users_named = match rule {
            Rule::DistinctUsers => format!("with {users} different user names"),
            Rule::NamelessFailures => format!("{nameless} of them without a readable user name"),
        };
        let reason =
            format!("{failed} of {logins} logins within {window_s} s failed, {users_named}");
        let ratio = (self.failure_ratio() * 1e3).round() / 1e3;
        let mut finding = seen.finding(NAME, self.score(rule, settings), reason);
        let mut put = |name: &str, value| finding.evidence.insert(name.to_owned(), value);
        put("rule", json!(rule.as_str()));
        put("endpoint", json!(endpoint.name));
        put("logins", json!(logins));
        put("failures", json!(failed));
        match rule {
            Rule::DistinctUsers => {
                put("failures_threshold", json!(settings.failures));
                put("distinct_users", json!(users));
                put("distinct_users_threshold", json!(threshold(settings)));
            }
            Rule::NamelessFailures => {
                put("nameless_failures", json!(nameless));
                put("nameless_failures_threshold", json!(nameless_threshold(settings)));
            }
        }
        put("failure_ratio", json!(ratio));
        put("failure_ratio_threshold", json!(settings.failure_ratio));
        put("window_s", json!(window_s));
        finding
    }
}

/// The threshold of failures without a readable user name.
fn nameless_threshold(settings: &config::CredentialStuffing) -> u64 {
    u64::from(settings.failures) * u64::from(NAMELESS_FACTOR)
}
