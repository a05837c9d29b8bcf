//! The typed configuration: every value present, checked and in the pipeline's own types.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use portcullis_common::names::capacity;

use crate::decision::{Action, Mode, Scope};
use crate::rule::{Effect, Kind, Rate, RuleName, Speed, Target};

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub mode: Mode,
    /// Where packets are dropped, as [`selects`](super::selects) takes them. Empty is allowed for
    /// `replay`, and beside `namespaces`.
    pub interfaces: Vec<String>,
    /// Other network namespaces than the agent's, in which packets are dropped too.
    pub namespaces: Vec<NetNamespace>,
    /// Permanent blocks of the operator, applied at start and at every reload.
    pub blocked: Vec<StaticBlock>,
    /// Files of networks, read at start and at every reload.
    pub lists: Vec<ListFile>,
    pub kernel: Kernel,
    pub capture: Capture,
    pub guards: Guards,
    pub services: Vec<Service>,
    pub detect: Detect,
    pub decide: Decide,
    pub enforce: Enforce,
    pub decoy: Decoy,
    pub report: Report,
}

/// Interfaces of another network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetNamespace {
    pub path: PathBuf,
    /// Never empty.
    pub interfaces: Vec<String>,
}

/// A block that holds for as long as the configuration names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticBlock {
    /// Not wholly on the allow list or trusted proxies.
    pub target: Target,
    pub effect: Effect,
    /// Only on the ports and addresses of this service.
    pub service: Option<Arc<str>>,
    /// Shown beside the block.
    pub reason: Option<String>,
}

impl StaticBlock {
    pub fn rule(&self) -> RuleName {
        let kind = self.effect.kind();
        RuleName { target: self.target.clone(), kind, service: self.service.clone() }
    }
}

/// A file with an address or a network a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListFile {
    pub name: Arc<str>,
    pub file: PathBuf,
    pub effect: Effect,
    /// Shown where the list is.
    pub reason: Option<String>,
}

/// Most of it is fixed when the programs are loaded, so that a reload cannot change it.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// Where the programs attach.
    pub attach: Attach,
    pub pin_dir: PathBuf,
    /// Entries of the deny map, `operator_reserve` among them.
    pub max_blocks: u32,
    /// Entries that only operators' blocks may use.
    pub operator_reserve: u32,
    pub max_allowed: u32,
    /// Judge packets in tunnels beside those that carry them; a reload can change it.
    pub tunnels: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attach {
    /// XDP in the driver, else generic XDP, else TC.
    #[default]
    Auto,
    XdpNative,
    XdpGeneric,
    /// TC, by tcx where the kernel has it, else by a clsact filter.
    Tc,
    Clsact,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProbeSites {
    /// Where they cost least.
    #[default]
    Auto,
    /// On the exported functions.
    Symbols,
}

/// Network namespaces of the host, containers' among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Namespaces {
    #[default]
    All,
    /// The agent's own only.
    Own,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Capture {
    pub enabled: bool,
    /// Library files, and programs in Go, to attach to before any process maps them.
    pub libraries: Vec<PathBuf>,
    /// Where in a library the probes go.
    pub probe_sites: ProbeSites,
    /// Which processes' connections are read.
    pub network_namespaces: Namespaces,
    pub ring_bytes: u32,
    pub max_connections: u32,
    /// Longest kept piece of each body, in bytes.
    pub body_excerpt: usize,
    pub idle_timeout: Duration,
}

/// What no decision may touch.
#[derive(Clone, Debug, PartialEq)]
pub struct Guards {
    pub allow: Vec<IpNet>,
    /// Their `X-Forwarded-For` is believed; they are never blocked.
    pub trusted_proxies: Vec<IpNet>,
    pub failsafe_tcp_ports: Vec<u16>,
    pub failsafe_udp_ports: Vec<u16>,
}

/// Part of the traffic with settings of its own: the first whose hosts and ports match.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Service {
    pub name: Arc<str>,
    /// Lower-case host names, `*.` at the front for any subdomain; empty for all.
    pub hosts: Vec<String>,
    /// Ports served on; empty for all.
    pub ports: Vec<u16>,
    /// Addresses served on; empty for all. Requests belong to the service whatever the address: it
    /// is where rules for the service alone hold.
    pub addresses: Vec<IpAddr>,
    /// Where detectors' decisions on its clients hold.
    pub scope: Scope,
    /// `None`: as [`Decide::action`].
    pub action: Option<Kind>,
    /// `None`: as the whole installation.
    pub mode: Option<Mode>,
    pub logins: Vec<Login>,
}

