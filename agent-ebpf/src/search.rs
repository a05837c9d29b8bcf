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
    policy::{ConjunctionKey, NO_RULE, PrefixRules},
    settings::{Settings, feature},
};

use crate::{
    headers::Address,
    maps::{PC_CONJUNCTIONS, PC_FINGERPRINTS, PC_FLOW_RULES, PC_FLOWS, PC_RULES, PC_SETTINGS},
    policy::Work,
    prefixes::{self, Candidates},
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

/// Looks prefixes up until one has rules; whether there can be any. Two at most are looked up here, which
/// is enough for almost every packet: the rest is left to [`run`].
#[inline(always)]
pub fn find_rule(work: &mut Work, settings: &Settings) -> bool {
    for _ in 0..2 {
        if work.rule | work.listed != NO_RULE {
            return true;
        }
        if work.candidates.are_none() {
            return false;
        }
        look_prefix_up(work, settings);
    }
    !is_over(work)
}

/// Applies the first rule that was found, if one was; whether it has the last word.
#[inline(always)]
pub fn apply_first(work: &mut Work, settings: &Settings) -> bool {
    take_listed(work);
    work.rule != NO_RULE && apply(work, settings)
}

/// Whether nothing is left to be looked up or applied.
#[inline(always)]
pub fn is_over(work: &Work) -> bool {
    work.rule | work.listed | work.limited == NO_RULE && work.candidates.are_none()
}

/// Goes on with the list's rule when the prefix's own are done.
#[inline(always)]
fn take_listed(work: &mut Work) {
    if work.rule == NO_RULE {
        work.rule = work.listed;
        work.listed = NO_RULE;
    }
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
    take_listed(work);
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
pub fn look_prefix_up(work: &mut Work, settings: &Settings) {
    let len = work.candidates.take_longest();
    let halves = gate::masked(work.packet.source.halves(), len);
    if work.stage == CONJUNCTIONS {
        let addr = Address::from_halves(halves).addr();
        let fingerprint = work.fingerprint;
        let key = ConjunctionKey { fingerprint, addr, prefix_len: len, reserved: 0 };
        // SAFETY: the value is copied at once.
        work.rule = unsafe { PC_CONJUNCTIONS.get(key) }.copied().unwrap_or(NO_RULE);
        return;
    }
    let PrefixRules { own, listed } = prefixes::look_up(halves, len, work.set, settings).rules();
    (work.rule, work.listed) = (own, listed);
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
