//! Every map. Names match `portcullis_common::names`; capacities are its defaults, which the
//! loader replaces with the configured ones.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockMap},
};
use portcullis_common::{
    answer::Answered,
    event::Loss,
    names::capacity,
    net::{Addr, FlowKey},
    policy::{DenyEntry, DenyKey, PacketCount, Reason},
    settings::Settings,
    steer::{Steered, slot},
};

/// Whom to drop. Not LRU: only userspace removes an entry.
#[map]
pub static PC_DENY: HashMap<DenyKey, DenyEntry> = HashMap::with_max_entries(capacity::DENY, 0);

/// Whom never to drop.
#[map]
pub static PC_ALLOW: LpmTrie<Addr, u32> =
    LpmTrie::with_max_entries(capacity::ALLOW, aya_ebpf::bindings::BPF_F_NO_PREALLOC);

#[map]
pub static PC_SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

#[map]
pub static PC_REASONS: PerCpuArray<PacketCount> = PerCpuArray::with_max_entries(Reason::COUNT, 0);

/// The decoy's listening sockets, by [`slot`]. One that is closed leaves by itself.
#[map]
pub static PC_DECOY: SockMap = SockMap::with_max_entries(slot::COUNT, 0);

/// Connections asked for by steered clients, by [`Steered`].
#[map]
pub static PC_STEERED: Array<u64> = Array::with_max_entries(Steered::COUNT, 0);

/// What became of dropped packets that could be answered, by [`Answered`].
#[map]
pub static PC_ANSWERS: Array<u64> = Array::with_max_entries(Answered::COUNT, 0);

/// When each CPU may answer again, on the monotonic clock.
#[map]
pub static PC_ANSWER_PACE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

#[map]
pub static PC_EVENTS: RingBuf = RingBuf::with_byte_size(capacity::RING_BYTES, 0);

/// Calls and bytes that capture lost, by [`Loss`].
#[map]
pub static PC_LOSSES: PerCpuArray<PacketCount> = PerCpuArray::with_max_entries(Loss::COUNT, 0);

/// The TLS call that each thread is in. LRU, because a thread can die inside one.
#[map]
pub static PC_CALLS: LruHashMap<u64, Call> = LruHashMap::with_max_entries(capacity::CALLS, 0);

/// The socket below each TLS object, and how much plaintext has gone through.
#[map]
pub static PC_CONNECTIONS: LruHashMap<TlsObject, Connection> =
    LruHashMap::with_max_entries(capacity::CONNECTIONS, 0);

/// The TLS object above each socket, by the socket's cookie.
#[map]
pub static PC_SOCKETS: LruHashMap<u64, Owner> =
    LruHashMap::with_max_entries(capacity::CONNECTIONS, 0);

/// The number of the next connection.
#[map]
pub static PC_NEXT_ID: Array<u64> = Array::with_max_entries(1, 0);

/// A thread's call of the TLS library, between its entry and its return.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Call {
    pub object: TlsObject,
    pub buffer: u64,
    /// Where the call will write the length it moved, for the functions that do.
    pub length_at: u64,
    pub direction: u32,
    pub signature: u32,
}

/// A TLS object: its address within a process.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TlsObject {
    pub address: u64,
    pub tgid: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Connection {
    pub id: u64,
    pub cookie: u64,
    /// Plaintext bytes by `event::direction`, reported or lost.
    pub moved: [u64; 2],
    pub flow: FlowKey,
}

impl Connection {
    /// The id of connections that are not to be reported.
    pub const IGNORED: u64 = 0;
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Owner {
    pub object: TlsObject,
    pub id: u64,
}
