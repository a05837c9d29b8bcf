//! The policy once more, in plain Rust and from the RFCs: what the programs have to say of a
//! frame.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use portcullis::enforce::{Each, Effect, Flow, List, NewBlock, Rate, Scope, Target, Unit};
use portcullis_common::policy::Reason;
use portcullis_common::settings::{MAX_EXTENSION_HEADERS, MAX_VLAN_TAGS};

use super::frame::{ethertype, protocol};

/// A policy as people write it. A rule with a time to live of zero has expired; every other holds.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    pub blocks: Vec<(Target, NewBlock)>,
    pub lists: Vec<List>,
    pub scopes: Vec<Scope>,
    /// TLS fingerprints with their JA4.
    pub known: Vec<(u64, &'static str)>,
    /// Flows that have shown a fingerprint.
    pub seen: Vec<(Flow, u64)>,
    pub allowed: Vec<IpNet>,
    pub failsafe_tcp: Vec<u16>,
    pub failsafe_udp: Vec<u16>,
    pub tunnels: bool,
}

/// What a policy makes of frames that come one after the other. Limits regain nothing: no time passes.
pub struct Reference<'a> {
    policy: &'a Policy,
    rules: Vec<&'a NewBlock>,
    networks: BTreeMap<IpNet, Chain>,
    flows: HashMap<Flow, Chain>,
    fingerprints: HashMap<u64, Chain>,
    conjunctions: HashMap<u64, BTreeMap<IpNet, Chain>>,
    seen: HashMap<Flow, u64>,
    /// Units taken from limits, by rule and client.
    taken: HashMap<(usize, Option<IpNet>), u64>,
}

/// Rules in the order in which they are applied, by number.
type Chain = Vec<usize>;

impl<'a> Reference<'a> {
    pub fn new(policy: &'a Policy) -> Self {
        let mut new = Self {
            policy,
            rules: Vec::new(),
            networks: BTreeMap::new(),
            flows: HashMap::new(),
            fingerprints: HashMap::new(),
            conjunctions: HashMap::new(),
            seen: policy.seen.iter().map(|(flow, key)| (canonical_flow(flow), *key)).collect(),
            taken: HashMap::new(),
        };
        // A target's rules go by what they do, and those that do the same by their service.
        let mut blocks: Vec<_> = policy.blocks.iter().collect();
        blocks.sort_by_key(|(_, block)| (block.effect.kind(), block.service.clone()));
        for (target, block) in blocks {
            new.add(target, block);
        }
        let mut listed = BTreeMap::new();
        for list in &policy.lists {
            new.rules.push(&list.rule);
            let rule = new.rules.len() - 1;
            for net in &list.networks {
                listed.entry(canonical(*net)).or_insert(rule);
            }
        }
        for (net, rule) in listed {
            new.networks.entry(net).or_default().push(rule);
        }
        new
    }

    fn add(&mut self, target: &Target, block: &'a NewBlock) {
        self.rules.push(block);
        let rule = self.rules.len() - 1;
        let keys_of = |ja4: &str| {
            let known = self.policy.known.iter().filter(|(_, named)| *named == ja4);
            known.map(|(key, _)| *key).collect::<Vec<_>>()
        };
        match target {
            Target::Network(net) => {
                self.networks.entry(canonical(*net)).or_default().push(rule);
            }
            Target::Flow(flow) => self.flows.entry(canonical_flow(flow)).or_default().push(rule),
            Target::Fingerprint(ja4) => {
                for key in keys_of(ja4) {
                    self.fingerprints.entry(key).or_default().push(rule);
                }
            }
            Target::Conjunction(net, ja4) => {
                for key in keys_of(ja4) {
                    let of_key = self.conjunctions.entry(key).or_default();
                    of_key.entry(canonical(*net)).or_default().push(rule);
                }
            }
        }
    }

    /// What is said of a frame that begins with an Ethernet header.
    pub fn judge(&mut self, frame: &[u8]) -> Reason {
        self.judge_all(Packet::of(frame), frame.len() as u64)
    }

    /// What is said of the packet behind an untagged Ethernet header, on an interface that has
    /// none.
    pub fn judge_l3(&mut self, frame: &[u8]) -> Reason {
        self.judge_all(Packet::behind_header(frame), frame.len() as u64)
    }

