//! The side of a connection that carries requests.

use super::{Exchange, Http1, Requests};
use crate::http::Ignore;
use crate::http::body::Body;
use crate::http::context::Context;
use crate::http::counts::Counter;
use crate::http::framing::{Malformed, MethodKind};
use crate::http::head::Gathered;
use crate::http::request_head::{RequestHead, begins_with_request_line, parse_request};

impl Http1 {
    pub(super) fn read_requests(
        &mut self,
        mut data: &[u8],
        cx: &mut Context<'_>,
    ) -> Result<(), Ignore> {
        if matches!(self.requests, Requests::Lost) && begins_with_request_line(data) {
            self.requests = Requests::Head;
        }
        while !data.is_empty() {
            let used = match &mut self.requests {
                Requests::Head => self.read_request_head(data, cx)?,
                Requests::Body(..) => self.read_request_body(data, cx)?,
                Requests::Held(_) => {
                    self.hold(data, cx)?;
                    data.len()
                }
                Requests::Lost | Requests::Stopped => return Ok(()),
            };
            data = data.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    fn read_request_head(&mut self, data: &[u8], cx: &mut Context<'_>) -> Result<usize, Ignore> {
        // Empty lines before a request are passed over (RFC 9112, section 2.2).
        if self.request_head.is_empty() && matches!(data.first(), Some(b'\r' | b'\n')) {
            return Ok(1);
        }
        let gathered = self.request_head.gather(data, cx.settings.max_head_bytes);
        let parsed = gathered.and_then(|gathered| match gathered {
            Gathered::Partial => Ok(None),
            Gathered::Complete { head, used } => match parse_request(head, cx.key) {
                Err(Malformed::Head) if self.next_id == 0 && !mentions_http(head) => {
                    cx.output.counts.one(Counter::NotHttp);
                    Ok(Some((None, used)))
                }
                parsed => parsed.map(|request| Some((Some(request), used))),
            },
        });
        match parsed {
            Ok(None) => Ok(data.len()),
            Ok(Some((Some(request), used))) => {
                self.request_head.clear();
                self.begin(request, cx)?;
                Ok(used)
            }
            Ok(Some((None, _))) => Err(Ignore),
            Err(malformed) => {
                self.malformed_request(malformed, cx)?;
                Ok(data.len())
            }
        }
    }

    /// A request's head is complete.
    fn begin(&mut self, head: RequestHead, cx: &mut Context<'_>) -> Result<(), Ignore> {
        if self.pairing && self.waiting.len() >= cx.settings.max_pipelined {
            cx.output.counts.one(Counter::PipelineOverflow);
            self.stop_responses(cx)?;
        }
        let id = self.next_id;
        self.next_id = id.saturating_add(1);
        let body = Body::of_request(head.framing);
        let exchange = Exchange::new(id, head, cx, self.direction());
        let connect = exchange.kind == MethodKind::Connect;
        let has_body = body.is_some();
        self.requests = match body {
            body if connect => Requests::Held(body),
            Some(body) => Requests::Body(id, body),
            None => Requests::Head,
        };
        self.kept(&exchange);
        if self.pairing {
            self.waiting.push_back(exchange);
            return Ok(());
        }
        let ready = connect || !has_body || exchange.request_body.is_full();
        self.lone = Some(exchange);
        if ready {
            self.emit_lone(cx.chunk.ts, &mut cx.output);
        }
        // Without its response nobody knows whether requests follow.
        if connect { Err(Ignore) } else { Ok(()) }
    }

    fn read_request_body(&mut self, data: &[u8], cx: &mut Context<'_>) -> Result<usize, Ignore> {
        // The body moves out so that its content can go to the exchange.
        let Requests::Body(id, mut body) = std::mem::replace(&mut self.requests, Requests::Head)
        else {
            return Ok(data.len());
        };
        let fed = match self.find(id) {
            Some(exchange) => {
                let before = exchange.weight();
                let fed = body.feed(data, |content| exchange.request_body.add(content));
                let after = exchange.weight();
                self.reweigh(before, after);
                fed
            }
            None => body.feed(data, |_| ()),
        };
        self.requests = Requests::Body(id, body);
        match fed {
            Ok(fed) => {
                if fed.ended {
                    self.request_ended(cx);
                } else {
                    self.emit_full_lone(cx);
                }
                Ok(fed.used)
            }
            Err(malformed) => {
                self.malformed_request(malformed, cx)?;
                Ok(data.len())
            }
        }
    }

    /// The body that is being read has ended.
    pub(super) fn request_ended(&mut self, cx: &mut Context<'_>) {
        if let Requests::Body(id, body) = std::mem::replace(&mut self.requests, Requests::Head) {
            let full = self.lone.as_ref().is_some_and(|lone| lone.request_body.is_full());
            // What is handed on early does not know the size of a chunked body; how much of it
            // came in one piece must not matter.
            if !full {
                self.edit(id, |exchange| exchange.request_ended(body.received()));
            }
            self.emit_lone(cx.chunk.ts, &mut cx.output);
        }
    }

    /// Hands on the request that waits for nothing but its excerpt.
    pub(super) fn emit_full_lone(&mut self, cx: &mut Context<'_>) {
        if self.lone.as_ref().is_some_and(|lone| lone.request_body.is_full()) {
            self.emit_lone(cx.chunk.ts, &mut cx.output);
        }
    }

    fn malformed_request(
        &mut self,
        malformed: Malformed,
        cx: &mut Context<'_>,
    ) -> Result<(), Ignore> {
        cx.output.counts.one(malformed.in_request());
        self.emit_lone(cx.chunk.ts, &mut cx.output);
        self.requests = Requests::Stopped;
        self.request_head.clear();
        self.pairing = false;
        self.ignore_if_done()
    }

    /// Keeps bytes that follow a CONNECT.
    fn hold(&mut self, data: &[u8], cx: &mut Context<'_>) -> Result<(), Ignore> {
        if self.request_head.append(data, cx.settings.max_head_bytes) {
            return Ok(());
        }
        cx.output.counts.one(Counter::PipelineOverflow);
        Err(Ignore)
    }

    /// A CONNECT was refused: what came after it is a body, if it had one, and requests.
    pub(super) fn release(&mut self, cx: &mut Context<'_>) -> Result<(), Ignore> {
        if !matches!(self.requests, Requests::Held(_)) {
            return Ok(());
        }
        let held = self.request_head.take();
        if let Requests::Held(body) = std::mem::replace(&mut self.requests, Requests::Head)
            && let Some(body) = body
        {
            // CONNECT is always the latest request.
            self.requests = Requests::Body(self.next_id.saturating_sub(1), body);
        }
        self.read_requests(&held, cx)
    }

    /// The exchange with this number, if it has not been handed on. Only the latest request can
    /// have a body to come.
    fn find(&mut self, id: u64) -> Option<&mut Exchange> {
        [self.lone.as_mut(), self.waiting.back_mut(), self.answering.as_mut()]
            .into_iter()
            .flatten()
            .find(|exchange| exchange.id == id)
    }

    pub(super) fn edit(&mut self, id: u64, change: impl FnOnce(&mut Exchange)) {
        if let Some(exchange) = self.find(id) {
            change(exchange);
        }
    }

    pub(super) fn reweigh(&mut self, before: usize, after: usize) {
        self.exchanges_weight = self.exchanges_weight.saturating_sub(before).saturating_add(after);
    }
}

/// Whether the first line names HTTP/1: then a mistake in it is one of an HTTP client.
fn mentions_http(head: &[u8]) -> bool {
    let line = head.split(|&byte| byte == b'\n').next().unwrap_or_default();
    memchr::memmem::find(line, b"HTTP/1.").is_some()
}
