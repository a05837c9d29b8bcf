//! The policy that XDP and TC share. Its order: allow list and failsafe ports, then the rules of the
//! source's prefixes from the longest to the shortest, of the flow, and of its fingerprint.
//!
//! Rules are looked up first, because almost no packet has one; what goes before them in the order of
//! policy is looked up only for the packets they name. The verdicts are the same.

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use portcullis_common::{
    policy::{NO_RULE, PrefixRules, Reason, port},
    settings::{Settings, feature},
};

use crate::{
    client_hello, flows,
    headers::{self, IPPROTO_TCP, Inner, Packet, Port},
    maps::{PC_PORTS, PC_REASONS, PC_RULES, PC_SCOPE_ADDRS, PC_SETTINGS, PC_WORK},
    packet::{Anywhere, Frame, InPlace},
    prefixes::{self, Candidates},
    quic,
    rules::{self, Outcome},
    search, steer,
    steps::Steps,
};

/// Bits of the reasons that drop.
const DROPS: u32 = 1 << Reason::DropDenied as u32 | 1 << Reason::DropLimited as u32;

pub enum Verdict {
    Pass,
    Drop,
}

#[inline(always)]
pub fn verdict(frame: impl Steps) -> Verdict {
    // Arrays of one have a first element.
    let Some(settings) = PC_SETTINGS.get(0) else { return Verdict::Pass };
    let Some(work) = Work::of_this_cpu() else { return Verdict::Pass };
    if let Some(end) = headers::usual(&InPlace::of(&frame), &mut work.packet) {
        work.len = frame.len_to(end);
        match look_longest_up(work, settings) {
            Named::Denied => {
                count(Reason::DropDenied as u32, work.len);
                return Verdict::Drop;
            }
            Named::No if !may_matter(frame, work, settings) => {
                count(Reason::PassNoMatch as u32, work.len);
                return Verdict::Pass;
            }
            Named::No => work.begin(active_set(settings), Candidates::NONE),
            Named::Perhaps => {}
        }
    } else {
        let mut reason = frame.walk();
        if reason == Reason::PassTruncated as u32 {
            reason = frame.walk_anywhere();
        }
        if reason != Reason::PassNoMatch as u32 {
            count(reason, work.len);
            return Verdict::Pass;
        }
        begin_search(work, settings);
    }
    let outcome = match judge_first(work, settings) {
        UNDECIDED => frame.judge(),
        outcome => outcome,
    };
    if drops(outcome) { Verdict::Drop } else { Verdict::Pass }
}

/// Begins the search for rules with all prefixes that may name the packet's source.
#[inline(always)]
fn begin_search(work: &mut Work, settings: &Settings) {
    let set = active_set(settings);
    work.begin(set, prefixes::find(work.packet.source, set, settings));
}

/// Whether prefixes name a packet's source.
enum Named {
    No,
    Perhaps,
    /// And the longest has a rule that denies the packet, whatever else there is; it has been counted.
    Denied,
}

/// Begins the search for rules with that of the longest prefix which may name the packet's source. For
/// almost all packets that is all, and so nothing here is a call.
#[inline(always)]
fn look_longest_up(work: &mut Work, settings: &Settings) -> Named {
    let set = active_set(settings);
    if !prefixes::may_name(work.packet.source, set, settings) {
        return Named::No;
    }
    let candidates = prefixes::find(work.packet.source, set, settings);
    if candidates.are_none() {
        return Named::No;
    }
    // Little is written to memory before it is known that somebody will read it.
    if candidates.takes_whole() {
        let said = prefixes::look_up(work.packet.source.halves(), 128, set, settings);
        if is_denied_outright(said.rules(), work) {
            return Named::Denied;
        }
        work.begin(set, candidates);
        work.candidates.drop_whole();
        (work.rule, work.listed) = (said.rules().own, said.rules().listed);
    } else {
        work.begin(set, candidates);
        search::look_prefix_up(work, settings);
        if is_denied_outright(PrefixRules { own: work.rule, listed: work.listed }, work) {
            return Named::Denied;
        }
    }
    if search::is_over(work) { Named::No } else { Named::Perhaps }
}

