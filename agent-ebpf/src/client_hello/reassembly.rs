//! The bytes of hellos, from segments in any order.

use core::{ffi::c_void, ptr};

use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_loop};
use portcullis_common::{
    event::{HelloCount, kind},
    fingerprint::{Bytes, MAX_HELLO, Parser, Progress, Refusal, Seed, Transport},
    names::capacity,
    net::FlowKey,
};

use super::count;
use crate::{
    atomic,
    maps::{Assembly, PC_HELLOS, PC_SETTINGS, Received, Segment},
    packet::Frame,
};

/// Bytes of a frame, and where in the hello they belong.
#[derive(Clone, Copy)]
pub struct Piece {
    pub at: u32,
    /// Offset in the frame.
    pub from: u32,
    pub len: u32,
}

/// What came of the bytes so far. Numbers and not an enum, as they go through memory that another
/// CPU may have written.
pub struct Outcome;

impl Outcome {
    pub const WAITING: u32 = 0;
    // From 1 on: `Refusal`.
    pub const DONE: u32 = 16;
    pub const NOT_TLS: u32 = 17;
    pub const TOO_MANY_PIECES: u32 = 18;

    /// What to count a flow under that gets no key.
    #[inline(always)]
    pub fn counted(outcome: u32) -> Option<HelloCount> {
        const MALFORMED: u32 = Refusal::Malformed as u32;
        const TOO_LONG: u32 = Refusal::TooLong as u32;
        const TOO_MANY: u32 = Refusal::TooMany as u32;
        match outcome {
            MALFORMED => Some(HelloCount::Malformed),
            TOO_LONG => Some(HelloCount::TooLong),
            TOO_MANY => Some(HelloCount::TooManyValues),
            Self::TOO_MANY_PIECES => Some(HelloCount::TooManyPieces),
            _ => None,
        }
    }
}

/// The bytes of an assembly that follow each other from its first.
struct Data(*const Assembly);

impl Bytes for Data {
    #[inline(always)]
    fn available(&self) -> u32 {
        // SAFETY: a pointer into a map value stays valid while the program runs.
        unsafe { (*self.0).contiguous }
    }

    #[inline(always)]
    fn byte(&self, at: u32) -> u8 {
        // Hidden from the compiler, which would do without the mask where it knows more than the verifier.
        let at = (core::hint::black_box(at) & (MAX_HELLO - 1)) as usize;
        // SAFETY: as above; the data is longer than `MAX_HELLO`.
        unsafe { (&raw const (*self.0).data).cast::<u8>().add(at).read() }
    }
}

/// Puts a piece where the parser can read it; null when there is nothing to read.
#[inline(always)]
pub fn place(
    frame: impl Frame,
    piece: Piece,
    scratch: *mut Assembly,
    segment: &Segment,
    first: u32,
) -> *mut Assembly {
    if piece.at == 0 {
        // Most hellos are one segment, and need no place of their own.
        if !copy(frame, piece, scratch) {
            count(HelloCount::Unreadable);
            return ptr::null_mut();
        }
        let data = Data(scratch);
        let is_tls = begins_record(&data, piece.len);
        if !is_tls || has_message(&data, piece.len) {
            // SAFETY: this CPU's own value.
            unsafe {
                (*scratch).parser = Parser::new(Transport::Tcp);
                (*scratch).contiguous = piece.len;
                (*scratch).outcome = if is_tls { Outcome::WAITING } else { Outcome::NOT_TLS };
            }
            return scratch;
        }
    }
    let assembly = claim(segment.hash, &segment.flow, first);
    if !assembly.is_null() {
        add(frame, piece, assembly);
    }
    assembly
}

/// Whether a flow may be TLS whose first `len` bytes these are; there is one at least.
#[inline(always)]
fn begins_record(data: &Data, len: u32) -> bool {
    data.byte(0) == super::HANDSHAKE && (len == 1 || data.byte(1) == super::MAJOR_VERSION)
}

/// Whether these `len` bytes have a whole handshake message in their first record.
#[inline(always)]
fn has_message(data: &Data, len: u32) -> bool {
    let word = |at| u32::from(data.byte(at)) << 8 | u32::from(data.byte(at + 1));
    const RECORD_HEADER: u32 = 5;
    const MESSAGE_HEADER: u32 = 4;
    // The upper byte of the message's length is 0, or the parser refuses it.
    let message = MESSAGE_HEADER + word(7);
    len >= RECORD_HEADER + MESSAGE_HEADER && len >= RECORD_HEADER + message && word(3) >= message
}

