//! Findings → decisions: guards, escalation, and one decision at a time on one subject.
//!
//! While a drop of a subject is in force (or a limit, or a decoy: what the configuration asks for),
//! the same detector makes no second one, and another only one that lasts longer. A decision that
//! is merely observed stands in the way of none that is enforced. Where a drop is impossible — a
//! guard holds, or the client came through a trusted proxy — the decision is an `alert`, one per
//! subject and detector for as long as the drop would have been in force.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::decision::{Action, Decision, Lift, LiftAction, Mode, Origin, Scope, Subject};
use crate::finding::Finding;
use crate::rule::{Block, Effect, Kind, Rate, RuleName, Target};
use crate::time::Timestamp;

mod book;
mod guards;
mod strikes;

#[cfg(test)]
mod tests;

pub use guards::{Guard, Guarded, HostGuards, always_guarded};

use book::Book;
use guards::Guards;
use strikes::Strikes;

/// `detector` of the decisions that an operator makes.
pub const OPERATOR: &str = "operator";

/// `detector` of detectors' blocks found in the kernel, of which nothing else is known.
pub const RECOVERED: &str = "recovered";

/// The TTL of a decision that holds until it is lifted: a hundred years, since the format asks
/// for a number.
pub const UNTIL_LIFTED: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A decision that has been ended, with the line that says so.
#[derive(Clone, Debug, PartialEq)]
pub struct Lifted {
    pub lift: Lift,
    pub decision: Decision,
}

/// Which decisions to lift.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    Id(&'a str),
    Subject(&'a Subject),
    /// Those on a subject that are carried out by rules of a kind, or for a service.
    Rules {
        subject: &'a Subject,
        kind: Option<Kind>,
        service: Option<&'a str>,
    },
}

/// Why there is no block.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    #[error("{target} can't be blocked: {by}")]
    Guarded { target: Target, by: Guarded },
    #[error("{target} can't be blocked: the block list is full with {limit} entries")]
    Full { target: Target, limit: usize },
    #[error("{0} stays unblocked: a detector blocked it, and the mode is observe")]
    Observing(Target),
    #[error("{0} can't be deceived: there is no decoy, see decoy.enabled in the configuration")]
    NoDecoy(Target),
}

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub target: Target,
    pub effect: Effect,
    /// Only on the ports and addresses of this service; `None`: everywhere.
    pub service: Option<Arc<str>>,
    /// `None`: until it is lifted.
    pub ttl: Option<Duration>,
}

impl Order {
    /// A drop everywhere, until it is lifted.
    pub fn drop(target: impl Into<Target>) -> Self {
        Self { target: target.into(), effect: Effect::Drop, service: None, ttl: None }
    }

    pub fn rule(&self) -> RuleName {
        let kind = self.effect.kind();
        RuleName { target: self.target.clone(), kind, service: self.service.clone() }
    }
}

/// What was left undone, or forgotten before its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Findings on subjects that a decision was in force on.
    pub covered: u64,
    /// Drops not decided because as many are in force as the kernel has room for.
    pub no_room: u64,
    /// Alerts and observed decisions forgotten to make room for others.
    pub noted_evicted: u64,
    /// Repeat offenders forgotten to make room for others.
    pub strikes_evicted: u64,
}

impl Counters {
    pub fn named(&self) -> [(&'static str, u64); 4] {
        [
            ("findings_covered", self.covered),
            ("decisions_no_room", self.no_room),
            ("decisions_noted_evicted", self.noted_evicted),
            ("strikes_evicted", self.strikes_evicted),
        ]
    }
}

pub struct Decider {
    config: Arc<Config>,
    host: HostGuards,
    guards: Guards,
    seed: u64,
    decided: u64,
    /// Drops that the kernel carries out: never evicted.
    enforced: Book,
    /// Alerts and observed drops, remembered so as not to repeat them.
    noted: Book,
    strikes: Strikes,
    counters: Counters,
}

/// What is to be decided about a finding.
struct Plan {
    subject: Subject,
    action: Action,
    rate: Option<Rate>,
    scope: Scope,
    mode: Mode,
    guard: Option<Guard>,
    ttl_s: u64,
    /// Earlier decisions that the TTL escalates from.
    ended: u32,
}

impl Decider {
    /// Decisions' ids depend on `seed` and on what is decided only: the same findings in the same
    /// order have the same ids. Two installations, or two runs of one, need different seeds to
    /// have different ids.
    pub fn new(config: Arc<Config>, host: HostGuards, seed: u64) -> Self {
        Self {
            guards: Guards::new(&config, &host),
            enforced: Book::new(capacity(config.kernel.max_blocks)),
            noted: Book::new(config.detect.max_actors.max(1)),
            strikes: Strikes::new(config.detect.max_actors),
            config,
            host,
            seed,
            decided: 0,
            counters: Counters::default(),
        }
    }

