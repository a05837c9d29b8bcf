//! Names and capacities of maps, programs and global variables: each is written here once.

/// Policy maps: pinned by name, so that blocks outlive the agent.
pub mod pinned {
    pub const DENY: &str = "PC_DENY";
    pub const ALLOW: &str = "PC_ALLOW";
    pub const SETTINGS: &str = "PC_SETTINGS";
    pub const REASONS: &str = "PC_REASONS";
    pub const ALL: [&str; 4] = [DENY, ALLOW, SETTINGS, REASONS];
}

/// Maps that live as long as the agent.
pub mod map {
    pub const EVENTS: &str = "PC_EVENTS";
    pub const LOSSES: &str = "PC_LOSSES";
    pub const CALLS: &str = "PC_CALLS";
    pub const CONNECTIONS: &str = "PC_CONNECTIONS";
    pub const SOCKETS: &str = "PC_SOCKETS";
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
    pub const SSL_ENTER_READ: &str = "ssl_enter_read";
    pub const SSL_ENTER_READ_EX: &str = "ssl_enter_read_ex";
    pub const SSL_ENTER_WRITE: &str = "ssl_enter_write";
    pub const SSL_ENTER_WRITE_EX: &str = "ssl_enter_write_ex";
    pub const SSL_ENTER_WRITE_EX2: &str = "ssl_enter_write_ex2";
    pub const SSL_ENTER_HANDSHAKE: &str = "ssl_enter_handshake";
    pub const SSL_CREATED: &str = "ssl_created";
    pub const SSL_RETURN: &str = "ssl_return";
    pub const SOCK_SEND: &str = "sock_send_length";
    pub const SOCK_RECV: &str = "sock_recv_length";
    pub const SOCK_STATE: &str = "inet_sock_set_state";
    pub const EXEC: &str = "sched_process_exec";
}

pub mod global {
    pub const SOCK_OFFSETS: &str = "SOCK_OFFSETS";
    /// Nanoseconds between two answers to dropped packets, on each CPU; 0 for silence.
    pub const ANSWER_INTERVAL: &str = "ANSWER_INTERVAL_NS";
    /// Number of the only network namespace whose sockets are followed; 0 for all.
    pub const ONLY_NAMESPACE: &str = "ONLY_NAMESPACE";
}

/// Capacities when the configuration does not say otherwise, in entries.
pub mod capacity {
    pub const DENY: u32 = 131_072;
    pub const ALLOW: u32 = 16_384;
    pub const CALLS: u32 = 16_384;
    pub const CONNECTIONS: u32 = 65_536;
    /// In bytes; a power of two and a multiple of the page size.
    pub const RING_BYTES: u32 = 8 * 1024 * 1024;
}
