//! An HTTP/1 connection: requests on one side, responses on the other, paired in order.
//!
//! Pairing is exact or given up. What can be lost, and what follows:
//!
//! | lost or malformed | requests read before it | requests after it |
//! |---|---|---|
//! | bytes of a body that must be content | paired | paired |
//! | other bytes of a request | paired | read from the next chunk that begins with a request line, handed on without status |
//! | other bytes of a response, or a response without request | without status | handed on without status |
//! | malformed request | paired | none |
//! | malformed response | without status | none |
//!
//! After a loss nothing can tell how many exchanges it held (a client may pipeline, and a body
//! may look like a message), which is why statuses do not come back.

mod requests;
mod responses;

use std::collections::VecDeque;

use super::Ignore;
use super::body::{Body, Skip};
use super::context::{Context, Output};
use super::counts::Counter;
use super::exchange::Exchange;
use super::head::HeadBuffer;
use crate::flow::{Piece, Side};
use crate::time::Timestamp;
use crate::transaction::Direction;

/// A longer queue is given back when it is empty.
const KEPT_QUEUE: usize = 8;

#[derive(Debug)]
pub struct Http1 {
    request_side: Side,
    requests: Requests,
    request_head: HeadBuffer,
    responses: Responses,
    response_head: HeadBuffer,
    /// Requests that wait for their response, in order.
    waiting: VecDeque<Exchange>,
    /// The exchange whose response's body is being read, until it is handed on.
    answering: Option<Exchange>,
    /// The request whose body is being read after pairing ended.
    lone: Option<Exchange>,
    /// Whether new requests wait for a response.
    pairing: bool,
    /// Number of the next request.
    next_id: u64,
    /// Bytes of memory of all exchanges here.
    exchanges_weight: usize,
}

/// Where the reading of requests stands.
#[derive(Debug)]
enum Requests {
    Head,
    /// In the body of the request with this number.
    Body(u64, Body),
    /// After CONNECT: only its response tells whether requests follow. The bytes gather in the
    /// head's buffer.
    Held(Option<Body>),
    /// Bytes were lost; requests begin again with a chunk that begins with one.
    Lost,
    Stopped,
}

#[derive(Debug)]
enum Responses {
    Head,
    Body(Body),
    Stopped,
}

impl Http1 {
    /// A connection whose requests go on `request_side`. Without `pairing`, its first bytes
    /// were not seen and responses are left alone.
    pub fn new(request_side: Side, pairing: bool) -> Self {
        Self {
            request_side,
            requests: Requests::Head,
            request_head: HeadBuffer::default(),
            responses: if pairing { Responses::Head } else { Responses::Stopped },
            response_head: HeadBuffer::default(),
            waiting: VecDeque::new(),
            answering: None,
            lone: None,
            pairing,
            next_id: 0,
            exchanges_weight: 0,
        }
    }

