//! The TLS library's calls: remembered at entry, reported at return.

use aya_ebpf::{
    helpers::{
        bpf_get_current_pid_tgid, bpf_probe_read_user as read_user,
        generated::{bpf_get_current_comm, bpf_probe_read_user},
    },
    programs::{ProbeContext, RetProbeContext},
};
use portcullis_common::event::{Loss, MAX_DATA, TlsData, direction, kind};

use crate::{
    ciphertext,
    maps::{Call, Connection, PC_CALLS, PC_CONNECTIONS, PC_EVENTS, TlsObject},
    report::{lost, now},
};

/// How a function says how much it moved.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Signature {
    /// It returns the length, or something not positive.
    Length = 0,
    /// It returns 1 and writes the length to where one of its arguments points.
    LengthByPointer = 1,
    /// It moves nothing.
    NoData = 2,
}

/// `length_argument` counts from 0, for the signature that has one.
#[inline(always)]
pub fn enter(ctx: &ProbeContext, direction: u32, signature: Signature, length_argument: usize) {
    let thread = bpf_get_current_pid_tgid();
    let object =
        TlsObject { address: ctx.arg(0).unwrap_or(0), tgid: (thread >> 32) as u32, reserved: 0 };
    let call = Call {
        object,
        buffer: ctx.arg(1).unwrap_or(0),
        length_at: ctx.arg(length_argument).unwrap_or(0),
        direction,
        signature: signature as u32,
        used_socket: 0,
        reserved: 0,
    };
    if PC_CALLS.insert(thread, call, 0).is_err() {
        lost(Loss::TableFull, 0);
    }
}

#[inline(always)]
pub fn leave(ctx: &RetProbeContext) {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: only this thread's own calls write this entry, and it is here.
    let Some(call) = (unsafe { PC_CALLS.get(thread) }).copied() else { return };
    // The entry is there, so this cannot fail in a way that matters.
    let _ = PC_CALLS.remove(thread);
    let len = moved(ctx, &call);
    let connection = PC_CONNECTIONS.get_ptr_mut(call.object);
    if connection.is_none() && call.used_socket == 0 {
        ciphertext::found_carrier(call.object.tgid);
    }
    if len == 0 {
        return;
    }
    let Some(connection) = connection else {
        lost(Loss::NoSocket, u64::from(len));
        return;
    };
    // SAFETY: a pointer into a map value stays valid while the program runs. A TLS object is
    // used by one thread at a time (OpenSSL's own rule), so nobody else writes it now.
    let connection = unsafe { &mut *connection };
    if connection.id == Connection::IGNORED {
        return;
    }
    let moved = &mut connection.moved[(call.direction & 1) as usize];
    let offset = *moved;
    *moved = offset.wrapping_add(u64::from(len));
    send(&call, connection, offset, len);
}

/// How many bytes the call moved; 0 when it failed.
#[inline(always)]
fn moved(ctx: &RetProbeContext, call: &Call) -> u32 {
    let returned: i32 = ctx.ret::<u64>() as i32;
    if returned <= 0 || call.signature == Signature::NoData as u32 {
        return 0;
    }
    if call.signature == Signature::Length as u32 {
        return returned as u32;
    }
    // SAFETY: the helper checks the user address itself.
    let len = unsafe { read_user(call.length_at as *const u64) };
    match len {
        Ok(len) => u32::try_from(len).unwrap_or(u32::MAX),
        Err(_) => {
            lost(Loss::Unreadable, 0);
            0
        }
    }
}

/// An event with room for `N` bytes of data behind its header.
#[repr(C)]
struct Sized<const N: usize> {
    header: TlsData,
    data: [u8; N],
}

/// Reports through the smallest of a few sizes: the ring buffer reserves only sizes known to
/// the verifier, and a per-CPU scratch buffer would be shared with probes that preempt this one.
#[inline(always)]
pub fn send(call: &Call, connection: &Connection, offset: u64, len: u32) {
    match len {
        0..=256 => reserve_and_fill::<256>(call, connection, offset, len),
        257..=512 => reserve_and_fill::<512>(call, connection, offset, len),
        513..=1024 => reserve_and_fill::<1024>(call, connection, offset, len),
        1025..=2048 => reserve_and_fill::<2048>(call, connection, offset, len),
        2049..=4096 => reserve_and_fill::<4096>(call, connection, offset, len),
        4097..=8192 => reserve_and_fill::<8192>(call, connection, offset, len),
        _ => reserve_and_fill::<MAX_DATA>(call, connection, offset, len),
    }
}

#[inline(always)]
fn reserve_and_fill<const N: usize>(call: &Call, connection: &Connection, offset: u64, len: u32) {
    let Some(mut entry) = PC_EVENTS.reserve::<Sized<N>>(0) else {
        let loss = match call.direction {
            direction::READ => Loss::RingFullRead,
            _ => Loss::RingFullWrite,
        };
        lost(loss, u64::from(len));
        return;
    };
    let event = entry.as_mut_ptr();
    let copied = if len > N as u32 { N as u32 } else { len };
    // SAFETY: the reservation has room for a whole `Sized<N>`, all of whose header is written
    // here; `comm` has the size that is given. The address of the header has alignment 8.
    unsafe {
        let header = &raw mut (*event).header;
        (&raw mut (*header).kind).write(kind::TLS_DATA);
        (&raw mut (*header).direction).write(call.direction);
        (&raw mut (*header).time_ns).write(now());
        (&raw mut (*header).connection).write(connection.id);
        (&raw mut (*header).offset).write(offset);
        (&raw mut (*header).flow).write(connection.flow);
        (&raw mut (*header).pid).write(call.object.tgid);
        (&raw mut (*header).len).write(len);
        (&raw mut (*header).copied).write(copied);
        (&raw mut (*header).reserved).write(0);
        bpf_get_current_comm((&raw mut (*header).comm).cast(), 16);
    }
    // SAFETY: `data` has room for `N` bytes, and no more are asked for; the helper checks the
    // user address itself. The volatile read keeps the compiler from dropping the comparison
    // as redundant: the verifier needs it next to the call.
    let unreadable = unsafe {
        let size = (&raw const (*event).header.copied).read_volatile();
        let size = if size > N as u32 { N as u32 } else { size };
        bpf_probe_read_user((&raw mut (*event).data).cast(), size, call.buffer as *const _) != 0
    };
    if unreadable {
        entry.discard(0);
        lost(Loss::Unreadable, u64::from(len));
        return;
    }
    entry.submit(0);
    if len > copied {
        lost(Loss::CallTooLong, u64::from(len - copied));
    }
}
