//! Answers to what the control socket and the metrics endpoint ask.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;

use super::core::Core;
use super::policy::Refusal;
use crate::decide::{Order, RECOVERED, Which, canonical};
use crate::decision::{Decision, Subject};
use crate::decoy;
use crate::detect::{self, counter::FINDINGS};
use crate::enforce::{Block, EnforceError, Kind, PolicyMaps, Target};
use crate::http::Counter;
use crate::report::control::{
    AllowInfo, AllowOrigin, BlockAction, BlockInfo, ErrorKind, LibraryInfo, Peer, Request, Response,
};
use crate::report::event_log::Event;
use crate::report::snapshot::{Blocks, Decoy, Lost, Packets, Reloads, Snapshot, Sockets};

impl<P: PolicyMaps> Core<P> {
    /// Never fails: what goes wrong is an answer.
    pub fn answer(&mut self, request: Request, peer: Option<Peer>) -> Response {
        let response = match &request {
            Request::Ping => Response::Pong,
            Request::Status => self.status(),
            Request::Blocks => self.blocks(),
            Request::Block { target, action, rate, service, ttl_s, reason } => {
                match action.effect(*rate) {
                    Some(effect) => {
                        let (target, service) = (target.clone(), service.clone());
                        let ttl = ttl_s.map(Duration::from_secs);
                        self.block(&Order { target, effect, service, ttl }, reason.as_deref())
                    }
                    None => Response::error(
                        ErrorKind::BadRequest,
                        "a rate goes with the action rate_limit, and only with it",
                    ),
                }
            }
            Request::Unblock { target, action, service } => {
                self.unblock(target.clone(), action.map(BlockAction::kind), service.as_deref())
            }
            Request::AllowList => self.allow_list(),
            Request::AllowAdd { target } => self.allow_add(*target),
            Request::AllowRemove { target } => self.allow_remove(*target),
            Request::Decisions { limit } => {
                Response::Decisions { decisions: self.recent.decisions(*limit).cloned().collect() }
            }
            Request::Findings { limit } => self.findings(*limit),
            Request::Libraries => self.libraries(),
            Request::Reload => match self.reload() {
                Ok(warnings) => Response::Reloaded { warnings },
                Err(message) => Response::error(ErrorKind::BadConfig, message),
            },
        };
        self.log_operator(&request, peer, &response);
        response
    }

    /// What changes something is logged with who asked for it.
    fn log_operator(&mut self, request: &Request, peer: Option<Peer>, response: &Response) {
        let (target, reason) = match request {
            Request::Block { target, reason, .. } => (Some(target.clone()), reason.as_deref()),
            Request::Unblock { target, .. } => (Some(target.clone()), None),
            Request::AllowAdd { target } | Request::AllowRemove { target } => {
                (Some(Target::Network(*target)), None)
            }
            Request::Reload => (None, None),
            _ => return,
        };
        let Some(peer) = peer else { return };
        let now = self.wall_now();
        let ok = !matches!(response, Response::Error { .. });
        let command = request.name();
        let event = Event::Operator { ts: now, uid: peer.uid, command, target, reason, ok };
        self.log.append(now, &event);
    }

    fn block(&mut self, order: &Order, reason: Option<&str>) -> Response {
        let reason = reason.unwrap_or("blocked by an operator");
        match self.operator_block(order, reason) {
            Ok(decision) => Response::Blocked {
                block: BlockInfo {
                    target: decision.subject.target().unwrap_or_else(|| order.target.clone()),
                    action: order.effect.kind().into(),
                    rate: decision.rate,
                    service: decision.service,
                    remaining_s: order.ttl.map(|ttl| ttl.as_secs()),
                    id: decision.id,
                    detector: Some(decision.detector),
                    reason: Some(decision.reason),
                    count_only: false,
                    packets: 0,
                    bytes: 0,
                    exceeded: 0,
                    no_room: 0,
                },
            },
            Err(Refusal::Refused(refused)) => {
                Response::error(ErrorKind::Refused, refused.to_string())
            }
            Err(Refusal::Failed(error)) => {
                let kind = match &error {
                    EnforceError::NoScope(_) | EnforceError::TooManyRules { .. } => {
                        ErrorKind::Refused
                    }
                    EnforceError::Full(_)
                    | EnforceError::NoRoom { .. }
                    | EnforceError::NotBlocked(_)
                    | EnforceError::Kernel(_) => ErrorKind::Failed,
                };
                Response::error(kind, error.to_string())
            }
        }
    }

