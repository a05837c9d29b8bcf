//! Between the kernel's addresses and the standard library's.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use portcullis_common::net::{Addr, FlowKey};
use portcullis_common::policy::PrefixKey;

/// The key of a network in every map.
pub(super) fn prefix_key(net: IpNet) -> PrefixKey {
    let (addr, prefix_len) = mapped(net);
    PrefixKey { addr, prefix_len }
}

/// The network that a key stands for.
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

/// Whether `inner` lies within `outer`, IPv4 being a part of IPv6 as in the policy maps.
pub fn holds(outer: IpNet, inner: IpNet) -> bool {
    let ((outer, outer_len), (inner, inner_len)) = (mapped(outer), mapped(inner));
    let number = |Addr(bytes)| u128::from_be_bytes(bytes);
    let shift = 128u32.saturating_sub(outer_len);
    let differs = (number(outer) ^ number(inner)).checked_shr(shift).unwrap_or_default();
    outer_len <= inner_len && differs == 0
}

pub(super) fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(v4) => Addr::from_v4(v4.octets()),
        IpAddr::V6(v6) => Addr(v6.octets()),
    }
}

pub(super) fn ip(addr: Addr) -> IpAddr {
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
    fn keys_stand_for_the_networks_they_were_made_of() {
        for text in [
            "203.0.113.9/32",
            "203.0.113.0/24",
            "0.0.0.0/0",
            "2001:db8::5/128",
            "2001:db8:1:2::/64",
            "2001:db8::/33",
            "::/0",
        ] {
            let net: IpNet = text.parse().unwrap();
            let key = prefix_key(net);
            assert_eq!(network_of(key.addr, key.prefix_len), Some(net), "{text}");
        }
    }

    #[test]
    fn networks_hold_networks_of_either_version() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
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
    fn host_bits_do_not_reach_the_key() {
        let key = prefix_key("2001:db8:1:2::9/64".parse().unwrap());
        assert_eq!(key, prefix_key("2001:db8:1:2::/64".parse().unwrap()));
    }

    #[test]
    fn an_address_and_its_mapped_form_are_one_key() {
        let key = prefix_key("::ffff:203.0.113.9/128".parse().unwrap());
        assert_eq!(key, prefix_key("203.0.113.9/32".parse().unwrap()));
    }
}
