//! The policy that XDP and TC share. Its order: allow list and failsafe ports, then the rules of the
//! source's prefixes from the longest to the shortest, of the flow, and of its fingerprint.
//!
//! Rules are looked up first, because almost no packet has one; what goes before them in the order of
//! policy is looked up only for the packets they name. The verdicts are the same.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use portcullis_common::{
    policy::{NO_RULE, Reason, port},
    settings::{Settings, feature},
};

use crate::{
    client_hello, flows,
    headers::{self, IPPROTO_TCP, Inner, Packet, Port},
    maps::{PC_PORTS, PC_REASONS, PC_SCOPE_ADDRS, PC_SETTINGS, PC_WORK},
    packet::{Anywhere, Frame, InPlace},
    prefixes::{self, Candidates},
    quic,
    rules::Outcome,
    search, steer,
};

/// Bits of the reasons that drop.
const DROPS: u32 = 1 << Reason::DropDenied as u32 | 1 << Reason::DropLimited as u32;

pub enum Verdict {
    Pass,
    Drop,
}

/// A function of its own, so that the stack it needs is free again when the packet is answered.
#[inline(never)]
pub fn verdict(frame: impl Frame) -> Verdict {
    // Arrays of one have a first element.
    let Some(settings) = PC_SETTINGS.get(0) else { return Verdict::Pass };
    let Some(work) = PC_WORK.get_ptr_mut(0) else { return Verdict::Pass };
    // SAFETY: this CPU's value of a per-CPU array, and packet programs do not interrupt each other.
    let work = unsafe { &mut *work };
    work.len = frame.len();
    let mut reason = walk_in_place(frame, &mut work.packet);
    if reason == Reason::PassTruncated {
        reason = walk_anywhere(frame, &mut work.packet);
    }
    let outcome = match reason {
        Reason::PassNoMatch => judge_all(frame, work, settings),
        other => other as u32,
    };
    count(outcome, work.len);
    if drops(outcome) { Verdict::Drop } else { Verdict::Pass }
}

/// Whether the reason of that number drops.
#[inline(always)]
fn drops(outcome: u32) -> bool {
    DROPS >> (outcome & 31) & 1 != 0
}

/// Judges a packet and the one in the tunnel that it may be: either can have the frame dropped, and
/// the first that has something to say of it has the word.
#[inline(always)]
fn judge_all(frame: impl Frame, work: &mut Work, settings: &Settings) -> u32 {
    let outer = judge(work, settings, |work| observe(frame, work));
    let looks_inside = settings.features & feature::TUNNELS != 0;
    if !looks_inside || work.packet.inner == Inner::NONE || drops(outer) {
        return outer;
    }
    if !enter_tunnel(frame, &mut work.packet) {
        return outer;
    }
    // Fingerprints are taken of what is in no tunnel.
    let inner = judge(work, settings, |_| {});
    if drops(inner) || outer == Reason::PassNoMatch as u32 { inner } else { outer }
}

/// Puts the packet within a tunnel in the place of the one that carries it, if it is there.
#[inline(never)]
fn enter_tunnel(frame: impl Frame, packet: &mut Packet) -> bool {
    let mut walked = headers::walk_inner(&Anywhere(frame), packet.inner);
    if is_short(&walked) && frame.pull() {
        walked = headers::walk_inner(&Anywhere(frame), packet.inner);
    }
    match walked {
        Ok(inner) => {
            *packet = inner;
            true
        }
        Err(_) => false,
    }
}

/// Whether something lay behind what could be read.
#[inline(always)]
fn is_short(walked: &Result<Packet, Reason>) -> bool {
    matches!(walked, Ok(Packet { port: Port::OUT_OF_REACH, .. }) | Err(Reason::PassTruncated))
}

/// Writes the packet of the frame, and returns [`Reason::PassNoMatch`]; or the reason to pass a frame
/// that has none. [`Reason::PassTruncated`] when something was not where it could be read in place:
/// that is so for a short frame, but also for a long one whose headers lie in a fragment of the buffer.
///
/// A function of its own, for the stack it needs; like the next.
#[inline(never)]
fn walk_in_place(frame: impl Frame, packet: &mut Packet) -> Reason {
    match headers::walk(&InPlace::of(&frame), frame.start()) {
        Ok(Packet { port: Port::OUT_OF_REACH, .. }) => Reason::PassTruncated,
        Ok(walked) => {
            *packet = walked;
            Reason::PassNoMatch
        }
        Err(reason) => reason,
    }
}

/// As [`walk_in_place`], wherever the bytes lie.
#[inline(never)]
fn walk_anywhere(frame: impl Frame, packet: &mut Packet) -> Reason {
    let mut walked = headers::walk(&Anywhere(frame), frame.start());
    if is_short(&walked) && frame.pull() {
        walked = headers::walk(&Anywhere(frame), frame.start());
    }
    match walked {
        Ok(walked) => {
            *packet = walked;
            Reason::PassNoMatch
        }
        Err(reason) => reason,
    }
}

/// The number of the reason. A source that is dropped already is not looked at for its fingerprint.
#[inline(always)]
fn judge(work: &mut Work, settings: &Settings, observe: impl FnOnce(&Work)) -> u32 {
    work.outcome = Outcome::NONE;
    // Read once: a packet is judged by one set, whichever is put in force meanwhile.
    // SAFETY: a field of a map value.
    work.set = unsafe { (&raw const settings.active_set).read_volatile() } & 1;
    prefixes::find(work.packet.source, work.set, settings, &mut work.candidates);
    let mut is_prepared = false;
    if !work.candidates.are_none() {
        work.prepare(settings);
        is_prepared = true;
        work.stage = search::PREFIXES;
        search::run(work);
        if work.outcome.is_final() {
            return work.outcome.number();
        }
    }
    if settings.features & feature::FINGERPRINTS != 0 {
        observe(work);
    }
    if flows::may_have_rules(&work.packet, settings) {
        if !is_prepared {
            work.prepare(settings);
        }
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
fn observe(frame: impl Frame, work: &Work) {
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
    /// On the clock of rules' expiry.
    pub now_ns: u64,
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
    /// Finds out what rules depend on.
    #[inline(always)]
    fn prepare(&mut self, settings: &Settings) {
        (self.rule, self.listed, self.limited, self.fingerprint) = (NO_RULE, NO_RULE, NO_RULE, 0);
        let mut port_scopes = u64::MAX;
        let mut is_failsafe = false;
        let port = self.packet.port;
        if port.is_known()
            && let Some(said) = PC_PORTS.get(u32::from(port.number()))
        {
            let failsafe = match port.protocol() {
                IPPROTO_TCP => port::FAILSAFE_TCP,
                _ => port::FAILSAFE_UDP,
            };
            is_failsafe = said & failsafe != 0;
            port_scopes = settings.any_port_scopes | said;
        }
        self.port_scopes = port_scopes;
        self.is_failsafe = u32::from(is_failsafe);
        // SAFETY: the helper takes no arguments.
        self.now_ns = unsafe { bpf_ktime_get_coarse_ns() };
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