/// The assembly of the packet's flow, locked; null when it can't be had. Others hold two places
/// that it can be in; when both are taken it takes that of the one that waits the longest.
#[inline(always)]
fn claim(hash: u64, flow: &FlowKey, first: u32) -> *mut Assembly {
    let place = (hash >> 24) as u32 & (capacity::HELLOS - 1) & !1;
    let (Some(one), Some(other)) = (PC_HELLOS.get_ptr_mut(place), PC_HELLOS.get_ptr_mut(place | 1))
    else {
        return ptr::null_mut();
    };
    // SAFETY: pointers into map values stay valid while the program runs.
    let one_is_older = unsafe { (*one).used_ns <= (*other).used_ns };
    let chosen = if is_of(other, flow, first) {
        other
    } else if is_of(one, flow, first) || one_is_older {
        one
    } else {
        other
    };
    // SAFETY: the lock is an aligned u64 of the map value.
    if unsafe { atomic::exchange_if(&raw mut (*chosen).lock, 0, 1) } != 0 {
        count(HelloCount::Contended);
        return ptr::null_mut();
    }
    if !is_of(chosen, flow, first) {
        // SAFETY: as above, and locked.
        if unsafe { (*chosen).event.kind } != 0 {
            count(HelloCount::Evicted);
        }
        begin(chosen, flow, first);
    }
    // SAFETY: as above; the helper takes no arguments.
    unsafe { (*chosen).used_ns = bpf_ktime_get_coarse_ns() };
    chosen
}

#[inline(always)]
fn is_of(assembly: *const Assembly, flow: &FlowKey, first: u32) -> bool {
    // SAFETY: a pointer into a map value stays valid while the program runs, and any bytes are
    // values of these types.
    unsafe {
        (*assembly).first == first
            && (*assembly).event.kind == kind::CLIENT_HELLO
            && is_same(&raw const (*assembly).event.flow, flow)
    }
}

/// Whether two flows are the same. Their bytes the compiler would compare one by one.
///
/// # Safety
/// Both point to one.
#[inline(always)]
unsafe fn is_same(one: *const FlowKey, other: *const FlowKey) -> bool {
    let (one, other) = (one.cast::<u32>(), other.cast::<u32>());
    let mut difference = 0;
    for word in 0..size_of::<FlowKey>() / 4 {
        // SAFETY: the type has alignment 4 and this many words, of which any bytes are values; the
        // caller vouches for the pointers.
        difference |= unsafe { *one.add(word) ^ *other.add(word) };
    }
    difference == 0
}

#[inline(always)]
fn begin(assembly: *mut Assembly, flow: &FlowKey, first: u32) {
    // SAFETY: a pointer into a map value stays valid while the program runs; it is locked.
    unsafe {
        (*assembly).event.kind = kind::CLIENT_HELLO;
        (*assembly).event.flow = *flow;
        (*assembly).first = first;
        (*assembly).contiguous = 0;
        (*assembly).received = [Received::NONE; _];
        (*assembly).parser = Parser::new(Transport::Tcp);
    }
}

/// Unlocks an assembly, and gives it back when it is `over`.
#[inline(always)]
pub fn release(assembly: *mut Assembly, over: bool) {
    // SAFETY: a pointer into a map value stays valid while the program runs; it is locked, and the
    // lock is an aligned u64.
    unsafe {
        if over {
            (*assembly).event.kind = 0;
            (*assembly).used_ns = 0;
        }
        atomic::exchange_if(&raw mut (*assembly).lock, 1, 0);
    }
}

/// Adds a piece to the assembly, which is locked.
#[inline(always)]
fn add(frame: impl Frame, piece: Piece, assembly: *mut Assembly) {
    // SAFETY: a pointer into a map value stays valid while the program runs; it is locked.
    let contiguous = unsafe {
        (*assembly).outcome = Outcome::WAITING;
        (*assembly).contiguous
    };
    let end = piece.at + piece.len;
    if end <= contiguous {
        return;
    }
    // What is there has been read, perhaps; it stays.
    let known = contiguous.saturating_sub(piece.at);
    let piece = Piece { at: piece.at + known, from: piece.from + known, len: piece.len - known };
    if !copy(frame, piece, assembly) {
        // The rest of the hello may come all the same.
        count(HelloCount::Unreadable);
    } else if piece.at > contiguous {
        keep(assembly, Received { start: piece.at, end });
    } else {
        advance(assembly, end);
    }
}

