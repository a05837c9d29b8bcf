//! Steering of new connections to a decoy.

/// Slots of the map with the decoy's listening sockets, by the IP version of the connection.
pub mod slot {
    pub const V4: u32 = 0;
    pub const V6: u32 = 1;
    pub const COUNT: u32 = 2;
}

/// What became of packets that ask for a connection: an index into the counters of steering.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steered {
    ToDecoy = 0,
    /// No decoy listened.
    Refused = 1,
}

impl Steered {
    pub const COUNT: u32 = 2;
    pub const ALL: [Self; Self::COUNT as usize] = [Self::ToDecoy, Self::Refused];
}