    /// Adopts `config`. Lifts what it guards, detectors' drops where it only observes, and the
    /// alerts on clients that it no longer guards: they can be dropped now.
    pub fn reconfigure(&mut self, config: Arc<Config>, now: Timestamp) -> Vec<Lifted> {
        self.enforced.set_limit(capacity(config.kernel.max_blocks));
        self.noted.set_limit(config.detect.max_actors.max(1));
        self.make_room_to_note(0);
        self.strikes.set_limit(config.detect.max_actors);
        self.config = config;
        self.apply_guards(now)
    }

    /// Adopts other addresses of the host, and lifts what they guard.
    pub fn set_host(&mut self, host: HostGuards, now: Timestamp) -> Vec<Lifted> {
        self.host = host;
        self.apply_guards(now)
    }

    fn apply_guards(&mut self, now: Timestamp) -> Vec<Lifted> {
        self.guards = Guards::new(&self.config, &self.host);
        let (guards, config) = (&self.guards, &self.config);
        let guarded = |decision: &Decision| guard_of(guards, decision).is_some();
        let mut lifted = self
            .enforced
            .take_any(|decision| guarded(decision) || is_only_observed(config, decision));
        lifted.extend(self.noted.take_any(|decision| {
            let service = decision.service.as_deref();
            let service =
                service.and_then(|name| config.services.iter().find(|s| &*s.name == name));
            decision.evidence.contains_key("guard")
                && !guarded(decision)
                && !Guards::failsafe_only(config, service)
        }));
        lifted.into_iter().map(|decision| lifted_at(decision, now)).collect()
    }

    /// The decision that `finding` calls for; `None` while one in force covers it, or when there
    /// is no room (counted).
    pub fn decide(&mut self, finding: &Finding) -> Option<Decision> {
        let plan = self.plan(finding);
        if self.covering(finding, &plan).is_some() {
            self.counters.covered = self.counters.covered.saturating_add(1);
            return None;
        }
        if !self.make_room(&plan, finding.ts) {
            self.counters.no_room = self.counters.no_room.saturating_add(1);
            return None;
        }
        let decision = self.write(finding, &plan);
        let end = end_of(&decision);
        if is_strike(&decision) {
            self.strikes.note(&plan.subject, plan.mode, plan.ended, end);
        }
        self.hold(decision.clone(), end);
        Some(decision)
    }

    /// Until when findings like `finding` lead to no decision.
    pub fn covered_until(&self, finding: &Finding) -> Option<Timestamp> {
        self.covering(finding, &self.plan(finding))
    }

    /// What an operator orders. It is enforced whatever the mode, since it was asked for by hand.
    /// Refused only when a guard covers all of the target: within it, those who are guarded go
    /// first in the kernel. An earlier one of the same rule is replaced: lift that first to have
    /// it logged.
    pub fn operator_block(
        &mut self,
        order: &Order,
        reason: &str,
        now: Timestamp,
    ) -> Result<Decision, Refused> {
        let target = canonical(order.target.clone());
        if order.effect == Effect::Steer && !self.config.decoy.enabled {
            return Err(Refused::NoDecoy(target));
        }
        let subject = Subject::from(target.clone());
        if let Some(by) = subject.addresses().and_then(|net| self.guards.of_all(net)) {
            return Err(Refused::Guarded { target, by });
        }
        self.enforced.expire(now);
        if self.enforced.is_full() {
            return Err(Refused::Full { target, limit: self.enforced.len() });
        }
        let ts = now.rounded_up_to_millis();
        let decision = Decision {
            ts,
            id: self.next_id(ts, &subject, OPERATOR),
            action: order.effect.action(),
            subject,
            scope: if order.service.is_some() { Scope::Service } else { Scope::Host },
            service: order.service.clone(),
            ttl_s: strikes::whole_seconds(order.ttl.unwrap_or(UNTIL_LIFTED)).max(1),
            rate: order.effect.rate(),
            detector: OPERATOR.to_owned(),
            owasp: String::new(),
            score: 1.0,
            reason: reason.to_owned(),
            evidence: Map::new(),
            mode: Mode::Enforce,
        };
        self.hold(decision.clone(), end_of(&decision));
        Ok(decision)
    }

