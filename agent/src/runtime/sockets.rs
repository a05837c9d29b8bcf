//! Connections that a blocked client has open: closing them, and telling that.

use std::sync::Arc;

use super::core::Core;
use crate::decision::{Action, Decision, Mode};
use crate::enforce::PolicyMaps;
use crate::kernel::sockets::{Closing, Peers, Spared};
use crate::report::event_log::Event;

impl<P: PolicyMaps> Core<P> {
    /// Has the connections closed that `decision`, which the kernel now enforces, leaves hanging.
    pub(super) fn close_sockets(&mut self, decision: &Decision) {
        let Some(closer) = &mut self.closer else { return };
        if !self.config.enforce.close_sockets {
            return;
        }
        if let Some(closing) = closing(decision, &self.spared) {
            closer.close(closing);
        }
    }

    /// Logs what has come of it.
    pub(super) fn tell_closures(&mut self) {
        let Some(closer) = &mut self.closer else { return };
        let closures = closer.take_closures();
        let now = self.wall_now();
        for closure in closures {
            let made = self.recent.by_rule(closure.rule_id);
            let id = made.map(|made| made.decision.id.as_str());
            let (closed, failed) = (closure.closed, closure.failed);
            self.log.append(now, &Event::SocketsClosed { ts: now, id, closed, failed });
        }
    }
}

/// The closing that `decision` asks for; `None` when it leaves connections alone.
fn closing(decision: &Decision, spared: &Arc<Spared>) -> Option<Closing> {
    match (decision.action, decision.mode) {
        (Action::Drop, Mode::Enforce) => {}
        (Action::Drop, Mode::Observe) | (Action::Alert, Mode::Enforce | Mode::Observe) => {
            return None;
        }
    }
    Some(Closing {
        rule_id: decision.rule_id().unwrap_or_default(),
        peers: Peers::Network(decision.subject.network()?),
        local_ports: Vec::new(),
        spared: Arc::clone(spared),
    })
}