    /// Takes what came on `side`.
    pub fn piece(
        &mut self,
        side: Side,
        piece: &Piece<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(), Ignore> {
        if side == self.request_side {
            self.request_gap(piece.missing_before, cx)?;
            self.read_requests(piece.data, cx)?;
            self.request_gap(piece.missing_after, cx)?;
        } else {
            self.response_gap(piece.missing_before, cx)?;
            self.read_responses(piece.data, cx)?;
            self.response_gap(piece.missing_after, cx)?;
        }
        let patience = cx.settings.response_patience;
        let late = |exchange: &Exchange| cx.chunk.ts.since(exchange.responded()) >= patience;
        if self.answering.as_ref().is_some_and(late) {
            self.emit_answering(cx.chunk.ts, &mut cx.output);
        }
        Ok(())
    }

    /// Hands on what waits, because the connection ended (`closed`) or is given up.
    pub fn finish(mut self, closed: bool, now: Timestamp, output: &mut Output<'_>) {
        if !self.request_head.is_empty() && matches!(self.requests, Requests::Head) {
            output.counts.one(Counter::IncompleteRequests);
        }
        if closed
            && let Responses::Body(body) = &self.responses
            && body.ends_with_connection()
            && let Some(exchange) = &mut self.answering
        {
            exchange.response_ended(body.received());
        }
        self.abandon(now, output);
        self.emit_lone(now, output);
    }

    /// Bytes of memory, about.
    pub fn weight(&self) -> usize {
        [
            self.exchanges_weight,
            self.waiting.capacity().saturating_mul(size_of::<Exchange>()),
            self.request_head.heap_bytes(),
            self.response_head.heap_bytes(),
        ]
        .into_iter()
        .fold(size_of::<Self>(), usize::saturating_add)
    }

    fn direction(&self) -> Direction {
        match self.request_side {
            Side::Read => Direction::In,
            Side::Write => Direction::Out,
        }
    }

    /// Hands on all requests that wait for a response or for its end.
    fn abandon(&mut self, now: Timestamp, output: &mut Output<'_>) {
        self.emit_answering(now, output);
        for exchange in std::mem::take(&mut self.waiting) {
            self.released(&exchange);
            output.counts.one(Counter::UnansweredRequests);
            output.emit(exchange, now);
        }
    }

    fn emit_answering(&mut self, now: Timestamp, output: &mut Output<'_>) {
        if let Some(exchange) = self.answering.take() {
            self.released(&exchange);
            output.emit(exchange, now);
        }
    }

    fn emit_lone(&mut self, now: Timestamp, output: &mut Output<'_>) {
        if let Some(exchange) = self.lone.take() {
            self.released(&exchange);
            output.counts.one(Counter::UnpairedRequests);
            output.emit(exchange, now);
        }
    }

    /// Takes the request that waits for its response the longest.
    fn next_waiting(&mut self) -> Option<Exchange> {
        let exchange = self.waiting.pop_front()?;
        self.released(&exchange);
        if self.waiting.is_empty() && self.waiting.capacity() > KEPT_QUEUE {
            self.waiting = VecDeque::new();
        }
        Some(exchange)
    }

    fn kept(&mut self, exchange: &Exchange) {
        self.exchanges_weight = self.exchanges_weight.saturating_add(exchange.weight());
    }

    fn released(&mut self, exchange: &Exchange) {
        self.exchanges_weight = self.exchanges_weight.saturating_sub(exchange.weight());
    }

    /// Gives up pairing: what waits is handed on without status, responses are not read any
    /// more.
    fn stop_responses(&mut self, cx: &mut Context<'_>) -> Result<(), Ignore> {
        self.abandon(cx.chunk.ts, &mut cx.output);
        self.responses = Responses::Stopped;
        self.response_head.clear();
        self.pairing = false;
        match self.requests {
            // Whether requests follow will never be known.
            Requests::Stopped | Requests::Held(_) => Err(Ignore),
            Requests::Head | Requests::Body(..) | Requests::Lost => Ok(()),
        }
    }

    /// Nothing is left to read once no request can follow and none waits. The latest response is
    /// read to its end, so that where its bytes were cut makes no difference.
    fn ignore_if_done(&self) -> Result<(), Ignore> {
        let done = matches!(self.requests, Requests::Stopped)
            && self.waiting.is_empty()
            && !matches!(self.responses, Responses::Body(_));
        if done { Err(Ignore) } else { Ok(()) }
    }

    fn request_gap(&mut self, missing: u64, cx: &mut Context<'_>) -> Result<(), Ignore> {
        if missing == 0 {
            return Ok(());
        }
        cx.output.counts.add(Counter::GapBytes, missing);
        match &mut self.requests {
            Requests::Body(id, body) => {
                let (id, skip) = (*id, body.skip(missing));
                self.edit(id, |exchange| exchange.request_body.close());
                match skip {
                    Skip::Inside => self.emit_full_lone(cx),
                    Skip::Ended => self.request_ended(cx),
                    Skip::Unknown => self.lose_requests(cx),
                }
            }
            Requests::Head | Requests::Held(_) => self.lose_requests(cx),
            Requests::Lost | Requests::Stopped => {}
        }
        Ok(())
    }

    fn lose_requests(&mut self, cx: &mut Context<'_>) {
        cx.output.counts.one(Counter::GapDesync);
        self.emit_lone(cx.chunk.ts, &mut cx.output);
        self.requests = Requests::Lost;
        self.request_head.clear();
        self.pairing = false;
    }

    fn response_gap(&mut self, missing: u64, cx: &mut Context<'_>) -> Result<(), Ignore> {
        if missing == 0 {
            return Ok(());
        }
        cx.output.counts.add(Counter::GapBytes, missing);
        let skip = match &mut self.responses {
            Responses::Body(body) => body.skip(missing),
            Responses::Head => Skip::Unknown,
            Responses::Stopped => return Ok(()),
        };
        match skip {
            Skip::Inside => self.emit_answering(cx.chunk.ts, &mut cx.output),
            Skip::Ended => {
                self.emit_answering(cx.chunk.ts, &mut cx.output);
                self.responses = Responses::Head;
                self.ignore_if_done()?;
            }
            Skip::Unknown => {
                cx.output.counts.one(Counter::GapDesync);
                self.stop_responses(cx)?;
            }
        }
        Ok(())
    }
}
