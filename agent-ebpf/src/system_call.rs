//! The buffer of the system call that the current thread is in.

use aya_ebpf::helpers::{
    bpf_probe_read_kernel, bpf_probe_read_user as read_user,
    generated::{bpf_get_current_task_btf, bpf_task_pt_regs},
};
use portcullis_common::settings::SystemCalls;

/// Set by the loader for the running kernel.
#[unsafe(no_mangle)]
static SYSTEM_CALLS: SystemCalls = SystemCalls {
    number: 0,
    second_argument: 0,
    read: 0,
    recvfrom: 0,
    write: 0,
    sendto: 0,
    readv: 0,
    writev: 0,
    recvmsg: 0,
    sendmsg: 0,
};

/// `struct iovec`, as 64-bit programs have it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Piece {
    base: u64,
    len: u64,
}

/// Offset of `msg_iov` in `struct user_msghdr` of 64-bit programs.
const MESSAGE_PIECES: u64 = 16;

/// A piece of the program's memory.
#[derive(Clone, Copy)]
pub struct Buffer {
    address: u64,
    len: u64,
}

impl Buffer {
    #[inline(always)]
    pub fn new(address: u64, len: u64) -> Self {
        Self { address, len }
    }

    /// Its first bytes, if there are as many.
    #[inline(always)]
    pub fn first<T>(&self) -> Option<T> {
        if self.len < size_of::<T>() as u64 {
            return None;
        }
        // SAFETY: the helper checks the user address itself; any bytes are a `T`, which is an
        // array of bytes or made of integers wherever this is called.
        unsafe { read_user(self.address as *const T) }.ok()
    }
}

/// The front of what the call moved, which were `moved` bytes: as much of it as lies in one piece.
/// `None` in a call that is not for one socket and one message.
#[inline(always)]
pub fn buffer(moved: i32) -> Option<Buffer> {
    if moved <= 0 {
        return None;
    }
    let moved = moved as u64;
    // SAFETY: a static of plain integers; volatile, because the loader changes it after the
    // compiler has seen it.
    let calls = unsafe { core::ptr::read_volatile(&raw const SYSTEM_CALLS) };
    let registers = registers();
    let number = register(registers, calls.number)? as u32;
    let argument = register(registers, calls.second_argument)?;
    if number == calls.read
        || number == calls.write
        || number == calls.recvfrom
        || number == calls.sendto
    {
        return Some(Buffer { address: argument, len: moved });
    }
    let pieces = if number == calls.readv || number == calls.writev {
        argument
    } else if number == calls.recvmsg || number == calls.sendmsg {
        // SAFETY: the helper checks the user address itself.
        unsafe { read_user(argument.wrapping_add(MESSAGE_PIECES) as *const u64) }.ok()?
    } else {
        return None;
    };
    // SAFETY: the helper checks the user address itself.
    let piece = unsafe { read_user(pieces as *const Piece) }.ok()?;
    let len = if piece.len < moved { piece.len } else { moved };
    Some(Buffer { address: piece.base, len })
}

/// The program's registers as it made the call: a `struct pt_regs`.
#[inline(always)]
pub fn registers() -> *const u8 {
    // SAFETY: the first helper takes no arguments; the task that it returns is what the second
    // one takes.
    unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as *const u8 }
}

#[inline(always)]
pub fn register(registers: *const u8, offset: u32) -> Option<u64> {
    // SAFETY: the helper checks the address itself; the offset is that of a register.
    unsafe { bpf_probe_read_kernel(registers.add(offset as usize).cast::<u64>()) }.ok()
}
