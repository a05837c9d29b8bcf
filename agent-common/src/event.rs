//! What the kernel reports through the ring buffer: a header that begins with a kind, then,
//! for [`kind::TLS_DATA`], the bytes.

use crate::net::{Addr, FlowKey};

pub mod kind {
    pub const TLS_DATA: u32 = 1;
    pub const TLS_CLOSED: u32 = 2;
    pub const FIRST_DROP: u32 = 3;
    pub const EXEC: u32 = 4;
    pub const CLIENT_HELLO: u32 = 5;
    pub const QUIC_INITIAL: u32 = 6;
    pub const NO_SOCKET: u32 = 7;
}

/// Which way plaintext went through the TLS library ([`TlsData::direction`]).
pub mod direction {
    pub const READ: u32 = 0;
    pub const WRITE: u32 = 1;
}

/// The longest piece of plaintext that one call reports. What a call moved beyond it is known
/// by its length only.
pub const MAX_DATA: usize = 16 * 1024;

/// One call of the TLS library that moved plaintext. `copied` bytes follow the header.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TlsData {
    pub kind: u32,
    pub direction: u32,
    /// `CLOCK_MONOTONIC` at the return of the call, in nanoseconds.
    pub time_ns: u64,
    /// The TLS object on its socket: a number that no other pair of the two had since the
    /// programs were loaded.
    pub connection: u64,
    /// Position of the first byte in the plaintext of this direction of the connection.
    /// Counts bytes that were lost as well, so that a gap shows.
    pub offset: u64,
    pub flow: FlowKey,
    /// Thread group, as the host's initial PID namespace numbers it.
    pub pid: u32,
    /// Bytes the call moved, and how many of them follow.
    pub len: u32,
    pub copied: u32,
    pub reserved: u32,
    pub comm: [u8; 16],
}

/// A connection that carried TLS data has closed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TlsClosed {
    pub kind: u32,
    pub reserved: u32,
    pub time_ns: u64,
    pub connection: u64,
}

/// A rule dropped its first packet, which came from `addr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct FirstDrop {
    pub kind: u32,
    pub reserved: u32,
    pub time_ns: u64,
    pub rule_id: u64,
    pub addr: Addr,
}

/// A process has replaced its program: it may map a TLS library soon.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Exec {
    pub kind: u32,
    pub pid: u32,
    pub time_ns: u64,
}

/// A process calls the TLS library without a socket below: it carries the ciphertext itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSocket {
    pub kind: u32,
    /// Thread group, as the host's initial PID namespace numbers it.
    pub pid: u32,
    pub time_ns: u64,
}

/// A TLS ClientHello whose fingerprint is not known or has rules. `len` bytes follow: those of the flow
/// from the header of the first record to the end of the hello.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientHello {
    pub kind: u32,
    pub len: u32,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub time_ns: u64,
    pub flow: FlowKey,
    /// See [`crate::fingerprint`].
    pub fingerprint: u64,
}

/// What became of ClientHellos: an index into the per-CPU counters.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HelloCount {
    /// Its flow has its fingerprint.
    Fingerprinted = 0,
    /// It is not a hello after all, or contradicts itself.
    Malformed = 1,
    /// Longer than [`crate::fingerprint::MAX_HELLO`], or of too many records.
    TooLong = 2,
    /// More than [`crate::fingerprint::MAX_ITEMS`].
    TooManyValues = 3,
    /// Its segments came in too wild an order.
    TooManyPieces = 4,
    /// Unfinished when another took its place.
    Evicted = 5,
    /// A segment was not read, as another CPU was at work in its place.
    Contended = 6,
    /// A segment is shorter than its headers say.
    Unreadable = 7,
    /// The kernel could not note the fingerprint of the flow.
    NotKept = 8,
    /// Of an unknown fingerprint, or one with rules, but its sources have used up what they may report in a second.
    Unreported = 9,
    /// … but the ring buffer was full.
    RingFull = 10,
}

impl HelloCount {
    pub const COUNT: u32 = 11;
    pub const ALL: [HelloCount; Self::COUNT as usize] = [
        HelloCount::Fingerprinted,
        HelloCount::Malformed,
        HelloCount::TooLong,
        HelloCount::TooManyValues,
        HelloCount::TooManyPieces,
        HelloCount::Evicted,
        HelloCount::Contended,
        HelloCount::Unreadable,
        HelloCount::NotKept,
        HelloCount::Unreported,
        HelloCount::RingFull,
    ];

    /// The name under which metrics and the command line show it.
    pub const fn name(self) -> &'static str {
        match self {
            HelloCount::Fingerprinted => "hello_fingerprinted",
            HelloCount::Malformed => "hello_malformed",
            HelloCount::TooLong => "hello_too_long",
            HelloCount::TooManyValues => "hello_too_many_values",
            HelloCount::TooManyPieces => "hello_too_many_pieces",
            HelloCount::Evicted => "hello_evicted",
            HelloCount::Contended => "hello_contended",
            HelloCount::Unreadable => "hello_unreadable",
            HelloCount::NotKept => "hello_not_kept",
            HelloCount::Unreported => "hello_unreported",
            HelloCount::RingFull => "hello_ring_full",
        }
    }
}
/// A datagram that begins with an Initial packet of QUIC. `len` bytes of its payload follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct QuicInitial {
    pub kind: u32,
    pub len: u32,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub time_ns: u64,
    pub flow: FlowKey,
}

/// The longest payload that is reported of a datagram. One that is longer is cut, and its packets
/// are read as far as they are whole.
pub const MAX_QUIC_SAMPLE: usize = 1500;

/// What capture could not report: an index into the per-CPU loss counters. The counters hold
/// calls and bytes.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Loss {
    /// The ring buffer was full at a read: what clients ask this host went unseen.
    RingFullRead = 0,
    /// Bytes of a call beyond [`MAX_DATA`].
    CallTooLong = 1,
    /// The buffer of the call could not be read.
    Unreadable = 2,
    /// No room to remember a call or a connection. Bytes are not known.
    TableFull = 3,
    /// The socket below the TLS object was never seen.
    NoSocket = 4,
    /// The ring buffer was full at a write.
    RingFullWrite = 5,
    /// The ring buffer was full when something else than plaintext was to be told. No bytes.
    RingFullOther = 6,
    /// A datagram of a new QUIC connection, beyond what is reported in a second. No bytes.
    QuicUnsampled = 7,
}

impl Loss {
    pub const COUNT: u32 = 8;
    pub const ALL: [Loss; Self::COUNT as usize] = [
        Loss::RingFullRead,
        Loss::CallTooLong,
        Loss::Unreadable,
        Loss::TableFull,
        Loss::NoSocket,
        Loss::RingFullWrite,
        Loss::RingFullOther,
        Loss::QuicUnsampled,
    ];

    /// The name under which metrics and the command line show the loss.
    pub const fn name(self) -> &'static str {
        match self {
            Loss::RingFullRead => "ring_full_read",
            Loss::CallTooLong => "call_too_long",
            Loss::Unreadable => "unreadable",
            Loss::TableFull => "table_full",
            Loss::NoSocket => "no_socket",
            Loss::RingFullWrite => "ring_full_write",
            Loss::RingFullOther => "ring_full_other",
            Loss::QuicUnsampled => "quic_unsampled",
        }
    }
}
