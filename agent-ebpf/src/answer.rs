//! An answer instead of silence: a dropped packet is turned into a TCP reset (RFC 9293, section
//! 3.10.7.1) or an ICMP error, "administratively prohibited" (RFC 1812, section 5.2.7.1; RFC 4443,
//! section 3.1), and goes back where it came from.
//!
//! Only plain packets are answered: no fragments, options, extension headers or tunnels, nothing
//! from or to more than one host, and no reset or ICMP error, so that no answer is ever answered.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use portcullis_common::{answer::Answered, settings::MAX_VLAN_TAGS};

use crate::{
    atomic,
    headers::{
        ETH_P_IP, ETH_P_IPV6, ETHERNET_LEN, ETHERTYPE_AT, IPPROTO_ICMP, IPPROTO_ICMPV6,
        IPPROTO_TCP, IPPROTO_UDP, VLAN_LEN, is_vlan, read_u16,
    },
    maps::{PC_ANSWER_PACE, PC_ANSWERS, PC_REPLY},
    packet::{Anywhere, Bytes, FrameMut},
};

/// Nanoseconds from one answer of a CPU to the next, on average; 0 for no answers.
#[unsafe(no_mangle)]
static ANSWER_INTERVAL_NS: u64 = 0;
/// Answers that a CPU gives at once after a pause.
const BURST: u64 = 100;

const IPPROTO_SCTP: u8 = 132;
const ICMP_ECHO_REQUEST: u8 = 8;
const ICMPV6_ECHO_REQUEST: u8 = 128;
const ICMP_PROHIBITED: [u8; 2] = [3, 13];
const ICMPV6_PROHIBITED: [u8; 2] = [1, 1];
const HOP_LIMIT: u8 = 64;

/// Flags of TCP.
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Bytes of headers by words, each as the packet has them. Sums and copies of words are the same
/// in either byte order.
type Words<const N: usize> = [u32; N];

/// The longest reply: two headers of IPv6, one of ICMP, and 8 bytes.
pub const LONGEST_REPLY: usize = 24;

/// Makes the answer out of `frame`, which begins with an Ethernet header; false for silence.
#[inline(always)]
pub fn answer(frame: &impl FrameMut) -> bool {
    // SAFETY: only userspace writes it, before the program is loaded.
    let interval = unsafe { read_volatile(addr_of!(ANSWER_INTERVAL_NS)) };
    if interval == 0 {
        return false;
    }
    let what = make(*frame, interval).unwrap_or(Answered::Silent);
    count(what);
    matches!(what, Answered::Reset | Answered::Unreachable)
}

/// A function of its own, for the stack it needs.
#[inline(never)]
fn make(frame: impl FrameMut, interval: u64) -> Option<Answered> {
    let (link_len, ethertype) = link(&frame)?;
    match ethertype {
        ETH_P_IP => v4(&frame, link_len, interval),
        ETH_P_IPV6 => v6(&frame, link_len, interval),
        _ => None,
    }
}

/// Length of the link header and the protocol above, of a frame from one host to one host.
#[inline(always)]
fn link(frame: &impl FrameMut) -> Option<(usize, u16)> {
    let addresses: [u8; 12] = Anywhere(*frame).read(0)?;
    // The bit of group addresses (IEEE 802).
    if (addresses[0] | addresses[6]) & 1 != 0 {
        return None;
    }
    let mut ethertype = read_u16(&Anywhere(*frame), ETHERTYPE_AT)?;
    let mut len = ETHERNET_LEN;
    for _ in 0..MAX_VLAN_TAGS {
        if !is_vlan(ethertype) {
            break;
        }
        ethertype = read_u16(&Anywhere(*frame), len + 2)?;
        len += VLAN_LEN;
    }
    Some((len, ethertype))
}

#[inline(always)]
fn v4(frame: &impl FrameMut, link_len: usize, interval: u64) -> Option<Answered> {
    // The header without options, and 8 bytes of what it carries: what an ICMP error quotes.
    let quoted: Words<7> = words(frame, link_len)?;
    let [version, _, len_high, len_low] = quoted[0].to_ne_bytes();
    let [_, protocol, _, _] = quoted[2].to_ne_bytes();
    let [_, _, offset_high, offset_low] = quoted[1].to_ne_bytes();
    // "Don't fragment" aside, all that concerns fragments is zero.
    if version != 0x45 || (offset_high & 0x3f) | offset_low != 0 {
        return None;
    }
    let (source, destination) = (quoted[3], quoted[4]);
    if !is_host_v4(source) || !is_host_v4(destination) {
        return None;
    }
    let carried = u16::from_be_bytes([len_high, len_low]).checked_sub(20)?;
    if protocol == IPPROTO_TCP {
        let reset = Reset::to(words(frame, link_len + 20)?, carried)?;
        if !may_answer(interval) {
            return Some(Answered::Limited);
        }
        let pseudo = sum(&[destination, source, word(0, IPPROTO_TCP, 0, 20)]);
        let [a, b, c, d, e] = header_v4(destination, source, IPPROTO_TCP, 20);
        let [f, g, h, i, j] = reset.header(pseudo);
        return send(frame, link_len, &[a, b, c, d, e, f, g, h, i, j], Answered::Reset);
    }
    let kind = quoted[5].to_ne_bytes()[0];
    if carried < 8 || !is_answered(protocol, kind, IPPROTO_ICMP, ICMP_ECHO_REQUEST) {
        return None;
    }
    if !may_answer(interval) {
        return Some(Answered::Limited);
    }
    let [a, b, c, d, e] = header_v4(destination, source, IPPROTO_ICMP, 8 + 28);
    let icmp = icmp_header(ICMP_PROHIBITED, sum(&quoted));
    let [q0, q1, q2, q3, q4, q5, q6] = quoted;
    let reply = [a, b, c, d, e, icmp, 0, q0, q1, q2, q3, q4, q5, q6];
    send(frame, link_len, &reply, Answered::Unreachable)
}

