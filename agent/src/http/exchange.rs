//! A transaction in the making.

use super::context::Context;
use super::framing::{Framing, MethodKind};
use super::head::ResponseHead;
use super::request_head::RequestHead;
use crate::time::Timestamp;
use crate::transaction::{Direction, Headers, Transaction};

/// One request and what is known of its response.
#[derive(Debug)]
pub struct Exchange {
    /// Number of the request on its connection.
    pub id: u64,
    pub kind: MethodKind,
    pub request_body: Excerpt,
    pub response_body: Excerpt,
    /// End of the response's head.
    responded: Timestamp,
    /// Whether the response is gRPC, without its outcome yet.
    awaits_trailers: bool,
    transaction: Transaction,
}

impl Exchange {
    /// The request with `head`, which ended in the chunk of `cx`.
    pub fn new(id: u64, head: RequestHead, cx: &Context<'_>, direction: Direction) -> Self {
        let chunk = cx.chunk;
        let (client, server) = match direction {
            Direction::In => (chunk.remote, chunk.local),
            Direction::Out => (chunk.local, chunk.remote),
        };
        Self {
            id,
            kind: head.kind,
            request_body: Excerpt::new(cx.settings.body_excerpt),
            response_body: Excerpt::default(),
            responded: chunk.ts,
            awaits_trailers: false,
            transaction: Transaction {
                ts: chunk.ts,
                src: client.ip(),
                src_port: client.port(),
                dst: Some(server.ip()),
                dst_port: Some(server.port()),
                pid: Some(chunk.pid),
                comm: Some(chunk.comm.to_owned()),
                container: None,
                ja4: cx.ja4.clone(),
                direction,
                proto: head.proto.to_owned(),
                // The bytes come from a TLS library.
                scheme: "https".to_owned(),
                host: head.host,
                method: head.method,
                path: head.path,
                req_headers: head.headers,
                resp_headers: Default::default(),
                req_body: None,
                resp_body: None,
                req_bytes: declared(head.framing),
                resp_bytes: None,
                status: None,
                grpc_status: None,
                duration_ms: None,
            },
        }
    }

    /// Takes the head of the response, whose body has `framing`.
    pub fn answer(&mut self, head: ResponseHead, framing: Framing, ts: Timestamp, excerpt: usize) {
        self.responded = ts;
        let grpc = head.is_grpc();
        let kept = head.plain && !grpc && !head.is_event_stream();
        self.response_body = Excerpt::new(if kept { excerpt } else { 0 });
        if grpc {
            self.transaction.grpc_status = grpc_status(&head.headers);
            self.awaits_trailers = self.transaction.grpc_status.is_none();
        }
        self.transaction.status = Some(head.status);
        self.transaction.resp_headers = head.headers;
        self.transaction.resp_bytes = declared(framing);
    }

    /// Takes the fields behind the response's body.
    pub fn trailers(&mut self, trailers: &Headers) {
        if self.awaits_trailers {
            self.transaction.grpc_status = grpc_status(trailers);
        }
    }

    pub fn awaits_trailers(&self) -> bool {
        self.awaits_trailers
    }

    pub fn request_ended(&mut self, bytes: u64) {
        self.transaction.req_bytes = Some(bytes);
    }

    pub fn response_ended(&mut self, bytes: u64) {
        self.transaction.resp_bytes = Some(bytes);
    }

    /// The end of the request's head.
    pub fn requested(&self) -> Timestamp {
        self.transaction.ts
    }

    /// The end of the response's head.
    pub fn responded(&self) -> Timestamp {
        self.responded
    }

    /// The transaction, as far as it is known at `now`.
    pub fn finish(mut self, now: Timestamp) -> Transaction {
        self.transaction.req_body = self.request_body.into_text();
        self.transaction.resp_body = self.response_body.into_text();
        if self.transaction.status.is_some() {
            let duration = now.since(self.transaction.ts);
            self.transaction.duration_ms = Some(duration.as_secs_f64() * 1e3);
        }
        self.transaction
    }

    /// Bytes of memory, about.
    pub fn weight(&self) -> usize {
        let text = &self.transaction;
        [
            text.path.capacity(),
            text.host.capacity(),
            text.method.capacity(),
            text.req_headers.heap_bytes(),
            text.resp_headers.heap_bytes(),
            self.request_body.kept.capacity(),
            self.response_body.kept.capacity(),
        ]
        .into_iter()
        .fold(size_of::<Self>(), usize::saturating_add)
    }
}

/// The outcome of a gRPC call.
fn grpc_status(fields: &Headers) -> Option<u16> {
    fields.get("grpc-status")?.trim().parse().ok()
}

/// The size of a body whose head tells it.
fn declared(framing: Framing) -> Option<u64> {
    match framing {
        Framing::Length(length) => Some(length),
        Framing::Chunked | Framing::UntilClose => None,
    }
}

/// The start of a body, up to a limit.
#[derive(Debug, Default)]
pub struct Excerpt {
    kept: Vec<u8>,
    limit: usize,
}

impl Excerpt {
    fn new(limit: usize) -> Self {
        Self { kept: Vec::new(), limit }
    }

    pub fn add(&mut self, bytes: &[u8]) {
        let room = self.limit.saturating_sub(self.kept.len()).min(bytes.len());
        self.kept.extend_from_slice(bytes.get(..room).unwrap_or_default());
    }

    /// Whether nothing more will be kept.
    pub fn is_full(&self) -> bool {
        self.kept.len() >= self.limit
    }

    /// Keeps nothing more: what follows does not join what is there.
    pub fn close(&mut self) {
        self.limit = self.kept.len();
    }

    /// `None` when empty. A character that the limit cut is left out; other bytes that are not
    /// UTF-8 are replaced.
    fn into_text(self) -> Option<String> {
        let full = self.is_full();
        let text = String::from_utf8(self.kept).unwrap_or_else(|error| {
            let valid = error.utf8_error();
            let mut bytes = error.into_bytes();
            if full && valid.error_len().is_none() {
                bytes.truncate(valid.valid_up_to());
            }
            String::from_utf8_lossy(&bytes).into_owned()
        });
        Some(text).filter(|text| !text.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::Excerpt;

    #[test]
    fn excerpts_end_at_the_limit_and_between_characters() {
        let text = |limit, pieces: &[&[u8]]| {
            let mut excerpt = Excerpt::new(limit);
            pieces.iter().for_each(|piece| excerpt.add(piece));
            excerpt.into_text()
        };
        assert_eq!(text(4, &[b"ab", b"cd", b"ef"]).as_deref(), Some("abcd"));
        assert_eq!(text(4, &["abc\u{e9}".as_bytes()]).as_deref(), Some("abc"));
        assert_eq!(text(9, &["abc\u{e9}".as_bytes()]).as_deref(), Some("abc\u{e9}"));
        assert_eq!(text(9, &[b"a\xffb"]).as_deref(), Some("a\u{fffd}b"));
        assert_eq!(text(9, &[b"a\xc3"]).as_deref(), Some("a\u{fffd}"));
        assert_eq!(text(1, &[b"\xc3"]), None);
        assert_eq!(text(0, &[b"a"]), None);
        assert_eq!(text(4, &[]), None);
    }
}
