//! A [`Snapshot`] in the Prometheus text format.
//!
//! The counters are owned by the kernel and the pipeline, so the collector turns their absolute
//! values into metric families instead of adding differences to counters of its own.

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Registry, TextEncoder};

use super::snapshot::{List, Name, Snapshot};

/// Content type of [`render`]'s text.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Every metric there is. Labels take their values from fixed tables or the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    BuildInfo,
    Uptime,
    Interfaces,
    InterfacesWaiting,
    InterfaceChanges,
    Packets,
    Bytes,
    Blocks,
    BlockCapacity,
    BlockReserve,
    BlockFailures,
    Rules,
    LimitExceeded,
    ListNetworks,
    ListBadLines,
    Answers,
    SocketsClosed,
    SocketFailures,
    Steered,
    TarpitHeld,
    TarpitConnections,
    TarpitSeconds,
    TarpitBytes,
    Libraries,
    Connections,
    Actors,
    Transactions,
    Losses,
    LostBytes,
    Fingerprints,
    Http,
    Findings,
    Decisions,
    Guarded,
    Reloads,
    EventLog,
}

use Family::*;

/// Name, help and labels of a family.
type About = (&'static str, &'static str, &'static [&'static str]);

const BLOCK_RESERVE: About = (
    "portcullis_blocks_operator_reserve",
    "Part of the capacity that only operators may use.",
    &[],
);
const BLOCK_FAILURES: About =
    ("portcullis_block_failures_total", "Blocks that could not be written to the kernel.", &[]);
const RULES: About = ("portcullis_rules", "Blocks in force by what they do.", &["action"]);
const LIMIT_EXCEEDED: About = (
    "portcullis_limit_exceeded_packets",
    "Packets that were dropped beyond the limits now in force.",
    &[],
);
const LIST_NETWORKS: About =
    ("portcullis_list_networks", "Networks of each list that the configuration names.", &["list"]);
const LIST_BAD_LINES: About = (
    "portcullis_list_bad_lines",
    "Lines of each list that could not be read and were left out.",
    &["list"],
);
const INTERFACE_CHANGES: About = (
    "portcullis_interface_changes_total",
    "Programs attached to interfaces and taken off, and failures to attach.",
    &["change"],
);
const ANSWERS: About = (
    "portcullis_answers_total",
    "Dropped packets by the answer they got, where answers are configured.",
    &["answer"],
);
const SOCKETS_CLOSED: About = (
    "portcullis_sockets_closed_total",
    "Connections of blocked clients that were closed on this host.",
    &[],
);
const SOCKET_FAILURES: About = (
    "portcullis_socket_close_failures_total",
    "Connections of blocked clients that could not be closed.",
    &[],
);
const STEERED: About = (
    "portcullis_steered_connections_total",
    "Connections of deceived clients: to the decoy, or refused because none listened.",
    &["result"],
);
const TARPIT_HELD: About =
    ("portcullis_tarpit_connections_held", "Connections that the tarpit holds.", &[]);
const TARPIT_CONNECTIONS: About = (
    "portcullis_tarpit_connections_total",
    "Connections that the tarpit took, and gave up for newer ones.",
    &["result"],
);
const TARPIT_SECONDS: About = (
    "portcullis_tarpit_held_seconds_total",
    "How long the tarpit held connections, of those that ended.",
    &[],
);
const TARPIT_BYTES: About =
    ("portcullis_tarpit_bytes_total", "Bytes that the tarpit read and wrote.", &["direction"]);

impl Family {
    const ALL: [Family; 36] = [
        BuildInfo,
        Uptime,
        Interfaces,
        InterfacesWaiting,
        InterfaceChanges,
        Packets,
        Bytes,
        Blocks,
        BlockCapacity,
        BlockReserve,
        BlockFailures,
        Rules,
        LimitExceeded,
        ListNetworks,
        ListBadLines,
        Answers,
        SocketsClosed,
        SocketFailures,
        Steered,
        TarpitHeld,
        TarpitConnections,
        TarpitSeconds,
        TarpitBytes,
        Libraries,
        Connections,
        Actors,
        Transactions,
        Losses,
        LostBytes,
        Fingerprints,
        Http,
        Findings,
        Decisions,
        Guarded,
        Reloads,
        EventLog,
    ];

