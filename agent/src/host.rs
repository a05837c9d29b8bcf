//! The host's own addresses, gateways and resolvers: what no automatic decision may block.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::ifaddrs::getifaddrs;

use crate::kernel::Namespace;

/// As the system has them now. Looked at again from time to time, for they change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostAddresses {
    pub addresses: Vec<IpAddr>,
    pub gateways: Vec<IpAddr>,
    pub resolvers: Vec<IpAddr>,
}

impl HostAddresses {
    /// Those of the agent's own network namespace and of `namespaces`, which may be absent.
    ///
    /// # Errors
    /// When the system does not say. A missing resolver configuration is no error.
    pub fn read<'a>(namespaces: impl IntoIterator<Item = &'a PathBuf>) -> Result<Self> {
        let (mut addresses, mut gateways) = here()?;
        for path in namespaces {
            let Some(namespace) = Namespace::open(path)? else { continue };
            let (more_addresses, more_gateways) = namespace.run(here)?;
            addresses.extend(more_addresses);
            gateways.extend(more_gateways);
        }
        Ok(Self {
            addresses: addresses.into_iter().collect(),
            gateways: gateways.into_iter().collect(),
            resolvers: resolvers(Path::new("/etc/resolv.conf")),
        })
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = IpAddr> {
        [&self.addresses, &self.gateways, &self.resolvers].into_iter().flatten().copied()
    }
}

/// Addresses and gateways in this thread's network namespace.
fn here() -> Result<(BTreeSet<IpAddr>, BTreeSet<IpAddr>)> {
    Ok((own_addresses()?, gateways()?))
}

fn own_addresses() -> Result<BTreeSet<IpAddr>> {
    let mut addresses = BTreeSet::new();
    for interface in getifaddrs().context("can't list the host's addresses")? {
        let Some(address) = interface.address else { continue };
        if let Some(v4) = address.as_sockaddr_in() {
            addresses.insert(IpAddr::V4(v4.ip()));
        } else if let Some(v6) = address.as_sockaddr_in6() {
            addresses.insert(IpAddr::V6(v6.ip()));
        }
    }
    Ok(addresses)
}

/// Next hops of every route, not only of the default one.
fn gateways() -> Result<BTreeSet<IpAddr>> {
    // /proc/net is that of the process's first thread.
    let path = "/proc/thread-self/net/route";
    let text = std::fs::read_to_string(path).with_context(|| format!("can't read {path}"))?;
    let mut gateways: BTreeSet<_> = text.lines().filter_map(ipv4_next_hop).collect();
    // Absent when the kernel has no IPv6.
    if let Ok(text) = std::fs::read_to_string("/proc/thread-self/net/ipv6_route") {
        gateways.extend(text.lines().filter_map(ipv6_next_hop));
    }
    gateways.retain(|gateway| !gateway.is_unspecified());
    Ok(gateways)
}

/// The third field of a line of /proc/net/route, the bytes of memory read as a number
/// (net/ipv4/fib_trie.c, `fib_route_seq_show`).
fn ipv4_next_hop(line: &str) -> Option<IpAddr> {
    let hex = line.split_ascii_whitespace().nth(2)?;
    let bits = u32::from_str_radix(hex, 16).ok()?;
    (hex.len() == 8).then(|| IpAddr::from(bits.to_ne_bytes()))
}

/// The fifth field of a line of /proc/net/ipv6_route (net/ipv6/route.c, `rt6_seq_show`).
fn ipv6_next_hop(line: &str) -> Option<IpAddr> {
    let hex = line.split_ascii_whitespace().nth(4)?;
    let bits = u128::from_str_radix(hex, 16).ok()?;
    (hex.len() == 32).then(|| IpAddr::from(bits.to_be_bytes()))
}

/// `nameserver` lines of resolv.conf(5).
fn resolvers(path: &Path) -> Vec<IpAddr> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let address = |line: &str| {
        let rest = line.trim().strip_prefix("nameserver")?;
        // A link-local address may carry its interface.
        rest.trim().split('%').next()?.parse().ok()
    };
    text.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_address_is_the_hosts_own() {
        let host = HostAddresses::read(&[]).unwrap();
        assert!(host.addresses.contains(&"127.0.0.1".parse().unwrap()), "{host:?}");
        assert!(host.gateways.iter().all(|gateway| !gateway.is_unspecified()));
    }

    #[test]
    fn next_hops_of_ipv4_routes_are_read() {
        let hop = u32::from_ne_bytes([192, 0, 2, 1]);
        let line = format!("eth0\t00000000\t{hop:08X}\t0003\t0\t0\t0\t00000000\t0\t0\t0");
        assert_eq!(ipv4_next_hop(&line), Some("192.0.2.1".parse().unwrap()));
        let header = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\tMTU";
        assert_eq!(ipv4_next_hop(header), None);
    }

    #[test]
    fn next_hops_of_ipv6_routes_are_read() {
        let line = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                    fe80000000000000020000fffe000001 00000400 00000001 00000000 00000003 eth0";
        assert_eq!(ipv6_next_hop(line), Some("fe80::200:ff:fe00:1".parse().unwrap()));
        assert_eq!(ipv6_next_hop("too short"), None);
    }

    #[test]
    fn resolvers_are_read_with_comments_and_scopes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let text = "# local\nnameserver 192.0.2.53\noptions edns0\nnameserver fe80::1%eth0\n";
        std::fs::write(&path, text).unwrap();
        let expected: [IpAddr; 2] = ["192.0.2.53".parse().unwrap(), "fe80::1".parse().unwrap()];
        assert_eq!(resolvers(&path), expected);
        assert_eq!(resolvers(&dir.path().join("missing")), Vec::<IpAddr>::new());
    }
}
