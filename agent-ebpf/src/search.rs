//! All rules that name a packet, one after the other: those of the source's prefixes from the longest to
//! the shortest, of the flow, of the flow's TLS fingerprint, and of the fingerprint together with
//! the source's prefixes.
//!
//! It is one loop with a small state, so that the verifier walks through the rules' code once and not
//! once for each length of prefix.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use portcullis_common::{
    gate,
    policy::{ConjunctionKey, NO_RULE, PrefixKey},
    settings::{Settings, feature},
};

use crate::{
    headers::Address,
    maps::{
        PC_CONJUNCTIONS, PC_FINGERPRINTS, PC_FLOW_RULES, PC_FLOWS, PC_PREFIXES, PC_RULES,
        PC_SETTINGS,
    },
    policy::Work,
    prefixes::{Candidates, is_set},
    rules::{self, Said},
};

/// More than there can be look-ups, rules and limits: two times 129 lengths of prefix, each with at
/// most five rules of which four have a limit, and a few more of the flow and the fingerprint.
const MAX_STEPS: u32 = 4_096;

/// Kinds of subjects, as far as a search has come. The rules of prefixes are a search of their own.
pub const PREFIXES: u32 = 0;
pub const FLOW: u32 = 1;
const FINGERPRINT: u32 = 2;
const CONJUNCTIONS: u32 = 3;

/// Applies all rules that name the packet, from those of `work.stage` on, until one has the last word.
#[inline(always)]
pub fn run(work: &mut Work) {
    // What a callback is given must lie on the stack.
    let mut work: *mut Work = work;
    // SAFETY: the callback takes what it is given here, which outlives the call.
    unsafe { bpf_loop(MAX_STEPS, step as *mut c_void, (&raw mut work).cast(), 0) };
}

/// Applies one rule or looks one subject up; 1 at the end.
unsafe extern "C" fn step(_: u32, work: *mut c_void) -> i64 {
    // SAFETY: what `run` gave: a pointer into a map value that nobody else uses now.
    let work = unsafe { &mut **work.cast::<*mut Work>() };
    // An array of one has a first element.
    let Some(settings) = PC_SETTINGS.get(0) else { return 1 };
    if work.limited != NO_RULE {
        return i64::from(limit(work, settings));
    }
    if work.rule == NO_RULE {
        work.rule = work.listed;
        work.listed = NO_RULE;
    }
    if work.rule != NO_RULE {
        return i64::from(apply(work, settings));
    }
    if !work.candidates.are_none() {
        look_prefix_up(work, settings);
        return 0;
    }
    match work.stage {
        FLOW => look_flow_up(work, settings),
        FINGERPRINT => look_fingerprint_up(work),
        _ => return 1,
    }
    0
}

/// Whether the rule has the last word.
#[inline(always)]
fn apply(work: &mut Work, settings: &Settings) -> bool {
    let index = work.rule;
    work.rule = NO_RULE;
    let Some(rule) = PC_RULES.get_ptr_mut(index) else { return false };
    // SAFETY: a pointer into a map value stays valid while the program runs.
    work.rule = unsafe { (*rule).next };
    match rules::apply(rule, work, settings) {
        Said::Nothing => {}
        Said::Limit => work.limited = index,
        Said::Reason(reason) => work.outcome = work.outcome.and(reason),
    }
    work.outcome.is_final()
}

/// Whether the limit has the last word.
#[inline(always)]
fn limit(work: &mut Work, settings: &Settings) -> bool {
    let index = work.limited;
    work.limited = NO_RULE;
    let Some(rule) = PC_RULES.get_ptr_mut(index) else { return false };
    work.outcome = work.outcome.and(rules::limit(rule, index, work, settings));
    work.outcome.is_final()
}

/// Finds the rules of the longest prefix that is left.
#[inline(always)]
fn look_prefix_up(work: &mut Work, settings: &Settings) {
    let len = work.candidates.take_longest();
    let halves = gate::masked(work.packet.source.halves(), len);
    let addr = Address::from_halves(halves).addr();
    if work.stage == CONJUNCTIONS {
        let fingerprint = work.fingerprint;
        let key = ConjunctionKey { fingerprint, addr, prefix_len: len, reserved: 0 };
        // SAFETY: the value is copied at once.
        work.rule = unsafe { PC_CONJUNCTIONS.get(key) }.copied().unwrap_or(NO_RULE);
        return;
    }
    let set = work.set;
    let words = settings.prefix_gate_words;
    if !is_set(gate::prefix_bit(halves, len, words), set, words) {
        return;
    }
    let key = PrefixKey { addr, prefix_len: len };
    if let Some(rules) = PC_PREFIXES.get_value_ptr_mut(set, &key) {
        // SAFETY: a pointer into a map value stays readable while the program runs.
        (work.rule, work.listed) = unsafe { ((*rules).own, (*rules).listed) };
    }
}

#[inline(always)]
fn look_flow_up(work: &mut Work, settings: &Settings) {
    work.stage = FINGERPRINT;
    let flow = work.packet.flow();
    // SAFETY: the value is copied at once.
    work.rule = unsafe { PC_FLOW_RULES.get(flow) }.copied().unwrap_or(NO_RULE);
    if settings.features & feature::FINGERPRINT_RULES != 0
        // SAFETY: as above.
        && let Some(info) = (unsafe { PC_FLOWS.get(flow) })
    {
        work.fingerprint = info.fingerprint;
    }
}

#[inline(always)]
fn look_fingerprint_up(work: &mut Work) {
    work.stage = CONJUNCTIONS;
    if work.fingerprint == 0 {
        return;
    }
    // SAFETY: the values are copied at once.
    if let Some(said) = unsafe { PC_FINGERPRINTS.get(work.fingerprint) } {
        work.rule = said.own;
        work.candidates = Candidates::of(work.packet.source, &said.lengths);
    }
}