/// Remembers bytes before which others are missing. Those remembered neither overlap nor touch.
#[inline(always)]
fn keep(assembly: *mut Assembly, mut new: Received) {
    // SAFETY: a pointer into a map value stays valid while the program runs; it is locked.
    let received = unsafe { &mut (*assembly).received };
    for kept in received.iter_mut() {
        if kept.end != 0 && kept.start <= new.end && new.start <= kept.end {
            new.start = new.start.min(kept.start);
            new.end = new.end.max(kept.end);
            *kept = Received::NONE;
        }
    }
    for kept in received.iter_mut() {
        if kept.end == 0 {
            *kept = new;
            return;
        }
    }
    // SAFETY: as above.
    unsafe { (*assembly).outcome = Outcome::TOO_MANY_PIECES };
}

/// All bytes up to `end` are there, and those that were remembered behind it.
#[inline(always)]
fn advance(assembly: *mut Assembly, mut end: u32) {
    // SAFETY: as in `keep`.
    let received = unsafe { &mut (*assembly).received };
    for kept in received.iter_mut() {
        if kept.end != 0 && kept.start <= end {
            end = end.max(kept.end);
            *kept = Received::NONE;
        }
    }
    // SAFETY: as above.
    unsafe { (*assembly).contiguous = end };
}

/// Copies the piece to its place; false when the frame is shorter than its headers say.
#[inline(always)]
fn copy(frame: impl Frame, piece: Piece, assembly: *mut Assembly) -> bool {
    let at = (piece.at & (MAX_HELLO - 1)) as usize;
    let size = known_bounds(piece.len);
    // SAFETY: a pointer into a map value stays valid while the program runs; the data has room for
    // `MAX_HELLO` bytes behind any offset below `MAX_HELLO`.
    unsafe {
        let to = (&raw mut (*assembly).data).cast::<u8>().add(at).cast();
        frame.copy_out(piece.from, to, size)
    }
}

/// `len`, which is from 1 to `MAX_HELLO`, in a way that the verifier sees to be so.
#[inline(always)]
fn known_bounds(len: u32) -> u32 {
    (core::hint::black_box(len - 1) & (MAX_HELLO - 1)) + 1
}

/// What the loop of the kernel hands to each step.
#[repr(C)]
struct Reading {
    assembly: *mut Assembly,
    seed: Seed,
}

/// What has come of the assembly, when it has been read as far as there are bytes. A function of its
/// own, for the stack it needs.
#[inline(never)]
pub fn run(assembly: *mut Assembly) -> u32 {
    // SAFETY: a pointer into a map value stays valid while the program runs; it is this CPU's or
    // locked.
    let outcome = unsafe { (*assembly).outcome };
    let Some(settings) = PC_SETTINGS.get(0) else { return outcome };
    if outcome != Outcome::WAITING {
        return outcome;
    }
    let mut reading = Reading { assembly, seed: Seed(settings.seed) };
    // SAFETY: a pointer into a map value stays valid while the program runs; `step` is a function
    // of the kind that the helper calls, and `reading` what it takes. Every step of the parser but the
    // last consumes a byte, so there are no more than `MAX_HELLO + 1`.
    unsafe {
        bpf_loop(
            (MAX_HELLO + 1).div_ceil(STEPS),
            steps as *mut c_void,
            (&raw mut reading).cast(),
            0,
        );
        (&raw const (*assembly).outcome).read_volatile()
    }
}

/// Steps of the parser in one round of the loop, a call of which costs as much as some steps.
const STEPS: u32 = 6;

/// Some steps of the parser; 1 when it made the last for now. All that changes from step to step lies
/// in the map: what the verifier knows of the stack it takes to be so in every step.
unsafe extern "C" fn steps(_: u64, reading: *mut Reading) -> i64 {
    // SAFETY: `run` passes a reading whose assembly is this CPU's or locked.
    let (assembly, seed) = unsafe { ((*reading).assembly, (*reading).seed) };
    // SAFETY: as above; nothing else refers to the parser.
    let parser = unsafe { &mut (*assembly).parser };
    for _ in 0..STEPS {
        let outcome = match parser.step(&Data(assembly), seed) {
            Progress::Going => continue,
            Progress::Waiting => Outcome::WAITING,
            Progress::Done => Outcome::DONE,
            Progress::Refused(refusal) => refusal as u32,
        };
        // SAFETY: as above.
        unsafe { (&raw mut (*assembly).outcome).write_volatile(outcome) };
        return 1;
    }
    0
}