/// Whether the first rule of a prefix denies the packet, whatever else there is; it counts it then.
#[inline(always)]
fn is_denied_outright(PrefixRules { own, listed }: PrefixRules, work: &mut Work) -> bool {
    let index = if own == NO_RULE { listed } else { own };
    if index == NO_RULE {
        return false;
    }
    let Some(rule) = PC_RULES.get_ptr_mut(index) else { return false };
    work.read_clock();
    if !rules::denies_outright(rule, work.now_ns) || is_failsafe(work.packet.port) {
        return false;
    }
    rules::count(rule, work.len);
    true
}

/// Whether there can be anything to say or to learn of the packet, whose source no prefix names. Almost
/// none gets past this, and so nothing here is a call.
#[inline(always)]
fn may_matter(frame: impl Frame, work: &Work, settings: &Settings) -> bool {
    let Work { packet, len, .. } = work;
    let features = settings.features;
    if features & (feature::FINGERPRINTS | feature::FLOW_RULES) == 0 || !packet.port.is_known() {
        return false;
    }
    let hash = packet.flow_hash(settings.seed);
    if features & feature::FLOW_RULES != 0 && flows::is_open(hash, settings) {
        return true;
    }
    features & feature::FINGERPRINTS != 0
        && (client_hello::is_near_beginning(frame, packet.tcp, hash)
            || quic::may_begin(frame, packet, *len))
}

/// The set of prefixes that is in force. Read once for a packet, which is judged by one set, whichever
/// is put in force meanwhile.
#[inline(always)]
fn active_set(settings: &Settings) -> u32 {
    // SAFETY: a field of a map value.
    unsafe { (&raw const settings.active_set).read_volatile() & 1 }
}

/// Writes the packet of the frame to this CPU's work, and returns the number of
/// [`Reason::PassNoMatch`]; or that of the reason to pass a frame that has none.
/// [`Reason::PassTruncated`] when something was not where it could be read in place: that is so for a
/// short frame, but also for a long one whose headers lie in a fragment of the buffer.
#[inline(always)]
pub fn walk(frame: impl Frame) -> u32 {
    let Some(work) = Work::of_this_cpu() else { return Reason::PassTruncated as u32 };
    work.len = frame.len();
    let walked = headers::walk(&InPlace::of(&frame), frame.start(), &mut work.packet);
    if is_short(walked, &work.packet) {
        return Reason::PassTruncated as u32;
    }
    number_of(walked)
}

/// As [`walk`], wherever the bytes lie.
#[inline(always)]
pub fn walk_anywhere(frame: impl Frame) -> u32 {
    let Some(work) = Work::of_this_cpu() else { return Reason::PassTruncated as u32 };
    let mut walked = headers::walk(&Anywhere(frame), frame.start(), &mut work.packet);
    if is_short(walked, &work.packet) && frame.pull() {
        walked = headers::walk(&Anywhere(frame), frame.start(), &mut work.packet);
    }
    number_of(walked)
}

#[inline(always)]
fn number_of(walked: Result<(), Reason>) -> u32 {
    walked.err().unwrap_or(Reason::PassNoMatch) as u32
}

/// Whether the reason of that number drops.
#[inline(always)]
fn drops(outcome: u32) -> bool {
    DROPS >> (outcome & 31) & 1 != 0
}

/// No number of a reason.
const UNDECIDED: u32 = u32::MAX;

/// Counts the packet by the first rule of its source, if that has the last word, and returns the
/// number of the reason. A function of its own, for the stack it needs.
#[inline(never)]
fn judge_first(work: &mut Work, settings: &Settings) -> u32 {
    // What passes may carry what does not.
    if !apply_first(work, settings)
        || work.packet.inner != Inner::NONE && !drops(work.outcome.number())
    {
        return UNDECIDED;
    }
    count(work.outcome.number(), work.len);
    work.outcome.number()
}

