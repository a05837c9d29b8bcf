//! What userspace tells the programs: constants fixed when they are loaded, and the one value
//! that changes while they run.

/// VLAN tags that the header walk follows (IEEE 802.1Q and 802.1ad, stacked).
pub const MAX_VLAN_TAGS: usize = 4;
/// IPv6 extension headers that the header walk follows (RFC 8200, section 4).
pub const MAX_EXTENSION_HEADERS: usize = 8;
/// Failsafe ports of one transport protocol that can be configured.
pub const MAX_FAILSAFE_PORTS: usize = 16;

/// Value of the settings map, one per host, replaced as a whole.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Destination ports, in host byte order, on which no source is ever dropped.
    pub failsafe_tcp: [u16; MAX_FAILSAFE_PORTS],
    pub failsafe_udp: [u16; MAX_FAILSAFE_PORTS],
    pub failsafe_tcp_len: u32,
    pub failsafe_udp_len: u32,
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
