//! Transactions → findings: who abuses an API, and on what evidence.
//!
//! Each detector is one file behind one trait and keeps what it knows of a client in a bounded
//! table. Traffic to services in `observe` is counted apart from the rest, so that it can never
//! add to a decision that is enforced; so is what comes through trusted proxies.

use std::net::IpAddr;
use std::sync::Arc;

use crate::config::{Config, Service};
use crate::decision::Mode;
use crate::finding::{Actor, DetectorName, Finding};
use crate::time::Timestamp;
use crate::transaction::{Direction, Transaction};

mod actors;
pub mod client;
mod credential_stuffing;
mod distinct;
mod login;
mod request_rate;
mod slots;
mod user_name;

#[cfg(test)]
pub(crate) mod tests;

pub use credential_stuffing::MAX_DISTINCT_USERS;

use actors::ActorKey;
use credential_stuffing::CredentialStuffing;
use request_rate::RequestRate;

/// A transaction with what every detector needs to know about it.
struct Seen<'a> {
    tx: &'a Transaction,
    config: &'a Config,
    actor: Actor,
    key: ActorKey,
    service: Option<&'a Service>,
}

impl Seen<'_> {
    fn finding(&self, detector: DetectorName, score: f64, reason: String) -> Finding {
        // Of the request that made the case; those before it may be another program's. What a proxy's
        // request has is the proxy's own.
        let ja4 = self.tx.ja4.as_deref().filter(|_| self.actor.via.is_none());
        let ja4 = ja4.map(|ja4| ("ja4".to_owned(), ja4.into()));
        Finding {
            ts: self.tx.ts,
            detector,
            actor: self.actor,
            service: self.service.map(|service| Arc::clone(&service.name)),
            owasp: detector.owasp(),
            // Three digits are more than the score means.
            score: (score.clamp(0.0, 1.0) * 1e3).round() / 1e3,
            reason,
            evidence: ja4.into_iter().collect(),
        }
    }
}

/// One kind of abuse. After a finding on an actor a detector starts counting that actor anew,
/// and says nothing more of it for its window or until the time given to [`quiet`].
///
/// [`quiet`]: Detector::quiet
trait Detector: Send {
    fn name(&self) -> DetectorName;

    /// Adopts another configuration. What was counted is kept, unless over another window.
    fn reconfigure(&mut self, config: &Config);

    fn observe(&mut self, seen: &Seen<'_>, out: &mut Vec<Finding>);

    /// No finding on the actor before `until`.
    fn quiet(&mut self, key: &ActorKey, until: Timestamp);

    fn forget(&mut self, key: &ActorKey);

    /// Forgets actors that nothing within the window is known of.
    fn expire(&mut self, now: Timestamp);

    fn actors(&self) -> usize;

    fn counters(&self) -> Vec<Counter>;
}

/// What a detector had to leave out, under a stable name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    pub name: &'static str,
    pub detector: DetectorName,
    pub value: u64,
}

/// Names of the detectors' counters.
pub mod counter {
    /// Clients forgotten before their time because `detect.max_actors` was reached.
    pub const ACTORS_EVICTED: &str = "actors_evicted";
    /// Transactions older than the window of what is known of their client.
    pub const TOO_LATE: &str = "transactions_too_late";
    /// Failed logins in which no user name was found.
    pub const LOGINS_WITHOUT_USER: &str = "failed_logins_without_user";
    /// Findings.
    pub const FINDINGS: &str = "findings";
}

/// All detectors.
pub struct Detectors {
    config: Arc<Config>,
    all: Vec<Box<dyn Detector>>,
}

impl Detectors {
    pub fn new(config: Arc<Config>) -> Self {
        let all: Vec<Box<dyn Detector>> =
            vec![Box::new(RequestRate::new(&config)), Box::new(CredentialStuffing::new(&config))];
        Self { config, all }
    }

    /// Adopts `config` and keeps what is known of the clients; only a detector whose window
    /// changed starts counting anew.
    pub fn reconfigure(&mut self, config: Arc<Config>) {
        for detector in &mut self.all {
            detector.reconfigure(&config);
        }
        self.config = config;
    }

    /// Judges one transaction. Only what this host served is judged.
    pub fn observe(&mut self, tx: &Transaction, out: &mut Vec<Finding>) {
        match tx.direction {
            Direction::In => {}
            Direction::Out => return,
        }
        let config = &*self.config;
        let service = config.service_of(client::host_without_port(&tx.host), tx.dst_port);
        let mode = service.and_then(|service| service.mode).unwrap_or(config.mode);
        let actor = client::actor_of(config, tx);
        let key = ActorKey::new(&actor, mode);
        let seen = Seen { tx, config, actor, key, service };
        for detector in &mut self.all {
            detector.observe(&seen, out);
        }
    }

    /// No finding like `finding` on its actor before `until`, when what was decided on it ends.
    pub fn quiet(&mut self, finding: &Finding, until: Timestamp) {
        let mode = self.config.mode_of(finding.service.as_deref());
        let key = ActorKey::new(&finding.actor, mode);
        for detector in self.all.iter_mut().filter(|d| d.name() == finding.detector) {
            detector.quiet(&key, until);
        }
    }

    /// No finding on the client at `ip`, whose traffic is under `mode`, before `until`, whatever
    /// the detector; but from then on, even if [`quiet`](Self::quiet) asked for longer.
    pub fn quiet_client(&mut self, ip: IpAddr, mode: Mode, until: Timestamp) {
        let actor = Actor { ip: client::normalised(ip), via: None };
        let key = ActorKey::new(&actor, mode);
        self.all.iter_mut().for_each(|detector| detector.quiet(&key, until));
    }

    /// Starts anew with the client at `ip`: what was decided on it has been lifted.
    pub fn forget(&mut self, ip: IpAddr) {
        for via in [None, Some(ip)] {
            let actor = Actor { ip: client::normalised(ip), via };
            for mode in [Mode::Enforce, Mode::Observe] {
                let key = ActorKey::new(&actor, mode);
                self.all.iter_mut().for_each(|detector| detector.forget(&key));
            }
        }
    }

    pub fn expire(&mut self, now: Timestamp) {
        self.all.iter_mut().for_each(|detector| detector.expire(now));
    }

    /// Clients remembered by the detector that remembers most.
    pub fn actors(&self) -> usize {
        self.all.iter().map(|detector| detector.actors()).max().unwrap_or(0)
    }

    pub fn counters(&self) -> Vec<Counter> {
        self.all.iter().flat_map(|detector| detector.counters()).collect()
    }
}
