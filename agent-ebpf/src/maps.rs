//! Every map. Names match `portcullis_common::names`; capacities are its defaults, which the
//! loader replaces with the configured ones.

use aya_ebpf::{
    bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array as InnerArray, ArrayOfMaps},
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockMap},
};
use portcullis_common::{
    answer::Answered,
    event::{ClientHello, HelloCount, Loss},
    fingerprint::{MAX_HELLO, Parser},
    gate::{V4_BLOCKS, V4_WORDS, V6_BLOCKS, V6_WIDE, V6_WORDS},
    names::capacity,
    net::{Addr, FlowInfo, FlowKey},
    policy::{
        BucketSet, ConjunctionKey, FingerprintRules, Limit, MAX_SCOPES, PacketCount, Reason, Rule,
    },
    prefix_table::Bucket,
    settings::Settings,
    steer::{Steered, slot},
};

use crate::{answer::LONGEST_REPLY, policy::Work, quic};

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
pub static PC_PREFIXES: ArrayOfMaps<InnerArray<Bucket, 1, TABLE_FLAGS>, 2> = ArrayOfMaps::new();

/// Inner maps can differ in size.
const TABLE_FLAGS: usize = (BPF_F_MMAPABLE | BPF_F_INNER_MAP) as usize;

/// See `portcullis_common::gate`; of both sets.
#[map]
pub static PC_V4_GATE: Array<u64> = Array::with_max_entries(2 * V4_WORDS, BPF_F_MMAPABLE);

/// See `portcullis_common::gate`; of both sets.
#[map]
pub static PC_V4_LENGTHS: Array<u64> = Array::with_max_entries(2 * V4_BLOCKS, BPF_F_MMAPABLE);

/// See `portcullis_common::gate`; of both sets.
#[map]
pub static PC_V6_GATE: Array<u64> = Array::with_max_entries(2 * V6_WORDS, BPF_F_MMAPABLE);

/// See `portcullis_common::gate`; of both sets.
#[map]
pub static PC_V6_LENGTHS: Array<[u64; 2]> = Array::with_max_entries(2 * V6_BLOCKS, BPF_F_MMAPABLE);

/// See `portcullis_common::gate`; of both sets.
#[map]
pub static PC_V6_WIDE: Array<u64> = Array::with_max_entries(2 * V6_WIDE, BPF_F_MMAPABLE);

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

/// The packet that this CPU is judging.
#[map]
pub static PC_WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

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

/// The reply to the packet at hand, by words.
#[map]
pub static PC_REPLY: PerCpuArray<[u32; LONGEST_REPLY]> = PerCpuArray::with_max_entries(1, 0);

#[map]
pub static PC_EVENTS: RingBuf = RingBuf::with_byte_size(capacity::RING_BYTES, 0);

/// Calls and bytes that capture lost, by [`Loss`].
#[map]
pub static PC_LOSSES: PerCpuArray<PacketCount> = PerCpuArray::with_max_entries(Loss::COUNT, 0);

/// The TLS call that each thread is in. LRU, because a thread can die inside one.
#[map]
pub static PC_CALLS: LruHashMap<u64, Call> = LruHashMap::with_max_entries(capacity::CALLS, 0);

/// The call of Go's TLS that each goroutine is in. As many as connections, since a server waits for
/// the next request in one. LRU, because a process can end inside.
#[map]
pub static PC_GOROUTINES: LruHashMap<Goroutine, GoCall> =
    LruHashMap::with_max_entries(capacity::CONNECTIONS, 0);

/// The socket below each TLS object, and how much plaintext has gone through.
#[map]
pub static PC_CONNECTIONS: LruHashMap<TlsObject, Connection> =
    LruHashMap::with_max_entries(capacity::CONNECTIONS, 0);

/// The TLS object above each socket, by the socket's cookie.
#[map]
pub static PC_SOCKETS: LruHashMap<u64, Owner> =
    LruHashMap::with_max_entries(capacity::CONNECTIONS, 0);

/// Processes that carry the ciphertext between the TLS library and sockets themselves.
#[map]
pub static PC_CARRIERS: LruHashMap<u32, u32> = LruHashMap::with_max_entries(capacity::CARRIERS, 0);