    /// A packet in a tunnel is judged beside the one that carries it, and either can have it
    /// dropped.
    fn judge_all(&mut self, packet: Result<Packet, Reason>, len: u64) -> Reason {
        let packet = match packet {
            Ok(packet) => packet,
            Err(reason) => return reason,
        };
        let drops = |reason| matches!(reason, Reason::DropDenied | Reason::DropLimited);
        let outer = self.judge_one(&packet, len);
        let Some(inner) = packet.inner.as_deref().filter(|_| self.policy.tunnels && !drops(outer))
        else {
            return outer;
        };
        let inner = self.judge_one(inner, len);
        if drops(inner) || outer == Reason::PassNoMatch { inner } else { outer }
    }

    /// The order of policy: networks from the longest to the shortest, the flow, its fingerprint, the
    /// fingerprint in networks. The first drop, and the first that would have been one but for the
    /// allow list or the port, is the last word; else the strongest reason to pass is it.
    fn judge_one(&mut self, packet: &Packet, len: u64) -> Reason {
        let mut strongest = Reason::PassNoMatch;
        for rule in self.rules_of(packet) {
            match self.apply(rule, packet, len) {
                None => {}
                Some(last_word) if strength(last_word).is_none() => return last_word,
                Some(reason) if strength(reason) > strength(strongest) => strongest = reason,
                Some(_) => {}
            }
        }
        strongest
    }

    fn rules_of(&self, packet: &Packet) -> Vec<usize> {
        let mut rules = of_networks(&self.networks, packet);
        let Some(flow) = packet.flow() else { return rules };
        rules.extend(self.flows.get(&flow).into_iter().flatten());
        if let Some(key) = self.seen.get(&flow) {
            rules.extend(self.fingerprints.get(key).into_iter().flatten());
            let conjunctions = self.conjunctions.get(key);
            rules.extend(conjunctions.into_iter().flat_map(|nets| of_networks(nets, packet)));
        }
        rules
    }

    fn apply(&mut self, number: usize, packet: &Packet, len: u64) -> Option<Reason> {
        let rule = self.rules[number];
        if !self.is_in_scope(rule, packet) {
            return None;
        }
        Some(if rule.ttl == Some(Duration::ZERO) {
            Reason::PassExpired
        } else if self.policy.allowed.iter().any(|net| packet.is_from(&canonical(*net))) {
            Reason::PassAllowed
        } else if self.is_failsafe(packet.port) {
            Reason::PassFailsafe
        } else {
            match rule.effect {
                Effect::Limit(rate) if self.take(number, &rate, packet, len) => {
                    Reason::PassWithinLimit
                }
                _ if rule.count_only => Reason::PassCountOnly,
                Effect::Limit(_) => Reason::DropLimited,
                Effect::Count => Reason::PassCountOnly,
                Effect::Steer => Reason::PassSteered,
                Effect::Drop => Reason::DropDenied,
            }
        })
    }

    /// What has no port that can be seen may be for any.
    fn is_in_scope(&self, rule: &NewBlock, packet: &Packet) -> bool {
        let Some(service) = &rule.service else { return true };
        let scope = self.policy.scopes.iter().find(|scope| scope.service == *service);
        let scope = scope.expect("a rule of a service that is not there");
        let port = packet.port.map(Port::number);
        let addresses: Vec<_> = scope.addresses.iter().map(IpAddr::to_canonical).collect();
        (scope.ports.is_empty() || port.is_none_or(|port| scope.ports.contains(&port)))
            && (addresses.is_empty()
                || packet.destination.is_some_and(|to| addresses.contains(&to)))
    }

    /// Whether the packet is within the limit. One that is may go beyond it: what counts is whether
    /// there was anything left.
    fn take(&mut self, rule: usize, rate: &Rate, packet: &Packet, len: u64) -> bool {
        let needed = match rate.unit {
            Unit::Packets => 1,
            Unit::Bytes => len,
            Unit::Connections if packet.opens => 1,
            Unit::Connections => return true,
        };
        let client = match rate.each {
            Each::Target => None,
            Each::Client { v4, v6 } => {
                let len = if packet.source.is_ipv4() { v4 } else { v6 };
                Some(IpNet::new(packet.source, len).expect("a length of its family").trunc())
            }
        };
        let taken = self.taken.entry((rule, client)).or_default();
        let is_within = *taken < rate.burst;
        if is_within {
            *taken += needed;
        }
        is_within
    }

