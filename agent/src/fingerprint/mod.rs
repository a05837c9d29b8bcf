//! TLS client fingerprints: what a ClientHello tells of the software that sent it.
//!
//! Pure: bytes and times in, fingerprints out. JA4 is FoxIO's TLS client fingerprint, the only
//! one of its family whose licence (BSD 3-Clause) lets everyone use it; JA3 is there for the
//! feeds that still list it.

mod client_hello;
#[doc(hidden)]
pub mod fuzz;
mod ja3;
mod ja4;
pub mod quic;
mod reader;
mod table;
#[cfg(test)]
mod tests;

pub use client_hello::{ClientHello, HelloError};
pub use ja3::Ja3;
pub use ja4::{Ja4, Transport};
pub use table::{Known, Table};

/// RFC 8701: values that clients send at random so that servers keep ignoring what they do not
/// know. They say nothing of the client.
pub const fn is_grease(value: u16) -> bool {
    value & 0x0f0f == 0x0a0a && value >> 8 == value & 0xff
}
