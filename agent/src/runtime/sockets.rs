//! Connections that a blocked client has open: closing them, and telling that.

use std::sync::Arc;

use super::core::Core;
use crate::config::Service;
use crate::decision::{Decision, Mode};
use crate::enforce::{self, Kind, PolicyMaps, RuleName, Target};
use crate::kernel::holds;
use crate::kernel::sockets::{Closing, Flow, Peers, Spared};
use crate::report::event_log::Event;

impl<P: PolicyMaps> Core<P> {
    /// Has the connections closed that `decision`, which the kernel now enforces, leaves hanging.
    pub(super) fn close_sockets(&mut self, decision: &Decision) {
        let Some(rule) = decision.rule() else { return };
        if !cuts_off(&rule, decision.mode == Mode::Observe) {
            return;
        }
        if let Some(peers) = peers_of(&rule.target, |ja4| self.maps.keys_of(ja4)) {
            self.close_of(&rule, decision.rule_id().unwrap_or_default(), peers);
        }
    }

    /// Has `flow` closed if a rule of `ja4`, which its hello has just shown, drops its packets: the
    /// kernel did not know the hello, and let it pass. When a fingerprint is `news`, others may have
    /// passed with it.
    pub(super) fn close_shown(&mut self, ja4: &str, flow: enforce::Flow, news: Option<u64>) {
        if self.closer.is_none() || !self.config.enforce.close_sockets {
            return;
        }
        for block in self.maps.blocks_of(ja4) {
            let rule = block.name();
            if !cuts_off(&rule, block.count_only) {
                continue;
            }
            if is_of_client(&rule.target, &flow) {
                let flow = Flow { local: flow.server, remote: flow.client };
                self.close_of(&rule, block.rule_id, Peers::Flow(flow));
            }
            let peers = news.and_then(|key| peers_of(&rule.target, |_| vec![key]));
            if let Some(peers) = peers {
                self.close_of(&rule, block.rule_id, peers);
            }
        }
    }

