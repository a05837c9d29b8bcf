//! What userspace tells the programs: constants fixed when they are loaded, and the one value
//! that changes while they run.

use crate::policy::Lengths;

/// VLAN tags that the header walk follows (IEEE 802.1Q and 802.1ad, stacked).
pub const MAX_VLAN_TAGS: usize = 4;
/// IPv6 extension headers that the header walk follows (RFC 8200, section 4).
pub const MAX_EXTENSION_HEADERS: usize = 8;

/// Hellos of unknown fingerprint, or of one with rules, that a CPU reports in a second of the sources
/// that share a budget.
pub const REPORTS_PER_SECOND: u32 = 8;
/// Datagrams of new QUIC connections that a CPU reports in a second.
pub const QUIC_SAMPLES_PER_SECOND: u32 = 500;

/// Value of the settings map, one per host. Userspace writes it in place, field by field.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Which of the two sets of prefixes is in force: 0 or 1.
    pub active_set: u32,
    /// [`feature`]s.
    pub features: u32,
    /// By set.
    pub prefixes: [PrefixSet; 2],
    /// Scopes that every port belongs to, and those that every address does.
    pub any_port_scopes: u64,
    pub any_address_scopes: u64,
    /// Of every hash that a client could otherwise aim at. Set once, with the maps.
    pub seed: [u64; 2],
    /// Sizes of the tables that are addressed by hash, powers of two: words of one generation's bitmap of
    /// flows, and sets of buckets.
    pub flow_gate_words: u32,
    pub bucket_sets: u32,
    pub reserved: u32,
    /// Always 0, which the verifier does not know: what this is added to is any number to it, so that
    /// it does not follow the program once for each number.
    pub zero: u32,
}

/// What the programs have to know of a set of prefixes beside the set.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixSet {
    /// The lengths that occur.
    pub lengths: Lengths,
    /// Buckets of its table.
    pub buckets: u32,
    pub reserved: u32,
}

/// [`Settings::features`].
pub mod feature {
    /// There are rules of flows or fingerprints, so a flow may have some.
    pub const FLOW_RULES: u32 = 1;
    /// There are rules of fingerprints.
    pub const FINGERPRINT_RULES: u32 = 2;
    /// Look for TLS fingerprints.
    pub const FINGERPRINTS: u32 = 4;
    /// Look into tunnels.
    pub const TUNNELS: u32 = 8;
    /// There are scopes that not every address belongs to.
    pub const ADDRESS_SCOPES: u32 = 16;
}

/// Byte offsets within the running kernel's `struct sock` (but for the last), read from its BTF when the programs
/// are loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SockOffsets {
    pub family: u32,
    pub protocol: u32,
    pub remote_v4: u32,
    pub local_v4: u32,
    pub remote_v6: u32,
    pub local_v6: u32,
    pub remote_port: u32,
    pub local_port: u32,
    /// Of the pointer to the network namespace.
    pub namespace: u32,
    /// Within `struct net`: of the number that `/proc/PID/ns/net` shows.
    pub namespace_number: u32,
}

/// How to find the buffer of the system call that a thread is in: where `struct pt_regs` has what
/// (byte offsets), and the numbers of the calls.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SystemCalls {
    /// Of the call's number.
    pub number: u32,
    /// Of the call's second argument.
    pub second_argument: u32,
    /// `(int, void *, size_t, …)`
    pub read: u32,
    pub recvfrom: u32,
    pub write: u32,
    pub sendto: u32,
    /// `(int, struct iovec *, …)`
    pub readv: u32,
    pub writev: u32,
    /// `(int, struct msghdr *, …)`
    pub recvmsg: u32,
    pub sendmsg: u32,
}
