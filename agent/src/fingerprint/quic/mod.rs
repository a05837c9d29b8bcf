//! The ClientHello of QUIC connections, out of the client's Initial packets (RFC 9000, RFC 9001,
//! RFC 9369).
//!
//! A hello may be spread over several packets and datagrams, in any order. Connections are told
//! apart by flow and by the connection id that the keys follow from. When the server has answered,
//! the client uses the id that the server chose, with the keys of before: so packets whose own id
//! does not open them are tried with the keys of their flow.

mod counts;
mod frames;
#[doc(hidden)]
pub mod fuzz;
mod keys;
mod packet;
mod pieces;

use std::time::Duration;

use lru::LruCache;
use portcullis_common::net::FlowKey;

use super::{ClientHello, HelloError};
use crate::time::Timestamp;
pub use counts::{Counter, Counts};
use keys::ClientKeys;
pub use keys::Version;
use packet::{Initial, MAX_ID, Next};
use pieces::Pieces;

/// Initial packets of one datagram that are looked at. Clients send one, or two when they resend.
const MAX_INITIALS: usize = 4;
/// Connections of one flow that are remembered: a client that gives up may begin anew from the
/// same port.
const MAX_OF_FLOW: usize = 2;

/// The bounds of this stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Flows remembered; the least recently active goes first.
    pub max_flows: usize,
    /// Memory for unfinished hellos, in bytes; flows are forgotten to keep it.
    pub max_buffered_bytes: usize,
    /// A flow is forgotten when no Initial packet came for so long.
    pub idle_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_flows: 4_096,
            max_buffered_bytes: 8 * 1024 * 1024,
            idle_timeout: Duration::from_secs(15),
        }
    }
}

/// A hello that has come whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completed {
    pub hello: ClientHello,
    /// The handshake message.
    pub message: Vec<u8>,
}

/// Flows, and the hellos in the making on them.
pub struct Initials {
    settings: Settings,
    /// Ordered by activity.
    flows: LruCache<FlowKey, Flow>,
    /// Bytes of unfinished hellos.
    buffered: usize,
    counts: Counts,
    /// Packets are decrypted here.
    scratch: Vec<u8>,
}

struct Flow {
    last_seen: Timestamp,
    /// The oldest first.
    connections: Vec<Connection>,
}

struct Connection {
    version: Version,
    destination: Id,
    keys: ClientKeys,
    /// `None` when the hello has been handed on, or given up.
    pieces: Option<Pieces>,
}

/// A connection id.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Id {
    bytes: [u8; MAX_ID],
    length: usize,
}

impl Id {
    fn new(id: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_ID];
        bytes.get_mut(..id.len())?.copy_from_slice(id);
        Some(Self { bytes, length: id.len() })
    }
}