#[inline(always)]
fn v6(frame: &impl FrameMut, link_len: usize, interval: u64) -> Option<Answered> {
    // The header, and 8 bytes of what it carries.
    let quoted: Words<12> = words(frame, link_len)?;
    let [len_high, len_low, protocol, _] = quoted[1].to_ne_bytes();
    let carried = u16::from_be_bytes([len_high, len_low]);
    let [_, _, s0, s1, s2, s3, d0, d1, d2, d3, first, _] = quoted;
    let (source, destination) = ([s0, s1, s2, s3], [d0, d1, d2, d3]);
    if !is_host_v6(source) || !is_host_v6(destination) {
        return None;
    }
    let addresses = sum(&[s0, s1, s2, s3, d0, d1, d2, d3]);
    if protocol == IPPROTO_TCP {
        let reset = Reset::to(words(frame, link_len + 40)?, carried)?;
        if !may_answer(interval) {
            return Some(Answered::Limited);
        }
        let pseudo = addresses + sum(&[word(0, IPPROTO_TCP, 0, 20)]);
        let [a, b] = header_v6(IPPROTO_TCP, 20);
        let [t0, t1, t2, t3, t4] = reset.header(pseudo);
        let reply = [a, b, d0, d1, d2, d3, s0, s1, s2, s3, t0, t1, t2, t3, t4];
        return send(frame, link_len, &reply, Answered::Reset);
    }
    let kind = first.to_ne_bytes()[0];
    if carried < 8 || !is_answered(protocol, kind, IPPROTO_ICMPV6, ICMPV6_ECHO_REQUEST) {
        return None;
    }
    if !may_answer(interval) {
        return Some(Answered::Limited);
    }
    let pseudo = addresses + sum(&[word(0, IPPROTO_ICMPV6, 0, 8 + 48)]);
    let icmp = icmp_header(ICMPV6_PROHIBITED, pseudo + sum(&quoted));
    let [a, b] = header_v6(IPPROTO_ICMPV6, 8 + 48);
    let [q0, q1, _, _, _, _, _, _, _, _, q10, q11] = quoted;
    let reply = [
        a, b, d0, d1, d2, d3, s0, s1, s2, s3, icmp, 0, q0, q1, s0, s1, s2, s3, d0, d1, d2, d3, q10,
        q11,
    ];
    send(frame, link_len, &reply, Answered::Unreachable)
}

/// Addresses of one host: neither "this network", loopback, multicast nor broadcast (RFC 6890).
#[inline(always)]
fn is_host_v4(address: u32) -> bool {
    let first = address.to_ne_bytes()[0];
    first != 0 && first != 127 && first < 224
}

/// Neither unspecified, loopback nor multicast (RFC 4291).
#[inline(always)]
fn is_host_v6([a, b, c, d]: Words<4>) -> bool {
    let unspecified_or_loopback = a | b | c == 0 && u32::from_be(d) <= 1;
    a.to_ne_bytes()[0] != 0xff && !unspecified_or_loopback
}

/// Whether an ICMP error is due: of ICMP, only to requests.
#[inline(always)]
fn is_answered(protocol: u8, kind: u8, icmp: u8, echo_request: u8) -> bool {
    protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP || protocol == icmp && kind == echo_request
}

/// What a reset needs of the segment that it answers.
struct Reset {
    ports: u32,
    sequence: u32,
    acknowledges: u32,
    flags: u8,
}

impl Reset {
    /// `None` for a segment that gets none, or that does not hold what its header says.
    /// `carried` is its length in bytes with its header.
    #[inline(always)]
    fn to(segment: Words<5>, carried: u16) -> Option<Self> {
        let [ports, sequence, acknowledged, offset_and_flags, _] = segment;
        let [offset, flags, _, _] = offset_and_flags.to_ne_bytes();
        let header_len = u16::from(offset >> 4) * 4;
        if flags & RST != 0 || header_len < 20 {
            return None;
        }
        let data_len = carried.checked_sub(header_len)?;
        // Both words of ports trade places.
        let ports = ports.rotate_left(16);
        if flags & ACK != 0 {
            return Some(Self { ports, sequence: acknowledged, acknowledges: 0, flags: RST });
        }
        let control = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let next = u32::from_be(sequence).wrapping_add(u32::from(data_len)).wrapping_add(control);
        Some(Self { ports, sequence: 0, acknowledges: next.to_be(), flags: RST | ACK })
    }

