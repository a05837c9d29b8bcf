//! What the loop owns: the pipeline, the policy maps, and what is told about them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use portcullis_common::event::{TlsData, direction};

use super::recent::Recent;
use crate::capture::events::{self, Event as Captured};
use crate::capture::probes::Probes;
use crate::config::Config;
use crate::decide::{HostGuards, Lifted, OPERATOR, UNTIL_LIFTED, Which, recovered};
use crate::decision::{Action, Decision, Mode};
use crate::enforce::{EnforceError, Origin, PolicyMaps, carry_out};
use crate::flow::{Chunk, Side};
use crate::host::HostAddresses;
use crate::http::{self, CredentialKey, Http};
use crate::kernel::{self, Attachment, Count, LossCounters, ReasonCounters};
use crate::pipeline::{Output, Pipeline};
use crate::report::event_log::{Event, EventLog};
use crate::time::Timestamp;
use crate::transaction::Transaction;

/// How often the host's addresses are looked at again.
const HOST_REFRESH: Duration = Duration::from_secs(30);
/// How often the event log says what was lost.
const LOSS_REPORT: Duration = Duration::from_secs(10);

/// What a [`Core`] is made of.
pub(super) struct Parts<P> {
    pub config_path: PathBuf,
    pub config: Config,
    pub host: HostAddresses,
    pub maps: P,
    pub reasons: ReasonCounters,
    pub losses: LossCounters,
    pub log: EventLog,
}

pub(super) struct Core<P> {
    pub(super) config_path: PathBuf,
    /// As the file has it.
    pub(super) configured: Config,
    /// With what operators allowed since.
    pub(super) config: Arc<Config>,
    pub(super) allowed_by_operator: Vec<IpNet>,
    pub(super) host: HostAddresses,
    pub(super) http: Http,
    pub(super) pipeline: Pipeline,
    pub(super) maps: P,
    pub(super) reasons: ReasonCounters,
    pub(super) losses: LossCounters,
    pub(super) log: EventLog,
    pub(super) attachments: Vec<Attachment>,
    pub(super) probes: Option<Probes>,
    pub(super) recent: Recent,
    pub(super) totals: Totals,
    started: Instant,
    clock_offset: u64,
    next_host_refresh: Instant,
    next_loss_report: Instant,
    losses_told: Vec<Count>,
    transactions: Vec<Transaction>,
    output: Output,
}

/// Counted since the start.
#[derive(Default)]
pub(super) struct Totals {
    pub findings: BTreeMap<&'static str, u64>,
    pub decisions: BTreeMap<&'static str, u64>,
    pub guarded: BTreeMap<String, u64>,
    pub blocks_failed: u64,
    pub undecodable: u64,
    pub reloads: u64,
    pub reloads_failed: u64,
}