    const fn about(self) -> About {
        match self {
            BuildInfo => ("portcullis_build_info", "Version of the agent.", &["version"]),
            Uptime => ("portcullis_uptime_seconds", "Time since the agent started.", &[]),
            Interfaces => (
                "portcullis_interface_attached",
                "Interfaces whose packets are checked.",
                &["interface", "hook", "namespace"],
            ),
            InterfacesWaiting => (
                "portcullis_interfaces_waiting",
                "Configured interfaces that are not there, or could not be attached to.",
                &[],
            ),
            InterfaceChanges => INTERFACE_CHANGES,
            Packets => (
                "portcullis_packets_total",
                "Packets checked, by the reason they passed or were dropped for.",
                &["reason"],
            ),
            Bytes => (
                "portcullis_packet_bytes_total",
                "Bytes of the packets checked, by the reason they passed or were dropped for.",
                &["reason"],
            ),
            Blocks => ("portcullis_blocks", "Blocks in force.", &[]),
            BlockCapacity => ("portcullis_blocks_capacity", "Blocks that there is room for.", &[]),
            BlockReserve => BLOCK_RESERVE,
            BlockFailures => BLOCK_FAILURES,
            Rules => RULES,
            LimitExceeded => LIMIT_EXCEEDED,
            ListNetworks => LIST_NETWORKS,
            ListBadLines => LIST_BAD_LINES,
            Answers => ANSWERS,
            SocketsClosed => SOCKETS_CLOSED,
            SocketFailures => SOCKET_FAILURES,
            Steered => STEERED,
            TarpitHeld => TARPIT_HELD,
            TarpitConnections => TARPIT_CONNECTIONS,
            TarpitSeconds => TARPIT_SECONDS,
            TarpitBytes => TARPIT_BYTES,
            Libraries => {
                ("portcullis_tls_libraries_attached", "TLS library files with probes in them.", &[])
            }
            Connections => {
                ("portcullis_connections", "Connections whose HTTP is being followed.", &[])
            }
            Actors => ("portcullis_actors", "Clients that the detectors remember.", &[]),
            Transactions => {
                ("portcullis_transactions_total", "HTTP requests paired with their response.", &[])
            }
            Losses => (
                "portcullis_losses_total",
                "Times that something could not be seen or followed.",
                &["loss"],
            ),
            LostBytes => ("portcullis_lost_bytes_total", "Plaintext that went unseen.", &["loss"]),
            Fingerprints => (
                "portcullis_fingerprints_total",
                "TLS fingerprints of clients, and QUIC datagrams looked at for them.",
                &["kind"],
            ),
            Http => ("portcullis_http_total", "What the HTTP parser met.", &["kind"]),
            Findings => ("portcullis_findings_total", "Findings by detector.", &["detector"]),
            Decisions => ("portcullis_decisions_total", "Decisions by action.", &["action"]),
            Guarded => (
                "portcullis_decisions_guarded_total",
                "Decisions that a guard forbade.",
                &["guard"],
            ),
            Reloads => (
                "portcullis_config_reloads_total",
                "Times the configuration was read again.",
                &["result"],
            ),
            EventLog => {
                ("portcullis_event_log_events_total", "Events for the event log.", &["result"])
            }
        }
    }

    fn is_counter(self) -> bool {
        self.about().0.ends_with("_total")
    }

    fn desc(self) -> prometheus::Result<Desc> {
        let (name, help, labels) = self.about();
        let labels = labels.iter().map(|&label| label.to_owned()).collect();
        Desc::new(name.to_owned(), help.to_owned(), labels, Default::default())
    }

