//! Rate limits: the generic cell rate algorithm (ITU-T I.371, annex A), exact under contention
//! because the arrival time is advanced by compare-and-exchange.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use portcullis_common::{
    gate,
    net::flow_hash,
    policy::{BUCKETS_OF_SET, Bucket, COST_SHIFT, unit},
    settings::Settings,
};

use crate::{
    atomic,
    maps::{PC_BUCKETS, PC_LIMITS},
    policy::Work,
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    Within,
    Exceeded,
    /// All buckets of the client's set are other clients' who are using them.
    NoRoom,
}

/// Tries of one packet to advance an arrival time. Each that fails is another packet's success, so
/// running out of them takes as many CPUs at once; the packet then counts as too much.
const TRIES: u32 = 16;

/// Takes what `packet` needs from the limit at `index`, of the rule at `rule`.
#[inline(always)]
pub fn take(index: u32, rule: u32, work: &Work, settings: &Settings) -> Taken {
    let Some(limit) = PC_LIMITS.get_ptr_mut(index) else { return Taken::Within };
    // SAFETY: a pointer into a map value stays valid while the program runs, and only userspace
    // writes these fields.
    let (cost, tolerance_ns, counted, client_prefix) =
        unsafe { ((*limit).cost, (*limit).tolerance_ns, (*limit).unit, (*limit).client_prefix) };
    let cost_ns = match counted {
        unit::BYTES => cost.wrapping_mul(work.len) >> COST_SHIFT,
        unit::CONNECTIONS if !work.packet.tcp.opens() => return Taken::Within,
        _ => cost >> COST_SHIFT,
    };
    // SAFETY: the helper takes no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let request = Request { now, cost_ns, tolerance_ns };
    let taken = if client_prefix == 0 {
        // SAFETY: an aligned u64 of the map value.
        request.take_from(unsafe { &raw mut (*limit).arrival_ns })
    } else {
        let client = client([cost, tolerance_ns], client_prefix, rule, work, settings);
        request.take_of_client(client, settings)
    };
    match taken {
        Taken::Within => {}
        // SAFETY: as above.
        Taken::Exceeded => unsafe { atomic::add(&raw mut (*limit).exceeded, 1) },
        // SAFETY: as above.
        Taken::NoRoom => unsafe { atomic::add(&raw mut (*limit).no_room, 1) },
    }
    taken
}

/// Seeded hash of the rule, its rate, and the part of the source that is one client. Of the rate,
/// since an arrival time under a rule's earlier rate may lie too far ahead for the new one.
#[inline(always)]
fn client(rate: [u64; 2], client_prefix: u32, rule: u32, work: &Work, settings: &Settings) -> u64 {
    let source = work.packet.source;
    let len = if source.is_v4() {
        96 + ((client_prefix & 0xff) - 1).min(32)
    } else {
        ((client_prefix >> 8 & 0xff) - 1).min(128)
    };
    let prefix = gate::masked(source.halves(), len);
    flow_hash(prefix, rate, u64::from(rule), settings.seed)
}

/// What one packet asks of a bucket.
#[derive(Clone, Copy)]
struct Request {
    now: u64,
    cost_ns: u64,
    tolerance_ns: u64,
}

impl Request {
    /// The arrival time after this packet, if it may come now.
    #[inline(always)]
    fn advance(self, arrival: u64) -> Option<u64> {
        let next = arrival.max(self.now).wrapping_add(self.cost_ns);
        // Compared by differences: an arrival time may lie before now by any time.
        (next.wrapping_sub(self.now) <= self.tolerance_ns.wrapping_add(self.cost_ns))
            .then_some(next)
    }

    #[inline(always)]
    fn take_from(self, arrival_ns: *mut u64) -> Taken {
        // SAFETY: the caller's pointer is to an aligned u64 in a map value.
        let mut arrival = unsafe { arrival_ns.read_volatile() };
        for _ in 0..TRIES {
            let Some(next) = self.advance(arrival) else { return Taken::Exceeded };
            // SAFETY: as above.
            let seen = unsafe { atomic::exchange_if(arrival_ns, arrival, next) };
            if seen == arrival {
                return Taken::Within;
            }
            arrival = seen;
        }
        Taken::Exceeded
    }

    /// Takes from the bucket of `client`: the one it has, else the last of its set whose
    /// time has passed. A client that is at its limit has a time yet to come, so that no number of
    /// others can put it out of the table.
    #[inline(always)]
    fn take_of_client(self, client: u64, settings: &Settings) -> Taken {
        let set = (client >> 32) as u32 & settings.bucket_sets.wrapping_sub(1);
        let Some(set) = PC_BUCKETS.get_ptr_mut(set) else { return Taken::Within };
        for _ in 0..CLAIMS {
            let (mut own, mut free) = (NOWHERE, NOWHERE);
            for slot in 0..BUCKETS_OF_SET {
                // SAFETY: a slot of the map value.
                let (holder, arrival) = read(unsafe { &raw mut (*set).slots[slot] });
                own = select(holder == client, slot, own, settings);
                free = select(arrival <= self.now, slot, free, settings);
            }
            let chosen = if own == NOWHERE { free } else { own };
            if chosen == NOWHERE {
                return Taken::NoRoom;
            }
            // SAFETY: a slot of the map value, as the mask says.
            let bucket = unsafe { &raw mut (*set).slots[chosen & (BUCKETS_OF_SET - 1)] };
            if own != NOWHERE || claim(bucket, client, self.now) {
                // SAFETY: an aligned u64 of the map value.
                return self.take_from(unsafe { &raw mut (*bucket).arrival_ns });
            }
        }
        Taken::NoRoom
    }
}

/// Tries of one packet to get a bucket for its client. Each that fails is another client's success on
/// another CPU, in the same set.
const CLAIMS: u32 = 3;

/// Whether the free bucket is the client's from now on. False when another client on another CPU was quicker.
#[inline(always)]
fn claim(bucket: *mut Bucket, client: u64, now: u64) -> bool {
    let (holder, arrival) = read(bucket);
    if arrival > now && holder != client {
        return false;
    }
    // SAFETY: an aligned u64 of the map value.
    let seen = unsafe { atomic::exchange_if(&raw mut (*bucket).client, holder, client) };
    seen == holder || seen == client
}

/// Whose bucket it is, and its arrival time.
#[inline(always)]
fn read(bucket: *mut Bucket) -> (u64, u64) {
    // SAFETY: aligned u64s of a map value.
    unsafe {
        (
            (&raw const (*bucket).client).read_volatile(),
            (&raw const (*bucket).arrival_ns).read_volatile(),
        )
    }
}

const NOWHERE: usize = BUCKETS_OF_SET;

/// `yes` or `no`, which the verifier does not know.
#[inline(always)]
fn select(which: bool, yes: usize, no: usize, settings: &Settings) -> usize {
    let chosen = if which { yes } else { no };
    // SAFETY: a field of a map value, read as often as it is written here.
    chosen.wrapping_add(unsafe { (&raw const settings.zero).read_volatile() } as usize)
}