/// Goes on with the search until a rule of the packet's source is found, and applies it; whether it has
/// the last word.
#[inline(always)]
fn apply_first(work: &mut Work, settings: &Settings) -> bool {
    if !search::find_rule(work, settings) {
        return false;
    }
    work.prepare(settings);
    search::apply_first(work, settings)
}

/// Judges the packet of this CPU's work, after [`apply_first`], and the one in the tunnel that it may
/// be: either can have the frame dropped, and the first that has something to say of it has the word.
/// Counts it by the reason, whose number it returns.
#[inline(always)]
pub fn judge(frame: impl Steps) -> u32 {
    let Some(settings) = PC_SETTINGS.get(0) else { return Reason::PassNoMatch as u32 };
    let Some(work) = Work::of_this_cpu() else { return Reason::PassNoMatch as u32 };
    let len = work.len;
    let outcome = judge_both(frame, work, settings);
    count(outcome, len);
    outcome
}

#[inline(always)]
fn judge_both(frame: impl Steps, work: &mut Work, settings: &Settings) -> u32 {
    let outer = judge_rest(work, settings, |work| observe(frame, work));
    let looks_inside = settings.features & feature::TUNNELS != 0;
    if !looks_inside || work.packet.inner == Inner::NONE || drops(outer) {
        return outer;
    }
    if frame.enter_tunnel() == 0 {
        return outer;
    }
    begin_search(work, settings);
    let inner = if apply_first(work, settings) {
        work.outcome.number()
    } else {
        // Fingerprints are taken of what is in no tunnel.
        judge_rest(work, settings, |_| {})
    };
    if drops(inner) || outer == Reason::PassNoMatch as u32 { inner } else { outer }
}

/// Puts the packet within a tunnel in the place of the one that carries it; 0 if it is not there.
#[inline(always)]
pub fn enter_tunnel(frame: impl Frame) -> u32 {
    let Some(work) = Work::of_this_cpu() else { return 0 };
    let inner = work.packet.inner;
    let mut walked = headers::walk_inner(&Anywhere(frame), inner, &mut work.packet);
    if is_short(walked, &work.packet) && frame.pull() {
        walked = headers::walk_inner(&Anywhere(frame), inner, &mut work.packet);
    }
    u32::from(walked.is_ok())
}

/// Whether something lay behind what could be read.
#[inline(always)]
fn is_short(walked: Result<(), Reason>, packet: &Packet) -> bool {
    match walked {
        Ok(()) => packet.port == Port::OUT_OF_REACH,
        Err(reason) => reason == Reason::PassTruncated,
    }
}

/// Applies what rules there are beside the first; the number of the reason. A source that is dropped
/// already is not looked at for its fingerprint.
#[inline(always)]
fn judge_rest(work: &mut Work, settings: &Settings, observe: impl FnOnce(&Work)) -> u32 {
    if !work.outcome.is_final() && !search::is_over(work) {
        search::run(work);
    }
    if work.outcome.is_final() {
        return work.outcome.number();
    }
    if settings.features & feature::FINGERPRINTS != 0 {
        observe(work);
    }
    if flows::may_have_rules(&work.packet, settings) {
        work.prepare(settings);
        work.stage = search::FLOW;
        search::run(work);
    }
    if work.outcome.number() == Reason::PassSteered as u32 && work.packet.tcp.opens() {
        steer::remember(&work.packet);
    }
    work.outcome.number()
}

/// Looks for the fingerprint of the packet's flow.
#[inline(always)]
fn observe(frame: impl Steps, work: &Work) {
    client_hello::observe(frame, &work.packet);
    quic::observe(frame, &work.packet, work.len);
}

