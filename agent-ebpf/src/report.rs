//! Into the ring buffer, or, when it is full, into the loss counters.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated::bpf_ktime_get_ns};
use portcullis_common::{
    event::{Exec, FirstDrop, Loss, TlsClosed, kind},
    net::Addr,
};

use crate::{
    atomic,
    maps::{PC_EVENTS, PC_LOSSES},
};

/// Counts one lost report and the bytes of plaintext in it.
#[inline(always)]
pub fn lost(loss: Loss, bytes: u64) {
    if let Some(counter) = PC_LOSSES.get_ptr_mut(loss as u32) {
        // SAFETY: aligned u64 fields of a map value; a probe can be preempted by another on
        // the same CPU, hence atomic.
        unsafe {
            atomic::add(&raw mut (*counter).packets, 1);
            atomic::add(&raw mut (*counter).bytes, bytes);
        }
    }
}

#[inline(always)]
fn output<T: Copy + 'static>(event: &T) {
    if PC_EVENTS.output::<T>(event, 0).is_err() {
        lost(Loss::RingFullOther, 0);
    }
}

#[inline(always)]
pub fn first_drop(addr: Addr, rule_id: u64) {
    output(&FirstDrop { kind: kind::FIRST_DROP, reserved: 0, time_ns: now(), rule_id, addr });
}

#[inline(always)]
pub fn closed(connection: u64) {
    output(&TlsClosed { kind: kind::TLS_CLOSED, reserved: 0, time_ns: now(), connection });
}

#[inline(always)]
pub fn exec() {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    output(&Exec { kind: kind::EXEC, pid, time_ns: now() });
}

#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes no arguments.
    unsafe { bpf_ktime_get_ns() }
}
