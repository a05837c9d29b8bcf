//! Which connections a decision closes, and closing them.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::diag::{Closed, Diag, states};
use super::filter::{End, Match};
use super::wire::{Family, Socket};
use crate::kernel::addresses::holds;

/// Closings carried out with one look through the kernel's table.
pub(super) const MAX_BATCH: usize = 64;
/// Sockets collected in one look, 100 bytes each; when there are more, it looks again.
const MAX_FOUND: usize = 65_536;
const MAX_LOOKS: usize = 16;
/// Ports of this host that the kernel's filter is told for one closing; of more, it is told none.
const MAX_PORTS: usize = 8;

/// Whose connections to close.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closing {
    /// Number of the decision that asks for it.
    pub rule_id: u64,
    pub peers: Peers,
    /// Only connections to these ports of this host; empty for all.
    pub local_ports: Vec<u16>,
    /// Only connections to these addresses of this host; empty for all.
    pub local_addresses: Vec<IpAddr>,
    pub spared: Arc<Spared>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Every connection with an address of the network at its other end.
    Network(IpNet),
    Flow(Flow),
    /// Every connection whose TLS fingerprint is one of `keys`; with `net`, of those the ones with
    /// an address of it at their other end.
    Fingerprint {
        keys: Vec<u64>,
        net: Option<IpNet>,
    },
}

/// The fingerprint of each connection that is known to have one.
pub type Fingerprints = HashMap<Flow, u64>;

/// One connection, seen from this host; IPv4 addresses as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

/// Whose connections nothing closes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spared {
    /// The allow list, with trusted proxies and the host's own addresses.
    pub networks: Vec<IpNet>,
    /// The failsafe ports of TCP.
    pub local_ports: Vec<u16>,
}

/// What came of one closing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub closed: u64,
    pub failed: u64,
    /// Connections that were too many to get at.
    pub left: bool,
}

impl Closing {
    fn covers(&self, socket: &Socket, fingerprints: &Fingerprints) -> bool {
        let Spared { networks, local_ports } = &*self.spared;
        let port = socket.local.port();
        let spared = || {
            let remote = IpNet::from(socket.remote.ip());
            local_ports.contains(&port) || networks.iter().any(|net| holds(*net, remote))
        };
        let matches = match &self.peers {
            Peers::Network(net) => holds(*net, socket.remote.ip().into()),
            Peers::Flow(flow) => {
                canonical(flow.remote) == socket.remote && canonical(flow.local) == socket.local
            }
            Peers::Fingerprint { .. } => {
                let flow = Flow { local: socket.local, remote: socket.remote };
                fingerprints.get(&flow).is_some_and(|key| self.names(&flow, *key))
            }
        };
        let local = socket.local.ip();
        let in_scope = (self.local_ports.is_empty() || self.local_ports.contains(&port))
            && (self.local_addresses.is_empty()
                || self.local_addresses.iter().any(|ip| ip.to_canonical() == local));
        matches && in_scope && !spared()
    }

    /// Whether a connection is meant that has this fingerprint.
    fn names(&self, flow: &Flow, fingerprint: u64) -> bool {
        let Peers::Fingerprint { keys, net } = &self.peers else { return false };
        keys.contains(&fingerprint) && net.is_none_or(|net| holds(net, flow.remote.ip().into()))
    }

    /// As the kernel's filter puts it, of the sockets of one family. An IPv4 condition finds
    /// mapped addresses on IPv6 sockets too. It may let through more than is meant.
    fn conditions(&self, family: Family, fingerprints: &Fingerprints) -> Vec<Match> {
        let of_flow = |flow: Flow| {
            let end = |address: SocketAddr| {
                let address = canonical(address);
                Some(End { net: Some(address.ip().into()), port: Some(address.port()) })
            };
            let fits = family == Family::V6 || canonical(flow.remote).is_ipv4();
            fits.then(|| Match { local: end(flow.local), remote: end(flow.remote) })
        };
        match &self.peers {
            Peers::Flow(flow) => of_flow(*flow).into_iter().collect(),
            Peers::Network(net) => of_network(*net, None, family).collect(),
            Peers::Fingerprint { net, .. } => {
                let net = net.unwrap_or(IpNet::V6(Ipv6Net::default()));
                let ports = self.ports(fingerprints);
                ports.into_iter().flat_map(|port| of_network(net, port, family)).collect()
            }
        }
    }

