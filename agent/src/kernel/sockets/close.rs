//! Which connections a decision closes, and closing them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use portcullis_common::net::Addr;

use super::diag::{Closed, Diag, states};
use super::filter::{End, Match};
use super::wire::{Family, Socket};
use crate::kernel::addresses::mapped;

/// Closings carried out with one look through the kernel's table.
pub(super) const MAX_BATCH: usize = 64;
/// Sockets collected in one look, 100 bytes each; when there are more, it looks again.
const MAX_FOUND: usize = 65_536;
const MAX_LOOKS: usize = 16;

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Every connection with an address of the network at its other end.
    Network(IpNet),
    Flow(Flow),
}

/// One connection, seen from this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    fn covers(&self, socket: &Socket) -> bool {
        let Spared { networks, local_ports } = &*self.spared;
        let port = socket.local.port();
        let spared = || {
            let remote = IpNet::from(socket.remote.ip());
            local_ports.contains(&port) || networks.iter().any(|net| holds(*net, remote))
        };
        let matches = match self.peers {
            Peers::Network(net) => holds(net, socket.remote.ip().into()),
            Peers::Flow(flow) => {
                canonical(flow.remote) == socket.remote && canonical(flow.local) == socket.local
            }
        };
        let local = socket.local.ip();
        let in_scope = (self.local_ports.is_empty() || self.local_ports.contains(&port))
            && (self.local_addresses.is_empty()
                || self.local_addresses.iter().any(|ip| ip.to_canonical() == local));
        matches && in_scope && !spared()
    }

    /// As the kernel's filter puts it, of the sockets of one family. An IPv4 condition finds
    /// mapped addresses on IPv6 sockets too.
    fn conditions(&self, family: Family) -> Vec<Match> {
        let of_flow = |flow: Flow| {
            let end = |address: SocketAddr| {
                let address = canonical(address);
                Some(End { net: Some(address.ip().into()), port: Some(address.port()) })
            };
            let fits = family == Family::V6 || canonical(flow.remote).is_ipv4();
            fits.then(|| Match { local: end(flow.local), remote: end(flow.remote) })
        };
        match self.peers {
            Peers::Flow(flow) => of_flow(flow).into_iter().collect(),
            Peers::Network(net) => {
                let (v4, v6) = split(net);
                let v6 = v6.filter(|_| family == Family::V6);
                let nets = v4.map(IpNet::V4).into_iter().chain(v6.map(IpNet::V6));
                nets.map(|net| Match {
                    local: None,
                    remote: Some(End { net: Some(net), port: None }),
                })
                .collect()
            }
        }
    }
}

/// IPv4 for a mapped address.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Whether `inner` lies within `outer`, IPv4 being a part of IPv6 as in the policy maps.
fn holds(outer: IpNet, inner: IpNet) -> bool {
    let ((outer, outer_len), (inner, inner_len)) = (mapped(outer), mapped(inner));
    let number = |Addr(bytes)| u128::from_be_bytes(bytes);
    let shift = 128u32.saturating_sub(outer_len);
    let differs = (number(outer) ^ number(inner)).checked_shr(shift).unwrap_or_default();
    outer_len <= inner_len && differs == 0
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
pub(super) fn close(diag: &mut Diag, closings: &[Closing]) -> io::Result<Vec<Tally>> {
    let mut tallies = vec![Tally::default(); closings.len()];
    for family in Family::ALL {
        let conditions: Vec<_> =
            closings.iter().flat_map(|closing| closing.conditions(family)).collect();
        // No condition would mean no filter: all sockets.
        if !conditions.is_empty() {
            close_family(diag, family, &conditions, closings, &mut tallies)?;
        }
    }
    Ok(tallies)
}

fn close_family(
    diag: &mut Diag,
    family: Family,
    conditions: &[Match],
    closings: &[Closing],
    tallies: &mut [Tally],
) -> io::Result<()> {
    for _ in 0..MAX_LOOKS {
        let (found, more) = diag.find(family, states::OPEN, conditions, MAX_FOUND)?;
        let mut progress = false;
        for socket in &found {
            let asked = closings.iter().zip(&mut *tallies);
            let Some((_, tally)) = asked.into_iter().find(|(one, _)| one.covers(socket)) else {
                continue;
            };
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
        // What is found again and again are sockets to be spared, or that cannot be closed.
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
    fn networks_hold_networks_of_either_version() {
        for (outer, inner) in [
            ("192.0.2.0/24", "192.0.2.9/32"),
            ("0.0.0.0/0", "192.0.2.9/32"),
            ("::/0", "192.0.2.9/32"),
            ("::ffff:192.0.2.0/120", "192.0.2.9/32"),
            ("2001:db8::/64", "2001:db8::1/128"),
            ("::/0", "2001:db8::1/128"),
        ] {
            assert!(holds(net(outer), net(inner)), "{outer} {inner}");
        }
        for (outer, inner) in [
            ("192.0.2.0/24", "192.0.3.9/32"),
            ("192.0.2.9/32", "192.0.2.0/24"),
            ("0.0.0.0/0", "2001:db8::1/128"),
            ("2001:db8::/64", "2001:db8:0:1::1/128"),
        ] {
            assert!(!holds(net(outer), net(inner)), "{outer} {inner}");
        }
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
        assert_eq!(v4.conditions(Family::V4).len(), 1);
        assert_eq!(v4.conditions(Family::V6), v4.conditions(Family::V4));
        let v6 = closing("[2001:db8::1]:443", "[2001:db8::2]:4711");
        assert_eq!((v6.conditions(Family::V4).len(), v6.conditions(Family::V6).len()), (0, 1));
    }
}
