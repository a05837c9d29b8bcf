//! Which socket carries the records of a TLS object when the program moves them itself, between
//! the TLS library and its sockets: the one that sends the same bytes.
//!
//! What the program sends tells more than what it receives. A client can neither choose nor
//! repeat the bytes: they are random or encrypted by this side. And it can't cut them to pieces: the
//! first thing that a server sends is the whole of its hello. That which thread does what after
//! what proves nothing here.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, programs::ProbeContext};
use portcullis_common::event::Loss;

use crate::{
    maps::{
        Ciphertext, PC_CALLS, PC_CARRIERS, PC_CIPHERTEXT, PC_CONNECTIONS, PC_CREATED, Sealed,
        TlsObject,
    },
    report::{lost, no_socket, now},
    system_call::Buffer,
};

/// Record types (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
/// Handshake types (RFC 8446, section 4), both with 32 random bytes in the same place.
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
/// How the random bytes of a HelloRetryRequest begin, which are always the same (RFC 8446, section
/// 4.1.3).
const RETRY: [u8; 4] = [0xcf, 0x21, 0xad, 0x74];

/// The front of a record, up to the end of what tells it apart.
#[repr(C)]
#[derive(Clone, Copy)]
struct Front {
    record_type: u8,
    version: [u8; 2],
    length: [u8; 2],
    handshake_type: u8,
    /// The rest of the header of a hello.
    skipped: [u8; 5],
    unique: [u8; 16],
}

/// A TLS object was called and its thread used no socket. Whoever reads the report has the process's
/// `BIO_write` probed.
#[inline(always)]
pub fn found_carrier(tgid: u32) {
    if is_carrier(tgid) || !no_socket(tgid) {
        return;
    }
    if PC_CARRIERS.insert(tgid, 1, 0).is_err() {
        lost(Loss::TableFull, 0);
    }
}

#[inline(always)]
pub fn is_carrier(tgid: u32) -> bool {
    // SAFETY: the value is not looked at.
    unsafe { PC_CARRIERS.get(tgid) }.is_some()
}

/// The program has made a TLS object: what was sealed by an earlier one at its address is not its.
#[inline(always)]
pub fn created(object: TlsObject) {
    if is_carrier(object.tgid) && PC_CREATED.insert(object, now(), 0).is_err() {
        lost(Loss::TableFull, 0);
    }
}

/// `BIO_write` within a call of the TLS library: a record of the call's object.
#[inline(always)]
pub fn sealed(ctx: &ProbeContext) {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: only this thread's own calls write this entry, and it is here.
    let Some(call) = (unsafe { PC_CALLS.get(thread) }) else { return };
    let object = call.object;
    // SAFETY: the value is not looked at.
    if unsafe { PC_CONNECTIONS.get(object) }.is_some() {
        return;
    }
    let len = ctx.arg::<u64>(2).unwrap_or(0) & 0x7fff_ffff;
    let buffer = Buffer::new(ctx.arg(1).unwrap_or(0), len);
    let Some(record) = recognise(buffer, object.tgid) else { return };
    if PC_CIPHERTEXT.insert(record, Sealed { object, time_ns: now() }, 0).is_err() {
        lost(Loss::TableFull, 0);
    }
}

/// Whose record lies at the front of what the current process has just sent. Tells it once.
#[inline(always)]
pub fn maker(buffer: Buffer, tgid: u32) -> Option<TlsObject> {
    let record = recognise(buffer, tgid)?;
    // SAFETY: a map value stays readable while the program runs.
    let sealed = unsafe { PC_CIPHERTEXT.get(record) }.copied()?;
    let _ = PC_CIPHERTEXT.remove(record);
    // SAFETY: as above.
    let created = unsafe { PC_CREATED.get(sealed.object) }.copied();
    if created.is_some_and(|created| created > sealed.time_ns) {
        return None;
    }
    Some(sealed.object)
}

/// `None` for what is no whole record, and for records that many connections have: certificates,
/// alerts and the like, which are not encrypted in every version.
#[inline(always)]
fn recognise(buffer: Buffer, tgid: u32) -> Option<Ciphertext> {
    let front: Front = buffer.first()?;
    let length = u16::from_be_bytes(front.length) as usize;
    if front.version[0] != 3 || length < size_of::<Front>() - 5 {
        return None;
    }
    let is_hello = front.record_type == HANDSHAKE
        && (front.handshake_type == CLIENT_HELLO || front.handshake_type == SERVER_HELLO);
    let [a, b, c, d, ..] = front.unique;
    if front.record_type != APPLICATION_DATA && (!is_hello || [a, b, c, d] == RETRY) {
        return None;
    }
    Some(Ciphertext { bytes: front.unique, tgid })
}
