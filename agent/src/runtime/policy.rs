//! Decisions and configuration into the kernel's policy, and out of it again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::core::Core;
use crate::config::{Config, StaticBlock};
use crate::decide::{
    Lifted, OPERATOR, Order, Refused, UNTIL_LIFTED, Which, always_guarded, canonical, recovered,
};
use crate::decision::{Decision, Mode, Origin, Subject};
use crate::enforce::{Block, EnforceError, PolicyMaps, RuleName, Scope, carry_out};
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
    /// Allow list, failsafe ports and services of `config` into the kernel.
    pub(super) fn write_policy(&mut self, config: &Config) -> Result<(), EnforceError> {
        let guards = &config.guards;
        let mut allowed = guards.allow.clone();
        allowed.extend(&guards.trusted_proxies);
        allowed.extend(self.host.all().map(IpNet::from));
        // Within a larger network that an operator blocks, these stay free.
        allowed.extend(always_guarded());
        self.maps.set_allowed(&allowed)?;
        self.spared =
            Arc::new(Spared { networks: allowed, local_ports: guards.failsafe_tcp_ports.clone() });
        self.maps.set_failsafe(&guards.failsafe_tcp_ports, &guards.failsafe_udp_ports)?;
        let scoped = config.services.iter().filter(|service| service.has_scope());
        let scopes: Vec<Scope> = scoped
            .map(|service| Scope {
                service: service.name.clone(),
                ports: service.ports.clone(),
                addresses: service.addresses.clone(),
            })
            .collect();
        self.maps.set_scopes(&scopes)?;
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
        if block.origin == Origin::Configured {
            // Those still listed are decided anew in a moment, in the place of these.
            return self.is_configured(&block.name());
        }
        let now = self.now();
        match self.pipeline.restore(recovered(block, now), now) {
            Ok(()) => true,
            Err(refusal) => {
                tracing::warn!("not taking over a block: {refusal}");
                false
            }
        }
    }

    fn is_configured(&self, rule: &RuleName) -> bool {
        self.config.blocked.iter().any(|listed| canonical_rule(listed.rule()) == *rule)
    }

    /// Blocks what the configuration lists, except what `already` does.
    pub(super) fn block_configured(&mut self, already: &[StaticBlock]) {
        let already: HashSet<(RuleName, _)> =
            already.iter().map(|block| (block.rule(), block.effect)).collect();
        for block in self.config().blocked.iter() {
            if already.contains(&(block.rule(), block.effect)) {
                continue;
            }
            let reason = block.reason.as_deref().unwrap_or("listed in the configuration");
            let order = Order {
                target: block.target.clone(),
                effect: block.effect,
                service: block.service.clone(),
                ttl: None,
            };
            if let Err(message) = self.operator_block(&order, reason) {
                tracing::error!("{message}");
            }
        }
    }

    /// Blocks in the place of whatever detectors do to the target already, and of the operator's
    /// own earlier rule: the operator has the last word, for a shorter time too.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub(super) fn operator_block(
        &mut self,
        order: &Order,
        reason: &str,
    ) -> Result<Decision, Refusal> {
        let now = self.now();
        let earlier = self.replaced_by(order);
        let decision = self.pipeline.operator_block(order, reason, now)?;
        let origin = self.origin_of(&decision);
        if let Err(error) = carry_out(&mut self.maps, &decision, order.ttl, origin) {
            // Nothing was written, so there is nothing in the kernel to lift.
            self.pipeline.lift(Which::Id(&decision.id), now);
            self.totals.blocks_failed += 1;
            return Err(error.into());
        }
        self.close_sockets(&decision);
        let rule = decision.rule();
        for id in earlier {
            let lifted = self.pipeline.lift(Which::Id(&id), now);
            // The rule of the same name is the operator's by now.
            let others = lifted.iter().filter(|one| one.decision.rule() != rule);
            for Lifted { decision, .. } in others {
                self.end_and_tell(decision, now);
            }
            self.tell_lifts(&lifted);
        }
        self.tell_decision(decision.clone(), now);
        Ok(decision)
    }

    /// Ids of the decisions in force that an order takes the place of.
    fn replaced_by(&self, order: &Order) -> Vec<String> {
        let subject = Subject::from(canonical(order.target.clone()));
        let rule = canonical_rule(order.rule());
        let is_replaced = |held: &&Decision| {
            let by_detector = held.detector != OPERATOR && held.scope() == order.service.as_ref();
            by_detector || held.rule().as_ref() == Some(&rule)
        };
        let held = self.pipeline.enforced_on(&subject).filter(is_replaced);
        held.map(|held| held.id.clone()).collect()
    }

    fn origin_of(&self, decision: &Decision) -> Origin {
        if decision.detector != OPERATOR {
            Origin::Automatic
        } else if decision.rule().is_some_and(|rule| self.is_configured(&rule)) {
            Origin::Configured
        } else {
            Origin::Operator
        }
    }

    /// Carries a detector's decision out; false when the kernel refuses it.
    pub(super) fn carry_out(&mut self, decision: &Decision) -> bool {
        let Some(rule) = decision.rule() else { return true };
        // What is only counted must not take the place of what is dropped.
        let is_held = self.pipeline.holder(&rule, decision.ts).is_some();
        if decision.mode == Mode::Observe && is_held {
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
            self.end_and_tell(decision, now);
        }
        self.tell_lifts(lifted);
    }

    fn end_and_tell(&mut self, decision: &Decision, now: Timestamp) {
        if let Err(error) = self.end_block(decision, now) {
            tracing::error!("a block can't be lifted: {error:#}");
        }
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
        let Some(rule) = ended.rule() else { return Ok(()) };
        let holder = self.pipeline.holder(&rule, now).map(|(held, end)| (held.clone(), end));
        match holder {
            Some((holder, end)) => {
                let left = end.since(now);
                let left = (left < UNTIL_LIFTED / 2).then_some(left);
                let origin = self.origin_of(&holder);
                carry_out(&mut self.maps, &holder, left, origin)
            }
            None => match self.maps.remove(&rule) {
                // It has expired meanwhile.
                Err(EnforceError::NotBlocked(_)) => Ok(()),
                other => other,
            },
        }
    }
}

/// With the target in the form that decisions and the kernel have it in.
pub(super) fn canonical_rule(rule: RuleName) -> RuleName {
    RuleName { target: canonical(rule.target), ..rule }
}

/// Whether a decision was an operator's.
pub(super) fn by_operator(decision: &Decision) -> bool {
    decision.detector == OPERATOR
}
