//! The policy that XDP and TC share. Its order: allow list and failsafe ports, then the rules of the
//! source's prefixes from the longest to the shortest, of the flow, and of its fingerprint.
//!
//! Rules are looked up first, because almost no packet has one; what goes before them in the order of
//! policy is looked up only for the packets they name. The verdicts are the same.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use portcullis_common::{
    policy::{Reason, port},
    settings::{Settings, feature},
};

use crate::{
    flows,
    headers::{self, IPPROTO_TCP, Packet, Port},
    maps::{PC_PORTS, PC_REASONS, PC_SCOPE_ADDRS, PC_SETTINGS},
    packet::{Anywhere, Frame, InPlace},
    prefixes::{self, Candidates},
    search,
};

/// Bits of the reasons that drop.
const DROPS: u32 = 1 << Reason::DropDenied as u32 | 1 << Reason::DropLimited as u32;

pub enum Verdict {
    Pass,
    Drop,
}

#[inline(always)]
pub fn verdict(frame: impl Frame) -> Verdict {
    // An array of one has a first element.
    let Some(settings) = PC_SETTINGS.get(0) else { return Verdict::Pass };
    let zero = zero(settings);
    let len = frame.len();
    let mut packet = MaybeUninit::uninit();
    let mut reason = walk_in_place(frame, &mut packet, zero);
    if reason == Reason::PassTruncated {
        reason = walk_anywhere(frame, &mut packet, zero);
    }
    let outcome = match reason {
        // SAFETY: the walk has written the packet.
        Reason::PassNoMatch => judge(unsafe { packet.assume_init_ref() }, len, settings),
        other => other as u32,
    };
    count(outcome, len);
    if DROPS >> (outcome & 31) & 1 != 0 { Verdict::Drop } else { Verdict::Pass }
}

/// Writes the packet of the frame, and returns [`Reason::PassNoMatch`]; or the reason to pass a frame that has none.
/// [`Reason::PassTruncated`] when something was not where it could be read in place: that is so for a
/// short frame, but also for a long one whose headers lie in a fragment of the buffer.
///
/// A function of its own, for the stack it needs; like the next.
#[inline(never)]
fn walk_in_place(frame: impl Frame, packet: &mut MaybeUninit<Packet>, zero: u32) -> Reason {
    match headers::walk(&InPlace::of(&frame)) {
        Ok(Packet { port: Port::OUT_OF_REACH, .. }) => Reason::PassTruncated,
        Ok(walked) => {
            packet.write(walked.blurred(zero));
            Reason::PassNoMatch
        }
        Err(reason) => reason,
    }
}

/// As [`walk_in_place`], wherever the bytes lie.
#[inline(never)]
fn walk_anywhere(frame: impl Frame, packet: &mut MaybeUninit<Packet>, zero: u32) -> Reason {
    match headers::walk(&Anywhere(frame)) {
        Ok(walked) => {
            packet.write(walked.blurred(zero));
            Reason::PassNoMatch
        }
        Err(reason) => reason,
    }
}

#[inline(always)]
fn judge(packet: &Packet, len: u64, settings: &Settings) -> u32 {
    let mut candidates = prefixes::candidates(packet.source, settings);
    let has_flow_rules = flows::may_have_rules(packet, settings);
    if candidates.are_none() && !has_flow_rules {
        return Reason::PassNoMatch as u32;
    }
    candidates.blur(zero(settings));
    judge_closely(packet, len, &candidates, has_flow_rules)
}

/// Judges a packet that may have rules; returns the number of the reason. A function of its own, for the stack it needs.
#[inline(never)]
fn judge_closely(packet: &Packet, len: u64, candidates: &Candidates, has_flow_rules: bool) -> u32 {
    let Some(settings) = PC_SETTINGS.get(0) else { return Reason::PassNoMatch as u32 };
    let packet = Judged::of(packet, len, settings);
    search::run(&packet, *candidates, has_flow_rules).number()
}

/// A packet that may have rules, and what they depend on.
pub struct Judged<'a> {
    pub packet: &'a Packet,
    /// Of the frame, with its link header.
    pub len: u64,
    /// The scopes its destination port is in.
    port_scopes: u64,
    /// Its destination is a failsafe port.
    pub is_failsafe: bool,
    /// On the clock of rules' expiry.
    pub now_ns: u64,
    pub settings: &'a Settings,
}

impl<'a> Judged<'a> {
    /// `number`, without the verifier knowing which that is.
    #[inline(always)]
    pub fn opaque(&self, number: u32) -> u32 {
        number.wrapping_add(zero(self.settings))
    }

    #[inline(always)]
    fn of(packet: &'a Packet, len: u64, settings: &'a Settings) -> Self {
        let mut port_scopes = u64::MAX;
        let mut is_failsafe = false;
        if packet.port.is_known()
            && let Some(said) = PC_PORTS.get(u32::from(packet.port.number()))
        {
            let failsafe = match packet.port.protocol() {
                IPPROTO_TCP => port::FAILSAFE_TCP,
                _ => port::FAILSAFE_UDP,
            };
            is_failsafe = said & failsafe != 0;
            port_scopes = settings.any_port_scopes | said;
        }
        // SAFETY: the helper takes no arguments.
        let now_ns = unsafe { bpf_ktime_get_coarse_ns() };
        Self { packet, len, port_scopes, is_failsafe, now_ns, settings }
    }

    /// The scopes it is in. Few rules ask, and it takes a look-up.
    #[inline(always)]
    pub fn scopes(&self) -> u64 {
        if self.settings.features & feature::ADDRESS_SCOPES == 0 {
            return self.port_scopes;
        }
        // SAFETY: the value is copied at once.
        let listed = unsafe { PC_SCOPE_ADDRS.get(self.packet.destination.addr()) };
        self.port_scopes & (self.settings.any_address_scopes | listed.copied().unwrap_or(0))
    }
}

/// 0, which the verifier does not know.
#[inline(always)]
pub fn zero(settings: &Settings) -> u32 {
    // SAFETY: a field of a map value, read as often as it is written here.
    unsafe { (&raw const settings.zero).read_volatile() }
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
