//! Every map. Names match `portcullis_common::names`; capacities are its defaults, which the
//! loader replaces with the configured ones.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{ArrayOfMaps, HashMap as InnerHash},
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockMap},
};
use portcullis_common::{
    answer::Answered,
    event::Loss,
    gate::V4_WORDS,
    names::capacity,
    net::{Addr, FlowInfo, FlowKey},
    policy::{
        BucketSet, ConjunctionKey, FingerprintRules, Limit, MAX_SCOPES, PacketCount, PrefixKey,
        PrefixRules, Reason, Rule,
    },
    settings::Settings,
    steer::{Steered, slot},
};

/// What happens to whose packets. Not LRU, as are none of the policy's maps: only userspace removes
/// a rule. Userspace writes it through memory that it shares.
#[map]
pub static PC_RULES: Array<Rule> =
    Array::with_max_entries(capacity::BLOCKS + capacity::LIST_RULES, BPF_F_MMAPABLE);

#[map]
pub static PC_LIMITS: Array<Limit> = Array::with_max_entries(capacity::LIMITS, BPF_F_MMAPABLE);

/// The clients of limits that are each client's own.
#[map]
pub static PC_BUCKETS: Array<BucketSet> = Array::with_max_entries(capacity::BUCKET_SETS, 0);

/// Addresses and networks: two sets, one of which is in force, so that a whole list is replaced in
/// one step. The inner maps are made by userspace, in the size that is needed.
#[btf_map]
pub static PC_PREFIXES: ArrayOfMaps<InnerHash<PrefixKey, PrefixRules, 1>, 2> = ArrayOfMaps::new();

/// See `portcullis_common::gate`; of both sets.
#[map]
pub static PC_V4_GATE: Array<u64> = Array::with_max_entries(2 * V4_WORDS, BPF_F_MMAPABLE);

/// See `portcullis_common::gate`; of both sets.
#[map]
pub static PC_PREFIX_GATE: Array<u64> =
    Array::with_max_entries(2 * capacity::PREFIX_GATE_WORDS, BPF_F_MMAPABLE);

/// Set for the flows that have rules, by their own or by their fingerprint's. Two generations: a
/// bit of either counts, and new ones are set in both, so that userspace can clear one at a time.
#[map]
pub static PC_FLOW_GATE: Array<u64> =
    Array::with_max_entries(2 * capacity::FLOW_GATE_WORDS, BPF_F_MMAPABLE);

#[map]
pub static PC_FLOW_RULES: HashMap<FlowKey, u32> =
    HashMap::with_max_entries(capacity::FLOW_RULES, BPF_F_NO_PREALLOC);

/// What was seen of flows: LRU, and nothing depends on an entry being there.
#[map]
pub static PC_FLOWS: LruHashMap<FlowKey, FlowInfo> =
    LruHashMap::with_max_entries(capacity::FLOWS, 0);

/// Connections that are asked for by clients whose rules steer them.
#[map]
pub static PC_STEERED_FL: LruHashMap<FlowKey, u32> =
    LruHashMap::with_max_entries(capacity::STEERED_FLOWS, 0);

/// The JA4 of each fingerprint that userspace has seen.
#[map]
pub static PC_KNOWN: HashMap<u64, [u8; 40]> =
    HashMap::with_max_entries(capacity::KNOWN, BPF_F_NO_PREALLOC);

#[map]
pub static PC_FINGERPRINTS: HashMap<u64, FingerprintRules> =
    HashMap::with_max_entries(capacity::FINGERPRINT_RULES, BPF_F_NO_PREALLOC);

#[map]
pub static PC_CONJUNCTIONS: HashMap<ConjunctionKey, u32> =
    HashMap::with_max_entries(capacity::CONJUNCTIONS, BPF_F_NO_PREALLOC);

/// Scopes that each destination port belongs to, and whether it is a failsafe port.
#[map]
pub static PC_PORTS: Array<u64> = Array::with_max_entries(1 << 16, BPF_F_MMAPABLE);

/// Scopes that a destination address belongs to.
#[map]
pub static PC_SCOPE_ADDRS: HashMap<Addr, u64> =
    HashMap::with_max_entries(capacity::SCOPE_ADDRESSES, BPF_F_NO_PREALLOC);

/// Which service each scope is, for userspace only.
#[map]
pub static PC_SCOPE_NAMES: Array<[u8; 64]> = Array::with_max_entries(MAX_SCOPES as u32, 0);

/// Whom never to drop.
#[map]
pub static PC_ALLOW: LpmTrie<Addr, u32> =
    LpmTrie::with_max_entries(capacity::ALLOW, BPF_F_NO_PREALLOC);

#[map]
pub static PC_SETTINGS: Array<Settings> = Array::with_max_entries(1, BPF_F_MMAPABLE);

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
