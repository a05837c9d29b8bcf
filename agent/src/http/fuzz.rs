//! What the fuzzer and the replay of its seeds run.
//!
//! The input is a list of chunks. Each begins with a control byte: bit 0 the side, bits 1 and 2
//! the connection, bit 3: a byte follows with how many bytes were lost before, bit 4: … came
//! before, bit 5: … were cut off at the end; bit 6: the connection closes after it; bit 7: a
//! minute passes before it. Then the length (one byte) and the bytes.
//!
//! For HTTP/2, every connection begins with what both sides must say, and the bytes of a chunk are
//! a frame: type, flags, stream (one byte each), payload. Fewer than three are taken as they are.

use std::borrow::Cow;
use std::time::Duration;

use super::{Counter, CredentialKey, Http, Settings};
use crate::flow::{Chunk, Side};
use crate::time::Timestamp;
use crate::transaction::Transaction;

/// Connections that a record can name.
const CONNECTIONS: u8 = 4;

#[derive(Clone, Debug)]
struct Record<'a> {
    side: Side,
    connection: u8,
    lost: u8,
    repeated: u8,
    cut: u8,
    closes: bool,
    waits: bool,
    data: Cow<'a, [u8]>,
}

impl<'a> Record<'a> {
    fn take(input: &mut &'a [u8]) -> Option<Self> {
        let control = byte(input)?;
        let mut optional = |bit: u8| if control & bit == 0 { 0 } else { byte(input).unwrap_or(0) };
        let (lost, repeated, cut) = (optional(8), optional(16), optional(32));
        let length = usize::from(byte(input)?).min(input.len());
        let (data, rest) = input.split_at_checked(length)?;
        *input = rest;
        Some(Self {
            side: if control & 1 == 0 { Side::Read } else { Side::Write },
            connection: (control >> 1) % CONNECTIONS,
            lost,
            repeated,
            cut,
            closes: control & 64 != 0,
            waits: control & 128 != 0,
            data: data.into(),
        })
    }

    /// A chunk of its own on `connection`.
    fn plain(connection: u8, side: Side, data: &'a [u8]) -> Self {
        let (lost, repeated, cut) = (0, 0, 0);
        let (closes, waits) = (false, false);
        Self { side, connection, lost, repeated, cut, closes, waits, data: data.into() }
    }

    /// The same with the data as a frame.
    fn framed(self) -> Self {
        let [kind, flags, stream, payload @ ..] = &*self.data else { return self };
        let length = payload.len() as u32;
        let [_, l0, l1, l2] = length.to_be_bytes();
        let header = [l0, l1, l2, *kind, *flags, 0, 0, 0, *stream];
        let data = [&header[..], payload].concat().into();
        Self { data, ..self }
    }

    fn is_whole(&self) -> bool {
        self.lost == 0 && self.repeated == 0 && self.cut == 0 && !self.waits
    }
}

fn byte(input: &mut &[u8]) -> Option<u8> {
    let (&first, rest) = input.split_first()?;
    *input = rest;
    Some(first)
}

/// Small bounds, so that short inputs reach them.
fn settings() -> Settings {
    Settings {
        max_connections: 3,
        body_excerpt: 16,
        idle_timeout: Duration::from_secs(120),
        max_head_bytes: 512,
        max_pipelined: 4,
        max_buffered_bytes: 64 * 1024,
        response_patience: Duration::from_secs(2),
    }
}

/// A run over records.
struct Run {
    http: Http,
    out: Vec<Transaction>,
    now: Timestamp,
    /// Per connection and side.
    positions: [[u64; 2]; CONNECTIONS as usize],
}

