//! Names and capacities of maps, programs and global variables: each is written here once.

/// Policy maps: pinned by name, so that blocks outlive the agent.
pub mod pinned {
    pub const RULES: &str = "PC_RULES";
    pub const LIMITS: &str = "PC_LIMITS";
    pub const BUCKETS: &str = "PC_BUCKETS";
    pub const PREFIXES: &str = "PC_PREFIXES";
    pub const V4_GATE: &str = "PC_V4_GATE";
    pub const V4_LENGTHS: &str = "PC_V4_LENGTHS";
    pub const V6_GATE: &str = "PC_V6_GATE";
    pub const V6_LENGTHS: &str = "PC_V6_LENGTHS";
    pub const V6_WIDE: &str = "PC_V6_WIDE";
    pub const FLOW_GATE: &str = "PC_FLOW_GATE";
    pub const FLOW_RULES: &str = "PC_FLOW_RULES";
    pub const FLOWS: &str = "PC_FLOWS";
    pub const STEERED_FLOWS: &str = "PC_STEERED_FL";
    pub const KNOWN: &str = "PC_KNOWN";
    pub const FINGERPRINTS: &str = "PC_FINGERPRINTS";
    pub const CONJUNCTIONS: &str = "PC_CONJUNCTIONS";
    pub const PORTS: &str = "PC_PORTS";
    pub const SCOPE_ADDRESSES: &str = "PC_SCOPE_ADDRS";
    pub const SCOPE_NAMES: &str = "PC_SCOPE_NAMES";
    pub const ALLOW: &str = "PC_ALLOW";
    pub const SETTINGS: &str = "PC_SETTINGS";
    pub const REASONS: &str = "PC_REASONS";
    pub const ALL: [&str; 22] = [
        RULES,
        LIMITS,
        BUCKETS,
        PREFIXES,
        V4_GATE,
        V4_LENGTHS,
        V6_GATE,
        V6_LENGTHS,
        V6_WIDE,
        FLOW_GATE,
        FLOW_RULES,
        FLOWS,
        STEERED_FLOWS,
        KNOWN,
        FINGERPRINTS,
        CONJUNCTIONS,
        PORTS,
        SCOPE_ADDRESSES,
        SCOPE_NAMES,
        ALLOW,
        SETTINGS,
        REASONS,
    ];
}

/// Maps that live as long as the agent.
pub mod map {
    /// A set of prefixes, within [`super::pinned::PREFIXES`].
    pub const PREFIX_SET: &str = "PC_PREFIX_SET";
    pub const EVENTS: &str = "PC_EVENTS";
    pub const LOSSES: &str = "PC_LOSSES";
    pub const CALLS: &str = "PC_CALLS";
    pub const GOROUTINES: &str = "PC_GOROUTINES";
    pub const CONNECTIONS: &str = "PC_CONNECTIONS";
    pub const SOCKETS: &str = "PC_SOCKETS";
    pub const CIPHERTEXT: &str = "PC_CIPHERTEXT";
    pub const CARRIERS: &str = "PC_CARRIERS";
    pub const CREATED: &str = "PC_CREATED";
    pub const STARTS: &str = "PC_STARTS";
    pub const HELLOS: &str = "PC_HELLOS";
    pub const HELLO_COUNTS: &str = "PC_HELLO_COUNTS";
    pub const QUIC_BUDGET: &str = "PC_QUIC_BUDGET";
    pub const QUIC_SAMPLE: &str = "PC_QUIC_SAMPLE";
    pub const NEXT_CONNECTION: &str = "PC_NEXT_ID";
    pub const DECOY: &str = "PC_DECOY";
    pub const STEERED: &str = "PC_STEERED";
    pub const ANSWERS: &str = "PC_ANSWERS";
    pub const ANSWER_PACE: &str = "PC_ANSWER_PACE";
}

