//! Every key of the configuration, declared where it is read: name, meaning, kind and range.

use std::time::Duration;

use crate::decision::Mode;
use crate::rule::Kind as Reaction;

use super::blocks::{self, BlockPlace};
use super::interfaces;
use super::kinds::{Bytes, Choice, Flag, Integer, Number, OrEmpty, Span, duration};
use super::section::{ListPlace, Place, Section, fixed, key};
use super::service;
use super::types::{
    Answer, Attach, Capture, Config, CredentialStuffing, Decide, Decoy, Detect, Enforce, Guards,
    Kernel, Namespaces, ProbeSites, Report, RequestRate,
};
use super::words::{DECOY_LISTENER, GROUP, INTERFACE, LISTEN, NETWORK, PATH, RATE, SOCKET_PATH};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

pub(super) const MODE: Choice<Mode> =
    Choice(&[("enforce", Mode::Enforce), ("observe", Mode::Observe)]);
/// What detectors' decisions do.
pub(super) const RESPONSE: Choice<Reaction> = Choice(&[
    ("drop", Reaction::Drop),
    ("rate_limit", Reaction::Limit),
    ("deceive", Reaction::Steer),
]);
const ATTACH: Choice<Attach> = Choice(&[
    ("auto", Attach::Auto),
    ("xdp-native", Attach::XdpNative),
    ("xdp-generic", Attach::XdpGeneric),
    ("tc", Attach::Tc),
    ("clsact", Attach::Clsact),
]);
const ANSWER: Choice<Answer> = Choice(&[("silence", Answer::Silence), ("reset", Answer::Reset)]);
const PROBE_SITES: Choice<ProbeSites> =
    Choice(&[("auto", ProbeSites::Auto), ("symbols", ProbeSites::Symbols)]);
const NAMESPACES: Choice<Namespaces> =
    Choice(&[("all", Namespaces::All), ("own", Namespaces::Own)]);
pub(super) const PORT: Integer<u16> = Integer { min: 1, max: u16::MAX };
const WINDOW: Span = Span { min: SECOND, max: DAY };

/// Reads a whole file into `config`, which holds the defaults; returns what came of
/// `interfaces`.
pub(super) fn read(top: &mut Section, config: &mut Config) -> ListPlace {
    let doc = "Whether decisions are carried out or only logged.";
    top.value(key("mode", doc), &MODE, &mut config.mode);
    let doc = "Network interfaces on which packets are dropped, now there or later.";
    let list = top.list(key("interfaces", doc), &INTERFACE, &mut config.interfaces);
    warn_of_exclusions_alone(top, &list, &config.interfaces);
    interfaces::read(top, &mut config.namespaces);
    let targets = blocks::read(top, &mut config.blocked);
    blocks::lists(top, &mut config.lists);
    top.table("kernel", |s| kernel(s, &mut config.kernel));
    top.table("capture", |s| capture(s, &mut config.capture));
    let mut guarded = None;
    top.table("guards", |s| guarded = Some(guards(s, &mut config.guards)));
    let services = service::read(top, &mut config.services);
    top.table("detect", |s| detect(s, &mut config.detect));
    let mut action = None;
    top.table("decide", |s| action = Some(decide(s, &mut config.decide)));
    top.table("enforce", |s| enforce(s, &mut config.enforce));
    top.table("decoy", |s| decoy(s, &mut config.decoy));
    top.table("report", |s| report(s, &mut config.report));
    blocks::check(top, config, &targets);
    check_deceiving(top, config, action, &services);
    if let Some(guarded) = guarded {
        blocks::check_against_guards(top, config, &targets, &guarded);
        check_room_in_maps(top, config, &targets, &guarded);
    }
    list
}

fn warn_of_exclusions_alone(top: &mut Section, list: &ListPlace, interfaces: &[String]) {
    if !interfaces.is_empty() && interfaces.iter().all(|entry| entry.starts_with('!')) {
        let message = "only leaves interfaces out: write \"*\" for all others".to_owned();
        top.warn(&list.list, message);
    }
}

