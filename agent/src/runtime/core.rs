//! What the loop owns: the pipeline, the policy maps, and what is told about them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use portcullis_common::event::{TlsData, direction};

use super::clock::Clock;
use super::fingerprints::Fingerprints;
use super::recent::Recent;
use crate::capture::events::{self, Event as Captured};
use crate::capture::probes::Probes;
use crate::config::Config;
use crate::decide::HostGuards;
use crate::decision::Decision;
use crate::decoy::Decoy;
use crate::enforce::{PolicyMaps, Target};
use crate::flow::{Chunk, Side};
use crate::host::HostAddresses;
use crate::http::{self, CredentialKey, Http};
use crate::kernel::sockets::{CloseSockets, Spared};
use crate::kernel::{
    self, AnswerCounters, Count, HelloCounters, Interfaces, LossCounters, ReasonCounters,
};
use crate::pipeline::{Output, Pipeline};
use crate::report::event_log::{Event, EventLog};
use crate::report::snapshot;
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
    pub answers: AnswerCounters,
    pub hellos: HelloCounters,
    /// `None` where connections can't be closed.
    pub closer: Option<Box<dyn CloseSockets>>,
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
    pub(super) fingerprints: Fingerprints,
    pub(super) maps: P,
    pub(super) reasons: ReasonCounters,
    pub(super) losses: LossCounters,
    pub(super) answers: AnswerCounters,
    pub(super) hellos: HelloCounters,
    pub(super) closer: Option<Box<dyn CloseSockets>>,
    /// Whose connections are never closed, as the kernel's policy has it.
    pub(super) spared: Arc<Spared>,
    pub(super) log: EventLog,
    pub(super) interfaces: Option<Interfaces>,
    pub(super) probes: Option<Probes>,
    pub(super) decoy: Option<Decoy>,
    pub(super) recent: Recent,
    pub(super) totals: Totals,
    /// Lists as they were read last.
    pub(super) lists: Vec<snapshot::List>,
    started: Instant,
    pub(super) clock: Clock,
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
        let Parts {
            config_path,
            config,
            host,
            maps,
            reasons,
            losses,
            answers,
            hellos,
            closer,
            log,
        } = parts;
        let effective = Arc::new(config.clone());
        // The key lives as long as the agent, so nobody can later tell what was hashed.
        let key = CredentialKey::new(&random::<32>()?);
        let http = Http::new(http_settings(&effective), key);
        let seed = u64::from_ne_bytes(random()?);
        let pipeline = Pipeline::new(Arc::clone(&effective), guards(&host), seed);
        let fingerprints = Fingerprints::new(maps.known());
        let now = Instant::now();
        let mut core = Self {
            config_path,
            configured: config,
            config: effective,
            allowed_by_operator: Vec::new(),
            host,
            http,
            pipeline,
            fingerprints,
            maps,
            reasons,
            losses,
            answers,
            hellos,
            closer,
            spared: Arc::default(),
            log,
            interfaces: None,
            probes: None,
            decoy: None,
            recent: Recent::default(),
            totals: Totals::default(),
            lists: Vec::new(),
            started: now,
            clock: Clock::start(),
            next_host_refresh: now + HOST_REFRESH,
            next_loss_report: now + LOSS_REPORT,
            losses_told: Vec::new(),
            transactions: Vec::new(),
            output: Output::default(),
        };
        let config = core.config();
        core.write_policy(&config)?;
        // Nobody would read what the kernel reports.
        core.maps.set_fingerprinting(config.capture.enabled);
        core.take_over_blocks()?;
        core.block_configured(&[]);
        core.start_lists();
        Ok(core)
    }

    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config)
    }

    pub fn set_probes(&mut self, probes: Probes) {
        self.probes = Some(probes);
    }

    pub fn set_decoy(&mut self, decoy: Decoy) {
        self.decoy = Some(decoy);
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// The pipeline's time.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The wall clock's time, which everything that leaves the agent is stamped with.
    pub fn wall_now(&self) -> Timestamp {
        self.clock.shown(self.now())
    }

    pub fn log_start(&mut self) {
        let (now, config) = (self.wall_now(), self.config());
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
        let now = self.wall_now();
        self.log.append(now, &Event::Stop { ts: now, reason });
    }

    /// Handles one record of the ring buffer.
    pub fn record(&mut self, record: &[u8]) {
        match events::decode(record) {
            Ok(Captured::TlsData(header, data)) => self.tls_data(&header, data),
            Ok(Captured::TlsClosed(closed)) => {
                let ts = self.clock.at(closed.time_ns);
                self.http.closed(closed.connection, ts, &mut self.transactions);
                self.judge(ts);
            }
            Ok(Captured::FirstDrop(drop)) => {
                if let Some(source) = kernel::network_of(drop.addr, 128) {
                    self.first_drop(source, drop.rule_id, self.clock.at(drop.time_ns));
                }
            }
            Ok(Captured::Exec(exec)) => {
                if let Some(probes) = &self.probes {
                    probes.process_started(exec.pid);
                }
            }
            Ok(Captured::NoSocket(found)) => {
                if let Some(probes) = &self.probes {
                    probes.carrier_found(found.pid);
                }
            }
            Ok(Captured::ClientHello(header, records)) => self.client_hello(&header, records),
            Ok(Captured::QuicInitial(header, payload)) => self.quic_initial(&header, payload),
            Err(error) => {
                self.totals.undecodable += 1;
                tracing::debug!("an event can't be read: {error}");
            }
        }
    }

    fn tls_data(&mut self, header: &TlsData, data: &[u8]) {
        let (local, remote) = kernel::flow_addresses(&header.flow);
        let ts = self.clock.at(header.time_ns);
        // Once for each connection: it costs a system call.
        let is_new = !self.http.knows(header.connection);
        let ja4 = if is_new { self.ja4_of(header) } else { None };
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
            ja4: ja4.as_ref(),
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
        let mut decisions = output.decisions;
        decisions.retain(|decision| self.carry_out(decision));
        let now = self.wall_now();
        for mut finding in output.findings {
            finding.ts = self.clock.shown(finding.ts);
            *self.totals.findings.entry(finding.detector.as_str()).or_default() += 1;
            self.log.append(now, &Event::Finding(&finding));
            self.recent.finding(finding);
        }
        for decision in decisions {
            self.tell_decision(decision, cause);
        }
    }

    pub(super) fn tell_decision(&mut self, mut decision: Decision, cause: Timestamp) {
        *self.totals.decisions.entry(decision.action.name()).or_default() += 1;
        if let Some(guard) = decision.evidence.get("guard").and_then(|guard| guard.as_str()) {
            *self.totals.guarded.entry(guard.to_owned()).or_default() += 1;
        }
        decision.ts = self.clock.shown(decision.ts);
        let now = self.wall_now();
        self.log.append(now, &Event::Decision(&decision));
        self.recent.decision(decision, cause);
    }

    fn first_drop(&mut self, source: IpNet, rule: u64, ts: Timestamp) {
        let made = self.recent.by_rule(rule);
        let target = made.and_then(|made| made.decision.subject.target());
        let target = target.unwrap_or(Target::Network(source));
        let id = made.map(|made| made.decision.id.clone());
        let after_ms = made.map(|made| ts.since(made.cause).as_secs_f64() * 1e3);
        let (now, ts) = (self.wall_now(), self.clock.shown(ts));
        self.log.append(now, &Event::FirstDrop { ts, id: id.as_deref(), target, after_ms });
    }

    /// Once a second.
    pub fn tick(&mut self) {
        self.clock.refresh();
        let now = self.now();
        self.http.expire(now, &mut self.transactions);
        self.judge(now);
        self.pipeline.tick(now);
        self.fingerprints.expire(now);
        if let Err(error) = self.maps.sweep() {
            tracing::error!("expired blocks can't be removed: {error:#}");
        }
        self.tell_closures();
        let instant = Instant::now();
        if instant >= self.next_host_refresh {
            self.next_host_refresh = instant + HOST_REFRESH;
            self.refresh_host(now);
        }
        if instant >= self.next_loss_report {
            self.next_loss_report = instant + LOSS_REPORT;
            self.report_losses();
        }
    }

    pub(super) fn refresh_host(&mut self, now: Timestamp) {
        let config = self.config();
        match HostAddresses::read(config.namespaces.iter().map(|namespace| &namespace.path)) {
            Ok(host) if host == self.host => {}
            Ok(host) => {
                let lifted = self.pipeline.set_host(guards(&host), now);
                self.host = host;
                self.carry_out_lifts(&lifted);
                if let Err(error) = self.write_policy(&config) {
                    tracing::error!("the allow list can't be changed: {error:#}");
                }
            }
            Err(error) => tracing::warn!("the host's addresses can't be read: {error:#}"),
        }
    }

    fn report_losses(&mut self) {
        let now = self.wall_now();
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
