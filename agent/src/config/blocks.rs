//! Blocks written into the configuration, and lists of networks.

use std::collections::HashMap;
use std::sync::Arc;

use super::kinds::{Choice, Flag, Integer, OrAbsent};
use super::schema::Guarded;
use super::section::{Place, Section, key};
use super::types::{Config, ListFile, StaticBlock, net_covers};
use super::words::{BLOCK_TARGET, JA4, PATH, RATE, SERVICE_NAME, TEXT, network_text};
use crate::decision::Subject;
use crate::rule::{Effect, Kind, RuleName, Speed, Target};

const ACTION: Choice<Kind> = Choice(&[
    ("drop", Kind::Drop),
    ("rate_limit", Kind::Limit),
    ("deceive", Kind::Steer),
    ("count", Kind::Count),
]);
const LIST_ACTION: Choice<Effect> = Choice(&[("drop", Effect::Drop), ("count", Effect::Count)]);

/// Where a block stands.
pub(super) struct BlockPlace {
    target: Place,
    action: Place,
    service: Place,
}

/// Reads `block` and returns where each stands.
pub(super) fn read(top: &mut Section, blocked: &mut Vec<StaticBlock>) -> Vec<BlockPlace> {
    let mut places: Vec<BlockPlace> = Vec::new();
    let mut first_of: HashMap<RuleName, usize> = HashMap::new();
    top.tables("block", Some("target"), |s| {
        let Some((block, place)) = block(s) else { return };
        let index = places.len();
        let rule = block.rule();
        let first = first_of.get(&rule).and_then(|index| places.get(*index));
        if let Some(first) = first {
            let line = s.line_of(&first.target);
            let message = format!("{} is blocked on line {line} already", rule.target);
            s.conflict(&[&place.target], message);
            return;
        }
        first_of.insert(rule, index);
        places.push(place);
        blocked.push(block);
    });
    places
}

fn block(s: &mut Section) -> Option<(StaticBlock, BlockPlace)> {
    let (target, target_place) = target(s);
    let mut service = None;
    let doc = "Blocked only on the ports and addresses of this service.";
    let service_place = s.value(key("block.service", doc), &OrAbsent(SERVICE_NAME), &mut service);
    let mut action = Kind::Drop;
    let doc = "Whether the packets are dropped, limited, or counted, or new connections go to the \
               decoy.";
    let action_place = s.value(key("block.action", doc), &ACTION, &mut action);
    let limit = limit(s, action, &action_place);
    let mut reason = None;
    let doc = "Shown beside the block.";
    s.value(key("block.reason", doc), &OrAbsent(TEXT), &mut reason);
    let effect = match action {
        Kind::Drop => Effect::Drop,
        Kind::Steer => Effect::Steer,
        Kind::Count => Effect::Count,
        Kind::Limit => limit?,
    };
    let service = service.map(Arc::from);
    let places = BlockPlace { target: target_place, action: action_place, service: service_place };
    Some((StaticBlock { target: target?, effect, service, reason }, places))
}

/// The target with its fingerprint.
fn target(s: &mut Section) -> (Option<Target>, Place) {
    let (mut target, mut ja4) = (None, None);
    let doc = "Blocked for as long as the file says so. A string in the list `block` is a target \
               too.";
    let place = s.value(key("block.target", doc), &OrAbsent(BLOCK_TARGET), &mut target);
    let doc = "Of the target's clients only those with this TLS fingerprint; without a target, all \
               that have it.";
    let ja4_place = s.value(key("block.ja4", doc), &OrAbsent(JA4), &mut ja4);
    match (target, ja4) {
        (Some(Target::Network(net)), Some(ja4)) => (Some(Target::Conjunction(net, ja4)), place),
        (Some(Target::Fingerprint(_)), Some(_)) => {
            let message = "is given beside a target that is a JA4 itself".to_owned();
            s.conflict(&[&ja4_place, &place], message);
            (None, place)
        }
        (Some(target), _) => (Some(target), place),
        (None, Some(ja4)) => (Some(Target::Fingerprint(ja4)), ja4_place),
        (None, None) => {
            let (sound, ja4_sound) = (!place.is_wrong(), !ja4_place.is_wrong());
            if sound && ja4_sound {
                s.missing(
                    &place,
                    "is missing, and so is ja4: one of them must be there".to_owned(),
                );
            }
            (None, place)
        }
    }
}