    /// Takes over a decision of an earlier run: one from its log, or [`recovered`] from the
    /// kernel. On refusal the kernel's entry should go as well.
    ///
    /// # Errors
    /// What a guard covers, and what does not fit. Detectors' blocks, too, where the mode is
    /// `observe` now; which service a recovered one is of is not known, so the mode of all counts
    /// for it.
    pub fn restore(&mut self, decision: Decision, now: Timestamp) -> Result<(), Refused> {
        let end = end_of(&decision);
        if end <= now {
            return Ok(());
        }
        if is_enforced(&decision) {
            let Some(target) = decision.subject.target() else { return Ok(()) };
            if let Some(by) = guard_of(&self.guards, &decision) {
                return Err(Refused::Guarded { target, by });
            }
            if decision.action == Action::Deceive && !self.config.decoy.enabled {
                return Err(Refused::NoDecoy(target));
            }
            if is_only_observed(&self.config, &decision) {
                return Err(Refused::Observing(target));
            }
            if self.enforced.is_full() {
                return Err(Refused::Full { target, limit: self.enforced.len() });
            }
        } else {
            self.make_room_to_note(1);
        }
        if is_strike(&decision) {
            let (subject, mode) = (&decision.subject, decision.mode);
            let ended = self.strikes.ended(subject, mode, now, &self.config.decide);
            self.strikes.note(subject, mode, ended, end);
        }
        self.hold(decision, end);
        Ok(())
    }

    /// Ends decisions before their time. A client whose block is lifted starts anew: the next
    /// one is as short as the first.
    pub fn lift(&mut self, which: Which<'_>, now: Timestamp) -> Vec<Lifted> {
        let mut lifted = Vec::new();
        for book in [&mut self.enforced, &mut self.noted] {
            book.expire(now);
            lifted.extend(match which {
                Which::Id(id) => book.take_any(|decision| decision.id == id),
                Which::Subject(subject) => book.take(subject, |_| true),
                Which::Rules { subject, kind, service } => book.take(subject, |held| {
                    let rule = held.rule();
                    rule.is_some_and(|rule| {
                        kind.is_none_or(|kind| kind == rule.kind)
                            && service
                                .is_none_or(|service| rule.service.as_deref() == Some(service))
                    })
                }),
            });
        }
        for decision in &lifted {
            self.strikes.forget(&decision.subject);
        }
        lifted.into_iter().map(|decision| lifted_at(decision, now)).collect()
    }

    /// Forgets an enforced `decision` that the kernel did not take: it does not stand in the way
    /// of another, is no strike, and there is nothing to lift. Returns whether it was known.
    ///
    /// Other decisions are kept: what they bring about is their line in the log, and that has
    /// been written.
    pub fn not_enforced(&mut self, decision: &Decision) -> bool {
        if !is_enforced(decision) {
            return false;
        }
        let known = self.enforced.take(&decision.subject, |held| held.id == decision.id);
        if is_strike(decision) && !known.is_empty() {
            self.strikes.take_back(&decision.subject, decision.mode, end_of(decision));
        }
        !known.is_empty()
    }

    /// Forgets decisions that have ended, and strikes that no longer count.
    pub fn expire(&mut self, now: Timestamp) {
        self.enforced.expire(now);
        self.noted.expire(now);
        self.strikes.expire(now, self.config.decide.memory);
    }

    /// Every decision that has not ended, as of the last [`expire`](Self::expire); in no
    /// particular order.
    pub fn in_force(&self) -> impl Iterator<Item = &Decision> {
        self.enforced.iter().chain(self.noted.iter())
    }

    /// The enforced decision that `rule` carries out and that ends last, if that is after `now`,
    /// and its end: until then the kernel has to keep the rule, even when another that asks for it
    /// ends earlier.
    pub fn holder(&self, rule: &RuleName, now: Timestamp) -> Option<(&Decision, Timestamp)> {
        let subject = Subject::from(rule.target.clone());
        self.enforced.last(&subject, now, |held| held.rule().as_ref() == Some(rule))
    }

