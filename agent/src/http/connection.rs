//! One connection: its place in both directions and what it speaks.

use std::sync::Arc;

use super::Ignore;
use super::context::{Context, Output};
use super::counts::Counter;
use super::http1::Http1;
use super::http2::Http2;
use super::opening::{Found, Opening};
use crate::flow::{Piece, Position, Side};
use crate::time::Timestamp;

#[derive(Debug, Default)]
pub struct Connection {
    read: Position,
    write: Position,
    pub last_seen: Timestamp,
    protocol: Protocol,
    /// Of the client's TLS.
    pub ja4: Option<Arc<str>>,
}

#[derive(Debug)]
enum Protocol {
    Undecided(Opening),
    Http1(Box<Http1>),
    Http2(Box<Http2>),
    /// Nothing more can be read from it; why has been counted.
    Ignored,
}

impl Default for Protocol {
    fn default() -> Self {
        Self::Undecided(Opening::default())
    }
}

impl Connection {
    pub fn new(ja4: Option<Arc<str>>) -> Self {
        Self { ja4, ..Self::default() }
    }

    pub fn chunk(&mut self, cx: &mut Context<'_>) {
        self.last_seen = self.last_seen.max(cx.chunk.ts);
        let side = cx.chunk.side;
        let position = match side {
            Side::Read => &mut self.read,
            Side::Write => &mut self.write,
        };
        let piece = position.place(cx.chunk);
        cx.output.counts.add(Counter::RepeatedBytes, piece.repeated);
        let next = match &mut self.protocol {
            Protocol::Undecided(opening) => {
                let found =
                    opening.look(side, &piece, cx.settings.max_head_bytes, cx.output.counts);
                self.begin(found, &piece, cx)
            }
            protocol => protocol.piece(side, &piece, cx),
        };
        if next.is_err() {
            let protocol = std::mem::replace(&mut self.protocol, Protocol::Ignored);
            protocol.finish(false, cx.chunk.ts, &mut cx.output);
        }
    }

    /// Reads what has come, if that tells the protocol.
    fn begin(
        &mut self,
        found: Found,
        piece: &Piece<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(), Ignore> {
        let side = cx.chunk.side;
        let piece = Piece { missing_before: 0, ..*piece };
        // Before the piece, and after it what the other side had said.
        let (before, answer);
        (self.protocol, before, answer) = match found {
            Found::Nothing => return Ok(()),
            Found::Requests { bytes, answer } => (Protocol::http1(side, true), bytes, answer),
            Found::RequestsMidway => (Protocol::http1(side, false), vec![], vec![]),
            Found::Http2 { requests, bytes, answer } => {
                (Protocol::http2(Http2::new(requests), cx), bytes, answer)
            }
            Found::Http2Requests { scan } => {
                (Protocol::http2(Http2::without_responses(side, scan), cx), vec![], vec![])
            }
            Found::Http2Midway { requests, asked, answered } => {
                // The piece is at the end of one of these.
                self.protocol = Protocol::http2(Http2::midway(requests), cx);
                self.protocol.bytes(requests, &asked, cx)?;
                return self.protocol.bytes(requests.other(), &answered, cx);
            }
        };
        self.protocol.bytes(side, &before, cx)?;
        self.protocol.piece(side, &piece, cx)?;
        self.protocol.bytes(side.other(), &answer, cx)
    }

    /// Hands on what waits, because the connection ended (`closed`) or is forgotten.
    pub fn finish(self, closed: bool, now: Timestamp, output: &mut Output<'_>) {
        self.protocol.finish(closed, now, output);
    }

    /// Bytes of memory beside the table's entry, about.
    pub fn weight(&self) -> usize {
        match &self.protocol {
            Protocol::Http1(http1) => http1.weight(),
            Protocol::Http2(http2) => http2.weight(),
            Protocol::Undecided(opening) => opening.heap_bytes(),
            Protocol::Ignored => 0,
        }
    }
}

impl Protocol {
    fn http1(requests: Side, pairing: bool) -> Self {
        Self::Http1(Box::new(Http1::new(requests, pairing)))
    }

    fn http2(http2: Http2, cx: &mut Context<'_>) -> Self {
        cx.output.counts.one(Counter::Http2Connection);
        Self::Http2(Box::new(http2))
    }

    fn bytes(&mut self, side: Side, data: &[u8], cx: &mut Context<'_>) -> Result<(), Ignore> {
        self.piece(side, &Piece { data, ..Piece::default() }, cx)
    }

    fn piece(&mut self, side: Side, piece: &Piece<'_>, cx: &mut Context<'_>) -> Result<(), Ignore> {
        match self {
            Self::Http1(http1) => http1.piece(side, piece, cx),
            Self::Http2(http2) => http2.piece(side, piece, cx),
            Self::Undecided(_) | Self::Ignored => Ok(()),
        }
    }

    fn finish(self, closed: bool, now: Timestamp, output: &mut Output<'_>) {
        match self {
            Self::Http1(http1) => http1.finish(closed, now, output),
            Self::Http2(http2) => http2.finish(now, output),
            Self::Undecided(_) | Self::Ignored => {}
        }
    }
}
