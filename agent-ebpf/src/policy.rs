//! The policy that XDP and TC share: allow list and failsafe ports, then the deny list.
//!
//! The deny list is looked up first because almost no packet is on it; what goes before it in
//! the order of policy is looked up only for the packets it names. The verdicts are the same.

use aya_ebpf::{helpers::generated::bpf_ktime_get_coarse_ns, maps::lpm_trie::Key};
use portcullis_common::{
    net::Addr,
    policy::{
        DenyKey, Reason,
        action::{COUNT, STEER},
    },
    settings::{MAX_FAILSAFE_PORTS, Settings},
};

use crate::{
    atomic,
    headers::{self, IPPROTO_TCP, Packet, Port},
    maps::{PC_ALLOW, PC_DENY, PC_REASONS, PC_SETTINGS},
    packet::{Anywhere, Frame, InPlace},
    report,
};

pub enum Verdict {
    Pass,
    Drop,
}

#[inline(always)]
pub fn verdict(frame: &impl Frame) -> Verdict {
    let len = frame.len();
    let reason = match headers::walk(&InPlace::of(frame)) {
        // Something was not where it could be read in place. That is so for a short frame,
        // but also for a long one whose headers lie in a fragment of the buffer.
        Ok(Packet { destination: Port::OUT_OF_REACH, .. }) | Err(Reason::PassTruncated) => {
            slow_path(frame, len)
        }
        Ok(packet) => judge(&packet, len),
        Err(reason) => reason,
    };
    count(reason, len);
    match reason {
        Reason::DropDenied => Verdict::Drop,
        _ => Verdict::Pass,
    }
}

#[inline(always)]
fn slow_path(frame: &impl Frame, len: u64) -> Reason {
    match headers::walk(&Anywhere(frame)) {
        Ok(packet) => judge(&packet, len),
        Err(reason) => reason,
    }
}

#[inline(always)]
fn judge(packet: &Packet, len: u64) -> Reason {
    let mut reason = Reason::PassNoMatch;
    let exact = DenyKey { addr: packet.source.addr(), prefix_len: 128 };
    match entry_reason(&exact, packet, len) {
        Some(Reason::DropDenied) => return Reason::DropDenied,
        Some(other) => reason = other,
        None => {}
    }
    if packet.is_v6 {
        let subnet = DenyKey { addr: packet.source.prefix64().addr(), prefix_len: 64 };
        match entry_reason(&subnet, packet, len) {
            // An expired block says nothing beside one that is in force.
            Some(Reason::PassExpired) if reason != Reason::PassNoMatch => {}
            Some(other) => reason = other,
            None => {}
        }
    }
    reason
}

/// What the entry of `key` means for the packet; `None` when there is no such entry.
#[inline(always)]
fn entry_reason(key: &DenyKey, packet: &Packet, len: u64) -> Option<Reason> {
    let entry = PC_DENY.get_ptr_mut(key)?;
    // SAFETY: a pointer into a map value stays valid while the program runs.
    let (expires_ns, action) = unsafe { ((*entry).expires_ns, (*entry).action) };
    // SAFETY: the helper takes no arguments.
    if expires_ns <= unsafe { bpf_ktime_get_coarse_ns() } {
        return Some(Reason::PassExpired);
    }
    if PC_ALLOW.get(Key::new(128, packet.source.addr())).is_some() {
        return Some(Reason::PassAllowed);
    }
    if is_failsafe(packet.destination) {
        return Some(Reason::PassFailsafe);
    }
    // SAFETY: both counters are aligned u64s of the map value.
    let earlier = unsafe {
        atomic::add(&raw mut (*entry).bytes, len);
        atomic::fetch_add(&raw mut (*entry).packets, 1)
    };
    if action == COUNT || action == STEER {
        return Some(Reason::PassCountOnly);
    }
    if earlier == 0 {
        // SAFETY: as above; only userspace writes the rule's number, before the entry is there.
        report::first_drop(key, unsafe { (*entry).rule_id });
    }
    Some(Reason::DropDenied)
}

/// Whether new connections of `source` to this port go to the decoy.
#[inline(always)]
pub fn steered(source: Addr, is_v6: bool, port: u16) -> bool {
    let exact = DenyKey { addr: source, prefix_len: 128 };
    let subnet = DenyKey { addr: source.prefix64(), prefix_len: 64 };
    if !(steers(&exact) || is_v6 && steers(&subnet)) {
        return false;
    }
    PC_ALLOW.get(Key::new(128, source)).is_none() && !is_failsafe(Port::new(IPPROTO_TCP, port))
}

#[inline(always)]
fn steers(key: &DenyKey) -> bool {
    let Some(entry) = PC_DENY.get_ptr(key) else { return false };
    // SAFETY: a pointer into a map value stays valid while the program runs.
    let (expires_ns, action) = unsafe { ((*entry).expires_ns, (*entry).action) };
    // SAFETY: the helper takes no arguments.
    action == STEER && expires_ns > unsafe { bpf_ktime_get_coarse_ns() }
}

#[inline(always)]
fn is_failsafe(port: Port) -> bool {
    if matches!(port, Port::NONE | Port::OUT_OF_REACH) {
        return false;
    }
    let Some(settings) = PC_SETTINGS.get(0) else { return false };
    let Settings { failsafe_tcp, failsafe_udp, .. } = settings;
    let (ports, len) = if port.protocol() == IPPROTO_TCP {
        (failsafe_tcp, settings.failsafe_tcp_len)
    } else {
        (failsafe_udp, settings.failsafe_udp_len)
    };
    for (index, failsafe) in ports.iter().enumerate().take(MAX_FAILSAFE_PORTS) {
        if index as u32 >= len {
            break;
        }
        if *failsafe == port.number() {
            return true;
        }
    }
    false
}

#[inline(always)]
fn count(reason: Reason, len: u64) {
    if let Some(counter) = PC_REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's slot of a per-CPU array, and packet programs do not interrupt
        // each other.
        let counter = unsafe { &mut *counter };
        counter.packets = counter.packets.wrapping_add(1);
        counter.bytes = counter.bytes.wrapping_add(len);
    }
}