impl Run {
    /// Runs the records, each cut into pieces of `step` bytes.
    fn over(records: &[Record<'_>], step: usize) -> Self {
        let mut run = Self {
            http: Http::new(settings(), CredentialKey::unkeyed()),
            out: Vec::new(),
            now: Timestamp::from_nanos(1_700_000_000_000_000_000),
            positions: Default::default(),
        };
        for record in records {
            run.record(record, step);
        }
        for connection in 0..CONNECTIONS {
            run.http.closed(u64::from(connection), run.now, &mut run.out);
        }
        assert_eq!((run.http.connections(), run.http.buffered_bytes()), (0, 0));
        run
    }

    fn record(&mut self, record: &Record<'_>, step: usize) {
        if record.waits {
            self.now = self.now.saturating_add(Duration::from_secs(60));
            self.http.expire(self.now, &mut self.out);
        }
        let sides = &mut self.positions[usize::from(record.connection)];
        let position = &mut sides[usize::from(record.side == Side::Write)];
        *position = (*position + u64::from(record.lost)).saturating_sub(u64::from(record.repeated));
        let mut rest = &*record.data;
        loop {
            let (data, after) = rest.split_at_checked(step).unwrap_or((rest, b""));
            rest = after;
            let cut = if rest.is_empty() { u64::from(record.cut) } else { 0 };
            let chunk = Chunk {
                connection: u64::from(record.connection),
                side: record.side,
                ts: self.now,
                local: ([192, 0, 2, 1], 443).into(),
                remote: ([198, 51, 100, 7], 50_000).into(),
                pid: 1,
                comm: "fuzz",
                offset: *position,
                len: data.len() as u64 + cut,
                data,
                ja4: None,
            };
            *position += chunk.len;
            self.http.chunk(&chunk, &mut self.out);
            assert!(self.http.connections() <= settings().max_connections);
            assert!(self.http.buffered_bytes() <= settings().max_buffered_bytes);
            if rest.is_empty() {
                break;
            }
        }
        if record.closes {
            self.http.closed(u64::from(record.connection), self.now, &mut self.out);
            self.positions[usize::from(record.connection)] = [0; 2];
        }
    }
}

/// Reads chunks from `input`.
///
/// # Panics
///
/// If a bound does not hold, a transaction is not as documented, or the same bytes give other
/// transactions when they are cut elsewhere.
pub fn fuzz_entry(input: &[u8]) {
    let mut rest = input;
    let records: Vec<_> = std::iter::from_fn(|| Record::take(&mut rest)).collect();
    judge(&records);
}

/// Reads frames of HTTP/2 from `input`.
///
/// # Panics
///
/// As [`fuzz_entry`].
pub fn fuzz_http2_entry(input: &[u8]) {
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", SETTINGS].concat();
    let mut records = Vec::new();
    for connection in 0..2 {
        records.push(Record::plain(connection, Side::Read, &preface));
        records.push(Record::plain(connection, Side::Write, SETTINGS));
    }
    let mut rest = input;
    records.extend(std::iter::from_fn(|| Record::take(&mut rest)).map(Record::framed));
    judge(&records);
}

fn judge(records: &[Record<'_>]) {
    let whole = Run::over(records, usize::MAX);
    assert_eq!(whole.out.len() as u64, whole.http.counts().get(Counter::Transactions));
    whole.out.iter().for_each(check);
    // What depends on where chunks begin: connections joined midway. And what depends on how
    // much is kept for how long: evictions.
    let exempt = [
        Counter::JoinedMidway,
        Counter::NotHttp,
        Counter::EvictedConnections,
        Counter::EvictedForMemory,
    ];
    let comparable = |run: &Run| exempt.iter().all(|&c| run.http.counts().get(c) == 0);
    if !records.iter().all(Record::is_whole) || !comparable(&whole) {
        return;
    }
    for step in [1, 7] {
        let cut = Run::over(records, step);
        if comparable(&cut) {
            assert_eq!(whole.out, cut.out);
            assert_eq!(whole.http.counts(), cut.http.counts());
        }
    }
}

fn check(transaction: &Transaction) {
    let excerpt = settings().body_excerpt;
    for body in [&transaction.req_body, &transaction.resp_body].into_iter().flatten() {
        // A replaced byte takes three.
        assert!(!body.is_empty() && body.len() <= 3 * excerpt);
    }
    assert!(transaction.status.is_none_or(|status| (100..1000).contains(&status)));
    assert_eq!(transaction.status.is_some(), transaction.duration_ms.is_some());
    assert!(transaction.status.is_some() || transaction.resp_headers.is_empty());
    assert!(!transaction.method.is_empty() && !transaction.path.is_empty());
}