    fn unblock(&mut self, target: Target, kind: Option<Kind>, service: Option<&str>) -> Response {
        let now = self.now();
        let target = canonical(target);
        let subject = Subject::from(target.clone());
        let which = match (kind, service) {
            (None, None) => Which::Subject(&subject),
            _ => Which::Rules { subject: &subject, kind, service },
        };
        let lifted = self.pipeline.lift(which, now);
        let was_decided = !lifted.is_empty();
        self.carry_out_lifts(&lifted);
        // A block may be in the kernel of which no decision is known.
        match self.unblock_in_kernel(&target, kind, service) {
            Ok(any) if any || was_decided => Response::Unblocked { target },
            Ok(_) => {
                let error = EnforceError::NotBlocked(target);
                Response::error(ErrorKind::Refused, error.to_string())
            }
            Err(error) => Response::error(ErrorKind::Failed, error.to_string()),
        }
    }

    /// Whether there was anything to lift.
    fn unblock_in_kernel(
        &mut self,
        target: &Target,
        kind: Option<Kind>,
        service: Option<&str>,
    ) -> Result<bool, EnforceError> {
        if kind.is_none() && service.is_none() {
            return match self.maps.unblock(target.clone()) {
                Ok(()) => Ok(true),
                Err(EnforceError::NotBlocked(_)) => Ok(false),
                Err(error) => Err(error),
            };
        }
        let mut any = false;
        for block in self.maps.blocks()? {
            let name = block.name();
            if name.target == *target
                && kind.is_none_or(|kind| kind == name.kind)
                && service.is_none_or(|service| name.service.as_deref() == Some(service))
            {
                self.maps.remove(&name)?;
                any = true;
            }
        }
        Ok(any)
    }

    fn blocks(&self) -> Response {
        match self.maps.blocks() {
            Ok(mut blocks) => {
                blocks.sort_by_cached_key(Block::name);
                let blocks = blocks.into_iter().map(|block| self.block_info(block)).collect();
                Response::Blocks { blocks }
            }
            Err(error) => Response::error(ErrorKind::Failed, error.to_string()),
        }
    }

    fn block_info(&self, block: Block) -> BlockInfo {
        let made = self.recent.by_rule(block.rule_id).map(|made| &made.decision);
        let known = |decision: &&Decision| decision.detector != RECOVERED;
        let decision = made.filter(known);
        BlockInfo {
            action: block.effect.kind().into(),
            rate: block.effect.rate(),
            service: block.service,
            target: block.target,
            remaining_s: block.remaining.map(|remaining| remaining.as_secs()),
            id: format!("{:016x}", block.rule_id),
            detector: decision.map(|decision| decision.detector.clone()),
            reason: decision.map(|decision| decision.reason.clone()),
            count_only: block.count_only,
            packets: block.packets,
            bytes: block.bytes,
            exceeded: block.exceeded,
            no_room: block.no_room,
        }
    }

    fn allow_list(&self) -> Response {
        let guards = &self.configured.guards;
        let info = |origin| move |target: &IpNet| AllowInfo { target: *target, origin };
        let mut allowed: Vec<_> = guards.allow.iter().map(info(AllowOrigin::Config)).collect();
        allowed.extend(guards.trusted_proxies.iter().map(info(AllowOrigin::TrustedProxy)));
        allowed.extend(self.allowed_by_operator.iter().map(info(AllowOrigin::Operator)));
        let host = self.host.all().map(IpNet::from);
        allowed.extend(host.map(|target| AllowInfo { target, origin: AllowOrigin::Host }));
        Response::Allowed { allowed }
    }