/// A login endpoint that the vocabulary would not find or whose failures look like successes.
#[derive(Clone, Debug, PartialEq)]
pub struct Login {
    /// `None`: any method that sends a body.
    pub method: Option<String>,
    /// Exact path, or a prefix that ends in `*`.
    pub path: String,
    /// Form or JSON field with the user name; `None`: the usual names.
    pub user_field: Option<String>,
    /// A response matching any of these is a failed login, beside the usual status codes.
    pub failure: Vec<FailureMatch>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum FailureMatch {
    Status(u16),
    /// Text anywhere in the excerpt of the response's body.
    BodyContains(String),
    /// Text anywhere in the `Location` header.
    LocationContains(String),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Detect {
    /// Clients remembered per detector; the least recently seen goes first.
    pub max_actors: usize,
    pub request_rate: RequestRate,
    pub credential_stuffing: CredentialStuffing,
}

#[derive(Clone, Debug, PartialEq)]
pub struct RequestRate {
    pub enabled: bool,
    /// Requests within `window` that one client may make.
    pub requests: u32,
    pub window: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct CredentialStuffing {
    pub enabled: bool,
    /// Failed logins within `window`, from one client (five times as many where no user name can
    /// be read) …
    pub failures: u32,
    /// … with at least this many different user names …
    pub distinct_users: u32,
    /// … making up at least this share of its logins.
    pub failure_ratio: f64,
    pub window: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Decide {
    /// What becomes of those whom detectors find; never [`Kind::Count`].
    pub action: Kind,
    /// Of [`Kind::Limit`].
    pub rate: Speed,
    pub ttl: Duration,
    /// Each further decision on a client within `memory` multiplies its TTL by this.
    pub escalation: f64,
    pub max_ttl: Duration,
    pub memory: Duration,
}

/// What becomes of those whom a decision names, beside that their packets are dropped.
#[derive(Clone, Debug, PartialEq)]
pub struct Enforce {
    /// Whether connections that they have open are closed.
    pub close_sockets: bool,
    pub answer: Answer,
    /// By each processor at most.
    pub answers_per_second: u32,
}

/// What the sender of a dropped packet hears.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    #[default]
    Silence,
    /// A TCP reset, or an ICMP error.
    Reset,
}

/// Where new connections of clients that are to be deceived go.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoy {
    pub enabled: bool,
    pub listener: DecoyListener,
    /// That the tarpit holds; the oldest goes first.
    pub max_connections: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecoyListener {
    /// The agent's own, which keeps clients waiting.
    Tarpit,
    /// Whatever listens there on this host.
    Local(SocketAddr),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    pub control_socket: PathBuf,
    /// Group that may use the control socket; `None`: only the agent's own user.
    pub control_group: Option<String>,
    /// `None`: no metrics endpoint.
    pub metrics_listen: Option<SocketAddr>,
    /// JSON event log; `None`: none.
    pub event_log: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            interfaces: Vec::new(),
            namespaces: Vec::new(),
            blocked: Vec::new(),
            lists: Vec::new(),
            kernel: Kernel {
                attach: Attach::Auto,
                pin_dir: "/sys/fs/bpf/portcullis".into(),
                max_blocks: capacity::BLOCKS,
                operator_reserve: 4_096,
                max_allowed: capacity::ALLOW,
                tunnels: false,
            },
            capture: Capture {
                enabled: true,
                libraries: Vec::new(),
                probe_sites: ProbeSites::Auto,
                network_namespaces: Namespaces::All,
                ring_bytes: capacity::RING_BYTES,
                max_connections: capacity::CONNECTIONS,
                body_excerpt: 4_096,
                idle_timeout: Duration::from_secs(120),
            },
            guards: Guards {
                allow: Vec::new(),
                trusted_proxies: Vec::new(),
                failsafe_tcp_ports: vec![22],
                failsafe_udp_ports: vec![68, 546],
            },
            services: Vec::new(),
            detect: Detect {
                max_actors: 100_000,
                request_rate: RequestRate {
                    enabled: true,
                    requests: 3_000,
                    window: Duration::from_secs(60),
                },
                credential_stuffing: CredentialStuffing {
                    enabled: true,
                    failures: 10,
                    distinct_users: 5,
                    failure_ratio: 0.8,
                    window: Duration::from_secs(300),
                },
            },
            decide: Decide {
                action: Kind::Drop,
                rate: Speed { unit: crate::rule::Unit::Packets, per_s: 100 },
                ttl: Duration::from_secs(600),
                escalation: 4.0,
                max_ttl: Duration::from_secs(7 * 24 * 3600),
                memory: Duration::from_secs(24 * 3600),
            },
            enforce: Enforce {
                close_sockets: true,
                answer: Answer::Silence,
                answers_per_second: 1_000,
            },
            decoy: Decoy {
                enabled: false,
                listener: DecoyListener::Tarpit,
                max_connections: 4_096,
            },
            report: Report {
                control_socket: "/run/portcullis/portcullis.sock".into(),
                control_group: None,
                metrics_listen: Some(([127, 0, 0, 1], 9464).into()),
                event_log: None,
            },
        }
    }
}

impl Config {
    /// The service that a request to `host` (without port, any case) on `port` belongs to.
    pub fn service_of(&self, host: &str, port: Option<u16>) -> Option<&Service> {
        self.services.iter().find(|service| service.covers(host, port))
    }