pub mod program {
    pub const XDP: &str = "portcullis_xdp";
    pub const TC: &str = "portcullis_tc";
    pub const STEER: &str = "portcullis_steer";
    /// For interfaces whose packets begin with an IP header.
    pub const TC_L3: &str = "portcullis_tc_l3";
    pub const SSL_ENTER_READ: &str = "ssl_enter_read";
    pub const SSL_ENTER_READ_EX: &str = "ssl_enter_read_ex";
    pub const SSL_ENTER_WRITE: &str = "ssl_enter_write";
    pub const SSL_ENTER_WRITE_EX: &str = "ssl_enter_write_ex";
    pub const SSL_ENTER_WRITE_EX2: &str = "ssl_enter_write_ex2";
    pub const SSL_ENTER_HANDSHAKE: &str = "ssl_enter_handshake";
    pub const SSL_CREATED: &str = "ssl_created";
    pub const SSL_RETURN: &str = "ssl_return";
    pub const GO_ENTER_READ: &str = "go_enter_read";
    pub const GO_ENTER_WRITE: &str = "go_enter_write";
    pub const GO_ENTER_SHAKE: &str = "go_enter_shake";
    pub const GO_LEAVE: &str = "go_leave";
    pub const GO_LEAVE_SHAKE: &str = "go_leave_shake";
    pub const GO_SOCK_SEND: &str = "go_sock_send";
    pub const GO_SOCK_RECV: &str = "go_sock_recv";
    pub const BIO_WRITTEN: &str = "bio_written";
    pub const SSL_CLEARED: &str = "ssl_cleared";
    pub const SOCK_SEND: &str = "sock_send_length";
    pub const SOCK_RECV: &str = "sock_recv_length";
    pub const SOCK_STATE: &str = "inet_sock_set_state";
    pub const EXEC: &str = "sched_process_exec";
}

pub mod global {
    pub const SOCK_OFFSETS: &str = "SOCK_OFFSETS";
    pub const SYSTEM_CALLS: &str = "SYSTEM_CALLS";
    /// Nanoseconds between two answers to dropped packets, on each CPU; 0 for silence.
    pub const ANSWER_INTERVAL: &str = "ANSWER_INTERVAL_NS";
    /// Number of the only network namespace whose sockets are followed; 0 for all.
    pub const ONLY_NAMESPACE: &str = "ONLY_NAMESPACE";
}

/// Capacities when the configuration does not say otherwise, in entries.
pub mod capacity {
    /// Subjects of rules of operators, detectors and the configuration.
    pub const BLOCKS: u32 = 131_072;
    /// Rules beside those of the blocks: one for each list and its successor.
    pub const LIST_RULES: u32 = 256;
    pub const LIMITS: u32 = 16_384;
    /// Sets of buckets; a power of two.
    pub const BUCKET_SETS: u32 = 65_536;
    /// Words of the bitmap of flows, of one of two generations; a power of two.
    pub const FLOW_GATE_WORDS: u32 = 16_384;
    pub const FLOW_RULES: u32 = 16_384;
    pub const FLOWS: u32 = 65_536;
    pub const STEERED_FLOWS: u32 = 16_384;
    pub const FINGERPRINT_RULES: u32 = 16_384;
    /// Fingerprints whose JA4 is known.
    pub const KNOWN: u32 = 16_384;
    pub const CONJUNCTIONS: u32 = 65_536;
    pub const SCOPE_ADDRESSES: u32 = 1_024;
    pub const ALLOW: u32 = 16_384;
    /// A power of two.
    pub const STARTS: u32 = 1 << 18;
    /// Hellos put together at the same time; a power of two.
    pub const HELLOS: u32 = 512;
    /// Budgets that sources share for reports of hellos; a power of two.
    pub const HELLO_BUDGETS: u32 = 256;
    pub const CALLS: u32 = 16_384;
    pub const CONNECTIONS: u32 = 65_536;
    /// Records between the TLS library and a socket.
    pub const CIPHERTEXT: u32 = 16_384;
    /// Processes that carry ciphertext themselves.
    pub const CARRIERS: u32 = 1_024;
    /// In bytes; a power of two and a multiple of the page size.
    pub const RING_BYTES: u32 = 8 * 1024 * 1024;
}