    fn samples(self, of: &Snapshot) -> Vec<Sample> {
        match self {
            BuildInfo => vec![Sample::new([of.version.as_str()], 1.0)],
            Uptime => vec![Sample::new([], of.uptime_s)],
            Interfaces => {
                let sample = |i: &super::snapshot::Interface| {
                    let namespace = i.namespace.as_deref().unwrap_or_default();
                    Sample::new([i.name.as_str(), i.hook.as_ref(), namespace], 1.0)
                };
                of.interfaces.iter().map(sample).collect()
            }
            InterfacesWaiting => count(of.waiting.len() as u64),
            InterfaceChanges => {
                let of = of.interface_changes;
                [("attached", of.attached), ("detached", of.detached), ("failed", of.failed)]
                    .map(|(change, count)| Sample::new([change], count as f64))
                    .into()
            }
            Packets => by_name(&of.packets, |count| count.packets),
            Bytes => by_name(&of.packets, |count| count.bytes),
            Blocks => count(of.blocks.in_force),
            BlockCapacity => count(of.blocks.capacity),
            BlockReserve => count(of.blocks.operator_reserve),
            BlockFailures => count(of.blocks.failed),
            Rules => by_name(&of.rules, |&count| count),
            LimitExceeded => count(of.limit_exceeded),
            ListNetworks => by_list(of, |list| list.networks),
            ListBadLines => by_list(of, |list| list.bad_lines),
            Answers => by_name(&of.answers, |&count| count),
            SocketsClosed => count(of.sockets.closed),
            SocketFailures => count(of.sockets.failed),
            Steered => pair([("decoy", of.decoy.steered), ("refused", of.decoy.refused)]),
            TarpitHeld => count(of.decoy.held),
            TarpitConnections => {
                pair([("accepted", of.decoy.accepted), ("evicted", of.decoy.evicted)])
            }
            TarpitSeconds => count(of.decoy.held_s),
            TarpitBytes => {
                pair([("read", of.decoy.bytes_read), ("written", of.decoy.bytes_written)])
            }
            Libraries => count(of.libraries_attached),
            Connections => count(of.connections),
            Actors => count(of.actors),
            Transactions => count(of.transactions),
            Losses => by_name(&of.losses, |lost| lost.events),
            LostBytes => by_name(&of.losses, |lost| lost.bytes),
            Fingerprints => by_name(&of.fingerprints, |&count| count),
            Http => by_name(&of.http, |&count| count),
            Findings => by_name(&of.findings, |&count| count),
            Decisions => by_name(&of.decisions, |&count| count),
            Guarded => by_name(&of.guarded, |&count| count),
            Reloads => results("success", of.reloads.succeeded, of.reloads.failed),
            EventLog => results("written", of.event_log.written, of.event_log.failed),
        }
    }

    fn collect(self, of: &Snapshot) -> MetricFamily {
        let (name, help, labels) = self.about();
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        let kind = if self.is_counter() { MetricType::COUNTER } else { MetricType::GAUGE };
        family.set_field_type(kind);
        family.set_metric(
            self.samples(of).into_iter().map(|sample| sample.metric(kind, labels)).collect(),
        );
        family
    }
}

/// One value with its labels' values, in the order of the family's labels.
struct Sample {
    labels: Vec<String>,
    value: f64,
}

impl Sample {
    fn new<const N: usize>(labels: [&str; N], value: f64) -> Self {
        Self { labels: labels.map(str::to_owned).into(), value }
    }

    fn metric(self, kind: MetricType, names: &[&str]) -> Metric {
        let pair = |(name, value): (&&str, String)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value);
            pair
        };
        let mut metric = Metric::from_label(names.iter().zip(self.labels).map(pair).collect());
        if kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(self.value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(self.value);
            metric.set_gauge(gauge);
        }
        metric
    }
}

fn count(value: u64) -> Vec<Sample> {
    vec![Sample::new([], value as f64)]
}

fn by_name<'a, T: 'a>(
    values: impl IntoIterator<Item = (&'a Name, &'a T)>,
    value: impl Fn(&T) -> u64,
) -> Vec<Sample> {
    values.into_iter().map(|(name, v)| Sample::new([name.as_ref()], value(v) as f64)).collect()
}

fn by_list(of: &Snapshot, value: impl Fn(&List) -> u64) -> Vec<Sample> {
    of.lists.iter().map(|list| Sample::new([list.name.as_str()], value(list) as f64)).collect()
}

fn results(good: &str, succeeded: u64, failed: u64) -> Vec<Sample> {
    pair([(good, succeeded), ("failure", failed)])
}

fn pair(values: [(&str, u64); 2]) -> Vec<Sample> {
    values.map(|(label, value)| Sample::new([label], value as f64)).into()
}

struct SnapshotCollector {
    descs: Vec<Desc>,
    snapshot: Snapshot,
}

impl Collector for SnapshotCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        Family::ALL.into_iter().map(|family| family.collect(&self.snapshot)).collect()
    }
}

/// The snapshot as Prometheus text.
///
/// # Errors
/// When a name in the table is not a valid metric or label name.
pub fn render(snapshot: Snapshot) -> prometheus::Result<String> {
    let descs = Family::ALL.into_iter().map(Family::desc).collect::<Result<_, _>>()?;
    let registry = Registry::new();
    registry.register(Box::new(SnapshotCollector { descs, snapshot }))?;
    TextEncoder::new().encode_to_string(&registry.gather())
}

#[cfg(test)]
mod tests;