    /// The enforced decisions on exactly `subject`.
    pub fn enforced_on(&self, subject: &Subject) -> impl Iterator<Item = &Decision> {
        self.enforced.of(subject)
    }

    pub fn counters(&self) -> Counters {
        Counters { strikes_evicted: self.strikes.evicted(), ..self.counters }
    }

    /// Clients remembered as offenders.
    pub fn offenders(&self) -> usize {
        self.strikes.len()
    }

    fn plan(&self, finding: &Finding) -> Plan {
        let config = &*self.config;
        let subject = Subject::client(finding.actor.ip);
        let mode = config.mode_of(finding.service.as_deref());
        let service = finding
            .service
            .as_deref()
            .and_then(|name| config.services.iter().find(|service| &*service.name == name));
        let guard = match subject.addresses().and_then(|net| self.guards.of(net)) {
            Some(guarded) => Some(guarded.guard),
            None => Guards::failsafe_only(config, service).then_some(Guard::FailsafePorts),
        };
        let (action, rate) = match (guard, finding.actor.via) {
            (None, None) => config.response_of(service),
            _ => (Action::Alert, None),
        };
        let scope = match action {
            Action::Alert => Scope::Host,
            _ => service.map_or(Scope::Host, |service| service.scope),
        };
        let ended = match action {
            Action::Alert => 0,
            _ => self.strikes.ended(&subject, mode, finding.ts, &config.decide),
        };
        let ttl_s = strikes::ttl_s(&config.decide, ended);
        Plan { subject, action, rate, scope, mode, guard, ttl_s, ended }
    }

    fn covering(&self, finding: &Finding, plan: &Plan) -> Option<Timestamp> {
        let detector = finding.detector.as_str();
        let reaches = |held: &Decision| match (held.scope, plan.scope) {
            (Scope::Host, _) => true,
            (Scope::Service, Scope::Host) => false,
            (Scope::Service, Scope::Service) => held.service == finding.service,
        };
        let covers = |held: &Decision| {
            let by_same = held.detector == detector;
            match plan.action {
                Action::Alert => held.action == Action::Alert && by_same,
                Action::Drop | Action::RateLimit | Action::Deceive | Action::Tag => {
                    strength(held.action) >= strength(plan.action)
                        && reaches(held)
                        && (by_same || held.ttl_s >= plan.ttl_s)
                }
            }
        };
        let held_by = |book: &Book| book.covered_until(&plan.subject, finding.ts, covers);
        match (plan.action, plan.mode) {
            (Action::Alert, _) => held_by(&self.noted),
            (_, Mode::Enforce) => held_by(&self.enforced),
            (_, Mode::Observe) => held_by(&self.enforced).max(held_by(&self.noted)),
        }
    }

    fn write(&mut self, finding: &Finding, plan: &Plan) -> Decision {
        // Rounded up, so that the request that made the finding is not after its own decision.
        let ts = finding.ts.rounded_up_to_millis();
        let mut evidence = finding.evidence.clone();
        let guard = plan.guard.map(|guard| ("guard".to_owned(), json!(guard.as_str())));
        let via = finding.actor.via.map(|via| ("via".to_owned(), Value::from(via.to_string())));
        evidence.extend(guard.into_iter().chain(via));
        Decision {
            ts,
            id: self.next_id(ts, &plan.subject, finding.detector.as_str()),
            action: plan.action,
            subject: plan.subject.clone(),
            service: finding.service.clone(),
            scope: plan.scope,
            ttl_s: plan.ttl_s,
            rate: plan.rate,
            detector: finding.detector.to_string(),
            owasp: finding.owasp.to_owned(),
            score: finding.score,
            reason: finding.reason.clone(),
            evidence,
            mode: plan.mode,
        }
    }