fn kernel(s: &mut Section, kernel: &mut Kernel) {
    let doc = "Where the programs attach; `auto` takes the first that the interface can do.";
    s.value(fixed("kernel.attach", doc), &ATTACH, &mut kernel.attach);
    let doc = "Directory on a bpffs where maps and links are pinned.";
    s.value(fixed("kernel.pin_dir", doc), &PATH, &mut kernel.pin_dir);
    let doc = "Entries of the deny map.";
    let entries = Integer { min: 1, max: 16_777_216 };
    let max = s.value(fixed("kernel.max_blocks", doc), &entries, &mut kernel.max_blocks);
    let doc = "Entries of the deny map that only operators' blocks may use.";
    let entries = Integer { min: 0, max: 16_777_216 };
    let reserve =
        s.value(fixed("kernel.operator_reserve", doc), &entries, &mut kernel.operator_reserve);
    if kernel.operator_reserve >= kernel.max_blocks {
        let message = format!(
            "kernel.operator_reserve is {} and kernel.max_blocks {}, but the reserve must be \
             smaller: nothing would be left for detectors",
            kernel.operator_reserve, kernel.max_blocks
        );
        s.conflict(&[&reserve, &max], message);
    }
    let doc = "Entries of the allow list in the kernel: `guards.allow`, `guards.trusted_proxies`, \
               and the host's own addresses, gateways and resolvers.";
    let entries = Integer { min: 64, max: 1_048_576 };
    s.value(fixed("kernel.max_allowed", doc), &entries, &mut kernel.max_allowed);
    let doc = "Whether the source within a tunnel is judged beside that of the tunnel: IP in IP, \
               6in4 and GRE, one level deep.";
    s.value(key("kernel.tunnels", doc), &Flag, &mut kernel.tunnels);
}

fn capture(s: &mut Section, capture: &mut Capture) {
    let doc = "Whether plaintext is read from TLS libraries at all.";
    s.value(fixed("capture.enabled", doc), &Flag, &mut capture.enabled);
    let doc = "Library files, and programs in Go, to attach to before any process maps them.";
    s.list(fixed("capture.libraries", doc), &PATH, &mut capture.libraries);
    let doc = "Where in a library the probes go: where they cost least, or on its symbols.";
    s.value(fixed("capture.probe_sites", doc), &PROBE_SITES, &mut capture.probe_sites);
    let doc = "Whose connections are read: those of every network namespace, so of containers \
               too, or of the agent's own.";
    let namespaces = &mut capture.network_namespaces;
    s.value(fixed("capture.network_namespaces", doc), &NAMESPACES, namespaces);
    // The ring buffer must be a power of two and whole pages; no page of Linux is longer than
    // 64 KiB.
    let ring = Bytes { min: 1 << 16, max: 1 << 30, power_of_two: true };
    let doc = "Size of the ring buffer from the kernel.";
    s.value(fixed("capture.ring_bytes", doc), &ring, &mut capture.ring_bytes);
    let doc = "Connections followed at a time.";
    let connections = Integer { min: 1, max: 1_048_576 };
    s.value(fixed("capture.max_connections", doc), &connections, &mut capture.max_connections);
    let doc = "Longest piece of each body that detectors see.";
    let excerpt = Bytes { min: 0usize, max: 16_384, power_of_two: false };
    s.value(key("capture.body_excerpt", doc), &excerpt, &mut capture.body_excerpt);
    let doc = "Silence after which a connection is forgotten.";
    let idle = Span { min: SECOND, max: DAY };
    s.value(key("capture.idle_timeout", doc), &idle, &mut capture.idle_timeout);
}

/// What came of the lists that no block may touch.
pub(super) struct Guarded {
    pub(super) allow: ListPlace,
    pub(super) trusted_proxies: ListPlace,
}

fn guards(s: &mut Section, guards: &mut Guards) -> Guarded {
    let doc = "Clients that are never blocked.";
    let allow = s.list(key("guards.allow", doc), &NETWORK, &mut guards.allow);
    let doc = "Proxies whose `X-Forwarded-For` is believed; they are never blocked.";
    let trusted_proxies =
        s.list(key("guards.trusted_proxies", doc), &NETWORK, &mut guards.trusted_proxies);
    let lists = [(&allow, &guards.allow), (&trusted_proxies, &guards.trusted_proxies)];
    for (places, nets) in lists {
        for (place, net) in places.entries.iter().zip(nets) {
            if net.prefix_len() == 0 {
                let message = format!("{net} covers every address: nothing would be blocked");
                s.warn(place, message);
            }
        }
    }
    let doc = "TCP ports of this host on which no packet is ever dropped.";
    s.list(key("guards.failsafe_tcp_ports", doc), &PORT, &mut guards.failsafe_tcp_ports);
    let doc = "UDP ports of this host on which no packet is ever dropped.";
    s.list(key("guards.failsafe_udp_ports", doc), &PORT, &mut guards.failsafe_udp_ports);
    Guarded { allow, trusted_proxies }
}

