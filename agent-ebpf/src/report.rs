//! Into the ring buffer, or, when it is full, into the loss counters.

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid,
    generated::{bpf_ktime_get_ns, bpf_ringbuf_output},
};
use portcullis_common::{
    event::{ClientHello, Exec, FirstDrop, HelloCount, Loss, NoSocket, TlsClosed, kind},
    fingerprint::MAX_HELLO,
    net::{Addr, FlowInfo, FlowKey},
};

use crate::{
    atomic, client_hello,
    maps::{Assembly, PC_EVENTS, PC_LOSSES},
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

/// Whether it could be told.
#[inline(always)]
pub fn no_socket(pid: u32) -> bool {
    let event = NoSocket { kind: kind::NO_SOCKET, pid, time_ns: now() };
    let told = PC_EVENTS.output::<NoSocket>(&event, 0).is_ok();
    if !told {
        lost(Loss::RingFullOther, 0);
    }
    told
}

/// Reports the hello of an assembly, which is this CPU's or locked.
#[inline(always)]
pub fn client_hello(assembly: *mut Assembly, flow: &FlowKey, info: &FlowInfo) {
    // SAFETY: a pointer into a map value stays valid while the program runs; the data lies right
    // behind the event, and there are more than `MAX_HELLO` bytes of it.
    let reported = unsafe {
        let len = u64::from((*assembly).parser.consumed());
        if len > u64::from(MAX_HELLO) {
            return;
        }
        let event = &raw mut (*assembly).event;
        (*event).kind = kind::CLIENT_HELLO;
        (*event).len = len as u32;
        (*event).time_ns = info.seen_ns;
        (*event).flow = *flow;
        (*event).fingerprint = info.fingerprint;
        let ring = (&raw const PC_EVENTS).cast_mut().cast();
        bpf_ringbuf_output(ring, event.cast(), size_of::<ClientHello>() as u64 + len, 0)
    };
    if reported != 0 {
        client_hello::count(HelloCount::RingFull);
    }
}

#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes no arguments.
    unsafe { bpf_ktime_get_ns() }
}
