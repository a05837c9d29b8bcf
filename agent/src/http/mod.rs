//! Ordered bytes into transactions.
//!
//! Reads HTTP/1.0 and HTTP/1.1 (RFC 9112) and HTTP/2 (RFC 9113) from both directions of
//! connections, on the side of servers and of clients, and pairs requests with their responses.
//!
//! # When a transaction is handed on
//!
//! A block can be no faster than this stage, so it does not wait for what nobody looks at: a
//! transaction is handed on when the response has ended, or as much of its body has come as is
//! kept; when the kept part is interrupted by lost bytes; when the body keeps coming for longer
//! than [`Settings::response_patience`]; when the connection closes, idles, is evicted or given
//! up. So the following hold:
//!
//! - `ts` is the time of the end of the request's head, as seen by this host's process.
//! - `duration_ms` is the time from `ts` until the transaction was handed on; absent without
//!   response.
//! - `req_bytes` and `resp_bytes` are sizes without chunked framing. For a body that had not
//!   ended they are its `Content-Length`, and absent if it has none.
//! - `req_body` and `resp_body` are the starts of the bodies without chunked framing. That of a response
//!   is absent when a content coding hides it; that of a request is kept as it came, because a
//!   client may claim a coding that its body does not have.
//! - `status` is absent when no response was seen, or when it could not be told which it was.
//! - `grpc_status` is that of a gRPC response, whose trailers are waited for. Bodies of gRPC and
//!   event streams are not kept: the former are not text, the latter need not end.
//!
//! Credentials in fields are replaced by keyed hashes, see [`CredentialKey`]:
//! `Authorization: Bearer <hash>`, `Authorization: Basic user=<hash> credential=<hash>`,
//! `Cookie: name=<hash>; …`, `Set-Cookie: name=<hash>; attributes`, `X-API-Key: <hash>` and the
//! like.

mod body;
mod connection;
mod context;
mod counts;
mod credential;
mod exchange;
mod framing;
#[doc(hidden)]
pub mod fuzz;
mod head;
mod http1;
mod http2;
mod opening;
mod request_head;
#[cfg(test)]
mod tests;

use std::time::Duration;

use lru::LruCache;

use crate::flow::Chunk;
use crate::time::Timestamp;
use crate::transaction::Transaction;
use connection::Connection;
use context::{Context, Output};
pub use counts::{Counter, Counts};
pub use credential::CredentialKey;
#[doc(hidden)]
pub use fuzz::{fuzz_entry, fuzz_http2_entry};
pub use head::MAX_HEADER_FIELDS;

/// The bounds of this stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Connections remembered; the least recently active goes first.
    pub max_connections: usize,
    /// Longest kept piece of each body, in bytes.
    pub body_excerpt: usize,
    /// A connection is forgotten when nothing came for so long.
    pub idle_timeout: Duration,
    /// Longest start line and fields of a message, in bytes.
    pub max_head_bytes: usize,
    /// Requests of one connection that wait for their responses, or for the end of them.
    pub max_pipelined: usize,
    /// Memory of all connections for unfinished heads and exchanges, in bytes; connections are
    /// forgotten, the least recently active first, to keep it.
    pub max_buffered_bytes: usize,
    /// How long a transaction waits for more of a response's body after its head, while bytes
    /// keep coming.
    pub response_patience: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_connections: 65_536,
            body_excerpt: 4_096,
            idle_timeout: Duration::from_secs(120),
            max_head_bytes: 64 * 1024,
            max_pipelined: 1_024,
            max_buffered_bytes: 256 * 1024 * 1024,
            response_patience: Duration::from_secs(2),
        }
    }
}

/// Nothing more can be read from a connection. The reason has been counted.
#[derive(Debug)]
struct Ignore;

/// The connections, and the transactions in the making on them.
///
/// A connection that is evicted or expires hands on what it holds: requests that wait for a
/// response as transactions without status. If it goes on later, it is one joined midway.
#[derive(Debug)]
pub struct Http {
    settings: Settings,
    key: CredentialKey,
    /// Ordered by activity.
    table: LruCache<u64, Connection>,
    /// Sum of the connections' weights.
    buffered: usize,
    counts: Counts,
}

impl Http {
    pub fn new(settings: Settings, key: CredentialKey) -> Self {
        Self {
            settings,
            key,
            // Bounded by the settings, which may change.
            table: LruCache::unbounded(),
            buffered: 0,
            counts: Counts::default(),
        }
    }

    /// Holds from the next chunk on; bodies being read keep their excerpt's length.
    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Takes a chunk; transactions that it completes are appended to `out`.
    pub fn chunk(&mut self, chunk: &Chunk<'_>, out: &mut Vec<Transaction>) {
        let connection =
            self.table.get_or_insert_mut(chunk.connection, || Connection::new(chunk.ja4.cloned()));
        let before = connection.weight();
        connection.chunk(&mut Context {
            settings: &self.settings,
            key: &self.key,
            chunk,
            ja4: connection.ja4.clone(),
            output: Output { counts: &mut self.counts, transactions: out },
        });
        let after = connection.weight();
        self.buffered = self.buffered.saturating_sub(before).saturating_add(after);
        self.evict(chunk.ts, out);
    }

    fn evict(&mut self, now: Timestamp, out: &mut Vec<Transaction>) {
        loop {
            let reason = if self.table.len() > self.settings.max_connections {
                Counter::EvictedConnections
            } else if self.buffered > self.settings.max_buffered_bytes {
                Counter::EvictedForMemory
            } else {
                return;
            };
            let Some((_, connection)) = self.table.pop_lru() else { return };
            self.counts.one(reason);
            self.forget(connection, false, now, out);
        }
    }

    /// The connection with this number has closed.
    pub fn closed(&mut self, connection: u64, now: Timestamp, out: &mut Vec<Transaction>) {
        if let Some(connection) = self.table.pop(&connection) {
            self.forget(connection, true, now, out);
        }
    }

    /// Forgets the connections that have been idle for too long.
    pub fn expire(&mut self, now: Timestamp, out: &mut Vec<Transaction>) {
        let idle = |connection: &Connection, settings: &Settings| {
            now.since(connection.last_seen) >= settings.idle_timeout
        };
        while self.table.peek_lru().is_some_and(|(_, oldest)| idle(oldest, &self.settings)) {
            let Some((_, connection)) = self.table.pop_lru() else { return };
            self.counts.one(Counter::ExpiredConnections);
            self.forget(connection, false, now, out);
        }
    }

    fn forget(
        &mut self,
        connection: Connection,
        closed: bool,
        now: Timestamp,
        out: &mut Vec<Transaction>,
    ) {
        self.buffered = self.buffered.saturating_sub(connection.weight());
        connection.finish(closed, now, &mut Output { counts: &mut self.counts, transactions: out });
    }

    /// Whether this connection is remembered: whether its next chunk is not its first.
    pub fn knows(&self, connection: u64) -> bool {
        self.table.contains(&connection)
    }

    /// Connections remembered.
    pub fn connections(&self) -> usize {
        self.table.len()
    }

    /// Memory for unfinished heads and exchanges, in bytes, about.
    pub fn buffered_bytes(&self) -> usize {
        self.buffered
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}
