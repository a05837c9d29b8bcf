//! Blocks written into the configuration.

use std::collections::HashMap;

use ipnet::IpNet;

use super::kinds::OrAbsent;
use super::schema::Guarded;
use super::section::{Place, Section, key};
use super::types::{Guards, StaticBlock, net_covers};
use super::words::{BLOCK_TARGET, TEXT, network_text};

/// Reads `block` and returns where each target stands.
pub(super) fn read(top: &mut Section, blocked: &mut Vec<StaticBlock>) -> Vec<Place> {
    let mut targets: Vec<Place> = Vec::new();
    let mut first_of: HashMap<IpNet, usize> = HashMap::new();
    top.tables("block", Some("target"), |s| {
        let doc = "Blocked for as long as the file says so. A string in the list `block` is a \
                   target too.";
        let target = s.required(key("block.target", doc), &BLOCK_TARGET);
        let mut reason = None;
        let doc = "Shown beside the block.";
        s.value(key("block.reason", doc), &OrAbsent(TEXT), &mut reason);
        let Some((target, place)) = target else { return };
        let index = targets.len();
        if let Some(first) = first_of.get(&target).and_then(|index| targets.get(*index)) {
            let (target, line) = (network_text(&target), s.line_of(first));
            let message = format!("{target} is blocked on line {line} already");
            s.conflict(&[&place], message);
            return;
        }
        first_of.insert(target, index);
        targets.push(place);
        blocked.push(StaticBlock { target, reason });
    });
    targets
}

/// Refuses blocks of what must never be blocked.
pub(super) fn check_against_guards(
    top: &mut Section,
    blocked: &[StaticBlock],
    targets: &[Place],
    guards: &Guards,
    guarded: &Guarded,
) {
    let lists = [
        ("allowed", &guards.allow, &guarded.allow),
        ("a trusted proxy", &guards.trusted_proxies, &guarded.trusted_proxies),
    ];
    for (what, nets, places) in lists {
        for (block, place) in blocked.iter().zip(targets) {
            let target = &block.target;
            let overlaps = |net: &IpNet| net_covers(net, target.addr()) || target.contains(net);
            let hit = nets.iter().zip(&places.entries).find(|(net, _)| overlaps(net));
            let Some((net, guard)) = hit else { continue };
            let (line, guard_line) = (top.line_of(place), top.line_of(guard));
            let (target, net) = (network_text(target), network_text(net));
            let message = format!(
                "{target} is blocked on line {line}, but {net} is {what} on line {guard_line}"
            );
            top.conflict(&[place, guard], message);
        }
    }
}