    #[inline(always)]
    fn header(&self, pseudo: u32) -> Words<5> {
        let flags = word(5 << 4, self.flags, 0, 0);
        let total = pseudo + sum(&[self.ports, self.sequence, self.acknowledges, flags]);
        let [high, low] = checksum(total);
        [self.ports, self.sequence, self.acknowledges, flags, word(high, low, 0, 0)]
    }
}

/// RFC 791, section 3.1. `len` is that of what the packet carries.
#[inline(always)]
fn header_v4(source: u32, destination: u32, protocol: u8, len: u16) -> Words<5> {
    let [high, low] = (20 + len).to_be_bytes();
    // Never fragmented, so the identification may be zero (RFC 6864, section 4.1).
    let (first, second) = (word(0x45, 0, high, low), word(0, 0, 0x40, 0));
    let third = sum(&[first, second, word(HOP_LIMIT, protocol, 0, 0), source, destination]);
    let [high, low] = checksum(third);
    [first, second, word(HOP_LIMIT, protocol, high, low), source, destination]
}

/// RFC 8200, section 3, up to the addresses.
#[inline(always)]
fn header_v6(protocol: u8, len: u16) -> Words<2> {
    let [high, low] = len.to_be_bytes();
    [word(0x60, 0, 0, 0), word(high, low, protocol, HOP_LIMIT)]
}

/// `rest` is the sum of all that the checksum covers beside this.
#[inline(always)]
fn icmp_header([kind, code]: [u8; 2], rest: u32) -> u32 {
    let [high, low] = checksum(rest + sum(&[word(kind, code, 0, 0)]));
    word(kind, code, high, low)
}

#[inline(always)]
fn word(a: u8, b: u8, c: u8, d: u8) -> u32 {
    u32::from_ne_bytes([a, b, c, d])
}

/// Adds up the 16-bit halves (RFC 1071); far from an overflow for the few words of a header.
#[inline(always)]
fn sum<const N: usize>(words: &Words<N>) -> u32 {
    let mut total = 0;
    for word in words {
        total += (word & 0xffff) + (word >> 16);
    }
    total
}

/// The checksum as the packet has it.
#[inline(always)]
fn checksum(sum: u32) -> [u8; 2] {
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    (!(folded as u16)).to_ne_bytes()
}

#[inline(always)]
fn words<const N: usize>(frame: &impl FrameMut, offset: usize) -> Option<Words<N>> {
    Anywhere(*frame).words(offset)
}

/// Puts the answer behind the link header, whose addresses trade places. `None` where the frame
/// can't be changed; it is dropped then.
#[inline(always)]
fn send<const N: usize>(
    frame: &impl FrameMut,
    link_len: usize,
    reply: &Words<N>,
    what: Answered,
) -> Option<Answered> {
    // As long as it can be with its tags; what is none of it the reply is written over.
    let mut link: [u8; ETHERNET_LEN + MAX_VLAN_TAGS * VLAN_LEN] = Anywhere(*frame).read(0)?;
    for at in 0..6 {
        link.swap(at, at + 6);
    }
    let to = PC_REPLY.get_ptr_mut(0)?;
    // SAFETY: this CPU's value of a per-CPU array, which is at least as long, and packet programs do not
    // interrupt each other.
    let reply = unsafe {
        let to = to.cast::<Words<N>>();
        for (at, word) in reply.iter().enumerate() {
            (*to)[at] = *word;
        }
        &*to
    };
    let done = frame.resize((link_len + N * 4) as u32)
        && frame.copy_in(0, &link)
        && frame.copy_in(link_len as u32, reply);
    done.then_some(what)
}

/// Takes one answer from this CPU's share: the generic cell rate algorithm.
#[inline(always)]
fn may_answer(interval: u64) -> bool {
    let Some(due) = PC_ANSWER_PACE.get_ptr_mut(0) else { return false };
    // SAFETY: the helper takes no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: this CPU's slot of a per-CPU array, and packet programs do not interrupt each
    // other.
    let due = unsafe { &mut *due };
    let from = if *due > now { *due } else { now };
    if from - now > interval.wrapping_mul(BURST) {
        return false;
    }
    *due = from.wrapping_add(interval);
    true
}

#[inline(always)]
fn count(what: Answered) {
    if let Some(counter) = PC_ANSWERS.get_ptr_mut(what as u32) {
        // SAFETY: an aligned u64 in a map value.
        unsafe { atomic::add(counter, 1) };
    }
}
