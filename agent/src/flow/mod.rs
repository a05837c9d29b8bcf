//! Events into ordered bytes per connection and direction.

mod position;

use std::net::SocketAddr;
use std::sync::Arc;

pub use position::{Piece, Position};

use crate::time::Timestamp;

/// One piece of plaintext that a TLS library handed over, with its place in its direction of
/// the connection.
#[derive(Clone, Debug)]
pub struct Chunk<'a> {
    /// The socket's cookie: unique on this host since boot.
    pub connection: u64,
    pub side: Side,
    pub ts: Timestamp,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub pid: u32,
    pub comm: &'a str,
    /// Position of `data[0]` in this direction, lost bytes counted too.
    pub offset: u64,
    /// Bytes that the call moved; more than `data.len()` when the end was cut off.
    pub len: u64,
    pub data: &'a [u8],
    /// JA4 of the client. Counts on the first chunk of a connection.
    pub ja4: Option<&'a Arc<str>>,
}

/// Which way a chunk went, seen from this host's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    Read,
    Write,
}

impl Side {
    pub fn other(self) -> Self {
        match self {
            Self::Read => Self::Write,
            Self::Write => Self::Read,
        }
    }
}