    fn is_failsafe(&self, port: Option<Port>) -> bool {
        match port {
            Some(Port::Tcp { to, .. }) => self.policy.failsafe_tcp.contains(&to),
            Some(Port::Udp { to, .. }) => self.policy.failsafe_udp.contains(&to),
            None => false,
        }
    }
}

/// How a reason to pass compares with others; none for those that are the last word.
fn strength(reason: Reason) -> Option<u32> {
    match reason {
        Reason::PassNoMatch => Some(0),
        Reason::PassExpired => Some(1),
        Reason::PassWithinLimit => Some(2),
        Reason::PassCountOnly => Some(3),
        Reason::PassSteered => Some(4),
        Reason::PassAllowed
        | Reason::PassFailsafe
        | Reason::DropDenied
        | Reason::DropLimited
        | Reason::PassNotIp
        | Reason::PassTooManyTags
        | Reason::PassTruncated => None,
    }
}

/// The rules of the networks that the packet is from, those of the longest first.
fn of_networks(networks: &BTreeMap<IpNet, Chain>, packet: &Packet) -> Vec<usize> {
    let mut matching: Vec<_> = networks.iter().filter(|(net, _)| packet.is_from(net)).collect();
    matching.sort_by_key(|(net, _)| Reverse(net.prefix_len()));
    matching.into_iter().flat_map(|(_, rules)| rules.iter().copied()).collect()
}

/// IPv4 for networks of IPv4-mapped addresses (RFC 4291, section 2.5.5.2).
fn canonical(net: IpNet) -> IpNet {
    match (net.network().to_canonical(), net.prefix_len().checked_sub(96)) {
        (v4 @ IpAddr::V4(_), Some(len)) if matches!(net, IpNet::V6(_)) => {
            IpNet::new(v4, len).expect("at most 32")
        }
        _ => net.trunc(),
    }
}

fn canonical_flow(flow: &Flow) -> Flow {
    let end = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
    Flow { client: end(flow.client), server: end(flow.server), ..*flow }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    Tcp { from: u16, to: u16 },
    Udp { from: u16, to: u16 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Packet {
    /// IPv4 in either form is IPv4.
    source: IpAddr,
    /// When the frame shows it.
    destination: Option<IpAddr>,
    port: Option<Port>,
    /// A TCP segment that asks for a connection.
    opens: bool,
    /// The packet in a tunnel.
    inner: Option<Box<Packet>>,
}

impl Packet {
    fn behind_header(frame: &[u8]) -> Result<Self, Reason> {
        let mut rest = Reader(frame);
        rest.skip(12).ok_or(Reason::PassTruncated)?;
        match rest.u16().ok_or(Reason::PassTruncated)? {
            ethertype::IPV4 => Self::v4(rest).ok_or(Reason::PassTruncated),
            ethertype::IPV6 => Self::v6(rest).ok_or(Reason::PassTruncated),
            _ => Err(Reason::PassNotIp),
        }
    }

    /// RFC 2003 and RFC 2473; RFC 2784 with the options of RFC 2890.
    fn within(next: u8, mut rest: Reader) -> Option<Self> {
        match next {
            protocol::IPV4 => Self::v4(rest),
            protocol::IPV6 => Self::v6(rest),
            protocol::GRE => {
                let (flags, kind) = (rest.u16()?, rest.u16()?);
                // Routing and versions other than 0.
                if flags & 0x4007 != 0 {
                    return None;
                }
                rest.skip(4 * (flags & 0xb000).count_ones() as usize)?;
                match kind {
                    ethertype::IPV4 => Self::v4(rest),
                    ethertype::IPV6 => Self::v6(rest),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn of(frame: &[u8]) -> Result<Self, Reason> {
        let mut rest = Reader(frame);
        rest.skip(12).ok_or(Reason::PassTruncated)?;
        let mut tags = 0;
        loop {
            match rest.u16().ok_or(Reason::PassTruncated)? {
                ethertype::IPV4 => return Self::v4(rest).ok_or(Reason::PassTruncated),
                ethertype::IPV6 => return Self::v6(rest).ok_or(Reason::PassTruncated),
                ethertype::DOT1Q | ethertype::DOT1AD | ethertype::QINQ => {
                    tags += 1;
                    if tags > MAX_VLAN_TAGS {
                        return Err(Reason::PassTooManyTags);
                    }
                    // Priority, drop eligibility and VLAN identifier (IEEE 802.1Q, 9.6).
                    rest.skip(2).ok_or(Reason::PassTruncated)?;
                }
                _ => return Err(Reason::PassNotIp),
            }
        }
    }

    /// RFC 791, section 3.1; `None` when the source address is not all there.
    fn v4(packet: Reader) -> Option<Self> {
        let mut rest = packet;
        let header_words = usize::from(rest.u8()? & 0x0f);
        rest.skip(5)?;
        let fragment_offset = rest.u16()? & 0x1fff;
        rest.skip(1)?;
        let next = rest.u8()?;
        rest.skip(2)?;
        let source = IpAddr::V4(Ipv4Addr::from(rest.array::<4>()?));

        let destination = rest.array::<4>().map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes)));

        let mut transport = packet;
        let is_whole_header = header_words >= 5 && transport.skip(header_words * 4).is_some();
        let transport = (is_whole_header && fragment_offset == 0).then_some((next, transport));
        Some(Self::with(source, destination, transport))
    }

    /// RFC 8200, section 3; `None` when the source address is not all there.
    fn v6(mut rest: Reader) -> Option<Self> {
        rest.skip(6)?;
        let next = rest.u8()?;
        rest.skip(1)?;
        let source = IpAddr::V6(Ipv6Addr::from(rest.array::<16>()?));
        let destination = rest.array::<16>().map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes)));
        let transport = destination.and_then(|_| behind_extensions(next, rest));
        Some(Self::with(source, destination, transport))
    }

    /// `transport` is the protocol and what there is of it.
    fn with(source: IpAddr, destination: Option<IpAddr>, transport: Option<(u8, Reader)>) -> Self {
        Self {
            source: source.to_canonical(),
            destination: destination.map(|address| address.to_canonical()),
            port: transport.and_then(|(next, rest)| Port::of(next, rest)),
            opens: transport.is_some_and(|(next, rest)| next == protocol::TCP && opens(rest)),
            inner: transport.and_then(|(next, rest)| Self::within(next, rest)).map(Box::new),
        }
    }

    fn flow(&self) -> Option<Flow> {
        let destination = self.destination?;
        let (from, to, is_udp) = match self.port? {
            Port::Tcp { from, to } => (from, to, false),
            Port::Udp { from, to } => (from, to, true),
        };
        let (client, server) = ((self.source, from).into(), (destination, to).into());
        Some(Flow { client, server, is_udp })
    }

    /// An IPv6 network holds no IPv4 address, in neither form.
    fn is_from(&self, net: &IpNet) -> bool {
        net.contains(&self.source)
    }
}