    fn allow_add(&mut self, target: IpNet) -> Response {
        let target = target.trunc();
        if self.allowed_by_operator.contains(&target) {
            return self.allow_list();
        }
        self.allowed_by_operator.push(target);
        let response = self.allow_changed();
        if matches!(response, Response::Error { .. }) {
            self.allowed_by_operator.pop();
        }
        response
    }

    fn allow_remove(&mut self, target: IpNet) -> Response {
        let target = target.trunc();
        let Some(at) = self.allowed_by_operator.iter().position(|net| *net == target) else {
            let message = if self.configured.guards.allow.contains(&target) {
                format!("{target} is allowed by the configuration: remove it there and reload")
            } else {
                format!("no operator has allowed {target}")
            };
            return Response::error(ErrorKind::Refused, message);
        };
        self.allowed_by_operator.remove(at);
        self.allow_changed()
    }

    fn allow_changed(&mut self) -> Response {
        match self.adopt(self.configured.clone()) {
            Ok(()) => self.allow_list(),
            Err(error) => Response::error(ErrorKind::Failed, error.to_string()),
        }
    }

    fn findings(&self, limit: usize) -> Response {
        let json = |finding| serde_json::to_value(finding).unwrap_or(Value::Null);
        Response::Findings { findings: self.recent.findings(limit).map(json).collect() }
    }

    fn libraries(&self) -> Response {
        let probed = self.probes.as_ref().map(|probes| probes.state().probed).unwrap_or_default();
        let info = |probed: crate::capture::probes::Probed| LibraryInfo {
            path: probed.library.mapped_as.display().to_string(),
            stack: probed.library.stack.name().to_owned(),
            attached: probed.problem.is_none(),
            problem: probed.problem,
            pids: probed.library.pids,
        };
        Response::Libraries { libraries: probed.into_iter().map(info).collect() }
    }

    fn status(&self) -> Response {
        let mut snapshot =
            Snapshot::new(env!("CARGO_PKG_VERSION"), std::process::id(), self.config.mode);
        snapshot.uptime_s = self.uptime().as_secs_f64();
        self.interface_status(&mut snapshot);
        let usage = self.maps.usage();
        snapshot.blocks = Blocks {
            in_force: usage.used.into(),
            capacity: usage.capacity.into(),
            operator_reserve: usage.reserve.into(),
            failed: self.totals.blocks_failed,
        };
        self.rule_counters(&mut snapshot);
        self.socket_counters(&mut snapshot);
        if let Some(decoy) = &self.decoy {
            snapshot.decoy = decoy_counts(decoy.counts());
        }
        if let Err(error) = self.kernel_counters(&mut snapshot) {
            return Response::error(ErrorKind::Failed, format!("{error:#}"));
        }
        self.pipeline_counters(&mut snapshot);
        snapshot.reloads =
            Reloads { succeeded: self.totals.reloads, failed: self.totals.reloads_failed };
        snapshot.event_log = self.log.count();
        Response::Status(Box::new(snapshot))
    }

    fn rule_counters(&self, snapshot: &mut Snapshot) {
        let tally = self.maps.tally();
        let named = Kind::ALL.iter().map(|kind| kind.name().into());
        snapshot.rules = named.zip(tally.rules).collect();
        snapshot.limit_exceeded = tally.exceeded;
        snapshot.lists = self.lists.clone();
        let lost = Lost { events: tally.no_room, bytes: 0 };
        snapshot.losses.insert("limit_clients_no_room".into(), lost);
    }

    fn socket_counters(&self, snapshot: &mut Snapshot) {
        let counts = self.closer.as_ref().map(|closer| closer.counts()).unwrap_or_default();
        snapshot.sockets = Sockets { closed: counts.closed, failed: counts.failed };
        for (name, events) in [
            ("socket_closings_no_room", counts.queue_full),
            ("socket_closings_unfinished", counts.unfinished),
        ] {
            snapshot.losses.insert(name.into(), Lost { events, bytes: 0 });
        }
    }

