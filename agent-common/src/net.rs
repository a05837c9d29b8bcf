//! Addresses and flows, in network byte order.

/// An IPv6 address, or an IPv4 address in its IPv4-mapped form (RFC 4291, section 2.5.5.2).
/// Aligned so that the eBPF side copies it by words.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Addr(pub [u8; 16]);

impl Addr {
    #[inline(always)]
    pub const fn from_v4(v4: [u8; 4]) -> Self {
        let [a, b, c, d] = v4;
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// First and last 64 bits, as numbers.
    #[inline(always)]
    pub const fn halves(&self) -> [u64; 2] {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.0;
        [u64::from_be_bytes([a, b, c, d, e, f, g, h]), u64::from_be_bytes([i, j, k, l, m, n, o, p])]
    }

    /// First and last 64 bits as they lie in memory, for hashes: numbers would take a swap of bytes.
    #[inline(always)]
    pub const fn raw_halves(&self) -> [u64; 2] {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.0;
        [u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes([i, j, k, l, m, n, o, p])]
    }

    #[inline(always)]
    pub const fn from_halves(halves: [u64; 2]) -> Self {
        let [a, b, c, d, e, f, g, h] = halves[0].to_be_bytes();
        let [i, j, k, l, m, n, o, p] = halves[1].to_be_bytes();
        Self([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p])
    }

    /// The address with all but its first 64 bits cleared: the part that an IPv6 client keeps.
    #[inline(always)]
    pub const fn prefix64(self) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        Self([a, b, c, d, e, f, g, h, 0, 0, 0, 0, 0, 0, 0, 0])
    }
}

/// The two ends of a TCP connection or UDP exchange, seen from this host. Ports in host byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    pub local: Addr,
    pub remote: Addr,
    pub local_port: u16,
    pub remote_port: u16,
    /// IP protocol number: [`TCP`] or [`UDP`].
    pub protocol: u32,
}

/// IP protocol numbers (IANA), as [`FlowKey::protocol`] has them.
pub const TCP: u32 = 6;
pub const UDP: u32 = 17;

impl FlowKey {
    /// The flow's place in tables that are addressed by hash. The seed is the installation's, so that
    /// no client can choose a place.
    pub const fn hash(&self, seed: [u64; 2]) -> u64 {
        let (local, remote) = (self.local.raw_halves(), self.remote.raw_halves());
        let ports =
            (self.remote_port as u64) << 48 | (self.local_port as u64) << 32 | self.protocol as u64;
        flow_hash(remote, local, ports, seed)
    }
}

/// [`FlowKey::hash`] of the parts: addresses as [`Addr::raw_halves`], and remote port, local port
/// and protocol in one word (16, 16 and 32 bits). The multipliers are odd and of no other meaning.
#[inline(always)]
pub const fn flow_hash(remote: [u64; 2], local: [u64; 2], ports: u64, seed: [u64; 2]) -> u64 {
    let a = (remote[1] ^ seed[0]).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let b = (ports ^ seed[1]).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    let c = (remote[0] ^ seed[1]).wrapping_mul(0x1656_67b1_9e37_79f9);
    let d = (local[0].rotate_left(29) ^ local[1] ^ seed[0]).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (a ^ b.rotate_left(23)).wrapping_add(c ^ d.rotate_left(41));
    let mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed ^ mixed >> 32
}

/// What the kernel knows of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowInfo {
    /// Key of its TLS fingerprint, or 0.
    pub fingerprint: u64,
    /// When that was seen, on `CLOCK_MONOTONIC`, in nanoseconds.
    pub seen_ns: u64,
}