/// Refuses to send to the decoy where there is none.
fn check_deceiving(top: &mut Section, config: &Config, action: Option<Place>, services: &[Place]) {
    let all = action.map(|place| (Some(config.decide.action), place));
    let each = config.services.iter().map(|service| service.action).zip(services.iter().cloned());
    let deceiving = all.into_iter().chain(each);
    for (_, place) in deceiving.filter(|(action, _)| *action == Some(Reaction::Steer)) {
        if !config.decoy.enabled {
            let message = "is \"deceive\", but decoy.enabled is false".to_owned();
            top.conflict(&[&place], message);
        }
    }
}

fn check_room_in_maps(
    top: &mut Section,
    config: &Config,
    targets: &[BlockPlace],
    guarded: &Guarded,
) {
    let Guarded { allow, trusted_proxies } = guarded;
    let allowed = config.guards.allow.len().saturating_add(config.guards.trusted_proxies.len());
    if exceeds(allowed, config.kernel.max_allowed) {
        let message = format!(
            "guards.allow and guards.trusted_proxies name {allowed} networks, but \
             kernel.max_allowed is {}",
            config.kernel.max_allowed
        );
        top.conflict(&[&allow.list, &trusted_proxies.list], message);
    }
    let blocked = config.blocked.len();
    if let (Some(first), true) =
        (blocks::first(targets), exceeds(blocked, config.kernel.max_blocks))
    {
        let message = format!(
            "{blocked} targets are blocked, but kernel.max_blocks is {}",
            config.kernel.max_blocks
        );
        top.conflict(&[first], message);
    }
}

fn exceeds(count: usize, capacity: u32) -> bool {
    u32::try_from(count).map_or(true, |count| count > capacity)
}

fn detect(s: &mut Section, detect: &mut Detect) {
    let doc = "Clients remembered by each detector; the least recently seen is forgotten first.";
    let actors = Integer { min: 1, max: 10_000_000 };
    s.value(fixed("detect.max_actors", doc), &actors, &mut detect.max_actors);
    s.table("detect.request_rate", |s| request_rate(s, &mut detect.request_rate));
    s.table("detect.credential_stuffing", |s| {
        credential_stuffing(s, &mut detect.credential_stuffing);
    });
}

fn request_rate(s: &mut Section, rate: &mut RequestRate) {
    let doc = "Whether clients that send too many requests are found.";
    s.value(key("detect.request_rate.enabled", doc), &Flag, &mut rate.enabled);
    let doc = "Requests that one client may make within `window`.";
    let requests = Integer { min: 1, max: 1_000_000_000 };
    s.value(key("detect.request_rate.requests", doc), &requests, &mut rate.requests);
    let doc = "Time over which `requests` are counted.";
    s.value(key("detect.request_rate.window", doc), &WINDOW, &mut rate.window);
}

fn credential_stuffing(s: &mut Section, stuffing: &mut CredentialStuffing) {
    let doc = "Whether clients that try out stolen credentials are found.";
    s.value(key("detect.credential_stuffing.enabled", doc), &Flag, &mut stuffing.enabled);
    let doc = "Failed logins of one client within `window` (or five times as many without a \
               readable user name, whatever `distinct_users` is)";
    let count = Integer { min: 1, max: 1_000_000 };
    let failures =
        s.value(key("detect.credential_stuffing.failures", doc), &count, &mut stuffing.failures);
    let doc = "… with at least this many different user names";
    let users = s.value(
        key("detect.credential_stuffing.distinct_users", doc),
        &count,
        &mut stuffing.distinct_users,
    );
    if stuffing.distinct_users > stuffing.failures {
        let message = format!(
            "distinct_users is {} and failures {}, but distinct_users must not be larger: each \
             failed login names one user",
            stuffing.distinct_users, stuffing.failures
        );
        s.conflict(&[&users, &failures], message);
    }
    let doc = "… and making up at least this share of its logins.";
    let ratio = Number { min: 0.0, max: 1.0 };
    s.value(
        key("detect.credential_stuffing.failure_ratio", doc),
        &ratio,
        &mut stuffing.failure_ratio,
    );
    let doc = "Time over which logins are counted.";
    s.value(key("detect.credential_stuffing.window", doc), &WINDOW, &mut stuffing.window);
}