    fn close_of(&mut self, rule: &RuleName, rule_id: u64, peers: Peers) {
        let Some(closer) = &mut self.closer else { return };
        if !self.config.enforce.close_sockets {
            return;
        }
        let services = &self.config.services;
        if let Some(closing) = closing(rule, rule_id, peers, services, &self.spared) {
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

/// Whether connections of the rule's target are at an end.
fn cuts_off(rule: &RuleName, is_observed: bool) -> bool {
    let is_for_good = match (rule.kind, &rule.target) {
        (Kind::Drop, _) => true,
        // Who is deceived has to connect anew to meet the decoy. By a fingerprint nobody is: what
        // asks for a connection does not show it.
        (Kind::Steer, Target::Network(_) | Target::Flow(_)) => true,
        (Kind::Steer, Target::Fingerprint(_) | Target::Conjunction(..)) => false,
        (Kind::Limit | Kind::Count, _) => false,
    };
    is_for_good && !is_observed
}

/// Whose connections they are, by the fingerprints of a JA4; `None` for what has no connections.
fn peers_of(target: &Target, keys_of: impl FnOnce(&str) -> Vec<u64>) -> Option<Peers> {
    Some(match target {
        Target::Network(net) => Peers::Network(*net),
        Target::Flow(flow) if flow.is_udp => return None,
        Target::Flow(flow) => Peers::Flow(Flow { local: flow.server, remote: flow.client }),
        Target::Fingerprint(ja4) => Peers::Fingerprint { keys: keys_of(ja4), net: None },
        Target::Conjunction(net, ja4) => Peers::Fingerprint { keys: keys_of(ja4), net: Some(*net) },
    })
}

/// Whether a rule of a JA4 is about the client of `flow`, which has that JA4.
fn is_of_client(target: &Target, flow: &enforce::Flow) -> bool {
    match target {
        Target::Fingerprint(_) => true,
        Target::Conjunction(net, _) => holds(*net, flow.client.ip().into()),
        Target::Network(_) | Target::Flow(_) => false,
    }
}

/// The closing of `peers` that a rule asks for. `None` for a rule of a service that the configuration
/// does not have any more: it has no ports to look at.
fn closing(
    rule: &RuleName,
    rule_id: u64,
    peers: Peers,
    services: &[Service],
    spared: &Arc<Spared>,
) -> Option<Closing> {
    let service = match &rule.service {
        Some(name) => Some(services.iter().find(|service| service.name == *name)?),
        None => None,
    };
    Some(Closing {
        rule_id,
        peers,
        local_ports: service.map_or(Vec::new(), |service| service.ports.clone()),
        local_addresses: service.map_or(Vec::new(), |service| service.addresses.clone()),
        spared: Arc::clone(spared),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const JA4: &str = "t13d1516h2_8daaf6152771_e5627efa2ab1";

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    fn rule(kind: Kind, of: &str) -> RuleName {
        RuleName { target: target(of), kind, service: None }
    }

    #[test]
    fn what_drops_for_good_closes_and_nothing_else() {
        let with = format!("203.0.113.7 with {JA4}");
        let flow = "203.0.113.7:50000>192.0.2.1:443";
        for of in ["2001:db8::/64", flow, JA4, &with] {
            assert!(cuts_off(&rule(Kind::Drop, of), false), "{of}");
            assert!(!cuts_off(&rule(Kind::Drop, of), true), "{of}, observed");
            assert!(!cuts_off(&rule(Kind::Limit, of), false), "{of}, limited");
            assert!(!cuts_off(&rule(Kind::Count, of), false), "{of}, counted");
            let is_steered = !of.contains(JA4);
            assert_eq!(cuts_off(&rule(Kind::Steer, of), false), is_steered, "{of}, deceived");
            assert!(!cuts_off(&rule(Kind::Steer, of), true), "{of}, deceived, observed");
        }
    }

    #[test]
    fn peers_are_found_by_address_flow_or_fingerprint() {
        let keys_of = |ja4: &str| {
            assert_eq!(ja4, JA4);
            vec![7, 8]
        };
        let net = "203.0.113.7/32".parse().unwrap();
        let (local, remote) =
            ("192.0.2.1:443".parse().unwrap(), "203.0.113.7:50000".parse().unwrap());
        let keys = || vec![7, 8];
        for (of, peers) in [
            ("203.0.113.7", Some(Peers::Network(net))),
            ("203.0.113.7:50000>192.0.2.1:443", Some(Peers::Flow(Flow { local, remote }))),
            ("203.0.113.7:50000>192.0.2.1:443/udp", None),
            (JA4, Some(Peers::Fingerprint { keys: keys(), net: None })),
            (
                &format!("203.0.113.7 with {JA4}"),
                Some(Peers::Fingerprint { keys: keys(), net: Some(net) }),
            ),
        ] {
            assert_eq!(peers_of(&target(of), keys_of), peers, "{of}");
        }
    }

    #[test]
    fn a_hello_is_under_the_rules_of_its_ja4_where_it_comes_from() {
        let flow = |client: &str, server: &str| enforce::Flow {
            client: client.parse().unwrap(),
            server: server.parse().unwrap(),
            is_udp: false,
        };
        let v4 = flow("203.0.113.7:50000", "192.0.2.1:443");
        let v6 = flow("[2001:db8::7]:50000", "[2001:db8::1]:443");
        for (of, of_v4, of_v6) in [
            (JA4.to_owned(), true, true),
            (format!("203.0.113.0/24 with {JA4}"), true, false),
            (format!("198.51.100.0/24 with {JA4}"), false, false),
            (format!("2001:db8::/64 with {JA4}"), false, true),
            (format!("::/0 with {JA4}"), true, true),
            ("203.0.113.7".to_owned(), false, false),
        ] {
            let of = target(&of);
            assert_eq!((is_of_client(&of, &v4), is_of_client(&of, &v6)), (of_v4, of_v6), "{of}");
        }
    }

    #[test]
    fn a_rule_of_a_service_closes_only_what_is_open_there() {
        let spared = Arc::new(Spared { networks: Vec::new(), local_ports: vec![22] });
        let peers = || Peers::Fingerprint { keys: vec![7], net: None };
        let asked = closing(&rule(Kind::Drop, JA4), 255, peers(), &[], &spared).unwrap();
        assert_eq!((asked.rule_id, asked.peers), (255, peers()));
        assert_eq!((asked.local_ports.len(), asked.local_addresses.len()), (0, 0));
        assert!(Arc::ptr_eq(&asked.spared, &spared));

        let mut service = crate::detect::tests::service("shop", None);
        service.ports = vec![443];
        service.addresses = vec!["192.0.2.1".parse().unwrap()];
        let of_shop = RuleName { service: Some("shop".into()), ..rule(Kind::Drop, JA4) };
        let services = std::slice::from_ref(&service);
        let asked = closing(&of_shop, 255, peers(), services, &spared).unwrap();
        assert_eq!((asked.local_ports, asked.local_addresses), (service.ports, service.addresses));
        assert_eq!(closing(&of_shop, 255, peers(), &[], &spared), None);
    }
}
