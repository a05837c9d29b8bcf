//! Tests of the whole stage: chunks in, transactions out.

mod gaps;
mod http2;
mod properties;
mod rules;
mod seeds;
mod tables;
mod throughput;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Counter, CredentialKey, Http, Settings};
use crate::flow::{Chunk, Side};
use crate::time::Timestamp;
use crate::transaction::Transaction;

/// A host whose processes read and write what the test says.
struct Host {
    http: Http,
    out: Vec<Transaction>,
    now: Timestamp,
    connection: u64,
    positions: HashMap<(u64, Side), u64>,
    ja4: Option<Arc<str>>,
}

impl Host {
    fn new() -> Self {
        Self::with(Settings::default())
    }

    fn with(settings: Settings) -> Self {
        Self {
            http: Http::new(settings, CredentialKey::new(b"key")),
            out: Vec::new(),
            now: Timestamp::from_nanos(1_700_000_000_000_000_000),
            connection: 1,
            positions: HashMap::new(),
            ja4: None,
        }
    }

    /// What follows happens on another connection.
    fn on(&mut self, connection: u64) -> &mut Self {
        self.connection = connection;
        self
    }

    fn wait(&mut self, time: Duration) -> &mut Self {
        self.now = self.now.saturating_add(time);
        self
    }

    fn read(&mut self, data: impl AsRef<[u8]>) -> &mut Self {
        self.chunk(Side::Read, data.as_ref(), 0)
    }

    fn write(&mut self, data: impl AsRef<[u8]>) -> &mut Self {
        self.chunk(Side::Write, data.as_ref(), 0)
    }

    /// A call of which the last `cut` bytes were not copied.
    fn chunk(&mut self, side: Side, data: &[u8], cut: u64) -> &mut Self {
        let position = self.positions.entry((self.connection, side)).or_default();
        let offset = *position;
        *position += data.len() as u64 + cut;
        self.chunk_at(side, offset, data, cut)
    }

    fn chunk_at(&mut self, side: Side, offset: u64, data: &[u8], cut: u64) -> &mut Self {
        let chunk = Chunk {
            connection: self.connection,
            side,
            ts: self.now,
            local: ([192, 0, 2, 1], 443).into(),
            remote: ([198, 51, 100, 7], 50_000).into(),
            pid: 77,
            comm: "nginx",
            offset,
            len: data.len() as u64 + cut,
            data,
            ja4: self.ja4.as_ref(),
        };
        self.http.chunk(&chunk, &mut self.out);
        self
    }

    /// Bytes that were lost without a trace but their count.
    fn lose(&mut self, side: Side, bytes: u64) -> &mut Self {
        *self.positions.entry((self.connection, side)).or_default() += bytes;
        self
    }

    fn close(&mut self) -> &mut Self {
        self.http.closed(self.connection, self.now, &mut self.out);
        self
    }

    fn expire(&mut self) -> &mut Self {
        self.http.expire(self.now, &mut self.out);
        self
    }

    fn count(&self, counter: Counter) -> u64 {
        self.http.counts().get(counter)
    }

    /// `path status` of each transaction so far, `-` for no status.
    fn pairs(&self) -> Vec<String> {
        let status = |t: &Transaction| t.status.map_or("-".to_owned(), |s| s.to_string());
        self.out.iter().map(|t| format!("{} {}", t.path, status(t))).collect()
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\n\r\n")
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}