/// A packet being judged, and how far that has come. It lies in a map and not on the stack: of what it
/// reads from a map, the verifier knows nothing, and so does not walk through what follows once for
/// each way that led there.
#[repr(C)]
pub struct Work {
    pub packet: Packet,
    /// Of the frame, with its link header.
    pub len: u64,
    /// The scopes that the packet's destination port is in.
    port_scopes: u64,
    /// On the clock of rules' expiry, and at which tick of the machine it was read.
    pub now_ns: u64,
    tick: u64,
    /// 1 if its destination is a failsafe port.
    pub is_failsafe: u32,
    /// What the rules have said so far.
    pub outcome: Outcome,
    /// Lengths of prefixes that are still to be looked up.
    pub candidates: Candidates,
    /// Of the flow, once it is known.
    pub fingerprint: u64,
    /// Rules that are still to be applied, before anything else is looked up.
    pub rule: u32,
    pub listed: u32,
    /// A rule that has been applied, but for its limit.
    pub limited: u32,
    /// The kind of subjects that is looked up ([`search`]).
    pub stage: u32,
    /// Which set of prefixes the packet is judged by.
    pub set: u32,
}

impl Work {
    #[inline(always)]
    fn of_this_cpu() -> Option<&'static mut Self> {
        let work = PC_WORK.get_ptr_mut(0)?;
        // SAFETY: this CPU's value of a per-CPU array, and packet programs do not interrupt each
        // other.
        Some(unsafe { &mut *work })
    }

    /// Nothing has been found yet.
    #[inline(always)]
    fn begin(&mut self, set: u32, candidates: Candidates) {
        (self.rule, self.listed, self.limited, self.fingerprint) = (NO_RULE, NO_RULE, NO_RULE, 0);
        (self.outcome, self.stage, self.set) = (Outcome::NONE, search::PREFIXES, set);
        self.candidates = candidates;
    }

    /// Finds out what rules depend on.
    #[inline(always)]
    fn prepare(&mut self, settings: &Settings) {
        let mut port_scopes = u64::MAX;
        let port = self.packet.port;
        if let Some(said) = said_of(port) {
            port_scopes = settings.any_port_scopes | said;
        }
        self.port_scopes = port_scopes;
        self.is_failsafe = u32::from(is_failsafe(port));
        self.read_clock();
    }

    /// The coarse clock goes on with the ticks of the machine, whose number can be read without a call: as
    /// long as that stays, so does the time.
    #[inline(always)]
    fn read_clock(&mut self) {
        // SAFETY: the helpers take no arguments.
        unsafe {
            let tick = bpf_jiffies64();
            if tick != self.tick {
                (self.tick, self.now_ns) = (tick, bpf_ktime_get_coarse_ns());
            }
        }
    }

    /// The scopes the packet is in. Few rules ask, and it takes a look-up.
    #[inline(always)]
    pub fn scopes(&self, settings: &Settings) -> u64 {
        if settings.features & feature::ADDRESS_SCOPES == 0 {
            return self.port_scopes;
        }
        // SAFETY: the value is copied at once.
        let listed = unsafe { PC_SCOPE_ADDRS.get(self.packet.destination.addr()) };
        self.port_scopes & (settings.any_address_scopes | listed.copied().unwrap_or(0))
    }
}

/// What is said of the destination port.
#[inline(always)]
fn said_of(port: Port) -> Option<u64> {
    if !port.is_known() {
        return None;
    }
    PC_PORTS.get(u32::from(port.number())).copied()
}

#[inline(always)]
fn is_failsafe(port: Port) -> bool {
    let failsafe = match port.protocol() {
        IPPROTO_TCP => port::FAILSAFE_TCP,
        _ => port::FAILSAFE_UDP,
    };
    said_of(port).is_some_and(|said| said & failsafe != 0)
}

#[inline(always)]
fn count(reason: u32, len: u64) {
    if let Some(counter) = PC_REASONS.get_ptr_mut(reason) {
        // SAFETY: this CPU's slot of a per-CPU array, and packet programs do not interrupt
        // each other.
        let counter = unsafe { &mut *counter };
        counter.packets = counter.packets.wrapping_add(1);
        counter.bytes = counter.bytes.wrapping_add(len);
    }
}