impl Initials {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            // Bounded by the settings.
            flows: LruCache::unbounded(),
            buffered: 0,
            counts: Counts::default(),
            scratch: Vec::new(),
        }
    }

    /// Takes the payload of a UDP datagram that came from the flow's remote end. Returns the
    /// hello that it completes.
    pub fn datagram(&mut self, flow: FlowKey, payload: &[u8], now: Timestamp) -> Option<Completed> {
        self.counts.one(Counter::Datagrams);
        let mut rest = payload;
        let mut hello = None;
        // Packets of other connections than the first's are not to be coalesced with it
        // (RFC 9000, section 12.2).
        let mut destination = None;
        for _ in 0..MAX_INITIALS {
            match packet::next(&mut rest) {
                None => break,
                Some(Next::Other) => {}
                Some(Next::Malformed) => self.counts.one(Counter::Malformed),
                Some(Next::Initial(initial)) => {
                    if *destination.get_or_insert(initial.destination) == initial.destination {
                        hello = hello.or(self.initial(flow, &initial, now));
                    }
                }
            }
        }
        hello
    }

    fn initial(
        &mut self,
        key: FlowKey,
        initial: &Initial<'_>,
        now: Timestamp,
    ) -> Option<Completed> {
        let known =
            self.flows.get_or_insert_mut(key, || Flow { last_seen: now, connections: Vec::new() });
        known.last_seen = now;
        let before = known.buffered();
        let result = known.open(initial, &mut self.scratch);
        let (after, is_empty) = (known.buffered(), known.connections.is_empty());
        self.buffered = self.buffered.saturating_sub(before).saturating_add(after);
        if is_empty {
            self.flows.pop(&key);
        }
        let hello = match result {
            Ok(hello) => hello,
            Err(counter) => {
                self.counts.one(counter);
                None
            }
        };
        if hello.is_some() {
            self.counts.one(Counter::Hellos);
        }
        self.evict();
        hello
    }

    fn evict(&mut self) {
        while self.flows.len() > self.settings.max_flows
            || self.buffered > self.settings.max_buffered_bytes
        {
            let Some((_, flow)) = self.flows.pop_lru() else { return };
            self.counts.add(Counter::Evicted, flow.unfinished());
            self.buffered = self.buffered.saturating_sub(flow.buffered());
        }
    }

    /// Forgets the flows that have been idle for too long.
    pub fn expire(&mut self, now: Timestamp) {
        let idle = |flow: &Flow| now.since(flow.last_seen) >= self.settings.idle_timeout;
        while self.flows.peek_lru().is_some_and(|(_, oldest)| idle(oldest)) {
            let Some((_, flow)) = self.flows.pop_lru() else { return };
            self.counts.add(Counter::Incomplete, flow.unfinished());
            self.buffered = self.buffered.saturating_sub(flow.buffered());
        }
    }

    /// Flows remembered.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// Memory for unfinished hellos, in bytes.
    pub fn buffered_bytes(&self) -> usize {
        self.buffered
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

impl Flow {
    /// The hello that `packet` completes. An error is what to count.
    fn open(
        &mut self,
        packet: &Initial<'_>,
        scratch: &mut Vec<u8>,
    ) -> Result<Option<Completed>, Counter> {
        let destination = Id::new(packet.destination).ok_or(Counter::Malformed)?;
        let named = self
            .connections
            .iter_mut()
            .find(|one| one.destination == destination && one.version == packet.version);
        if let Some(connection) = named {
            let frames = connection.keys.open(packet, scratch).ok_or(Counter::Undecryptable)?;
            return connection.take(frames);
        }
        let keys =
            ClientKeys::new(packet.version, packet.destination).ok_or(Counter::Undecryptable)?;
        if let Some(frames) = keys.open(packet, scratch) {
            let version = packet.version;
            let mut connection =
                Connection { version, destination, keys, pieces: Some(Pieces::default()) };
            let result = connection.take(frames);
            if self.connections.len() >= MAX_OF_FLOW {
                self.connections.remove(0);
            }
            self.connections.push(connection);
            return result;
        }
        for connection in &mut self.connections {
            if let Some(frames) = connection.keys.open(packet, scratch) {
                return connection.take(frames);
            }
        }
        Err(Counter::Undecryptable)
    }

    fn buffered(&self) -> usize {
        self.connections.iter().filter_map(|one| one.pieces.as_ref()).map(Pieces::bytes).sum()
    }

    /// Connections whose hello has not been handed on.
    fn unfinished(&self) -> u64 {
        self.connections.iter().filter(|one| one.pieces.is_some()).count() as u64
    }
}

impl Connection {
    /// Takes the frames of a packet. An error is what to count.
    fn take(&mut self, frames: &[u8]) -> Result<Option<Completed>, Counter> {
        let Some(pieces) = &mut self.pieces else { return Ok(None) };
        let mut fits = true;
        let parsed = frames::each_crypto(frames, |piece| fits &= pieces.add(piece));
        let message = pieces.message();
        match ClientHello::from_handshake(&message) {
            Ok(hello) => {
                self.pieces = None;
                Ok(Some(Completed { hello, message }))
            }
            Err(HelloError::NotHello | HelloError::Malformed) => {
                self.pieces = None;
                Err(Counter::Malformed)
            }
            Err(HelloError::Incomplete) if parsed.is_none() => Err(Counter::Malformed),
            Err(HelloError::Incomplete) if !fits => Err(Counter::TooLong),
            Err(HelloError::Incomplete) => Ok(None),
        }
    }
}