/// The keys of a limit; `None` when it is not one, or not sound.
fn limit(s: &mut Section, action: Kind, action_place: &Place) -> Option<Effect> {
    let mut rate: Option<Speed> = None;
    let doc = "Of the action `rate_limit`: what may pass.";
    let rate_place = s.value(key("block.rate", doc), &OrAbsent(RATE), &mut rate);
    let mut burst = None;
    let doc = "How much of it at once; without it, what a second allows.";
    let burst_kind = Integer { min: 1, max: 1_000_000_000_000_u64 };
    let burst_place = s.value(key("block.burst", doc), &OrAbsent(burst_kind), &mut burst);
    let mut each = false;
    let doc = "Whether each client of the target has the rate to itself: an IPv4 address, or an \
               IPv6 /64 network.";
    let each_place = s.value(key("block.each", doc), &Flag, &mut each);
    if action == Kind::Limit {
        if rate.is_none() {
            let message = "is \"rate_limit\", but there is no rate".to_owned();
            s.conflict(&[action_place, &rate_place], message);
        }
        return rate.map(|rate| Effect::Limit(rate.rate(burst, each)));
    }
    let given =
        [(&rate_place, rate.is_some()), (&burst_place, burst.is_some()), (&each_place, each)];
    for (place, _) in given.into_iter().filter(|(_, given)| *given) {
        let message = "is for the action \"rate_limit\" alone".to_owned();
        s.conflict(&[place, action_place], message);
    }
    None
}

/// Reads `list`.
pub(super) fn lists(top: &mut Section, lists: &mut Vec<ListFile>) {
    let mut names: HashMap<Arc<str>, Place> = HashMap::new();
    top.tables("list", None, |s| {
        let doc = "Name of the list in metrics.";
        let name = s.required(key("list.name", doc), &SERVICE_NAME);
        let doc = "File with an IP address or a network a line, and `#` before comments; read at \
                   start and at every reload.";
        let file = s.required(key("list.file", doc), &PATH);
        let mut effect = Effect::Drop;
        let doc = "Whether packets of its networks are dropped or counted.";
        s.value(key("list.action", doc), &LIST_ACTION, &mut effect);
        let mut reason = None;
        let doc = "Shown where the list is.";
        s.value(key("list.reason", doc), &OrAbsent(TEXT), &mut reason);
        let (Some((name, place)), Some((file, _))) = (name, file) else { return };
        let name: Arc<str> = name.into();
        if let Some(first) = names.get(&name) {
            let line = s.line_of(first);
            let message = format!("\"{name}\" is the list on line {line} already");
            s.conflict(&[&place], message);
            return;
        }
        names.insert(name.clone(), place);
        lists.push(ListFile { name, file, effect, reason });
    });
}

/// Refuses blocks that fit nothing else in the file.
pub(super) fn check(top: &mut Section, config: &Config, places: &[BlockPlace]) {
    for (block, place) in config.blocked.iter().zip(places) {
        if let Some(name) = &block.service
            && !config.services.iter().any(|one| one.name == *name && one.has_scope())
        {
            let message = format!("there is no service \"{name}\" with ports or addresses");
            top.conflict(&[&place.service], message);
        }
        if block.effect == Effect::Steer && !config.decoy.enabled {
            let message = "is \"deceive\", but decoy.enabled is false".to_owned();
            top.conflict(&[&place.action], message);
        }
    }
}

/// Refuses blocks of those alone who must never be blocked.
pub(super) fn check_against_guards(
    top: &mut Section,
    config: &Config,
    places: &[BlockPlace],
    guarded: &Guarded,
) {
    let guards = &config.guards;
    let lists = [
        ("allowed", &guards.allow, &guarded.allow),
        ("a trusted proxy", &guards.trusted_proxies, &guarded.trusted_proxies),
    ];
    for (what, nets, guard_places) in lists {
        for (block, place) in config.blocked.iter().zip(places) {
            let subject = Subject::from(block.target.clone());
            let Some(target) = subject.addresses() else { continue };
            let covers = |net: &ipnet::IpNet| {
                net.contains(&target)
                    || net_covers(net, target.addr()) && net_covers(net, target.broadcast())
            };
            let hit = nets.iter().zip(&guard_places.entries).find(|(net, _)| covers(net));
            let Some((net, guard)) = hit else { continue };
            let (line, guard_line) = (top.line_of(&place.target), top.line_of(guard));
            let (target, net) = (network_text(&target), network_text(net));
            let message = format!(
                "{target} is blocked on line {line}, but {net} is {what} on line {guard_line}"
            );
            top.conflict(&[&place.target, guard], message);
        }
    }
}

/// Where there is no room for all blocks.
pub(super) fn first(places: &[BlockPlace]) -> Option<&Place> {
    places.first().map(|place| &place.target)
}
