//! The side of a connection that carries responses.

use super::{Http1, Responses};
use crate::http::Ignore;
use crate::http::body::Body;
use crate::http::context::Context;
use crate::http::counts::Counter;
use crate::http::framing::{Malformed, MethodKind};
use crate::http::head::{Gathered, ResponseHead, parse_response};

/// The status that changes the connection's protocol (RFC 9110, section 15.2.2).
const SWITCHING_PROTOCOLS: u16 = 101;

impl Http1 {
    pub(super) fn read_responses(
        &mut self,
        mut data: &[u8],
        cx: &mut Context<'_>,
    ) -> Result<(), Ignore> {
        while !data.is_empty() {
            let used = match &mut self.responses {
                Responses::Head => self.read_response_head(data, cx)?,
                Responses::Body(_) => self.read_response_body(data, cx)?,
                Responses::Stopped => return Ok(()),
            };
            data = data.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    fn read_response_head(&mut self, data: &[u8], cx: &mut Context<'_>) -> Result<usize, Ignore> {
        let gathered = self.response_head.gather(data, cx.settings.max_head_bytes);
        let parsed = gathered.and_then(|gathered| match gathered {
            Gathered::Partial => Ok(None),
            Gathered::Complete { head, used } => {
                parse_response(head, cx.key).map(|response| Some((response, used)))
            }
        });
        match parsed {
            Ok(None) => Ok(data.len()),
            Ok(Some((response, used))) => {
                self.response_head.clear();
                self.answer(response, cx)?;
                Ok(used)
            }
            Err(malformed) => self.malformed_response(malformed, cx),
        }
    }

    /// A response's head is complete.
    fn answer(&mut self, head: ResponseHead, cx: &mut Context<'_>) -> Result<(), Ignore> {
        let status = head.status;
        let Some(waiting) = self.waiting.front() else {
            cx.output.counts.one(Counter::ResponsesWithoutRequest);
            return self.stop_responses(cx);
        };
        if status < 200 && status != SWITCHING_PROTOCOLS {
            cx.output.counts.one(Counter::InterimResponses);
            return Ok(());
        }
        let framing = match head.fields.response(waiting.kind, status) {
            Ok(framing) => framing,
            Err(malformed) => return self.malformed_response(malformed, cx),
        };
        let Some(mut exchange) = self.next_waiting() else { return Ok(()) };
        if head.is_event_stream() {
            cx.output.counts.one(Counter::EventStreams);
        }
        exchange.answer(head, framing, cx.chunk.ts, cx.settings.body_excerpt);

        let connect = exchange.kind == MethodKind::Connect;
        let tunnel = connect && (200..300).contains(&status);
        if tunnel || status == SWITCHING_PROTOCOLS {
            let counter = if tunnel { Counter::Tunnels } else { Counter::Upgraded };
            cx.output.counts.one(counter);
            cx.output.emit(exchange, cx.chunk.ts);
            return Err(Ignore);
        }
        match Body::new(framing) {
            Some(body) if !exchange.response_body.is_full() => {
                self.responses = Responses::Body(body);
                self.kept(&exchange);
                self.answering = Some(exchange);
            }
            body => {
                self.responses = body.map_or(Responses::Head, Responses::Body);
                cx.output.emit(exchange, cx.chunk.ts);
            }
        }
        if connect {
            self.release(cx)?;
        }
        self.ignore_if_done()
    }

    fn read_response_body(&mut self, data: &[u8], cx: &mut Context<'_>) -> Result<usize, Ignore> {
        let Responses::Body(body) = &mut self.responses else { return Ok(data.len()) };
        let fed = match &mut self.answering {
            Some(exchange) => {
                let before = exchange.weight();
                let fed = body.feed(data, |content| exchange.response_body.add(content));
                // What is handed on early does not know the size of a chunked body; how much of
                // it came in one piece must not matter.
                let full = exchange.response_body.is_full();
                if !full && fed.is_ok_and(|fed| fed.ended) {
                    exchange.response_ended(body.received());
                }
                let after = exchange.weight();
                self.reweigh(before, after);
                fed.map(|fed| (fed, full))
            }
            None => body.feed(data, |_| ()).map(|fed| (fed, false)),
        };
        match fed {
            Ok((fed, full)) => {
                if fed.ended {
                    self.responses = Responses::Head;
                }
                if full || fed.ended {
                    self.emit_answering(cx.chunk.ts, &mut cx.output);
                    self.ignore_if_done()?;
                }
                Ok(fed.used)
            }
            Err(malformed) => self.malformed_response(malformed, cx),
        }
    }

    fn malformed_response<T>(
        &mut self,
        malformed: Malformed,
        cx: &mut Context<'_>,
    ) -> Result<T, Ignore> {
        cx.output.counts.one(malformed.in_response());
        Err(Ignore)
    }
}
