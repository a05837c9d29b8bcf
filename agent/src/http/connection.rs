//! One connection: its place in both directions and what it speaks.

use std::sync::Arc;

use super::Ignore;
use super::counts::Counter;
use super::http1::{Context, Http1, Output};
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
                match opening.look(side, &piece, cx.settings.max_head_bytes, cx.output.counts) {
                    Found::Nothing => Ok(()),
                    Found::Http2 => {
                        cx.output.counts.one(Counter::Http2Connection);
                        Err(Ignore)
                    }
                    Found::Requests { bytes, answer } => {
                        self.begin(Http1::new(side, true), &bytes, &piece, &answer, cx)
                    }
                    Found::RequestsMidway => {
                        self.begin(Http1::new(side, false), b"", &piece, b"", cx)
                    }
                }
            }
            Protocol::Http1(http1) => http1.piece(side, &piece, cx),
            Protocol::Ignored => Ok(()),
        };
        if next.is_err() {
            let protocol = std::mem::replace(&mut self.protocol, Protocol::Ignored);
            protocol.finish(false, cx.chunk.ts, &mut cx.output);
        }
    }

    /// Reads `bytes`, then `piece`, then what the other side had said (`answer`).
    fn begin(
        &mut self,
        http1: Http1,
        bytes: &[u8],
        piece: &Piece<'_>,
        answer: &[u8],
        cx: &mut Context<'_>,
    ) -> Result<(), Ignore> {
        self.protocol = Protocol::Http1(Box::new(http1));
        let Protocol::Http1(http1) = &mut self.protocol else { return Ok(()) };
        let (side, other) = match cx.chunk.side {
            Side::Read => (Side::Read, Side::Write),
            Side::Write => (Side::Write, Side::Read),
        };
        http1.piece(side, &Piece { data: bytes, ..Piece::default() }, cx)?;
        http1.piece(side, &Piece { missing_before: 0, ..*piece }, cx)?;
        http1.piece(other, &Piece { data: answer, ..Piece::default() }, cx)
    }

    /// Hands on what waits, because the connection ended (`closed`) or is forgotten.
    pub fn finish(self, closed: bool, now: Timestamp, output: &mut Output<'_>) {
        self.protocol.finish(closed, now, output);
    }

    /// Bytes of memory beside the table's entry, about.
    pub fn weight(&self) -> usize {
        match &self.protocol {
            Protocol::Http1(http1) => http1.weight(),
            Protocol::Undecided(opening) => opening.heap_bytes(),
            Protocol::Ignored => 0,
        }
    }
}

impl Protocol {
    fn finish(self, closed: bool, now: Timestamp, output: &mut Output<'_>) {
        match self {
            Self::Http1(http1) => http1.finish(closed, now, output),
            Self::Undecided(_) | Self::Ignored => {}
        }
    }
}
