//! Decisions and configuration into the kernel's policy, and out of it again.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::core::Core;
use crate::config::Config;
use crate::decide::{Lifted, OPERATOR, Refused, UNTIL_LIFTED, Which, recovered, subject_of};
use crate::decision::{Action, Decision, Mode, Origin, Subject};
use crate::enforce::{Block, EnforceError, PolicyMaps, Target, carry_out};
use crate::kernel::sockets::Spared;
use crate::report::event_log::Event;
use crate::time::Timestamp;

/// Why an operator's block was not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Failed(#[from] EnforceError),
}

impl<P: PolicyMaps> Core<P> {
    /// Allow list and failsafe ports of `config` into the kernel.
    pub(super) fn write_policy(&mut self, config: &Config) -> Result<(), EnforceError> {
        let guards = &config.guards;
        let mut allowed = guards.allow.clone();
        allowed.extend(&guards.trusted_proxies);
        allowed.extend(self.host.all().map(IpNet::from));
        self.maps.set_allowed(&allowed)?;
        self.spared =
            Arc::new(Spared { networks: allowed, local_ports: guards.failsafe_tcp_ports.clone() });
        self.maps.set_failsafe(&guards.failsafe_tcp_ports, &guards.failsafe_udp_ports)?;
        self.maps.set_tunnels(config.kernel.tunnels)
    }

    /// The blocks of an earlier run stay in force, except where a guard or the mode now forbids
    /// them, and where the configuration no longer lists what it listed.
    pub(super) fn take_over_blocks(&mut self) -> Result<(), EnforceError> {
        let mut taken_over = 0;
        for block in self.maps.blocks()? {
            if self.takes_over(&block) {
                taken_over += 1;
            } else {
                self.maps.remove(&block.name())?;
            }
        }
        if taken_over > 0 {
            tracing::info!("took over {taken_over} blocks of an earlier run");
        }
        Ok(())
    }

    fn takes_over(&mut self, block: &Block) -> bool {
        // What is only counted is not in force; a new finding makes it anew.
        if block.count_only {
            return false;
        }
        let Target::Network(target) = block.target else { return true };
        if block.origin == Origin::Configured {
            // Those still listed are decided anew in a moment, in the place of these.
            return self.is_configured(target);
        }
        let now = self.now();
        let decision = recovered(target, block.rule_id, block.remaining, block.origin, now);
        match self.pipeline.restore(decision, now) {
            Ok(()) => true,
            Err(refusal) => {
                tracing::warn!("not taking over a block: {refusal}");
                false
            }
        }
    }

    fn is_configured(&self, target: IpNet) -> bool {
        self.config.blocked.iter().any(|listed| listed.target == target)
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

    /// Blocks in the place of whatever blocks `target` already: the operator has the last word,
    /// for a shorter time too.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub(super) fn operator_block(
        &mut self,
        target: IpNet,
        ttl: Option<Duration>,
        reason: &str,
    ) -> Result<Decision, Refusal> {
        let now = self.now();
        let earlier = subject_of(target).map_or(Vec::new(), |subject| self.drops_of(&subject));
        let decision = self.pipeline.operator_block(target, ttl, reason, now)?;
        let origin = self.origin_of(&decision);
        if let Err(error) = carry_out(&mut self.maps, &decision, ttl, origin) {
            // Nothing was written, so there is nothing in the kernel to lift.
            self.pipeline.lift(Which::Id(&decision.id), now);
            self.totals.blocks_failed += 1;
            return Err(error.into());
        }
        self.close_sockets(&decision);
        for id in earlier {
            let lifted = self.pipeline.lift(Which::Id(&id), now);
            self.tell_lifts(&lifted);
        }
        self.tell_decision(decision.clone(), now);
        Ok(decision)
    }

    /// Ids of the drops in force on `subject`.
    fn drops_of(&self, subject: &Subject) -> Vec<String> {
        let held = self.pipeline.in_force();
        held.filter(|held| held.subject == *subject && held.action == Action::Drop)
            .map(|held| held.id.clone())
            .collect()
    }

    fn origin_of(&self, decision: &Decision) -> Origin {
        let target = decision.subject.network();
        if decision.detector != OPERATOR {
            Origin::Automatic
        } else if target.is_some_and(|target| self.is_configured(target)) {
            Origin::Configured
        } else {
            Origin::Operator
        }
    }

    /// Carries a detector's decision out; false when the kernel refuses it.
    pub(super) fn carry_out(&mut self, decision: &Decision) -> bool {
        // What is only counted must not take the place of what is dropped.
        let dropped = self.pipeline.dropped_until(&decision.subject, decision.ts);
        if decision.mode == Mode::Observe && dropped.is_some() {
            return true;
        }
        let ttl = Some(Duration::from_secs(decision.ttl_s));
        match carry_out(&mut self.maps, decision, ttl, Origin::Automatic) {
            Ok(()) => {
                self.close_sockets(decision);
                true
            }
            Err(error) => {
                self.totals.blocks_failed += 1;
                tracing::error!("a decision can't be carried out: {error:#}");
                if decision.mode == Mode::Enforce {
                    self.pipeline.not_enforced(decision);
                }
                decision.mode == Mode::Observe
            }
        }
    }

    /// Takes lifted decisions out of the kernel, or leaves there what another still asks for.
    pub(super) fn carry_out_lifts(&mut self, lifted: &[Lifted]) {
        let now = self.now();
        for Lifted { decision, .. } in lifted {
            if let Err(error) = self.end_block(decision, now) {
                tracing::error!("a block can't be lifted: {error:#}");
            }
        }
        self.tell_lifts(lifted);
    }

    fn tell_lifts(&mut self, lifted: &[Lifted]) {
        let now = self.wall_now();
        for Lifted { lift, .. } in lifted {
            let mut lift = lift.clone();
            lift.ts = self.clock.shown(lift.ts);
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
                let left = (left < UNTIL_LIFTED / 2).then_some(left);
                let origin = self.origin_of(&holder);
                carry_out(&mut self.maps, &holder, left, origin)
            }
            None => match self.maps.unblock(target) {
                // It has expired meanwhile, or was only ever an alert.
                Err(EnforceError::NotBlocked(_)) => Ok(()),
                other => other,
            },
        }
    }
}

/// Whether a decision was an operator's.
pub(super) fn by_operator(decision: &Decision) -> bool {
    decision.detector == OPERATOR
}
