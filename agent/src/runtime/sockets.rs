//! Connections that a blocked client has open: closing them, and telling that.

use std::sync::Arc;

use super::core::Core;
use crate::config::Service;
use crate::decision::{Action, Decision, Mode};
use crate::enforce::{PolicyMaps, Target};
use crate::kernel::sockets::{Closing, Flow, Peers, Spared};
use crate::report::event_log::Event;

impl<P: PolicyMaps> Core<P> {
    /// Has the connections closed that `decision`, which the kernel now enforces, leaves hanging.
    pub(super) fn close_sockets(&mut self, decision: &Decision) {
        let Some(closer) = &mut self.closer else { return };
        if !self.config.enforce.close_sockets {
            return;
        }
        let service = decision
            .scope()
            .and_then(|name| self.config.services.iter().find(|service| service.name == *name));
        if let Some(closing) = closing(decision, service, &self.spared) {
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

/// The closing that `decision` asks for; `None` when it leaves connections alone. Whose
/// connections have a fingerprint only the kernel's packets tell: those are left to hang.
fn closing(
    decision: &Decision,
    service: Option<&Service>,
    spared: &Arc<Spared>,
) -> Option<Closing> {
    match (decision.action, decision.mode) {
        // Who is deceived has to connect anew to meet the decoy.
        (Action::Drop | Action::Deceive, Mode::Enforce) => {}
        (Action::Drop | Action::Deceive, Mode::Observe)
        | (Action::RateLimit | Action::Tag | Action::Alert, Mode::Enforce | Mode::Observe) => {
            return None;
        }
    }
    let peers = match decision.subject.target()? {
        Target::Network(net) => Peers::Network(net),
        Target::Flow(flow) if !flow.is_udp => {
            Peers::Flow(Flow { local: flow.server, remote: flow.client })
        }
        Target::Flow(_) | Target::Fingerprint(_) | Target::Conjunction(..) => return None,
    };
    // A service that the configuration does not have any more has no ports to look at.
    if decision.scope().is_some() && service.is_none() {
        return None;
    }
    Some(Closing {
        rule_id: decision.rule_id().unwrap_or_default(),
        peers,
        local_ports: service.map_or(Vec::new(), |service| service.ports.clone()),
        local_addresses: service.map_or(Vec::new(), |service| service.addresses.clone()),
        spared: Arc::clone(spared),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::{Scope, Subject};
    use crate::time::Timestamp;

    fn decision(action: Action, mode: Mode, target: &str) -> Decision {
        Decision {
            ts: Timestamp::default(),
            id: "00000000000000ff".into(),
            action,
            subject: Subject::from(target.parse::<Target>().unwrap()),
            service: Some("shop".into()),
            scope: Scope::Host,
            ttl_s: 60,
            rate: None,
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
        for action in [Action::Drop, Action::Deceive] {
            let decision = decision(action, Mode::Enforce, "2001:db8::/64");
            let asked = closing(&decision, None, &spared).unwrap();
            assert_eq!(asked.rule_id, 255);
            assert_eq!(asked.peers, Peers::Network("2001:db8::/64".parse().unwrap()));
            assert_eq!((asked.local_ports.len(), asked.local_addresses.len()), (0, 0));
            assert!(Arc::ptr_eq(&asked.spared, &spared));
        }
        let flow = decision(Action::Drop, Mode::Enforce, "203.0.113.7:50000>192.0.2.1:443");
        let (local, remote) =
            ("192.0.2.1:443".parse().unwrap(), "203.0.113.7:50000".parse().unwrap());
        let asked = closing(&flow, None, &spared).unwrap();
        assert_eq!(asked.peers, Peers::Flow(Flow { local, remote }));
    }

    #[test]
    fn a_drop_on_a_service_closes_only_what_is_open_there() {
        let mut service = crate::detect::tests::service("shop", None);
        service.ports = vec![443];
        service.addresses = vec!["192.0.2.1".parse().unwrap()];
        let mut decision = decision(Action::Drop, Mode::Enforce, "203.0.113.7");
        decision.scope = Scope::Service;
        let asked = closing(&decision, Some(&service), &Arc::default()).unwrap();
        assert_eq!((asked.local_ports, asked.local_addresses), (service.ports, service.addresses));
        assert_eq!(closing(&decision, None, &Arc::default()), None);
    }

    #[test]
    fn what_drops_nothing_closes_nothing() {
        for (action, mode) in [
            (Action::Drop, Mode::Observe),
            (Action::Deceive, Mode::Observe),
            (Action::RateLimit, Mode::Enforce),
            (Action::Tag, Mode::Enforce),
            (Action::Alert, Mode::Observe),
            (Action::Alert, Mode::Enforce),
        ] {
            let decision = decision(action, mode, "203.0.113.7");
            assert_eq!(closing(&decision, None, &Arc::default()), None);
        }
        let ja4 = "t13d1516h2_8daaf6152771_e5627efa2ab1";
        for target in [ja4.to_owned(), format!("203.0.113.7 with {ja4}")] {
            let decision = decision(Action::Drop, Mode::Enforce, &target);
            assert_eq!(closing(&decision, None, &Arc::default()), None, "others share it");
        }
        let mut nobody = decision(Action::Drop, Mode::Enforce, "203.0.113.7");
        nobody.subject = Default::default();
        assert_eq!(closing(&nobody, None, &Arc::default()), None);
    }
}
