//! The pure pipeline: what happened and when in, findings and decisions out.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Config;
use crate::decide::{self, Decider, HostGuards, Lifted, Order, Refused, Which};
use crate::decision::{Decision, Subject};
use crate::detect::{self, Detectors};
use crate::finding::Finding;
use crate::rule::RuleName;
use crate::time::Timestamp;
use crate::transaction::Transaction;

/// What came out, in the order it was found. The caller empties it.
#[derive(Debug, Default)]
pub struct Output {
    pub findings: Vec<Finding>,
    pub decisions: Vec<Decision>,
}

/// How long nothing is found on a client whose block the kernel did not take, so that a full map
/// does not cost a decision for each request.
const RETRY_AFTER: Duration = Duration::from_secs(1);

pub struct Pipeline {
    detectors: Detectors,
    decider: Decider,
}

impl Pipeline {
    /// `seed` as for [`Decider::new`].
    pub fn new(config: Arc<Config>, host: HostGuards, seed: u64) -> Self {
        let detectors = Detectors::new(Arc::clone(&config));
        Self { detectors, decider: Decider::new(config, host, seed) }
    }

    /// Judges one transaction.
    pub fn transaction(&mut self, tx: &Transaction, out: &mut Output) {
        let known = out.findings.len();
        self.detectors.observe(tx, &mut out.findings);
        for finding in out.findings.iter().skip(known) {
            out.decisions.extend(self.decider.decide(finding));
            // One finding tells all until what was decided ends; if the abuse goes on then, the
            // next decision follows at once.
            if let Some(until) = self.decider.covered_until(finding) {
                self.detectors.quiet(finding, until);
            }
        }
    }

    /// Lets go of what has expired; to be called about once a second.
    pub fn tick(&mut self, now: Timestamp) {
        self.detectors.expire(now);
        self.decider.expire(now);
    }

    /// Adopts `config`, keeps what is known, and returns what it makes an end of.
    pub fn reconfigure(&mut self, config: Arc<Config>, now: Timestamp) -> Vec<Lifted> {
        self.detectors.reconfigure(Arc::clone(&config));
        let lifted = self.decider.reconfigure(config, now);
        self.forget(lifted)
    }

    pub fn set_host(&mut self, host: HostGuards, now: Timestamp) -> Vec<Lifted> {
        let lifted = self.decider.set_host(host, now);
        self.forget(lifted)
    }

    /// See [`Decider::operator_block`].
    pub fn operator_block(
        &mut self,
        order: &Order,
        reason: &str,
        now: Timestamp,
    ) -> Result<Decision, Refused> {
        self.decider.operator_block(order, reason, now)
    }

    /// Ends decisions before their time; their clients start anew.
    pub fn lift(&mut self, which: Which<'_>, now: Timestamp) -> Vec<Lifted> {
        let lifted = self.decider.lift(which, now);
        self.forget(lifted)
    }

    /// The kernel did not take the block that `decision` asks for. See [`Decider::not_enforced`];
    /// the client is found again, by whichever detector, from a second after the decision on.
    pub fn not_enforced(&mut self, decision: &Decision) {
        if !self.decider.not_enforced(decision) {
            return;
        }
        if let Some(client) = decision.subject.addresses() {
            let until = decision.ts.saturating_add(RETRY_AFTER);
            self.detectors.quiet_client(client.addr(), decision.mode, until);
        }
    }

    /// See [`Decider::restore`].
    pub fn restore(&mut self, decision: Decision, now: Timestamp) -> Result<(), Refused> {
        self.decider.restore(decision, now)
    }

    /// See [`Decider::in_force`].
    pub fn in_force(&self) -> impl Iterator<Item = &Decision> {
        self.decider.in_force()
    }

    /// See [`Decider::holder`].
    pub fn holder(&self, rule: &RuleName, now: Timestamp) -> Option<(&Decision, Timestamp)> {
        self.decider.holder(rule, now)
    }

    /// See [`Decider::enforced_on`].
    pub fn enforced_on(&self, subject: &Subject) -> impl Iterator<Item = &Decision> {
        self.decider.enforced_on(subject)
    }

    /// Clients remembered.
    pub fn actors(&self) -> usize {
        self.detectors.actors()
    }

    pub fn detector_counters(&self) -> Vec<detect::Counter> {
        self.detectors.counters()
    }

    pub fn decider_counters(&self) -> decide::Counters {
        self.decider.counters()
    }

