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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::subject_of;
    use crate::time::Timestamp;

    fn decision(action: Action, mode: Mode) -> Decision {
        Decision {
            ts: Timestamp::default(),
            id: "00000000000000ff".into(),
            action,
            subject: subject_of("2001:db8::/64".parse().unwrap()).unwrap(),
            service: None,
            ttl_s: 60,
            detector: "test".into(),
            owasp: String::new(),
            score: 1.0,
            reason: String::new(),
            evidence: Default::default(),
            mode,
        }
    }

    #[test]
    fn an_enforced_drop_closes_what_its_subject_has_open() {
        let spared = Arc::new(Spared { networks: Vec::new(), local_ports: vec![22] });
        let asked = closing(&decision(Action::Drop, Mode::Enforce), &spared).unwrap();
        assert_eq!(asked.rule_id, 255);
        assert_eq!(asked.peers, Peers::Network("2001:db8::/64".parse().unwrap()));
        assert!(Arc::ptr_eq(&asked.spared, &spared));
    }

    #[test]
    fn what_drops_nothing_closes_nothing() {
        for (action, mode) in [
            (Action::Drop, Mode::Observe),
            (Action::Alert, Mode::Observe),
            (Action::Alert, Mode::Enforce),
        ] {
            assert_eq!(closing(&decision(action, mode), &Arc::default()), None);
        }
        let mut nobody = decision(Action::Drop, Mode::Enforce);
        nobody.subject = Default::default();
        assert_eq!(closing(&nobody, &Arc::default()), None);
    }
}
