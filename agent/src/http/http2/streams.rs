//! The exchanges of a connection: a request and its response have a stream of their own, whose
//! number is never used again, so that no loss can pair them wrongly.

use std::collections::BTreeMap;

use super::head::{Head, Missing};
use crate::http::context::{Context, Output};
use crate::http::counts::Counter;
use crate::http::exchange::Exchange;
use crate::http::framing::MethodKind;
use crate::http::head::ResponseHead;
use crate::http::request_head::RequestHead;
use crate::time::Timestamp;
use crate::transaction::Direction;

/// Beside the exchange: the entry in the map and its share of a node.
const STREAM_OVERHEAD: usize = 64;

#[derive(Debug)]
pub struct Streams {
    direction: Direction,
    /// Those with a request that has not been handed on.
    open: BTreeMap<u32, Box<Stream>>,
    /// Bytes of memory of `open`, about.
    weight: usize,
    /// The highest number of a request's stream.
    latest: u32,
    /// When the exchange that has waited the longest may have waited too long.
    look_at: Option<Timestamp>,
}

#[derive(Debug)]
struct Stream {
    exchange: Exchange,
    request: Received,
    response: Received,
    answered: bool,
    extended_connect: bool,
}

/// Content of a body.
#[derive(Clone, Copy, Debug, Default)]
struct Received {
    bytes: u64,
    /// Some may have been lost uncounted.
    inexact: bool,
}

impl Stream {
    fn weight(&self) -> usize {
        self.exchange.weight().saturating_add(STREAM_OVERHEAD)
    }

    /// When it began to wait for what it still waits for.
    fn waits_since(&self) -> Timestamp {
        if self.answered { self.exchange.responded() } else { self.exchange.requested() }
    }

    /// Whether nothing more of its response is looked at.
    fn is_complete(&self) -> bool {
        self.answered && self.exchange.response_body.is_full() && !self.exchange.awaits_trailers()
    }
}

impl Streams {
    pub fn new(direction: Direction) -> Self {
        Self { direction, open: BTreeMap::new(), weight: 0, latest: 0, look_at: None }
    }

    pub fn weight(&self) -> usize {
        self.weight
    }

    /// A header block on the side of requests has ended; `None` when some of it was lost.
    pub fn request(&mut self, id: u32, ended: bool, head: Option<Head>, cx: &mut Context<'_>) {
        if id <= self.latest {
            // Trailers.
            if ended {
                self.request_ended(id);
            }
            return;
        }
        let extended_connect = head.as_ref().is_some_and(Head::is_extended_connect);
        let head = match head.map_or(Ok(Head::unknown_request()), |head| head.request(ended)) {
            Ok(head) => head,
            Err(Missing::Malformed) => {
                self.latest = id;
                return cx.output.counts.one(Counter::MalformedRequest);
            }
            // Of a request from before the connection was joined.
            Err(Missing::Trailers | Missing::Unknown) => return,
        };
        self.latest = id;
        self.open(id, head, extended_connect, cx);
    }

    fn open(&mut self, id: u32, head: RequestHead, extended_connect: bool, cx: &mut Context<'_>) {
        if self.open.len() >= cx.settings.max_pipelined
            && let Some((_, oldest)) = self.open.pop_first()
        {
            cx.output.counts.one(Counter::PipelineOverflow);
            self.hand_on(oldest, cx.chunk.ts, &mut cx.output);
        }
        let exchange = Exchange::new(u64::from(id), head, cx, self.direction);
        let (request, response) = Default::default();
        let stream =
            Box::new(Stream { exchange, request, response, answered: false, extended_connect });
        self.weight = self.weight.saturating_add(stream.weight());
        self.open.insert(id, stream);
        self.look_at.get_or_insert(cx.chunk.ts.saturating_add(cx.settings.response_patience));
    }

    pub fn request_data(&mut self, id: u32, bytes: &[u8]) {
        self.edit(id, |stream| {
            stream.request.bytes = stream.request.bytes.saturating_add(bytes.len() as u64);
            stream.exchange.request_body.add(bytes);
        });
    }