    /// The mode that holds for `service`.
    pub fn mode_of(&self, service: Option<&str>) -> Mode {
        service
            .and_then(|name| self.services.iter().find(|s| &*s.name == name))
            .and_then(|service| service.mode)
            .unwrap_or(self.mode)
    }

    /// What becomes of a client that a detector finds on `service`.
    pub fn response_of(&self, service: Option<&Service>) -> (Action, Option<Rate>) {
        match service.and_then(|service| service.action).unwrap_or(self.decide.action) {
            Kind::Drop => (Action::Drop, None),
            Kind::Steer => (Action::Deceive, None),
            Kind::Limit => (Action::RateLimit, Some(self.decide.rate.rate(None, false))),
            Kind::Count => (Action::Tag, None),
        }
    }

    pub fn is_trusted_proxy(&self, ip: IpAddr) -> bool {
        self.guards.trusted_proxies.iter().any(|net| net_covers(net, ip))
    }

    /// Whether the allow list names `ip`. Trusted proxies are a list of their own.
    pub fn is_allowed(&self, ip: IpAddr) -> bool {
        self.guards.allow.iter().any(|net| net_covers(net, ip))
    }
}

/// Whether `net` covers `ip` as the kernel's allow list sees it: there an IPv4 address is its
/// IPv4-mapped form, so that `::/0` covers it too.
pub(super) fn net_covers(net: &IpNet, ip: IpAddr) -> bool {
    match (net, ip.to_canonical()) {
        (IpNet::V6(net), IpAddr::V4(ip)) => net.contains(&ip.to_ipv6_mapped()),
        (net, ip) => net.contains(&ip),
    }
}

impl Service {
    /// Whether rules can hold for it alone.
    pub fn has_scope(&self) -> bool {
        !self.ports.is_empty() || !self.addresses.is_empty()
    }

    /// Whether a request to `host` (without port, any case) on `port` belongs here.
    pub fn covers(&self, host: &str, port: Option<u16>) -> bool {
        // A name with the root's dot is the same name (RFC 1034, section 3.1), and clients send it.
        let host = host.strip_suffix('.').unwrap_or(host);
        (self.hosts.is_empty() || self.hosts.iter().any(|pattern| host_matches(pattern, host)))
            && (self.ports.is_empty() || port.is_some_and(|port| self.ports.contains(&port)))
    }
}

/// `*.example.com` covers every name below `example.com`, at any depth, and not itself.
fn host_matches(pattern: &str, host: &str) -> bool {
    let Some(domain) = pattern.strip_prefix("*.") else {
        return host.eq_ignore_ascii_case(pattern);
    };
    host.len()
        .checked_sub(domain.len())
        .and_then(|cut| host.split_at_checked(cut))
        .and_then(|(head, tail)| Some((head.strip_suffix('.')?, tail)))
        .is_some_and(|(below, tail)| !below.is_empty() && tail.eq_ignore_ascii_case(domain))
}
