//! The TLS fingerprints of clients, from the first bytes that each flow carries.
//!
//! Where a flow's bytes begin, its SYN tells ([`PC_STARTS`]). Segments near there are put together
//! until the ClientHello is whole ([`reassembly`]), whatever their order; then the flow gets its
//! fingerprint and is settled: nothing more is looked for in it. Of a flow whose SYN was not seen, a
//! segment that begins like a hello is taken for its beginning.

mod reassembly;

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use portcullis_common::{
    event::HelloCount,
    fingerprint::{MAX_HELLO, Seed, Transport},
    names::capacity,
    net::{FlowInfo, FlowKey, TCP, flow_hash},
    settings::{REPORTS_PER_SECOND, Settings},
};

use crate::{
    flows,
    headers::{Packet, Tcp},
    maps::{
        Assembly, PC_FINGERPRINTS, PC_FLOWS, PC_HELLO_BUDGETS, PC_HELLO_COUNTS, PC_KNOWN,
        PC_SCRATCH, PC_SETTINGS, PC_STARTS, Scratch,
    },
    packet::{Anywhere, Bytes as _, Frame, InPlace},
    report,
    steps::Steps,
};
use reassembly::{Outcome, Piece};

/// Added to the sequence number of a settled flow's start, so that no byte of it is near there.
const SETTLED: u32 = 1 << 31;

/// How every hello over TCP begins: a handshake record of version 3.x, in it a ClientHello (RFC
/// 8446, sections 5.1 and 4).
const HANDSHAKE: u8 = 22;
const MAJOR_VERSION: u8 = 3;
const CLIENT_HELLO: u8 = 1;

/// Where the bytes of a flow begin: the slot, and the upper half of the flow's hash, by which the
/// slot is known to be the flow's.
#[derive(Clone, Copy)]
struct Start {
    slot: *mut u64,
    tag: u64,
}

impl Start {
    #[inline(always)]
    fn of(hash: u64) -> Option<Self> {
        let slot = PC_STARTS.get_ptr_mut(hash as u32 & (capacity::STARTS - 1))?;
        Some(Self { slot, tag: hash & !u64::from(u32::MAX) })
    }

    /// The slot's value, less the tag: the sequence number of the flow's first byte, or more than
    /// 32 bits when the slot is another flow's.
    #[inline(always)]
    fn first(self) -> u64 {
        // SAFETY: an aligned u64 of the map; volatile, as other CPUs write it.
        self.tag ^ unsafe { self.slot.read_volatile() }
    }

    #[inline(always)]
    fn set(self, first: u32) {
        // SAFETY: as above; one instruction writes all of it.
        unsafe { self.slot.write_volatile(self.tag | u64::from(first)) };
    }

    #[inline(always)]
    fn settle(self, first: u32) {
        self.set(first.wrapping_add(SETTLED));
    }
}

/// Looks for the hello of the packet's flow. When this packet completes it, the flow gets its
/// fingerprint, and passes the gate to the fingerprint's rules, if there are any.
#[inline(always)]
pub fn observe(frame: impl Steps, packet: &Packet) {
    // Only TCP has either.
    if (packet.tcp.payload_len != 0 || packet.tcp.opens()) && is_noted(frame, packet) {
        frame.take_hello_in();
    }
}

/// Whether the segment opens a flow or lies near its beginning. Then it is noted in the scratch. A
/// function of its own, for the stack it needs.
#[inline(never)]
fn is_noted(frame: impl Frame, packet: &Packet) -> bool {
    let Some(settings) = PC_SETTINGS.get(0) else { return false };
    let Tcp { sequence, payload_at, payload_len, .. } = packet.tcp;
    let opens = packet.tcp.opens();
    let hash = packet.flow_hash(settings.seed);
    if !is_near_beginning(frame, packet.tcp, hash) {
        return false;
    }
    let Some(scratch) = PC_SCRATCH.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own value of a per-CPU array, and packet programs do not interrupt each
    // other. Written field by field: not on the stack first.
    unsafe {
        let segment = &raw mut (*scratch).segment;
        (*segment).flow.local = packet.destination.addr();
        (*segment).flow.remote = packet.source.addr();
        (*segment).flow.local_port = packet.port.number();
        (*segment).flow.remote_port = packet.source_port as u16;
        (*segment).flow.protocol = TCP;
        (*segment).hash = hash;
        // A SYN has a sequence number of its own, and may have data behind it (RFC 7413).
        (*segment).sequence = sequence.wrapping_add(u32::from(opens));
        (*segment).payload_at = payload_at;
        (*segment).payload_len = payload_len;
        (*segment).opens = u32::from(opens);
    }
    true
}

/// Whether the segment opens its flow or has to do with the first bytes of it; `hash` is the
/// flow's. Perhaps, where it can't be read in place.
#[inline(always)]
pub fn is_near_beginning(frame: impl Frame, tcp: Tcp, hash: u64) -> bool {
    if tcp.opens() {
        return true;
    }
    if tcp.payload_len == 0 {
        return false;
    }
    let Some(start) = Start::of(hash) else { return false };
    let first = start.first();
    if first <= u64::from(u32::MAX) {
        return tcp.sequence.wrapping_sub(first as u32) < MAX_HELLO;
    }
    // The SYN was not seen.
    tcp.payload_len >= 6 && InPlace::of(&frame).read_stored(tcp.payload_at).is_none_or(is_begin)
}

/// Whether the payload begins like a hello, wherever it lies.
#[inline(never)]
fn begins_hello(frame: impl Frame, payload_at: u32) -> bool {
    Anywhere(frame).read(payload_at as usize).is_some_and(is_begin)
}