impl Port {
    /// RFC 9293, section 3.1, and RFC 768: both begin with source and destination port.
    fn of(next: u8, mut rest: Reader) -> Option<Self> {
        let (from, to) = (rest.u16()?, rest.u16()?);
        match next {
            protocol::TCP => Some(Self::Tcp { from, to }),
            protocol::UDP => Some(Self::Udp { from, to }),
            _ => None,
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::Tcp { to, .. } | Self::Udp { to, .. } => to,
        }
    }
}

/// RFC 9293, section 3.1: SYN without ACK.
fn opens(mut rest: Reader) -> bool {
    let flags = rest.skip(13).and_then(|()| rest.u8());
    flags.is_some_and(|flags| flags & 0x12 == 0x02)
}

/// The protocol behind the extension headers, and what there is of it.
fn behind_extensions(mut next: u8, mut rest: Reader) -> Option<(u8, Reader)> {
    for _ in 0..MAX_EXTENSION_HEADERS {
        let mut header = rest;
        let len = match next {
            protocol::FRAGMENT => {
                next = header.u8()?;
                header.skip(1)?;
                if header.u16()? >> 3 != 0 {
                    return None;
                }
                8
            }
            // RFC 4302, section 2.2.
            protocol::AUTHENTICATION => {
                next = header.u8()?;
                4 * (usize::from(header.u8()?) + 2)
            }
            // RFC 8200, section 4; RFC 6275, 6.1.1; RFC 7401, 5.1; RFC 5533, 5.1.
            protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::DESTINATION
            | protocol::MOBILITY
            | protocol::HOST_IDENTITY
            | protocol::SHIM6 => {
                next = header.u8()?;
                8 * (usize::from(header.u8()?) + 1)
            }
            _ => break,
        };
        rest.skip(len)?;
    }
    Some((next, rest))
}

/// What is left of a frame.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn skip(&mut self, len: usize) -> Option<()> {
        self.0 = self.0.get(len..)?;
        Some(())
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }
}