    /// The ports of this host on which connections with the fingerprint are; `None` for any. They
    /// are few but for clients that speak TLS to ports where nobody does.
    fn ports(&self, fingerprints: &Fingerprints) -> Vec<Option<u16>> {
        let mut ports = BTreeSet::new();
        for (flow, fingerprint) in fingerprints {
            if self.names(flow, *fingerprint) {
                ports.insert(flow.local.port());
            }
            if ports.len() > MAX_PORTS {
                return vec![None];
            }
        }
        ports.into_iter().map(Some).collect()
    }
}

/// Sockets of one family with an address of `net` at their other end, on one port of this host if
/// there is one.
fn of_network(net: IpNet, port: Option<u16>, family: Family) -> impl Iterator<Item = Match> {
    let (v4, v6) = split(net);
    let v6 = v6.filter(|_| family == Family::V6);
    let nets = v4.map(IpNet::V4).into_iter().chain(v6.map(IpNet::V6));
    nets.map(move |net| Match {
        local: port.map(|port| End { net: None, port: Some(port) }),
        remote: Some(End { net: Some(net), port: None }),
    })
}

/// IPv4 for a mapped address.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The IPv4 addresses of a network, and the others.
fn split(net: IpNet) -> (Option<Ipv4Net>, Option<Ipv6Net>) {
    let v6 = match net {
        IpNet::V4(net) => return (Some(net), None),
        IpNet::V6(net) => net,
    };
    let all_v4: IpNet = Ipv6Net::new_assert([0, 0, 0, 0, 0, 0xffff, 0, 0].into(), 96).into();
    if holds(net, all_v4) {
        return (Some(Ipv4Net::default()), Some(v6));
    }
    let v4 = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    match v4.and_then(|(addr, len)| Ipv4Net::new(addr, len).ok()) {
        Some(v4) => (Some(v4), None),
        None => (None, Some(v6)),
    }
}

/// Carries out at most [`MAX_BATCH`] closings; a tally for each.
///
/// # Errors
/// When the kernel does not list its sockets.
pub(super) fn close(
    diag: &mut Diag,
    closings: &[Closing],
    fingerprints: &Fingerprints,
) -> io::Result<Vec<Tally>> {
    let mut tallies = vec![Tally::default(); closings.len()];
    for family in Family::ALL {
        let conditions = closings.iter().flat_map(|one| one.conditions(family, fingerprints));
        let conditions: Vec<_> = conditions.collect();
        // No condition would mean no filter: all sockets.
        if !conditions.is_empty() {
            let first = |socket: &Socket| {
                closings.iter().position(|closing| closing.covers(socket, fingerprints))
            };
            close_family(diag, family, &conditions, first, &mut tallies)?;
        }
    }
    Ok(tallies)
}

