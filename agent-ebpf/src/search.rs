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
    settings::feature,
};

use crate::{
    headers::Address,
    maps::{PC_CONJUNCTIONS, PC_FINGERPRINTS, PC_FLOW_RULES, PC_FLOWS, PC_PREFIXES, PC_RULES},
    policy::Judged,
    prefixes::{Candidates, is_set},
    rules::{self, Outcome, Said},
};

/// More than there can be look-ups, rules and limits: two times 129 lengths of prefix, each with at most
/// five rules of which four have a limit, and a few more of the flow and the fingerprint.
const MAX_STEPS: u32 = 4_096;

/// Applies all rules that name the packet, until one has the last word.
#[inline(always)]
pub fn run(packet: &Judged<'_>, candidates: Candidates, has_flow_rules: bool) -> Outcome {
    let first = if has_flow_rules { stage::PREFIXES } else { stage::ONLY_PREFIXES };
    let mut search = Search {
        packet,
        candidates,
        fingerprint: u64::from(packet.opaque(0)),
        rule: packet.opaque(NO_RULE),
        listed: packet.opaque(NO_RULE),
        limited: packet.opaque(NO_RULE),
        stage: packet.opaque(first),
        outcome: Outcome::none(packet),
    };
    // SAFETY: the callback takes what it is given here, which outlives the call.
    unsafe { bpf_loop(MAX_STEPS, step as *mut c_void, (&raw mut search).cast(), 0) };
    search.outcome
}

mod stage {
    pub const ONLY_PREFIXES: u32 = 0;
    pub const PREFIXES: u32 = 1;
    pub const FLOW: u32 = 2;
    pub const CONJUNCTIONS: u32 = 3;
}

/// A search under way.
struct Search<'a> {
    packet: &'a Judged<'a>,
    /// Lengths of prefixes that are still to be looked up.
    candidates: Candidates,
    /// Of the flow, once it is known.
    fingerprint: u64,
    /// Rules that are still to be applied, before anything else is looked up.
    rule: u32,
    listed: u32,
    /// A rule that has been applied, but for its limit.
    limited: u32,
    stage: u32,
    outcome: Outcome,
}

/// Applies one rule or looks one subject up; 1 at the end.
unsafe extern "C" fn step(_: u32, search: *mut c_void) -> i64 {
    // SAFETY: what `run` gave, and nobody else has.
    let search = unsafe { &mut *search.cast::<Search<'_>>() };
    if search.limited != NO_RULE {
        return i64::from(search.limit());
    }
    if search.rule == NO_RULE {
        search.rule = search.listed;
        search.listed = search.packet.opaque(NO_RULE);
    }
    if search.rule != NO_RULE {
        return i64::from(search.apply());
    }
    if !search.candidates.are_none() {
        search.look_prefix_up();
        return 0;
    }
    i64::from(search.go_on())
}

impl Search<'_> {
    /// Whether the rule has the last word.
    #[inline(always)]
    fn apply(&mut self) -> bool {
        let index = self.rule;
        self.rule = self.packet.opaque(NO_RULE);
        let Some(rule) = PC_RULES.get_ptr_mut(index) else { return false };
        // SAFETY: a pointer into a map value stays valid while the program runs.
        self.rule = unsafe { (*rule).next };
        match rules::apply(rule, self.packet) {
            Said::Nothing => {}
            Said::Limit => self.limited = index,
            Said::Reason(reason) => self.outcome = self.outcome.and(reason, self.packet),
        }
        self.outcome.is_final()
    }

    /// Whether the limit has the last word.
    #[inline(always)]
    fn limit(&mut self) -> bool {
        let index = self.limited;
        self.limited = self.packet.opaque(NO_RULE);
        let Some(rule) = PC_RULES.get_ptr_mut(index) else { return false };
        let reason = rules::limit(rule, index, self.packet);
        self.outcome = self.outcome.and(reason, self.packet);
        self.outcome.is_final()
    }

    /// Finds the rules of the longest prefix that is left.
    #[inline(always)]
    fn look_prefix_up(&mut self) {
        let len = self.candidates.take_longest();
        let halves = gate::masked(self.packet.packet.source.halves(), len);
        let addr = Address::from_halves(halves).addr();
        if self.stage == stage::CONJUNCTIONS {
            let fingerprint = self.fingerprint;
            let key = ConjunctionKey { fingerprint, addr, prefix_len: len, reserved: 0 };
            // SAFETY: the value is copied at once.
            self.rule =
                unsafe { PC_CONJUNCTIONS.get(key) }.copied().unwrap_or(self.packet.opaque(NO_RULE));
            return;
        }
        let set = self.packet.set;
        let words = self.packet.settings.prefix_gate_words;
        if !is_set(gate::prefix_bit(halves, len, words), set, words) {
            return;
        }
        let key = PrefixKey { addr, prefix_len: len };
        if let Some(rules) = PC_PREFIXES.get_value_ptr_mut(set, &key) {
            // SAFETY: a pointer into a map value stays readable while the program runs.
            (self.rule, self.listed) = unsafe { ((*rules).own, (*rules).listed) };
        }
    }

    /// Goes on to the next kind of subject; whether there is none.
    #[inline(always)]
    fn go_on(&mut self) -> bool {
        match self.stage {
            stage::PREFIXES => self.look_flow_up(),
            stage::FLOW => self.look_fingerprint_up(),
            _ => return true,
        }
        false
    }

    #[inline(always)]
    fn look_flow_up(&mut self) {
        self.stage = self.packet.opaque(stage::FLOW);
        let flow = self.packet.packet.flow();
        // SAFETY: the value is copied at once.
        self.rule = unsafe { PC_FLOW_RULES.get(flow) }.copied().unwrap_or(NO_RULE);
        if self.packet.settings.features & feature::FINGERPRINT_RULES != 0
            // SAFETY: as above.
            && let Some(info) = (unsafe { PC_FLOWS.get(flow) })
        {
            self.fingerprint = info.fingerprint;
        }
    }

    #[inline(always)]
    fn look_fingerprint_up(&mut self) {
        self.stage = self.packet.opaque(stage::CONJUNCTIONS);
        if self.fingerprint == 0 {
            return;
        }
        // SAFETY: the values are copied at once.
        if let Some(said) = unsafe { PC_FINGERPRINTS.get(self.fingerprint) } {
            self.rule = said.own;
            self.candidates = Candidates::of(self.packet.packet.source, &said.lengths);
        }
    }
}