/// Returns what came of the action.
fn decide(s: &mut Section, decide: &mut Decide) -> Place {
    let doc = "What becomes of the clients that detectors find: their packets are dropped, or \
               limited to `rate`, or their new connections go to the decoy.";
    let action = s.value(key("decide.action", doc), &RESPONSE, &mut decide.action);
    let doc = "What may pass of each client that is limited.";
    s.value(key("decide.rate", doc), &RATE, &mut decide.rate);
    let span = Span { min: SECOND, max: YEAR };
    let doc = "How long the first decision on a client holds.";
    let ttl = s.value(key("decide.ttl", doc), &span, &mut decide.ttl);
    let doc = "Each further decision on a client within `memory` holds longer by this factor.";
    let factor = Number { min: 1.0, max: 1_000.0 };
    s.value(key("decide.escalation", doc), &factor, &mut decide.escalation);
    let doc = "How long a decision holds at most.";
    let max_ttl = s.value(key("decide.max_ttl", doc), &span, &mut decide.max_ttl);
    if decide.max_ttl < decide.ttl {
        let message = format!(
            "decide.ttl is \"{}\" and decide.max_ttl \"{}\", but max_ttl must not be shorter",
            duration(decide.ttl),
            duration(decide.max_ttl)
        );
        s.conflict(&[&max_ttl, &ttl], message);
    }
    let doc = "How long a client's earlier decisions count.";
    let memory = s.value(key("decide.memory", doc), &span, &mut decide.memory);
    if decide.memory < decide.ttl {
        let message = "is shorter than decide.ttl: a repeat offender is forgotten before its \
                       first block ends";
        s.warn(&memory, message.to_owned());
    }
    action
}

fn enforce(s: &mut Section, enforce: &mut Enforce) {
    let doc = "Whether connections that a blocked client has open are closed at once.";
    s.value(key("enforce.close_sockets", doc), &Flag, &mut enforce.close_sockets);
    let doc = "What the sender of a dropped packet hears: nothing, or a TCP reset or an ICMP error \
               \"administratively prohibited\".";
    s.value(fixed("enforce.answer", doc), &ANSWER, &mut enforce.answer);
    let doc = "Answers to dropped packets that each processor gives at most.";
    let rate = Integer { min: 1, max: 1_000_000 };
    s.value(fixed("enforce.answers_per_second", doc), &rate, &mut enforce.answers_per_second);
}

fn decoy(s: &mut Section, decoy: &mut Decoy) {
    let doc = "Whether clients that are to be deceived meet the decoy instead of the service.";
    s.value(fixed("decoy.enabled", doc), &Flag, &mut decoy.enabled);
    let doc = "Who answers them: the agent's tarpit, which keeps them waiting, or whatever listens \
               on an address and port of this host.";
    s.value(fixed("decoy.listener", doc), &DECOY_LISTENER, &mut decoy.listener);
    let doc = "Connections that the tarpit holds at a time; the oldest goes first.";
    let connections = Integer { min: 1, max: 65_536 };
    s.value(fixed("decoy.max_connections", doc), &connections, &mut decoy.max_connections);
}

fn report(s: &mut Section, report: &mut Report) {
    let doc = "Unix socket that commands such as `portcullis status` talk to.";
    let socket =
        s.value(fixed("report.control_socket", doc), &SOCKET_PATH, &mut report.control_socket);
    let doc = "Group that may use the control socket, beside the agent's own user.";
    s.value(fixed("report.control_group", doc), &OrEmpty(GROUP), &mut report.control_group);
    let doc = "Where `/metrics` and `/healthz` are served.";
    s.value(fixed("report.metrics_listen", doc), &OrEmpty(LISTEN), &mut report.metrics_listen);
    let doc = "File that findings and decisions are appended to, as JSON Lines.";
    let log = s.value(key("report.event_log", doc), &OrEmpty(PATH), &mut report.event_log);
    if report.event_log.as_ref() == Some(&report.control_socket) {
        let message = "report.event_log and report.control_socket are the same file".to_owned();
        s.conflict(&[&log, &socket], message);
    }
}