impl<P: PolicyMaps> Core<P> {
    pub fn new(parts: Parts<P>) -> Result<Self> {
        let Parts { config_path, config, host, maps, reasons, losses, log } = parts;
        let effective = Arc::new(config.clone());
        // The key lives as long as the agent, so nobody can later tell what was hashed.
        let key = CredentialKey::new(&random::<32>()?);
        let http = Http::new(http_settings(&effective), key);
        let seed = u64::from_ne_bytes(random()?);
        let pipeline = Pipeline::new(Arc::clone(&effective), guards(&host), seed);
        let now = Instant::now();
        let mut core = Self {
            config_path,
            configured: config,
            config: effective,
            allowed_by_operator: Vec::new(),
            host,
            http,
            pipeline,
            maps,
            reasons,
            losses,
            log,
            attachments: Vec::new(),
            probes: None,
            recent: Recent::default(),
            totals: Totals::default(),
            started: now,
            clock_offset: kernel::wall_clock_offset(),
            next_host_refresh: now + HOST_REFRESH,
            next_loss_report: now + LOSS_REPORT,
            losses_told: Vec::new(),
            transactions: Vec::new(),
            output: Output::default(),
        };
        core.write_policy()?;
        core.take_over_blocks()?;
        core.block_configured(&[]);
        Ok(core)
    }

    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config)
    }

    pub fn set_attachments(&mut self, attachments: Vec<Attachment>) {
        self.attachments = attachments;
    }

    pub fn set_probes(&mut self, probes: Probes) {
        self.probes = Some(probes);
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// The wall clock, which everything outside of the kernel is stamped with.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_nanos(kernel::monotonic_now().saturating_add(self.clock_offset))
    }

    fn at(&self, kernel_ns: u64) -> Timestamp {
        Timestamp::from_nanos(kernel_ns.saturating_add(self.clock_offset))
    }

    pub fn log_start(&mut self) {
        let (now, config) = (self.now(), self.config());
        self.log.append(
            now,
            &Event::Start {
                ts: now,
                version: env!("CARGO_PKG_VERSION"),
                pid: std::process::id(),
                mode: config.mode,
                interfaces: &config.interfaces,
            },
        );
    }

    pub fn log_stop(&mut self, reason: &str) {
        let now = self.now();
        self.log.append(now, &Event::Stop { ts: now, reason });
    }

    /// Allow list and failsafe ports into the kernel.
    pub(super) fn write_policy(&mut self) -> Result<(), EnforceError> {
        let guards = &self.config.guards;
        let mut allowed = guards.allow.clone();
        allowed.extend(&guards.trusted_proxies);
        allowed.extend(self.host.all().map(IpNet::from));
        self.maps.set_allowed(&allowed)?;
        self.maps.set_failsafe(&guards.failsafe_tcp_ports, &guards.failsafe_udp_ports)
    }

    /// The blocks of an earlier run stay in force, except where a guard now forbids them.
    fn take_over_blocks(&mut self) -> Result<(), EnforceError> {
        let now = self.now();
        let mut taken_over = 0;
        for block in self.maps.blocks()? {
            // What is only counted is not in force; a new finding makes it anew.
            let refused = if block.count_only {
                true
            } else {
                let decision =
                    recovered(block.target, block.rule_id, block.remaining, Origin::Automatic, now);
                match self.pipeline.restore(decision, now) {
                    Ok(()) => false,
                    Err(refusal) => {
                        tracing::warn!("not taking over a block: {refusal}");
                        true
                    }
                }
            };
            if refused {
                self.maps.unblock(block.target)?;
            } else {
                taken_over += 1;
            }
        }
        if taken_over > 0 {
            tracing::info!("took over {taken_over} blocks of an earlier run");
        }
        Ok(())
    }

    /// Blocks what the configuration lists, except what `already` does.
    pub(super) fn block_configured(&mut self, already: &[IpNet]) {
        let listed = self.config.blocked.clone();
        for block in listed.iter().filter(|block| !already.contains(&block.target)) {
            let reason = block.reason.as_deref().unwrap_or("listed in the configuration");
            if let Err(message) = self.operator_block(block.target, None, reason) {
                tracing::error!("{message}");
            }
        }
    }

    /// # Errors
    /// A sentence for the operator.
    pub(super) fn operator_block(
        &mut self,
        target: IpNet,
        ttl: Option<Duration>,
        reason: &str,
    ) -> Result<Decision, Refusal> {
        let now = self.now();
        let decision = self.pipeline.operator_block(target, ttl, reason, now)?;
        if let Err(error) = carry_out(&mut self.maps, &decision, ttl) {
            // Nothing was written, so there is nothing in the kernel to lift.
            self.pipeline.lift(Which::Id(&decision.id), now);
            self.totals.blocks_failed += 1;
            return Err(error.into());
        }
        self.tell_decision(&decision, now);
        Ok(decision)
    }

    /// Handles records until the batch is dropped.
    pub fn begin_batch(&mut self) -> Batch<'_, P> {
        Batch { core: self }
    }

    fn record(&mut self, record: &[u8]) {
        match events::decode(record) {
            Ok(Captured::TlsData(header, data)) => self.tls_data(&header, data),
            Ok(Captured::TlsClosed(closed)) => {
                let ts = self.at(closed.time_ns);
                self.http.closed(closed.connection, ts, &mut self.transactions);
                self.judge(ts);
            }
            Ok(Captured::FirstDrop(drop)) => {
                let target = kernel::network_of(drop.addr, drop.prefix_len);
                if let Some(target) = target {
                    self.first_drop(target, drop.rule_id, self.at(drop.time_ns));
                }
            }
            Ok(Captured::Exec(exec)) => {
                if let Some(probes) = &self.probes {
                    probes.process_started(exec.pid);
                }
            }
            Err(error) => {
                self.totals.undecodable += 1;
                tracing::debug!("an event can't be read: {error}");
            }
        }
    }

    fn tls_data(&mut self, header: &TlsData, data: &[u8]) {
        let (local, remote) = kernel::flow_addresses(&header.flow);
        let ts = self.at(header.time_ns);
        let chunk = Chunk {
            connection: header.connection,
            side: if header.direction == direction::READ { Side::Read } else { Side::Write },
            ts,
            local,
            remote,
            pid: header.pid,
            comm: events::comm(header),
            offset: header.offset,
            len: u64::from(header.len),
            data,
        };
        self.http.chunk(&chunk, &mut self.transactions);
        self.judge(ts);
    }

    /// Judges the transactions that an event at `cause` completed.
    fn judge(&mut self, cause: Timestamp) {
        for transaction in self.transactions.drain(..) {
            self.pipeline.transaction(&transaction, &mut self.output);
        }
        self.act(cause);
    }

    /// Carries out and tells what the pipeline has just put out. `cause` is when the event that
    /// made it put it out happened.
    fn act(&mut self, cause: Timestamp) {
        if self.output.findings.is_empty() && self.output.decisions.is_empty() {
            return;
        }
        let output = std::mem::take(&mut self.output);
        // First of all the kernel: telling can wait.
        for decision in &output.decisions {
            self.carry_out(decision);
        }
        let now = self.now();
        for finding in output.findings {
            *self.totals.findings.entry(finding.detector.as_str()).or_default() += 1;
            self.log.append(now, &Event::Finding(&finding));
            self.recent.finding(finding);
        }
        for decision in &output.decisions {
            self.tell_decision(decision, cause);
        }
    }

    fn carry_out(&mut self, decision: &Decision) {
        let ttl = Some(Duration::from_secs(decision.ttl_s));
        // What is only counted must not take the place of what is dropped.
        let dropped = self.pipeline.dropped_until(&decision.subject, decision.ts);
        if decision.mode == Mode::Observe && dropped.is_some() {
            return;
        }
        if let Err(error) = carry_out(&mut self.maps, decision, ttl) {
            self.totals.blocks_failed += 1;
            tracing::error!("a decision can't be carried out: {error:#}");
        }
    }

    fn tell_decision(&mut self, decision: &Decision, cause: Timestamp) {
        let action = match decision.action {
            Action::Drop => "drop",
            Action::Alert => "alert",
        };
        *self.totals.decisions.entry(action).or_default() += 1;
        if let Some(guard) = decision.evidence.get("guard").and_then(|guard| guard.as_str()) {
            *self.totals.guarded.entry(guard.to_owned()).or_default() += 1;
        }
        let now = self.now();
        self.log.append(now, &Event::Decision(decision));
        self.recent.decision(decision.clone(), cause);
    }

    fn first_drop(&mut self, target: IpNet, rule: u64, ts: Timestamp) {
        let made = self.recent.by_rule(rule);
        let id = made.map(|made| made.decision.id.clone());
        let after_ms = made.map(|made| ts.since(made.cause).as_secs_f64() * 1e3);
        let now = self.now();
        self.log.append(now, &Event::FirstDrop { ts, id: id.as_deref(), target, after_ms });
    }

    /// Takes lifted decisions out of the kernel, or leaves there what another still asks for.
    pub(super) fn carry_out_lifts(&mut self, lifted: Vec<Lifted>) {
        let now = self.now();
        for Lifted { lift, decision } in lifted {
            if let Err(error) = self.end_block(&decision, now) {
                tracing::error!("a block can't be lifted: {error:#}");
            }
            self.log.append(now, &Event::Lift(&lift));
        }
    }

    fn end_block(&mut self, ended: &Decision, now: Timestamp) -> Result<(), EnforceError> {
        let Some(target) = ended.subject.network() else { return Ok(()) };
        if ended.action != Action::Drop {
            return Ok(());
        }
        match self.pipeline.dropped_until(&ended.subject, now) {
            Some(until) => {
                let left = until.since(now);
                let holder = self
                    .pipeline
                    .in_force()
                    .find(|held| held.subject == ended.subject && held.action == Action::Drop);
                let Some(holder) = holder.cloned() else { return Ok(()) };
                carry_out(&mut self.maps, &holder, (left < UNTIL_LIFTED / 2).then_some(left))
            }
            None => match self.maps.unblock(target) {
                // It has expired meanwhile, or was only ever an alert.
                Err(EnforceError::NotBlocked(_)) => Ok(()),
                other => other,
            },
        }
    }

    /// Once a second.
    pub fn tick(&mut self) {
        self.clock_offset = kernel::wall_clock_offset();
        let now = self.now();
        self.http.expire(now, &mut self.transactions);
        self.judge(now);
        self.pipeline.tick(now);
        if let Err(error) = self.maps.sweep() {
            tracing::error!("expired blocks can't be removed: {error:#}");
        }
        let instant = Instant::now();
        if instant >= self.next_host_refresh {
            self.next_host_refresh = instant + HOST_REFRESH;
            self.refresh_host(now);
        }
        if instant >= self.next_loss_report {
            self.next_loss_report = instant + LOSS_REPORT;
            self.report_losses(now);
        }
    }

    fn refresh_host(&mut self, now: Timestamp) {
        match HostAddresses::read() {
            Ok(host) if host == self.host => {}
            Ok(host) => {
                let lifted = self.pipeline.set_host(guards(&host), now);
                self.host = host;
                self.carry_out_lifts(lifted);
                if let Err(error) = self.write_policy() {
                    tracing::error!("the allow list can't be changed: {error:#}");
                }
            }
            Err(error) => tracing::warn!("the host's addresses can't be read: {error:#}"),
        }
    }

    fn report_losses(&mut self, now: Timestamp) {
        let losses = match self.losses.all() {
            Ok(losses) => losses,
            Err(error) => return tracing::warn!("{error:#}"),
        };
        for (index, count) in losses.iter().enumerate() {
            let told = self.losses_told.get(index).copied().unwrap_or_default();
            if count.packets > told.packets {
                let event = Event::Loss {
                    ts: now,
                    name: count.name,
                    events: count.packets - told.packets,
                    bytes: count.bytes.saturating_sub(told.bytes),
                };
                self.log.append(now, &event);
            }
        }
        self.losses_told = losses;
    }
}

/// A run of records, handled one after the other.
pub(super) struct Batch<'a, P> {
    core: &'a mut Core<P>,
}

impl<P: PolicyMaps> Batch<'_, P> {
    pub fn record(&mut self, record: &[u8]) {
        self.core.record(record);
    }
}

/// Why an operator's block was not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error(transparent)]
    Refused(#[from] crate::decide::Refused),
    #[error(transparent)]
    Failed(#[from] EnforceError),
}

pub(super) fn guards(host: &HostAddresses) -> HostGuards {
    HostGuards {
        addresses: host.addresses.clone(),
        gateways: host.gateways.clone(),
        resolvers: host.resolvers.clone(),
    }
}

pub(super) fn http_settings(config: &Config) -> http::Settings {
    http::Settings {
        max_connections: config.capture.max_connections as usize,
        body_excerpt: config.capture.body_excerpt,
        idle_timeout: config.capture.idle_timeout,
        ..http::Settings::default()
    }
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).context("can't get random bytes")?;
    Ok(bytes)
}

/// Whether a decision was an operator's.
pub(super) fn by_operator(decision: &Decision) -> bool {
    decision.detector == OPERATOR
}
