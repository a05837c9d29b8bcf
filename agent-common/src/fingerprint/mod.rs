//! The fingerprint key of a TLS client: 64 bits that stand for everything JA4 makes of its
//! ClientHello, computed by the same code in the kernel and in userspace.
//!
//! # Definition
//!
//! JA4 (FoxIO, `technical_details/JA4.md`, BSD-3) has a raw form, `JA4_r`. Two hellos have the
//! same key exactly if their raw forms are the same, but for a chance of 2^-64. The key of a
//! hello depends on:
//!
//! - the transport: [`Transport::Tcp`] (`t`) or [`Transport::Quic`] (`q`). A hello over TCP lies
//!   in TLS records (RFC 8446, section 5.1), any number of them; one over QUIC is the bare
//!   handshake message of the CRYPTO stream;
//! - the version, as the two characters of JA4: the highest in `supported_versions` (0x002b) that
//!   is not GREASE, `00` when there is none; without that extension, the hello's `legacy_version`.
//!   Versions that JA4 does not name are all `00`;
//! - whether there is a `server_name` extension (0x0000);
//! - how many ciphers and how many extensions there are without GREASE, 99 at most;
//! - the first and the last byte of the first ALPN value (0x0010): if both are ASCII letters or
//!   digits, they themselves, else the first and the last hexadecimal digit of the value; `00` when
//!   there is no value or when it is empty. A GREASE value counts like any other here, as in
//!   FoxIO's own programs;
//! - the multiset of ciphers without GREASE, whatever their order;
//! - the multiset of extensions without GREASE, `server_name` and ALPN, whatever their order;
//! - the signature algorithms (0x000d) without GREASE, in their order.
//!
//! GREASE are the values of RFC 8701. Where a hello has an extension twice, which RFC 8446 forbids,
//! both count as extensions, and the content of the first is what counts. A list that claims to be
//! longer than its extension ends with it; a last odd byte of it means nothing. Bytes behind the
//! extensions mean nothing.
//!
//! # Against invented collisions
//!
//! Lists without an order are sums of their values' hashes. The hash is keyed by the [`Seed`], a
//! secret of the installation, so nobody outside can look for two lists of the same sum, or for
//! a hello with the key of another. Keys mean nothing without their seed, and are not shown.
//!
//! # Bounds
//!
//! A hello takes at most [`MAX_HELLO`] bytes with its record headers, [`MAX_RECORDS`] records, and
//! [`MAX_ITEMS`] values of lists and extensions. Any other has no key but a [`Refusal`].

mod hash;
mod parser;
#[cfg(test)]
mod tests;

pub use parser::{Bytes, Parser, Progress, Refusal, Transport};

/// Bytes from the first record's header to the end of the hello. A power of two, so that the
/// kernel's side masks offsets with it.
pub const MAX_HELLO: u32 = 8 * 1024;
/// Records that one hello may be spread over.
pub const MAX_RECORDS: u32 = 1024;
/// Ciphers, extensions, versions and signature algorithms together, with GREASE.
pub const MAX_ITEMS: u32 = 512;

/// What keys are computed under: random, secret, the same as long as any map holds keys.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seed(pub [u64; 2]);

/// The key of a flow or a hello that has none. No hello has this key.
pub const NO_KEY: u64 = 0;

/// The key of the hello at the front of `bytes`: over TCP from the header of its first record on,
/// over QUIC from the handshake type on. What follows the hello means nothing.
///
/// # Errors
/// When `bytes` does not begin with a hello, or with one beyond the bounds; when it ends before
/// the hello does.
pub fn key(bytes: &[u8], transport: Transport, seed: Seed) -> Result<u64, Refusal> {
    let mut parser = Parser::new(transport);
    loop {
        match parser.step(&bytes, seed) {
            Progress::Going => {}
            Progress::Done => return Ok(parser.key(transport, seed)),
            Progress::Waiting => return Err(Refusal::Incomplete),
            Progress::Refused(refusal) => return Err(refusal),
        }
    }
}
