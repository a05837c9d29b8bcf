//! Calls of Go's `crypto/tls`. Arguments and results are in registers as Go 1.17 and later have
//! them (src/cmd/compile/abi-internal.md of its source: RAX, RBX, …, and the goroutine in R14).
//!
//! A goroutine moves between threads wherever it waits, so a call belongs to its goroutine. There
//! is no uretprobe, which would put its own address on a stack that Go walks and moves: the end of
//! a call is a probe on each of the function's `ret` instructions.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user as read_user},
    programs::{BtfTracePointContext, ProbeContext},
};
use portcullis_common::event::{Loss, direction};

use crate::{
    atomic,
    maps::{Call, Connection, GoCall, Goroutine, PC_CONNECTIONS, PC_GOROUTINES, TlsObject},
    report::lost,
    socket, system_call,
    uprobe::{self, Signature},
};

/// Of R14 in `struct pt_regs` (arch/x86/include/asm/ptrace.h).
const R14_OFFSET: u32 = 8;

/// The method of `*tls.Conn` that this goroutine enters: the receiver is in RAX, and the address
/// of the slice, if it has one, in RBX. Comes twice where the stack has to grow first.
#[inline(always)]
pub fn enter(ctx: &ProbeContext, direction: u32) {
    // SAFETY: the kernel gives the program valid registers.
    let (object, buffer) = unsafe { ((*ctx.regs).rax, (*ctx.regs).rbx) };
    begin(ctx, object, buffer, direction, Signature::Length);
}

/// `clientHandshake` or `serverHandshake`, once in the life of a `tls.Conn`. What is known of its
/// address is about one that is no more, and the first socket that is used now is its own: Go
/// sends or receives the ClientHello before it calls anything of the program's.
#[inline(always)]
pub fn enter_handshake(ctx: &ProbeContext) {
    // SAFETY: the kernel gives the program valid registers.
    let object = unsafe { (*ctx.regs).rax };
    socket::forget(object);
    // SAFETY: a map value stays readable while the program runs.
    let outer = unsafe { PC_GOROUTINES.get(goroutine(ctx)) };
    // A `Read` or `Write` can come first, and shake hands itself.
    if outer.is_some_and(|outer| outer.call.object.address == object) {
        return;
    }
    begin(ctx, object, 0, direction::READ, Signature::NoData);
}

#[inline(always)]
fn begin(ctx: &ProbeContext, address: u64, buffer: u64, direction: u32, signature: Signature) {
    let goroutine = goroutine(ctx);
    let object = TlsObject { address, tgid: goroutine.tgid, reserved: 0 };
    let signature = signature as u32;
    let call =
        Call { object, buffer, length_at: 0, direction, signature, used_socket: 0, reserved: 0 };
    let Some([low, high]) = stack(goroutine) else {
        lost(Loss::Unreadable, 0);
        return;
    };
    let on_stack = buffer >= low && buffer < high;
    let call = GoCall { call, stack_end: if on_stack { high } else { 0 } };
    if PC_GOROUTINES.insert(goroutine, call, 0).is_err() {
        lost(Loss::TableFull, 0);
    }
}

/// The method returns: the number of bytes is in RAX.
#[inline(always)]
pub fn leave(ctx: &ProbeContext) {
    // SAFETY: the kernel gives the program valid registers.
    let returned = unsafe { (*ctx.regs).rax } as i64;
    let len = match returned {
        ..=0 => 0,
        1..=0xffff_ffff => returned as u32,
        _ => u32::MAX,
    };
    let goroutine = goroutine(ctx);
    // SAFETY: only this goroutine's own calls write this entry, and it is here.
    let Some(found) = (unsafe { PC_GOROUTINES.get(goroutine) }).copied() else {
        // It began before there were probes, or around another call of the same goroutine, as
        // with TLS over TLS.
        if len != 0 {
            lost(Loss::NoSocket, u64::from(len));
        }
        return;
    };
    // The entry is there, so this cannot fail in a way that matters.
    let _ = PC_GOROUTINES.remove(goroutine);
    if len == 0 {
        return;
    }
    let Some(buffer) = buffer_now(goroutine, &found) else {
        lost(Loss::Unreadable, u64::from(len));
        return;
    };
    let call = Call { buffer, ..found.call };
    let Some(connection) = PC_CONNECTIONS.get_ptr_mut(call.object) else {
        lost(Loss::NoSocket, u64::from(len));
        return;
    };
    // SAFETY: a pointer into a map value stays valid while the program runs, and the counter is
    // an aligned u64. Atomic, because goroutines can use a `tls.Conn` at the same time.
    let (id, offset) = unsafe {
        let moved = &raw mut (*connection).moved[(call.direction & 1) as usize];
        ((*connection).id, atomic::fetch_add(moved, u64::from(len)))
    };
    if id != Connection::IGNORED {
        // SAFETY: as above; what is read of it does not change.
        uprobe::send(&call, unsafe { &*connection }, offset, len);
    }
}

/// The handshake has returned. A `Read` or `Write` around it goes on.
#[inline(always)]
pub fn leave_handshake(ctx: &ProbeContext) {
    let goroutine = goroutine(ctx);
    // SAFETY: a map value stays readable while the program runs.
    let Some(found) = (unsafe { PC_GOROUTINES.get(goroutine) }) else { return };
    if found.call.signature == Signature::NoData as u32 {
        let _ = PC_GOROUTINES.remove(goroutine);
    }
}

/// `sock_send_length` and `sock_recv_length`, as in [`socket::used_first`]. Go has its goroutine in R14
/// when it makes the system call, whatever thread it is on.
#[inline(always)]
pub fn used(ctx: &BtfTracePointContext) {
    let registers = system_call::registers();
    let Some(g) = system_call::register(registers, R14_OFFSET) else { return };
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: a map value stays readable while the program runs.
    let call = unsafe { PC_GOROUTINES.get(Goroutine { g, tgid, reserved: 0 }) };
    if let Some(found) = call {
        socket::used_first(ctx, found.call.object);
    }
}

#[inline(always)]
fn goroutine(ctx: &ProbeContext) -> Goroutine {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: the kernel gives the program valid registers.
    Goroutine { g: unsafe { (*ctx.regs).r14 }, tgid, reserved: 0 }
}

/// The bounds of its stack, with which Go's `struct g` begins (src/runtime/runtime2.go).
#[inline(always)]
fn stack(goroutine: Goroutine) -> Option<[u64; 2]> {
    // SAFETY: the helper checks the user address itself.
    unsafe { read_user(goroutine.g as *const [u64; 2]) }.ok()
}

/// Where the slice is at the end of the call. Go moves a stack that grows or shrinks with all that
/// is on it, and keeps what lies there at its distance from the end (src/runtime/stack.go,
/// `copystack`).
#[inline(always)]
fn buffer_now(goroutine: Goroutine, found: &GoCall) -> Option<u64> {
    if found.stack_end == 0 {
        return Some(found.call.buffer);
    }
    let [_, high] = stack(goroutine)?;
    Some(found.call.buffer.wrapping_add(high).wrapping_sub(found.stack_end))
}