    pub fn request_ended(&mut self, id: u32) {
        self.edit(id, |stream| {
            if !stream.request.inexact {
                stream.exchange.request_ended(stream.request.bytes);
            }
        });
    }

    /// A header block on the side of responses has ended; `None` when some of it was lost.
    pub fn response(&mut self, id: u32, ended: bool, head: Option<Head>, cx: &mut Context<'_>) {
        let Some(stream) = self.open.get(&id) else {
            // Of a stream that was handed on, or that was opened before the connection was joined.
            if id > self.latest {
                cx.output.counts.one(Counter::ResponsesWithoutRequest);
            }
            return;
        };
        if stream.answered {
            return self.trailers(id, ended, head, cx);
        }
        match head.ok_or(Missing::Unknown).and_then(|head| head.response(ended)) {
            Ok((head, _)) if head.status < 200 => cx.output.counts.one(Counter::InterimResponses),
            Ok((head, framing)) => {
                let (ts, excerpt) = (cx.chunk.ts, cx.settings.body_excerpt);
                let done = self.is_left_in_peace(id, &head, cx) || ended;
                self.edit(id, |stream| {
                    stream.answered = true;
                    stream.exchange.answer(head, framing, ts, excerpt);
                });
                if done {
                    self.close(id, cx);
                }
                self.close_if_complete(id, cx);
            }
            Err(missing) => {
                if missing == Missing::Malformed {
                    cx.output.counts.one(Counter::MalformedResponse);
                }
                self.close_unpaired(id, cx);
            }
        }
    }

    /// Whether what follows this head on its stream is no body.
    fn is_left_in_peace(&self, id: u32, head: &ResponseHead, cx: &mut Context<'_>) -> bool {
        if head.is_event_stream() {
            cx.output.counts.one(Counter::EventStreams);
        }
        let Some(stream) = self.open.get(&id) else { return false };
        let tunnel = stream.exchange.kind == MethodKind::Connect && head.status < 300;
        if tunnel {
            let upgraded = stream.extended_connect;
            cx.output.counts.one(if upgraded { Counter::Upgraded } else { Counter::Tunnels });
        }
        tunnel
    }

    fn trailers(&mut self, id: u32, ended: bool, head: Option<Head>, cx: &mut Context<'_>) {
        if let Some(head) = head {
            let trailers = head.trailers();
            self.edit(id, |stream| stream.exchange.trailers(&trailers));
        }
        if ended {
            self.response_ended(id, cx);
        }
    }

    pub fn response_data(&mut self, id: u32, bytes: &[u8], cx: &mut Context<'_>) {
        self.edit(id, |stream| {
            stream.response.bytes = stream.response.bytes.saturating_add(bytes.len() as u64);
            stream.exchange.response_body.add(bytes);
        });
        self.close_if_complete(id, cx);
    }

    pub fn response_ended(&mut self, id: u32, cx: &mut Context<'_>) {
        let Some(stream) = self.open.get_mut(&id) else { return };
        if !stream.answered {
            return self.close_unpaired(id, cx);
        }
        if !stream.response.inexact {
            stream.exchange.response_ended(stream.response.bytes);
        }
        self.close(id, cx);
    }

    /// Either side gave the stream up.
    pub fn reset(&mut self, id: u32, cx: &mut Context<'_>) {
        let Some(stream) = self.open.get(&id) else { return };
        if !stream.answered {
            cx.output.counts.one(Counter::ResetStreams);
        }
        self.close(id, cx);
    }

    /// `bytes` of content were lost on the side of requests; more if not `exact`.
    pub fn request_lost(&mut self, id: u32, bytes: u64, exact: bool) {
        self.edit(id, |stream| {
            stream.request.bytes = stream.request.bytes.saturating_add(bytes);
            stream.request.inexact |= !exact;
            stream.exchange.request_body.close();
        });
    }

