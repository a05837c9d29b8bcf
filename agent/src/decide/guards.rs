//! Whom no decision may touch.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::{Config, Service};

/// What the host needs to stay reachable, as found on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostGuards {
    /// The host's own addresses.
    pub addresses: Vec<IpAddr>,
    pub gateways: Vec<IpAddr>,
    pub resolvers: Vec<IpAddr>,
}

/// Why a subject is not dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Guard {
    AllowList,
    TrustedProxy,
    Host,
    Gateway,
    Resolver,
    Loopback,
    LinkLocal,
    Unspecified,
    Multicast,
    Broadcast,
    /// The service has only ports that the kernel never drops packets to.
    FailsafePorts,
}

impl Guard {
    /// The name in a decision's `evidence.guard`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AllowList => "allow_list",
            Self::TrustedProxy => "trusted_proxy",
            Self::Host => "host",
            Self::Gateway => "gateway",
            Self::Resolver => "resolver",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link_local",
            Self::Unspecified => "unspecified",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::FailsafePorts => "failsafe_ports",
        }
    }

    /// The end of a sentence that begins with an address.
    const fn predicate(self) -> &'static str {
        match self {
            Self::AllowList => "is on the allow list",
            Self::TrustedProxy => "is a trusted proxy",
            Self::Host => "is an address of this host",
            Self::Gateway => "is this host's gateway",
            Self::Resolver => "is this host's DNS resolver",
            Self::Loopback => "is this host's loopback",
            Self::LinkLocal => "is link-local",
            Self::Unspecified => "is no address of a client",
            Self::Multicast => "is a multicast address",
            Self::Broadcast => "is the broadcast address",
            Self::FailsafePorts => "uses failsafe ports only",
        }
    }
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A guarded network and why it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guarded {
    pub guard: Guard,
    pub net: IpNet,
}

impl fmt::Display for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.net.prefix_len() == self.net.max_prefix_len() {
            write!(f, "{} {}", self.net.addr(), self.guard.predicate())
        } else {
            write!(f, "{} {}", self.net, self.guard.predicate())
        }
    }
}

/// Guards that hold whatever the configuration says.
const ALWAYS: [(Guard, &str); 9] = [
    (Guard::Loopback, "127.0.0.0/8"),
    (Guard::Loopback, "::1/128"),
    (Guard::LinkLocal, "169.254.0.0/16"),
    (Guard::LinkLocal, "fe80::/10"),
    // "This host on this network", RFC 1122, section 3.2.1.3.
    (Guard::Unspecified, "0.0.0.0/8"),
    (Guard::Unspecified, "::/128"),
    (Guard::Multicast, "224.0.0.0/4"),
    (Guard::Multicast, "ff00::/8"),
    (Guard::Broadcast, "255.255.255.255/32"),
];

/// Networks that are guarded whatever the configuration says.
pub fn always_guarded() -> impl Iterator<Item = IpNet> {
    ALWAYS.iter().filter_map(|(_, net)| net.parse().ok())
}

/// All guards of an installation.
pub(super) struct Guards {
    nets: Vec<Guarded>,
}

impl Guards {
    pub fn new(config: &Config, host: &HostGuards) -> Self {
        let always = ALWAYS.iter().filter_map(|(guard, net)| Some((*guard, net.parse().ok()?)));
        let named =
            |guard, nets: &[IpNet]| nets.iter().map(|net| (guard, *net)).collect::<Vec<_>>();
        let addresses = |guard, ips: &[IpAddr]| {
            ips.iter().map(|ip| (guard, IpNet::from(*ip))).collect::<Vec<_>>()
        };
        let nets = always
            .chain(named(Guard::AllowList, &config.guards.allow))
            .chain(named(Guard::TrustedProxy, &config.guards.trusted_proxies))
            .chain(addresses(Guard::Host, &host.addresses))
            .chain(addresses(Guard::Gateway, &host.gateways))
            .chain(addresses(Guard::Resolver, &host.resolvers))
            .map(|(guard, net)| Guarded { guard, net: canonical(net) })
            .collect();
        Self { nets }
    }

    /// The first guard of any address in `net`.
    pub fn of(&self, net: IpNet) -> Option<Guarded> {
        let net = canonical(net);
        self.nets.iter().copied().find(|one| one.net.contains(&net) || net.contains(&one.net))
    }

    /// The first guard of every address in `net`: a block of it would mean nothing, as the kernel
    /// lets those who are guarded in before it looks at blocks.
    pub fn of_all(&self, net: IpNet) -> Option<Guarded> {
        let net = canonical(net);
        self.nets.iter().copied().find(|one| one.net.contains(&net))
    }

