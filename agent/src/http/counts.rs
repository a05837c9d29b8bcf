//! Everything this stage counts, under stable names.

/// Defines [`Counter`] with one name per variant.
macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Counter {
            $($(#[$doc])* $variant,)*
        }

        impl Counter {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

counters! {
    /// Transactions handed on.
    Transactions = "transactions",
    /// … of which no response was seen, because the connection ended, was given up or evicted.
    UnansweredRequests = "unanswered_requests",
    /// … whose response could not be told, because bytes had been lost before.
    UnpairedRequests = "unpaired_requests",
    /// Connections that ended or were given up within a request's head.
    IncompleteRequests = "incomplete_requests",
    /// Requests whose stream either side reset before there was a response.
    ResetStreams = "reset_streams",
    /// Responses that a server announced without a request; they are not read.
    PushedResponses = "pushed_responses",
    /// Responses that are streams of events.
    EventStreams = "event_streams",
    /// Responses with status 100 to 199, 101 apart.
    InterimResponses = "interim_responses",
    /// Responses that no request was waiting for; in HTTP/1, pairing ends there.
    ResponsesWithoutRequest = "responses_without_request",
    /// More requests waited for their responses than a connection may have.
    PipelineOverflow = "pipeline_overflow",

    /// A request line or field line that no widespread server takes, or that servers read in
    /// different ways.
    MalformedRequest = "malformed_request",
    /// A request head beyond the limit of bytes.
    RequestHeadTooLong = "request_head_too_long",
    /// A request head beyond the limit of fields; one of the default size never has as many.
    RequestTooManyFields = "request_too_many_fields",
    /// `Content-Length` that is no number, too large, or several that differ.
    RequestContentLength = "request_content_length",
    /// Both `Content-Length` and `Transfer-Encoding`.
    RequestLengthConflict = "request_length_conflict",
    /// `Transfer-Encoding` that does not end in one `chunked`, or in HTTP/1.0.
    RequestTransferEncoding = "request_transfer_encoding",
    /// Chunked framing that RFC 9112, section 7.1 does not allow, bare LF in requests apart.
    RequestChunk = "request_chunk",
    /// A frame that RFC 9113 does not allow.
    RequestFrame = "request_frame",
    /// A header block that RFC 7541 does not allow.
    RequestCompression = "request_compression",
    /// A status line or field line that RFC 9112 does not allow.
    MalformedResponse = "malformed_response",
    /// As for requests.
    ResponseHeadTooLong = "response_head_too_long",
    /// As for requests.
    ResponseTooManyFields = "response_too_many_fields",
    /// As for requests.
    ResponseContentLength = "response_content_length",
    /// As for requests.
    ResponseLengthConflict = "response_length_conflict",
    /// `Transfer-Encoding` with `chunked` twice, or in HTTP/1.0.
    ResponseTransferEncoding = "response_transfer_encoding",
    /// As for requests.
    ResponseChunk = "response_chunk",
    /// As for requests.
    ResponseFrame = "response_frame",
    /// As for requests.
    ResponseCompression = "response_compression",

    /// Header fields with a name or value in a table entry that was not seen.
    UnknownFields = "unknown_fields",
    /// Header tables of which only a part is kept.
    HeaderTablesTooLarge = "header_tables_too_large",
    /// Bytes that were lost, on connections that were being read.
    GapBytes = "gap_bytes",
    /// Losses after which it was unknown where the next message begins.
    GapDesync = "gap_desync",
    /// Bytes that came twice.
    RepeatedBytes = "repeated_bytes",
    /// Connections whose first bytes were not seen, or that began with a response.
    JoinedMidway = "joined_midway",
    /// Connections that did not begin with HTTP.
    NotHttp = "not_http",
    /// Connections that speak HTTP/2.
    Http2Connection = "http2_connection",
    /// Connections that changed to another protocol (status 101), and streams (RFC 8441).
    Upgraded = "upgraded",
    /// Connections, or streams, that became tunnels (CONNECT).
    Tunnels = "tunnels",
    /// Connections forgotten because the table was full.
    EvictedConnections = "evicted_connections",
    /// Connections forgotten because too many bytes were kept.
    EvictedForMemory = "evicted_for_memory",
    /// Connections forgotten because nothing came for the idle time.
    ExpiredConnections = "expired_connections",
}

/// Counters since the start. They only grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    values: [u64; Counter::ALL.len()],
}

impl Default for Counts {
    fn default() -> Self {
        Self { values: [0; Counter::ALL.len()] }
    }
}

impl Counts {
    pub(super) fn add(&mut self, counter: Counter, n: u64) {
        if let Some(value) = self.values.get_mut(counter as usize) {
            *value = value.saturating_add(n);
        }
    }

    pub(super) fn one(&mut self, counter: Counter) {
        self.add(counter, 1);
    }

    pub fn get(&self, counter: Counter) -> u64 {
        self.values.get(counter as usize).copied().unwrap_or_default()
    }

    /// Every counter with its name, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Counter::ALL.iter().map(|counter| counter.name()).zip(self.values)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{Counter, Counts};

    #[test]
    fn every_counter_has_its_own_name_and_place() {
        let mut counts = Counts::default();
        for (n, &counter) in (1..).zip(Counter::ALL) {
            counts.add(counter, n);
        }
        let names: HashSet<_> = counts.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), Counter::ALL.len());
        for ((n, &counter), (name, value)) in (1..).zip(Counter::ALL).zip(counts.iter()) {
            assert_eq!((counter.name(), n), (name, value));
        }
    }
}