#[inline(always)]
fn is_begin([kind, major, _, _, _, message]: [u8; 6]) -> bool {
    kind == HANDSHAKE && major == MAJOR_VERSION && message == CLIENT_HELLO
}

/// Takes in the segment of the scratch; 0.
#[inline(always)]
pub fn take_in(frame: impl Frame) -> u32 {
    // Arrays of one have a first element.
    if let Some(scratch) = PC_SCRATCH.get_ptr_mut(0) {
        take_segment_in(frame, scratch);
    }
    0
}

#[inline(always)]
fn take_segment_in(frame: impl Frame, scratch: *mut Scratch) {
    // SAFETY: this CPU's own value of a per-CPU array; nothing writes its segment from here on.
    let segment = unsafe { &(*scratch).segment };
    let flow = &segment.flow;
    let Some(start) = Start::of(segment.hash) else { return };
    let mut first = start.first();
    if segment.opens != 0 {
        // What is known of these two ends is about an earlier connection of theirs.
        let _ = PC_FLOWS.remove(flow);
        first = u64::from(segment.sequence);
        start.set(segment.sequence);
    } else if first > u64::from(u32::MAX) {
        // The SYN was not seen. Should the flow have a fingerprint, then from its hello: what looks
        // like another is none.
        // SAFETY: nothing is read from it.
        if unsafe { PC_FLOWS.get(flow) }.is_some() || !begins_hello(frame, segment.payload_at) {
            return;
        }
        first = u64::from(segment.sequence);
        start.set(segment.sequence);
    }
    let first = first as u32;
    let at = segment.sequence.wrapping_sub(first);
    if segment.payload_len == 0 || at >= MAX_HELLO {
        return;
    }
    let len = segment.payload_len.min(MAX_HELLO - at);
    let piece = Piece { at, from: segment.payload_at, len };
    // SAFETY: as above.
    let own = unsafe { &raw mut (*scratch).assembly };
    let assembly = reassembly::place(frame, piece, own, segment, first);
    if assembly.is_null() {
        return;
    }
    let outcome = reassembly::run(assembly);
    if outcome != Outcome::WAITING {
        start.settle(first);
        conclude(assembly, outcome);
    }
    reassembly::release(assembly, outcome != Outcome::WAITING);
}

/// Gives the flow the key of the hello, or counts why there is none.
#[inline(never)]
fn conclude(assembly: *mut Assembly, outcome: u32) {
    let Some(settings) = PC_SETTINGS.get(0) else { return };
    let Some(scratch) = PC_SCRATCH.get_ptr_mut(0) else { return };
    if outcome != Outcome::DONE {
        if let Some(counted) = Outcome::counted(outcome) {
            count(counted);
        }
        return;
    }
    // SAFETY: the scratch is this CPU's own; the assembly is too or it is locked, and its parser has
    // read a whole hello.
    let (segment, info) = unsafe {
        let key = (*assembly).parser.key(Transport::Tcp, Seed(settings.seed));
        (*scratch).info = FlowInfo { fingerprint: key, seen_ns: report::now() };
        (&(*scratch).segment, &(*scratch).info)
    };
    let (flow, fingerprint) = (&segment.flow, &info.fingerprint);
    if PC_FLOWS.insert(flow, info, 0).is_err() {
        count(HelloCount::NotKept);
    }
    count(HelloCount::Fingerprinted);
    // SAFETY: nothing is read from it.
    let has_rules = unsafe { PC_FINGERPRINTS.get(fingerprint) }.is_some();
    if has_rules {
        flows::open_gate(segment.hash, settings);
    }
    // Userspace learns new fingerprints, and closes the connections of those that are denied.
    // SAFETY: as above.
    if has_rules || unsafe { PC_KNOWN.get(fingerprint) }.is_none() {
        if may_report(flow, settings) {
            report::client_hello(assembly, flow, info);
        } else {
            count(HelloCount::Unreported);
        }
    }
}

/// Whether this CPU may report one more hello of this source in this second. Sources share budgets
/// by a hash that they can't choose: who invents hellos keeps few others from being reported.
#[inline(always)]
fn may_report(flow: &FlowKey, settings: &Settings) -> bool {
    let [network, host] = flow.remote.halves();
    // An IPv6 client has a whole /64, and IPv4 mapped into IPv6 none.
    let host = if network == 0 { host } else { 0 };
    let hash = flow_hash([network, host], [0; 2], 0, settings.seed);
    let Some(budget) = PC_HELLO_BUDGETS.get_ptr_mut(hash as u32 & (capacity::HELLO_BUDGETS - 1))
    else {
        return false;
    };
    // SAFETY: the helper takes no arguments.
    let second = unsafe { bpf_ktime_get_coarse_ns() } >> 30 << 32;
    // SAFETY: this CPU's slot of a per-CPU array, and packet programs do not interrupt each other.
    let budget = unsafe { &mut *budget };
    if *budget >> 32 << 32 != second {
        *budget = second;
    }
    if *budget as u32 >= REPORTS_PER_SECOND {
        return false;
    }
    *budget += 1;
    true
}

#[inline(always)]
pub fn count(what: HelloCount) {
    if let Some(counter) = PC_HELLO_COUNTS.get_ptr_mut(what as u32) {
        // SAFETY: this CPU's slot of a per-CPU array, and packet programs do not interrupt each
        // other.
        unsafe { *counter = (*counter).wrapping_add(1) };
    }
}
