//! Addresses and flows, in network byte order.

/// An IPv6 address, or an IPv4 address in its IPv4-mapped form (RFC 4291, section 2.5.5.2).
/// Aligned so that the eBPF side copies it by words.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Addr(pub [u8; 16]);

impl Addr {
    #[inline(always)]
    pub const fn from_v4(v4: [u8; 4]) -> Self {
        let [a, b, c, d] = v4;
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// The address with all but its first 64 bits cleared: the part that an IPv6 client keeps.
    #[inline(always)]
    pub const fn prefix64(self) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        Self([a, b, c, d, e, f, g, h, 0, 0, 0, 0, 0, 0, 0, 0])
    }
}

/// The two ends of a TCP connection, seen from this host. Ports in host byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    pub local: Addr,
    pub remote: Addr,
    pub local_port: u16,
    pub remote_port: u16,
    pub reserved: u32,
}