    /// The first 64 bits of SHA-256 over all that makes the decision what it is.
    fn next_id(&mut self, ts: Timestamp, subject: &Subject, detector: &str) -> String {
        let target = match subject.target() {
            Some(Target::Network(net)) => net.to_string(),
            Some(target) => target.to_string(),
            None => String::new(),
        };
        let (seed, number) = (self.seed, self.decided);
        self.decided = self.decided.wrapping_add(1);
        let text = format!("{seed}\n{}\n{target}\n{detector}\n{number}", ts.as_nanos());
        let digest = Sha256::digest(text.as_bytes());
        digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether there is room for another decision; the operators' reserve is none.
    ///
    /// Observed drops take entries of the kernel's map, too, but not from enforced ones: an
    /// entry that only counts gives way to a block. They are therefore not counted here.
    fn make_room(&mut self, plan: &Plan, now: Timestamp) -> bool {
        match (plan.action, plan.mode) {
            (Action::Alert, _) | (_, Mode::Observe) => {
                self.make_room_to_note(1);
                true
            }
            (_, Mode::Enforce) => {
                let kernel = &self.config.kernel;
                let room = capacity(kernel.max_blocks.saturating_sub(kernel.operator_reserve));
                if self.enforced.len() >= room {
                    self.enforced.expire(now);
                }
                self.enforced.len() < room
            }
        }
    }

    fn make_room_to_note(&mut self, new: usize) {
        let limit = self.config.detect.max_actors.max(1);
        while self.noted.len().saturating_add(new) > limit && self.noted.take_first().is_some() {
            self.counters.noted_evicted = self.counters.noted_evicted.saturating_add(1);
        }
    }

    fn hold(&mut self, decision: Decision, end: Timestamp) {
        let book = if is_enforced(&decision) { &mut self.enforced } else { &mut self.noted };
        book.insert(decision, end);
    }
}

/// The decision that a rule found in the kernel stands for, when no log knows it. Its number is
/// the one that [`Decision::rule_id`] gives its id. An operator's stays an operator's.
pub fn recovered(block: &Block, now: Timestamp) -> Decision {
    let detector = match block.origin {
        Origin::Operator | Origin::Configured => OPERATOR,
        Origin::Automatic => RECOVERED,
    };
    Decision {
        ts: now.truncated_to_millis(),
        id: format!("{:016x}", block.rule_id),
        action: block.effect.action(),
        subject: canonical(block.target.clone()).into(),
        scope: if block.service.is_some() { Scope::Service } else { Scope::Host },
        service: block.service.clone(),
        ttl_s: strikes::whole_seconds(block.remaining.unwrap_or(UNTIL_LIFTED)),
        rate: block.effect.rate(),
        detector: detector.to_owned(),
        owasp: String::new(),
        score: 1.0,
        reason: "a block that an earlier run of the agent left in the kernel".to_owned(),
        evidence: Map::new(),
        mode: Mode::Enforce,
    }
}

/// With networks in the one form that they are compared in.
pub fn canonical(target: Target) -> Target {
    match target {
        Target::Network(net) => Target::Network(guards::canonical(net)),
        Target::Conjunction(net, ja4) => Target::Conjunction(guards::canonical(net), ja4),
        Target::Fingerprint(_) | Target::Flow(_) => target,
    }
}

/// What forbids `decision`: a detector's may touch nobody who is guarded, an operator's only has
/// to mean something.
fn guard_of(guards: &Guards, decision: &Decision) -> Option<Guarded> {
    let net = decision.subject.addresses()?;
    if decision.detector == OPERATOR { guards.of_all(net) } else { guards.of(net) }
}

/// Whether the client is an offender by it.
fn is_strike(decision: &Decision) -> bool {
    decision.detector != OPERATOR && decision.action != Action::Alert
}

/// Which actions make others needless.
fn strength(action: Action) -> u8 {
    match action {
        Action::Drop => 4,
        Action::Deceive => 3,
        Action::RateLimit => 2,
        Action::Tag => 1,
        Action::Alert => 0,
    }
}

fn end_of(decision: &Decision) -> Timestamp {
    decision.ts.saturating_add(Duration::from_secs(decision.ttl_s))
}

fn is_enforced(decision: &Decision) -> bool {
    decision.action != Action::Alert && decision.mode == Mode::Enforce
}

/// Whether a detector made the decision where detectors' blocks are not carried out. Operators
/// ask for theirs by hand, whatever the mode.
fn is_only_observed(config: &Config, decision: &Decision) -> bool {
    decision.detector != OPERATOR && config.mode_of(decision.service.as_deref()) == Mode::Observe
}

fn lifted_at(decision: Decision, now: Timestamp) -> Lifted {
    let ts = now.truncated_to_millis();
    let lift = Lift { ts, id: decision.id.clone(), action: LiftAction::Lift };
    Lifted { lift, decision }
}

fn capacity(entries: u32) -> usize {
    usize::try_from(entries).unwrap_or(usize::MAX)
}
