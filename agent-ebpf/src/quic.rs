//! Samples of the datagrams that QUIC connections begin with. What is in them is encrypted, so that
//! userspace has to look for the ClientHello.

use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_ringbuf_output};
use portcullis_common::event::{Loss, MAX_QUIC_SAMPLE, QuicInitial, kind};
use portcullis_common::settings::QUIC_SAMPLES_PER_SECOND;

use crate::{
    headers::Packet,
    maps::{PC_EVENTS, PC_QUIC_BUDGET, PC_QUIC_SAMPLE},
    packet::{Anywhere, Bytes as _, Frame, InPlace},
    report,
};

/// A client's datagrams with Initial packets are no shorter (RFC 9000, section 14.1).
const SHORTEST: u64 = 1200;
/// The longest connection id (RFC 9000, section 17.2).
const LONGEST_ID: u8 = 20;

/// The first byte of Initial packets, less the bits that are protected; and their version: RFC 9000,
/// section 17.2.2, and RFC 9369, section 3.2.
const INITIAL_MASK: u8 = 0xf0;
const V1: (u8, u32) = (0xc0, 0x0000_0001);
const V2: (u8, u32) = (0xd0, 0x6b33_43cf);

/// Samples the packet if it begins like a client's first of QUIC.
#[inline(always)]
pub fn observe(frame: impl Frame, packet: &Packet, len: u64) {
    if is_long_enough(packet, len) {
        look(frame, packet, len);
    }
}

#[inline(always)]
fn is_long_enough(packet: &Packet, len: u64) -> bool {
    let at = packet.udp_payload_at;
    at != 0 && len >= u64::from(at) + SHORTEST
}

/// Whether the packet begins like a client's first of QUIC. Perhaps, where it can't be read in place.
#[inline(always)]
pub fn may_begin(frame: impl Frame, packet: &Packet, len: u64) -> bool {
    is_long_enough(packet, len)
        && InPlace::of(&frame).read_stored(packet.udp_payload_at).is_none_or(is_begin)
}

/// A function of its own, for the stack it needs.
#[inline(never)]
fn look(frame: impl Frame, packet: &Packet, len: u64) {
    let at = packet.udp_payload_at;
    let is_initial = match InPlace::of(&frame).read_stored(at) {
        Some(begin) => is_begin(begin),
        None => begins_anywhere(frame, at),
    };
    if is_initial {
        sample(frame, packet, len);
    }
}

#[inline(never)]
fn begins_anywhere(frame: impl Frame, at: u32) -> bool {
    Anywhere(frame).read(at as usize).is_some_and(is_begin)
}

/// First byte, version, length of the destination's connection id.
#[inline(always)]
fn is_begin([first, a, b, c, d, id]: [u8; 6]) -> bool {
    let begin = (first & INITIAL_MASK, u32::from_be_bytes([a, b, c, d]));
    (begin == V1 || begin == V2) && id <= LONGEST_ID
}

/// Reports the datagram, as far as the budget goes. A function of its own, for the stack it needs.
#[inline(never)]
fn sample(frame: impl Frame, packet: &Packet, len: u64) {
    if !may_report() {
        return report::lost(Loss::QuicUnsampled, 0);
    }
    let Some(sample) = PC_QUIC_SAMPLE.get_ptr_mut(0) else { return };
    let at = packet.udp_payload_at;
    let longest = MAX_QUIC_SAMPLE as u64;
    // Not 0, and hidden from the compiler, which would do without the mask.
    let last = len.saturating_sub(u64::from(at)).clamp(1, longest) - 1;
    let size = (core::hint::black_box(last) & (SAMPLE_ROOM as u64 - 1)) + 1;
    // SAFETY: this CPU's own value, and programs for packets do not interrupt each other; it has
    // room for `SAMPLE_ROOM` bytes behind the event, which is the most that `size` can be.
    let reported = unsafe {
        let data = (&raw mut (*sample).data).cast();
        if !frame.copy_out(at, data, size as u32) {
            return;
        }
        // Field by field: the whole would lie on the stack first.
        let event = &raw mut (*sample).event;
        (*event).kind = kind::QUIC_INITIAL;
        (*event).len = size as u32;
        (*event).time_ns = report::now();
        (*event).flow.local = packet.destination.addr();
        (*event).flow.remote = packet.source.addr();
        (*event).flow.local_port = packet.port.number();
        (*event).flow.remote_port = packet.source_port as u16;
        (*event).flow.protocol = u32::from(packet.port.protocol());
        bpf_ringbuf_output(
            (&raw const PC_EVENTS).cast_mut().cast(),
            sample.cast(),
            size_of::<QuicInitial>() as u64 + size,
            0,
        )
    };
    if reported != 0 {
        report::lost(Loss::RingFullOther, 0);
    }
}

/// Room for a sample: a power of two that is at least [`MAX_QUIC_SAMPLE`].
pub const SAMPLE_ROOM: usize = 2048;

/// Where a sample is made.
#[repr(C)]
pub struct Sample {
    event: QuicInitial,
    data: [u8; SAMPLE_ROOM],
}

/// Whether this CPU may report one more in this second.
#[inline(always)]
fn may_report() -> bool {
    let Some(budget) = PC_QUIC_BUDGET.get_ptr_mut(0) else { return false };
    // SAFETY: the helper takes no arguments.
    let second = unsafe { bpf_ktime_get_coarse_ns() } >> 30 << 32;
    // SAFETY: this CPU's slot of a per-CPU array, and programs for packets do not interrupt each
    // other.
    let budget = unsafe { &mut *budget };
    if *budget >> 32 << 32 != second {
        *budget = second;
    }
    if *budget as u32 >= QUIC_SAMPLES_PER_SECOND {
        return false;
    }
    *budget += 1;
    true
}