    fn kernel_counters(&self, snapshot: &mut Snapshot) -> anyhow::Result<()> {
        for count in self.reasons.all()? {
            let packets = Packets { packets: count.packets, bytes: count.bytes };
            snapshot.packets.insert(count.name.into(), packets);
        }
        let hellos = self.hellos.all()?.into_iter().map(|(name, count)| (name.into(), count));
        snapshot.fingerprints.extend(hellos);
        snapshot.answers = self.answers.all()?.map(|(name, count)| (name.into(), count)).into();
        for count in self.losses.all()? {
            let lost = Lost { events: count.packets, bytes: count.bytes };
            snapshot.losses.insert(count.name.into(), lost);
        }
        Ok(())
    }

    fn pipeline_counters(&self, snapshot: &mut Snapshot) {
        snapshot.connections = self.http.connections() as u64;
        snapshot.actors = self.pipeline.actors() as u64;
        let counts = self.http.counts();
        snapshot.transactions = counts.get(Counter::Transactions);
        snapshot.http = counts.iter().map(|(k, v)| (k.into(), v)).collect();
        let counts = self.fingerprints.counts();
        snapshot.fingerprints.extend(counts.map(|(k, v)| (k.into(), v)));
        let totals = &self.totals;
        snapshot.findings = totals.findings.iter().map(|(k, v)| ((*k).into(), *v)).collect();
        snapshot.decisions = totals.decisions.iter().map(|(k, v)| ((*k).into(), *v)).collect();
        snapshot.guarded = totals.guarded.iter().map(|(k, v)| (k.clone().into(), *v)).collect();
        let mut lost = |name: &'static str, events: u64| {
            snapshot.losses.insert(name.into(), Lost { events, bytes: 0 });
        };
        for (name, events) in self.pipeline.decider_counters().named() {
            lost(name, events);
        }
        for (name, events) in left_out(&self.pipeline.detector_counters()) {
            lost(name, events);
        }
        lost("undecodable_events", totals.undecodable);
        if let Some(probes) = &self.probes {
            let state = probes.state();
            lost("process_looks_skipped", state.looks_skipped);
            lost("libraries_refused", state.libraries_refused);
            lost("carriers_refused", state.carriers_refused);
            snapshot.libraries_attached = state.attached() as u64;
        }
    }
}

fn decoy_counts(counts: decoy::Counts) -> Decoy {
    Decoy {
        steered: counts.steered,
        refused: counts.refused,
        held: counts.held,
        accepted: counts.accepted,
        evicted: counts.evicted,
        held_s: counts.seconds,
        bytes_read: counts.bytes_read,
        bytes_written: counts.bytes_written,
        problem: counts.problem,
    }
}

/// What the detectors left out, all of them together.
fn left_out(counters: &[detect::Counter]) -> BTreeMap<&'static str, u64> {
    let mut losses = BTreeMap::new();
    for counter in counters.iter().filter(|counter| counter.name != FINDINGS) {
        let total: &mut u64 = losses.entry(counter.name).or_default();
        *total = total.saturating_add(counter.value);
    }
    losses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::counter::{ACTORS_EVICTED, TOO_LATE};
    use crate::finding::DetectorName;

    #[test]
    fn what_detectors_left_out_is_added_up() {
        let [rate, stuffing] = DetectorName::ALL;
        let count = |name, detector, value| detect::Counter { name, detector, value };
        let counters = [
            count(ACTORS_EVICTED, rate, 2),
            count(FINDINGS, rate, 9),
            count(ACTORS_EVICTED, stuffing, 3),
            count(TOO_LATE, stuffing, 0),
        ];
        assert_eq!(left_out(&counters), BTreeMap::from([(ACTORS_EVICTED, 5), (TOO_LATE, 0)]));
    }
}