    fn forget(&mut self, lifted: Vec<Lifted>) -> Vec<Lifted> {
        let networks = lifted.iter().filter_map(|one| one.decision.subject.addresses());
        let clients: Vec<IpAddr> = networks.map(|net| net.addr()).collect();
        clients.into_iter().for_each(|ip| self.detectors.forget(ip));
        lifted
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::time::Instant;

    use ipnet::IpNet;
    use proptest::prelude::*;

    use super::*;
    use crate::decision::{Action, Mode};
    use crate::detect::tests::{START, any_transaction, get, login};

    const ATTACKER: &str = "203.0.113.66";

    fn pipeline(config: Config) -> Pipeline {
        Pipeline::new(Arc::new(config), HostGuards::default(), 0)
    }

    fn at(seconds: f64) -> Timestamp {
        Timestamp::from_secs_f64(START + seconds).unwrap()
    }

    /// Runs one failed login a second, and returns the seconds of findings and decisions.
    fn attack(pipeline: &mut Pipeline, seconds: std::ops::Range<u32>) -> (Vec<f64>, Vec<f64>) {
        let mut out = Output::default();
        for second in seconds {
            let tx = login(f64::from(second), ATTACKER, &format!("user{second}"), 401);
            pipeline.transaction(&tx, &mut out);
            pipeline.tick(tx.ts);
        }
        let seconds = |ts: Timestamp| ts.as_secs_f64() - START;
        let findings = out.findings.iter().map(|finding| seconds(finding.ts)).collect();
        (findings, out.decisions.iter().map(|decision| seconds(decision.ts)).collect())
    }

    #[test]
    fn an_attack_that_goes_on_stays_covered() {
        let mut pipeline = pipeline(Config { mode: Mode::Observe, ..Config::default() });
        let (findings, decisions) = attack(&mut pipeline, 0..4_000);
        // 600 s, then four times that; each next one at the moment the last ends.
        assert_eq!(decisions, [9.0, 609.0, 3_009.0]);
        assert_eq!(findings, decisions, "nothing is said of it in between");
    }

    #[test]
    fn an_attack_that_a_block_ended_has_to_begin_anew() {
        let mut pipeline = pipeline(Config::default());
        assert_eq!(attack(&mut pipeline, 0..10).1, [9.0]);
        assert_eq!(attack(&mut pipeline, 700..720).1, [709.0]);
    }

    #[test]
    fn who_is_lifted_starts_anew() {
        let mut pipeline = pipeline(Config::default());
        assert_eq!(attack(&mut pipeline, 0..15).1, [9.0]);
        let subject = Subject::client(ATTACKER.parse().unwrap());
        assert_eq!(pipeline.lift(Which::Subject(&subject), at(15.0)).len(), 1);
        assert_eq!(attack(&mut pipeline, 15..30).1, [24.0]);
        assert_eq!(pipeline.in_force().map(|d| d.ttl_s).collect::<Vec<_>>(), [600]);
    }

    #[test]
    fn who_is_no_longer_guarded_is_found_anew() {
        let mut allowing = Config::default();
        allowing.guards.allow = vec!["203.0.113.66/32".parse().unwrap()];
        let mut pipeline = pipeline(allowing.clone());
        assert_eq!(attack(&mut pipeline, 0..30).1, [9.0], "one alert");
        assert_eq!(pipeline.reconfigure(Arc::new(allowing), at(30.0)), [], "guarded as before");
        let lifted = pipeline.reconfigure(Arc::new(Config::default()), at(30.0));
        let lifted: Vec<_> = lifted.iter().map(|one| one.decision.action).collect();
        assert_eq!(lifted, [Action::Alert]);
        assert_eq!(attack(&mut pipeline, 30..60).1, [39.0]);
        assert_eq!(pipeline.in_force().map(|d| d.action).collect::<Vec<_>>(), [Action::Drop]);
    }

    /// Ten requests a second, each twice the limit by itself: the detectors find at every request
    /// that they may.
    #[test]
    fn a_block_that_the_kernel_did_not_take_is_tried_again_each_second() {
        for ip in [ATTACKER, "2001:db8:bad:1::7"] {
            let mut config = Config::default();
            config.detect.request_rate.requests = 1;
            let mut pipeline = pipeline(config);
            let mut out = Output::default();
            let mut refused = Vec::new();
            for tenth in 0..50 {
                let tx = get(f64::from(tenth) / 10.0, ip, "/");
                for _ in 0..2 {
                    pipeline.transaction(&tx, &mut out);
                }
                for decision in out.decisions.drain(..) {
                    pipeline.not_enforced(&decision);
                    refused.push((decision.ts.as_secs_f64() - START, decision.ttl_s));
                }
                assert_eq!(pipeline.in_force().count(), 0);
            }
            let seconds = |n: f64| (n, 600);
            assert_eq!(refused, [0.0, 1.0, 2.0, 3.0, 4.0].map(seconds), "{ip}");
        }
    }

    #[test]
    fn a_detector_whose_finding_was_covered_speaks_up_too() {
        let mut config = Config::default();
        config.detect.request_rate.requests = 12;
        let mut pipeline = pipeline(config);
        let mut out = Output::default();
        let login_at =
            |second: u32| login(f64::from(second), ATTACKER, &format!("user{second}"), 401);
        (0..15).for_each(|second| pipeline.transaction(&login_at(second), &mut out));
        let [stuffing] = &out.decisions[..] else { panic!("{:?}", out.decisions) };
        assert_eq!((&*stuffing.detector, out.findings.len()), ("credential_stuffing", 2));
        pipeline.not_enforced(&stuffing.clone());
        out = Output::default();
        (0..13).for_each(|_| pipeline.transaction(&get(15.0, ATTACKER, "/"), &mut out));
        let detectors: Vec<_> = out.decisions.iter().map(|d| d.detector.as_str()).collect();
        assert_eq!(detectors, ["request_rate"]);
    }

    #[test]
    fn what_is_only_observed_needs_no_kernel() {
        let mut pipeline = pipeline(Config { mode: Mode::Observe, ..Config::default() });
        assert_eq!(attack(&mut pipeline, 0..10).1, [9.0]);
        let observed = pipeline.in_force().next().unwrap().clone();
        pipeline.not_enforced(&observed);
        assert_eq!(pipeline.in_force().count(), 1);
        assert_eq!(attack(&mut pipeline, 10..60).1.len(), 0);
    }

    #[test]
    fn two_detectors_make_one_decision() {
        let mut config = Config::default();
        config.detect.request_rate.requests = 4;
        let mut pipeline = pipeline(config);
        let mut out = Output::default();
        for i in 0..30 {
            let tx = login(f64::from(i) / 10.0, ATTACKER, &format!("user{i}"), 401);
            pipeline.transaction(&tx, &mut out);
        }
        let detectors: Vec<_> = out.findings.iter().map(|f| f.detector.as_str()).collect();
        assert_eq!(detectors, ["request_rate", "credential_stuffing"]);
        assert_eq!(out.decisions.len(), 1);
    }

    proptest! {
        #[test]
        fn no_input_panics_or_blocks_who_is_guarded(
            txs in prop::collection::vec(any_transaction(), 0..100),
        ) {
            let mut config = Config::default();
            config.detect.request_rate.requests = 3;
            config.detect.credential_stuffing.failures = 2;
            config.detect.credential_stuffing.distinct_users = 2;
            config.guards.trusted_proxies = vec!["192.0.2.0/31".parse().unwrap()];
            config.guards.allow = vec!["192.0.2.2/32".parse().unwrap()];
            let guarded: IpNet = "192.0.2.0/30".parse().unwrap();
            let free: IpNet = "192.0.2.3/32".parse().unwrap();
            let mut pipeline = pipeline(config);
            let mut out = Output::default();
            for tx in &txs {
                pipeline.transaction(tx, &mut out);
                pipeline.tick(tx.ts);
            }
            prop_assert!(out.decisions.len() <= out.findings.len());
            for decision in out.decisions.iter().filter(|d| d.action == Action::Drop) {
                let net = decision.subject.network().unwrap();
                prop_assert!(net == free || !guarded.contains(&net), "{net}");
            }
        }
    }

    /// Prints transactions a second on one core: `cargo test --release -p portcullis --lib
    /// pipeline_rate -- --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement"]
    fn pipeline_rate() {
        const CLIENTS: u32 = 50_000;
        const ROUNDS: u32 = 20;
        for (what, logins) in [("requests", 0), ("one login in ten", 10), ("failed logins", 1)] {
            let mut txs: Vec<_> = (0..CLIENTS)
                .map(|n| {
                    let is_login = logins > 0 && n % logins == 0;
                    let mut tx = if is_login {
                        login(0.0, ATTACKER, &format!("user{n}@example.org"), 401)
                    } else {
                        get(0.0, ATTACKER, "/api/v1/products/4711?page=2")
                    };
                    // Neighbours in time are strangers in memory.
                    tx.src = std::net::Ipv4Addr::from_bits(n.wrapping_mul(2_654_435_761)).into();
                    tx
                })
                .collect();
            let mut pipeline = pipeline(Config::default());
            let mut out = Output::default();
            let started = Instant::now();
            for round in 0..ROUNDS {
                for tx in &mut txs {
                    tx.ts = at(f64::from(round));
                    pipeline.transaction(black_box(tx), &mut out);
                }
                pipeline.tick(at(f64::from(round)));
            }
            let rate = f64::from(CLIENTS * ROUNDS) / started.elapsed().as_secs_f64();
            println!("{what}: {rate:.0} transactions/s over {CLIENTS} clients");
        }
    }
}