fn close_family(
    diag: &mut Diag,
    family: Family,
    conditions: &[Match],
    first: impl Fn(&Socket) -> Option<usize>,
    tallies: &mut [Tally],
) -> io::Result<()> {
    let is_asked_for = |socket: &Socket| first(socket).is_some();
    for _ in 0..MAX_LOOKS {
        let (found, more) = diag.find(family, states::OPEN, conditions, is_asked_for, MAX_FOUND)?;
        let mut progress = false;
        for socket in &found {
            let Some(tally) = first(socket).and_then(|at| tallies.get_mut(at)) else { continue };
            match diag.close(socket) {
                Ok(Closed::Closed) => {
                    tally.closed += 1;
                    progress = true;
                }
                Ok(Closed::Gone) => progress = true,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(error),
                Err(_) => tally.failed += 1,
            }
        }
        if !more {
            return Ok(());
        }
        // What is found again and again are sockets that cannot be closed.
        if !progress {
            break;
        }
    }
    tallies.iter_mut().for_each(|tally| tally.left = true);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_ipv4_part_of_an_ipv6_network() {
        let v4 = |text: &str| split(net(text)).0.map(IpNet::V4);
        assert_eq!(v4("192.0.2.0/24"), Some(net("192.0.2.0/24")));
        assert_eq!(v4("::ffff:192.0.2.0/120"), Some(net("192.0.2.0/24")));
        assert_eq!(v4("::/0"), Some(net("0.0.0.0/0")));
        assert_eq!(v4("2001:db8::/64"), None);
        assert_eq!(split(net("2001:db8::/64")).1.map(IpNet::V6), Some(net("2001:db8::/64")));
    }

    #[test]
    fn a_flow_of_ipv4_is_looked_for_among_both_kinds_of_sockets() {
        let closing = |local: &str, remote: &str| Closing {
            rule_id: 1,
            peers: Peers::Flow(Flow {
                local: local.parse().unwrap(),
                remote: remote.parse().unwrap(),
            }),
            local_ports: Vec::new(),
            local_addresses: Vec::new(),
            spared: Arc::default(),
        };
        let v4 = closing("192.0.2.1:443", "192.0.2.2:4711");
        let none = Fingerprints::new();
        assert_eq!(v4.conditions(Family::V4, &none).len(), 1);
        assert_eq!(v4.conditions(Family::V6, &none), v4.conditions(Family::V4, &none));
        let v6 = closing("[2001:db8::1]:443", "[2001:db8::2]:4711");
        let found = [Family::V4, Family::V6].map(|family| v6.conditions(family, &none).len());
        assert_eq!(found, [0, 1]);
    }

    #[test]
    fn a_fingerprint_is_looked_for_on_the_ports_where_it_was_seen() {
        let flow = |port: u16, remote: &str| Flow {
            local: SocketAddr::new("192.0.2.1".parse().unwrap(), port),
            remote: remote.parse().unwrap(),
        };
        let closing = |net: Option<&str>| Closing {
            rule_id: 1,
            peers: Peers::Fingerprint { keys: vec![7, 8], net: net.map(self::net) },
            local_ports: Vec::new(),
            local_addresses: Vec::new(),
            spared: Arc::default(),
        };
        let seen = Fingerprints::from([
            (flow(443, "192.0.2.2:1"), 7),
            (flow(443, "192.0.2.3:1"), 8),
            (flow(8443, "198.51.100.2:1"), 7),
            (flow(9443, "192.0.2.4:1"), 9),
        ]);
        assert_eq!(closing(None).ports(&seen), [Some(443), Some(8443)]);
        let within = closing(Some("192.0.2.0/24"));
        assert_eq!(within.ports(&seen), [Some(443)]);
        assert_eq!(within.conditions(Family::V6, &seen), within.conditions(Family::V4, &seen));
        assert_eq!(closing(Some("203.0.113.0/24")).conditions(Family::V4, &seen), []);
        assert_eq!(closing(None).conditions(Family::V4, &Fingerprints::new()), []);
        let everywhere = (1..=9).map(|port| (flow(port, "192.0.2.2:1"), 7)).collect();
        assert_eq!(closing(None).ports(&everywhere), [None]);
    }

    #[test]
    fn the_conditions_of_a_whole_batch_fit_into_a_filter() {
        let ends = (1..=MAX_PORTS as u16).map(|port| Flow {
            local: SocketAddr::new("2001:db8::1".parse().unwrap(), port),
            remote: "[2001:db8::2]:1".parse().unwrap(),
        });
        let seen: Fingerprints = ends.map(|flow| (flow, 7)).collect();
        let closing = Closing {
            rule_id: 1,
            peers: Peers::Fingerprint { keys: vec![7], net: None },
            local_ports: Vec::new(),
            local_addresses: Vec::new(),
            spared: Arc::default(),
        };
        let conditions = closing.conditions(Family::V6, &seen).repeat(MAX_BATCH);
        assert_eq!(conditions.len(), 2 * MAX_PORTS * MAX_BATCH);
        let program = super::super::filter::any_of(&conditions);
        assert!(program.len() + 4 <= usize::from(u16::MAX), "{} bytes", program.len());
    }
}