    /// The same on the side of responses: what is kept of the body ends there.
    pub fn response_lost(&mut self, id: u32, bytes: u64, exact: bool, cx: &mut Context<'_>) {
        self.edit(id, |stream| {
            stream.response.bytes = stream.response.bytes.saturating_add(bytes);
            stream.response.inexact |= !exact;
            stream.exchange.response_body.close();
        });
        self.close_if_complete(id, cx);
    }

    /// Nobody knows what was lost on the side of requests.
    pub fn requests_lost(&mut self) {
        for stream in self.open.values_mut() {
            stream.request.inexact = true;
            stream.exchange.request_body.close();
        }
    }

    /// Nobody knows what was lost on the side of responses.
    pub fn responses_lost(&mut self, cx: &mut Context<'_>) {
        for stream in self.open.values_mut().filter(|stream| stream.answered) {
            stream.response.inexact = true;
            stream.exchange.response_body.close();
        }
        self.hand_on_if(Stream::is_complete, cx);
    }

    /// Hands on what has waited for too long: for the rest of a body, or, where responses are
    /// not read (`lost`), for a response.
    pub fn late(&mut self, lost: bool, cx: &mut Context<'_>) {
        let (now, patience) = (cx.chunk.ts, cx.settings.response_patience);
        if self.look_at.is_none_or(|at| now < at) {
            return;
        }
        let waits = |stream: &Stream| stream.answered || lost;
        self.hand_on_if(|stream| waits(stream) && now.since(stream.waits_since()) >= patience, cx);
        let oldest = self.open.values().filter(|stream| waits(stream)).map(|s| s.waits_since());
        let next = oldest.min().map(|oldest| oldest.saturating_add(patience));
        let any = (!self.open.is_empty()).then(|| now.saturating_add(patience));
        self.look_at = next.or(any);
    }

    fn hand_on_if(&mut self, is_meant: impl Fn(&Stream) -> bool, cx: &mut Context<'_>) {
        let meant = self.open.iter().filter(|(_, stream)| is_meant(stream)).map(|(id, _)| *id);
        for id in meant.collect::<Vec<_>>() {
            self.close_as(id, Counter::UnpairedRequests, cx);
        }
    }

    /// Hands on all, because the connection has ended or is given up.
    pub fn finish(mut self, now: Timestamp, output: &mut Output<'_>) {
        for stream in std::mem::take(&mut self.open).into_values() {
            self.hand_on(stream, now, output);
        }
    }

    fn close_if_complete(&mut self, id: u32, cx: &mut Context<'_>) {
        if self.open.get(&id).is_some_and(|stream| stream.is_complete()) {
            self.close(id, cx);
        }
    }

    fn close(&mut self, id: u32, cx: &mut Context<'_>) {
        if let Some(stream) = self.open.remove(&id) {
            self.weight = self.weight.saturating_sub(stream.weight());
            cx.output.emit(stream.exchange, cx.chunk.ts);
        }
    }

    fn close_unpaired(&mut self, id: u32, cx: &mut Context<'_>) {
        self.close_as(id, Counter::UnpairedRequests, cx);
    }

    fn close_as(&mut self, id: u32, unanswered: Counter, cx: &mut Context<'_>) {
        if self.open.get(&id).is_some_and(|stream| !stream.answered) {
            cx.output.counts.one(unanswered);
        }
        self.close(id, cx);
    }

    fn hand_on(&mut self, stream: Box<Stream>, now: Timestamp, output: &mut Output<'_>) {
        self.weight = self.weight.saturating_sub(stream.weight());
        if !stream.answered {
            output.counts.one(Counter::UnansweredRequests);
        }
        output.emit(stream.exchange, now);
    }

    fn edit(&mut self, id: u32, change: impl FnOnce(&mut Stream)) {
        if let Some(stream) = self.open.get_mut(&id) {
            let before = stream.weight();
            change(stream);
            let after = stream.weight();
            self.weight = self.weight.saturating_sub(before).saturating_add(after);
        }
    }
}