    /// Whether the kernel drops nothing to `service`, so that dropping its abusers means nothing.
    pub fn failsafe_only(config: &Config, service: Option<&Service>) -> bool {
        service.is_some_and(|service| {
            !service.ports.is_empty()
                && service.ports.iter().all(|p| config.guards.failsafe_tcp_ports.contains(p))
        })
    }
}

/// `net` without host bits, and as IPv4 if it is IPv4-mapped.
pub(super) fn canonical(net: IpNet) -> IpNet {
    const MAPPED: u8 = 96;
    let mapped = match net.addr().to_canonical() {
        ip @ IpAddr::V4(_) if net.max_prefix_len() == 128 => {
            net.prefix_len().checked_sub(MAPPED).and_then(|len| IpNet::new(ip, len).ok())
        }
        _ => None,
    };
    mapped.unwrap_or(net).trunc()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guards() -> Guards {
        let mut config = Config::default();
        config.guards.allow =
            ["198.51.100.0/24", "2001:db8:a::7/128", "::ffff:203.0.113.0/120"].map(net).to_vec();
        config.guards.trusted_proxies = ["10.1.0.0/16"].map(net).to_vec();
        let host = HostGuards {
            addresses: vec!["192.0.2.10".parse().unwrap(), "2001:db8:b::10".parse().unwrap()],
            gateways: vec!["192.0.2.1".parse().unwrap(), "2001:db8:c::1".parse().unwrap()],
            resolvers: vec!["192.0.2.53".parse().unwrap(), "2001:db8:d::53".parse().unwrap()],
        };
        Guards::new(&config, &host)
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn each_guard_has_its_addresses() {
        use Guard::*;
        for (subject, guard) in [
            ("198.51.100.200/32", Some(AllowList)),
            ("::ffff:198.51.100.200/128", Some(AllowList)),
            ("203.0.113.9/32", Some(AllowList)),
            ("2001:db8:a::/64", Some(AllowList)),
            ("2001:db8:a:0:ffff::/80", None),
            ("10.1.2.3/32", Some(TrustedProxy)),
            ("192.0.2.10/32", Some(Host)),
            ("2001:db8:b::/64", Some(Host)),
            ("192.0.2.1/32", Some(Gateway)),
            ("2001:db8:c::/64", Some(Gateway)),
            ("192.0.2.53/32", Some(Resolver)),
            ("2001:db8:d::/64", Some(Resolver)),
            ("127.0.0.1/32", Some(Loopback)),
            ("::1/128", Some(Loopback)),
            ("::/64", Some(Loopback)),
            ("169.254.1.1/32", Some(LinkLocal)),
            ("fe80::/64", Some(LinkLocal)),
            ("0.0.0.0/32", Some(Unspecified)),
            ("::/128", Some(Unspecified)),
            ("224.0.0.1/32", Some(Multicast)),
            ("ff02::/64", Some(Multicast)),
            ("255.255.255.255/32", Some(Broadcast)),
            ("192.0.2.11/32", None),
            ("2001:db8:e::/64", None),
            ("192.0.2.0/24", Some(Host)),
        ] {
            assert_eq!(guards().of(net(subject)).map(|found| found.guard), guard, "{subject}");
        }
        let always = Guards::new(&Config::default(), &HostGuards::default()).nets;
        assert_eq!(always.len(), ALWAYS.len(), "all of them can be read");
    }

    #[test]
    fn a_network_is_guarded_as_a_whole_by_what_covers_it() {
        for (subject, guard) in [
            ("198.51.100.0/25", Some(Guard::AllowList)),
            ("198.51.0.0/16", None),
            ("10.1.0.0/16", Some(Guard::TrustedProxy)),
            ("192.0.2.0/24", None),
            ("0.0.0.0/0", None),
            ("::/0", None),
            ("127.0.0.0/9", Some(Guard::Loopback)),
        ] {
            let found = guards().of_all(net(subject)).map(|found| found.guard);
            assert_eq!(found, guard, "{subject}");
        }
    }

    #[test]
    fn a_service_on_failsafe_ports_only_is_guarded() {
        let config = Config::default();
        let mut service = crate::detect::tests::service("git", None);
        for (ports, guarded) in
            [(vec![22], true), (vec![], false), (vec![443], false), (vec![22, 443], false)]
        {
            service.ports = ports.clone();
            assert_eq!(Guards::failsafe_only(&config, Some(&service)), guarded, "{ports:?}");
        }
        assert!(!Guards::failsafe_only(&config, None));
    }

    #[test]
    fn guarded_networks_explain_themselves() {
        let say = |subject| guards().of(net(subject)).unwrap().to_string();
        assert_eq!(say("198.51.100.7/32"), "198.51.100.0/24 is on the allow list");
        assert_eq!(say("2001:db8:c::/64"), "2001:db8:c::1 is this host's gateway");
    }
}