/// Records that such a process has from the TLS library, and has not sent yet. What is evicted
/// leaves its connection unknown until the next record.
#[map]
pub static PC_CIPHERTEXT: LruHashMap<Ciphertext, Sealed> =
    LruHashMap::with_max_entries(capacity::CIPHERTEXT, 0);

/// When such a process made its TLS objects.
#[map]
pub static PC_CREATED: LruHashMap<TlsObject, u64> =
    LruHashMap::with_max_entries(capacity::CONNECTIONS, 0);

/// The number of the next connection.
#[map]
pub static PC_NEXT_ID: Array<u64> = Array::with_max_entries(1, 0);

/// Where the bytes of flows begin: the upper half of the flow's hash, and the sequence number. Any
/// flow may lose its slot to another: a SYN costs one store, whoever sends it.
#[map]
pub static PC_STARTS: Array<u64> = Array::with_max_entries(capacity::STARTS, 0);

/// Hellos of which more is to come.
#[map]
pub static PC_HELLOS: Array<Assembly> = Array::with_max_entries(capacity::HELLOS, 0);

/// For the packet at hand.
#[map]
pub static PC_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Hellos reported in a second: the second, and the number, by a hash of the source.
#[map]
pub static PC_HELLO_BUDGETS: PerCpuArray<u64> =
    PerCpuArray::with_max_entries(capacity::HELLO_BUDGETS, 0);

/// What became of hellos, by [`HelloCount`].
#[map]
pub static PC_HELLO_COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(HelloCount::COUNT, 0);

/// Pieces of a hello that may wait for what is missing before them.
pub const MAX_RECEIVED: usize = 8;

#[repr(C)]
pub struct Scratch {
    pub segment: Segment,
    pub info: FlowInfo,
    pub assembly: Assembly,
}

/// A TCP segment that may be part of a hello. In a map rather than on the stack: else the verifier
/// would go through all that is done with it once for each arrangement of headers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Segment {
    pub flow: FlowKey,
    /// [`FlowKey::hash`].
    pub hash: u64,
    /// Of the first byte of the payload.
    pub sequence: u32,
    /// Offset in the frame.
    pub payload_at: u32,
    pub payload_len: u32,
    /// Not 0 when it is a SYN.
    pub opens: u32,
}

/// A hello, as far as it has come.
#[repr(C)]
pub struct Assembly {
    /// 1 while a CPU works on it.
    pub lock: u64,
    /// When it got its last segment, on the coarse clock; 0 when the place is free.
    pub used_ns: u64,
    pub parser: Parser,
    /// Sequence number of the first byte.
    pub first: u32,
    /// How many bytes have come without a gap.
    pub contiguous: u32,
    /// `client_hello::reassembly::Outcome`.
    pub outcome: u32,
    pub reserved: u32,
    pub received: [Received; MAX_RECEIVED],
    /// Whose it is, and in front of the data what it is reported with. Its kind is 0 when the place is
    /// free.
    pub event: ClientHello,
    /// Twice as long as what it holds: the verifier sees a piece copied to any offset below `MAX_HELLO`,
    /// and of any length up to there.
    pub data: [u8; 2 * MAX_HELLO as usize],
}

/// A piece behind a gap, from offset to offset; none when it ends at 0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Received {
    pub start: u32,
    pub end: u32,
}

impl Received {
    pub const NONE: Self = Self { start: 0, end: 0 };
}
/// Datagrams of QUIC reported by this CPU: the second, and the number in it.
#[map]
pub static PC_QUIC_BUDGET: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// For the datagram at hand.
#[map]
pub static PC_QUIC_SAMPLE: PerCpuArray<quic::Sample> = PerCpuArray::with_max_entries(1, 0);

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
    /// Not 0 when the thread has used a socket within the call.
    pub used_socket: u32,
    pub reserved: u32,
}

/// A goroutine: the address of its `g` within a process.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Goroutine {
    pub g: u64,
    pub tgid: u32,
    pub reserved: u32,
}

/// A goroutine's call of a method of `*tls.Conn`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct GoCall {
    pub call: Call,
    /// The end of the goroutine's stack when the call began; 0 when the buffer is not on it.
    pub stack_end: u64,
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

/// A record that no other connection of the process has: bytes that its TLS library chose at random or
/// encrypted.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ciphertext {
    pub bytes: [u8; 16],
    pub tgid: u32,
}

/// Who made a record, and when.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Sealed {
    pub object: TlsObject,
    pub time_ns: u64,
}
