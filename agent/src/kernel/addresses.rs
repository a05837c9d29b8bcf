//! Between the kernel's addresses and the standard library's.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use portcullis_common::net::{Addr, FlowKey};
use portcullis_common::policy::DenyKey;

/// The key of the deny map for a network; `None` when the map has no keys for its length.
pub(super) fn deny_key(target: IpNet) -> Option<DenyKey> {
    let prefix_len = match target {
        IpNet::V4(net) if net.prefix_len() == 32 => 128,
        IpNet::V6(net) if net.prefix_len() == 128 || net.prefix_len() == 64 => net.prefix_len(),
        _ => return None,
    };
    Some(DenyKey { addr: addr(target.network()), prefix_len: u32::from(prefix_len) })
}

/// The network that a key of the deny map stands for.
pub fn network_of(addr: Addr, prefix_len: u32) -> Option<IpNet> {
    let ip = ip(addr);
    let prefix_len = u8::try_from(prefix_len).ok()?;
    let len = if ip.is_ipv4() { prefix_len.checked_sub(96)? } else { prefix_len };
    IpNet::new(ip, len).ok()
}

/// Address and length of a network in the IPv4-mapped form that all maps use.
pub(super) fn mapped(net: IpNet) -> (Addr, u32) {
    let len = match net {
        IpNet::V4(net) => 96 + net.prefix_len(),
        IpNet::V6(net) => net.prefix_len(),
    };
    (addr(net.network()), u32::from(len))
}

fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(v4) => Addr::from_v4(v4.octets()),
        IpAddr::V6(v6) => Addr(v6.octets()),
    }
}

fn ip(addr: Addr) -> IpAddr {
    Ipv6Addr::from(addr.0).to_canonical()
}

/// Local and remote end of a flow.
pub fn flow_addresses(flow: &FlowKey) -> (SocketAddr, SocketAddr) {
    (
        SocketAddr::new(ip(flow.local), flow.local_port),
        SocketAddr::new(ip(flow.remote), flow.remote_port),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deny_keys_stand_for_the_networks_they_were_made_of() {
        for text in ["203.0.113.9/32", "2001:db8::5/128", "2001:db8:1:2::/64"] {
            let net: IpNet = text.parse().unwrap();
            let key = deny_key(net).unwrap();
            assert_eq!(network_of(key.addr, key.prefix_len), Some(net), "{text}");
        }
        for text in ["203.0.113.0/24", "2001:db8::/48", "0.0.0.0/0"] {
            assert_eq!(deny_key(text.parse().unwrap()), None, "{text}");
        }
    }

    #[test]
    fn host_bits_do_not_reach_the_key() {
        let key = deny_key("2001:db8:1:2::9/64".parse().unwrap()).unwrap();
        assert_eq!(Some(key), deny_key("2001:db8:1:2::/64".parse().unwrap()));
    }
}
