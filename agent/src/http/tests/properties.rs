//! Whatever the exchanges and however their bytes are cut: the same transactions, and never a
//! response with the wrong request.

use std::ops::Range;

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::{Counter, Host, Settings};
use crate::flow::Side;
use crate::http::fuzz_entry;
use crate::transaction::Transaction;

const EXCERPT: usize = 24;

/// How a generated body is framed.
#[derive(Clone, Debug)]
enum Framed {
    None,
    Length(String),
    Chunked {
        pieces: Vec<String>,
        extension: bool,
        trailer: bool,
    },
    /// Only for the last response.
    UntilClose(String),
}

#[derive(Clone, Debug)]
struct Planned {
    method: &'static str,
    request: Framed,
    interim: usize,
    status: u16,
    response: Framed,
}

/// Text that looks like messages, so that a reader which lost its place would be deceived.
fn content() -> impl Strategy<Value = String> {
    let deceptive = select(vec![
        "GET /999 HTTP/1.1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX-Id: 999\r\nContent-Length: 0\r\n\r\n",
        "0\r\n\r\n",
        "\r\n",
    ]);
    prop_oneof![
        "[a-z]{0,60}".prop_map(String::from),
        prop::collection::vec(deceptive, 1..4).prop_map(|parts| parts.concat()),
    ]
}

fn chunked() -> impl Strategy<Value = Framed> {
    let pieces = prop::collection::vec(content(), 0..4);
    (pieces, any::<bool>(), any::<bool>())
        .prop_map(|(pieces, extension, trailer)| Framed::Chunked { pieces, extension, trailer })
}

fn framed() -> impl Strategy<Value = Framed> {
    prop_oneof![Just(Framed::None), content().prop_map(Framed::Length), chunked()]
}

fn planned() -> impl Strategy<Value = Planned> {
    let method = select(vec!["GET", "POST", "HEAD", "DELETE"]);
    let status = select(vec![200_u16, 204, 205, 304, 401, 500]);
    (method, framed(), 0..3_usize, status, framed()).prop_map(
        |(method, request, interim, status, response)| {
            // A response without framing would end with the connection.
            let empty = method == "HEAD" || matches!(status, 204 | 304);
            let response = match response {
                Framed::None if !empty => Framed::Length(String::new()),
                other => other,
            };
            Planned { method, request, interim, status, response }
        },
    )
}

fn plan() -> impl Strategy<Value = Vec<Planned>> {
    let last = prop::option::of(content().prop_map(Framed::UntilClose));
    (prop::collection::vec(planned(), 1..8), last).prop_map(|(mut plan, last)| {
        if let (Some(response), Some(planned)) = (last, plan.last_mut()) {
            (planned.method, planned.status, planned.response) = ("GET", 200, response);
        }
        plan
    })
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Stream {
    bytes: Vec<u8>,
    /// Where each message ends.
    ends: Vec<usize>,
    /// Bytes that are certainly content.
    content: Vec<Range<usize>>,
}

impl Stream {
    fn body(&mut self, body: &Framed, on_the_wire: bool) {
        let fields = match body {
            Framed::None | Framed::UntilClose(_) => "\r\n".to_owned(),
            Framed::Length(content) => format!("Content-Length: {}\r\n\r\n", content.len()),
            Framed::Chunked { .. } => "Transfer-Encoding: chunked\r\n\r\n".to_owned(),
        };
        self.bytes.extend(fields.bytes());
        if on_the_wire {
            match body {
                Framed::None => {}
                Framed::Length(content) | Framed::UntilClose(content) => self.content(content),
                Framed::Chunked { pieces, extension, trailer } => {
                    for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
                        let extension = if *extension { ";a=\"b\"" } else { "" };
                        self.bytes.extend(format!("{:X}{extension}\r\n", piece.len()).bytes());
                        self.content(piece);
                        self.bytes.extend(b"\r\n");
                    }
                    let trailer = if *trailer { "X-Sum: 1\r\n" } else { "" };
                    self.bytes.extend(format!("0\r\n{trailer}\r\n").bytes());
                }
            }
        }
        self.ends.push(self.bytes.len());
    }

    fn content(&mut self, content: &str) {
        let start = self.bytes.len();
        self.bytes.extend(content.bytes());
        self.content.push(start..self.bytes.len());
    }
}

fn has_no_body(planned: &Planned) -> bool {
    planned.method == "HEAD" || matches!(planned.status, 204 | 304)
}

fn serialise(plan: &[Planned]) -> (Stream, Stream) {
    let (mut requests, mut responses) = (Stream::default(), Stream::default());
    for (id, planned) in plan.iter().enumerate() {
        let head = format!("{} /{id} HTTP/1.1\r\nHost: shop.example\r\n", planned.method);
        requests.bytes.extend(head.bytes());
        requests.body(&planned.request, true);
        let interim = "HTTP/1.1 103 Early Hints\r\nX-Id: 999\r\n\r\n".repeat(planned.interim);
        let head = format!("{interim}HTTP/1.1 {} Reason\r\nX-Id: {id}\r\n", planned.status);
        responses.bytes.extend(head.bytes());
        responses.body(&planned.response, !has_no_body(planned));
    }
    (requests, responses)
}

/// Excerpt and size of a body as documented: only what is handed on after its end has a size
/// when chunked.
fn expected_body(body: &Framed, early: bool) -> (Option<String>, Option<u64>) {
    let (content, declared) = match body {
        Framed::None => (String::new(), Some(0)),
        Framed::Length(content) => (content.clone(), Some(content.len() as u64)),
        Framed::Chunked { pieces, .. } => (pieces.concat(), None),
        Framed::UntilClose(content) => (content.clone(), None),
    };
    let size = match declared {
        None if !early || content.len() < EXCERPT => Some(content.len() as u64),
        declared => declared,
    };
    let kept: String = content.chars().take(EXCERPT).collect();
    (Some(kept).filter(|kept| !kept.is_empty()), size)
}

fn check_against_plan(plan: &[Planned], transactions: &[Transaction]) {
    assert_eq!(transactions.len(), plan.len());
    for ((id, planned), t) in plan.iter().enumerate().zip(transactions) {
        assert_eq!((t.method.as_str(), t.path.as_str()), (planned.method, &*format!("/{id}")));
        assert_eq!(t.status, Some(planned.status));
        assert_eq!(t.resp_headers.get("x-id"), Some(&*id.to_string()));
        let request = expected_body(&planned.request, false);
        assert_eq!((t.req_body.clone(), t.req_bytes), request);
        let response = if has_no_body(planned) {
            (None, Some(0))
        } else {
            expected_body(&planned.response, true)
        };
        assert_eq!((t.resp_body.clone(), t.resp_bytes), response);
    }
}

fn host() -> Host {
    Host::with(Settings { body_excerpt: EXCERPT, ..Settings::default() })
}

/// A walk through both streams: pieces in an order that could happen, a response never before
/// the end of its request.
struct Walk<'a> {
    streams: [&'a Stream; 2],
    at: [usize; 2],
}

impl Walk<'_> {
    /// How far responses may have come.
    fn answerable(&self) -> usize {
        let [requests, responses] = self.streams;
        let asked = requests.ends.iter().take_while(|&&end| end <= self.at[0]).count();
        asked.checked_sub(1).map_or(0, |last| responses.ends[last])
    }

    /// The next piece: which stream, and where it lies.
    fn next(&mut self, (prefer_response, length): (bool, usize)) -> Option<(usize, Range<usize>)> {
        let limits = [self.streams[0].bytes.len(), self.answerable()];
        let order = if prefer_response { [1, 0] } else { [0, 1] };
        let stream = order.into_iter().find(|&s| self.at[s] < limits[s])?;
        let start = self.at[stream];
        let end = (start + length).min(limits[stream]);
        self.at[stream] = end;
        Some((stream, start..end))
    }
}

fn sides(server: bool) -> [Side; 2] {
    if server { [Side::Read, Side::Write] } else { [Side::Write, Side::Read] }
}

fn steps() -> impl Strategy<Value = Vec<(bool, usize)>> {
    let length = prop_oneof![Just(1_usize), 1..9_usize, 1..400_usize];
    prop::collection::vec((any::<bool>(), length), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_same_bytes_cut_anywhere_give_the_same_transactions(
        plan in plan(),
        steps in steps(),
        server in any::<bool>(),
    ) {
        let (requests, responses) = serialise(&plan);
        let [ask, answer] = sides(server);
        let mut whole = host();
        whole.chunk(ask, &requests.bytes, 0).chunk(answer, &responses.bytes, 0).close();
        check_against_plan(&plan, &whole.out);

        let mut cut = host();
        let mut walk = Walk { streams: [&requests, &responses], at: [0; 2] };
        for step in steps.iter().cycle() {
            let Some((stream, range)) = walk.next(*step) else { break };
            let bytes = &walk.streams[stream].bytes[range];
            cut.chunk(sides(server)[stream], bytes, 0);
        }
        cut.close();
        prop_assert_eq!(&cut.out, &whole.out);
        prop_assert_eq!(cut.http.counts(), whole.http.counts());
        prop_assert_eq!(cut.http.buffered_bytes(), 0);
    }

    #[test]
    fn losses_within_bodies_keep_every_pair(
        plan in plan(),
        losses in prop::collection::vec((any::<Index>(), any::<Index>(), any::<bool>()), 1..12),
        server in any::<bool>(),
    ) {
        let (requests, responses) = serialise(&plan);
        let mut host = host();
        let mut losses = losses.iter().cycle();
        for (stream, side) in [&requests, &responses].into_iter().zip(sides(server)) {
            let mut at = 0;
            for content in stream.content.iter().filter(|content| !content.is_empty()) {
                let (first, count, as_cut) = losses.next().unwrap();
                let lost = content.start + first.index(content.len());
                let end = lost + 1 + count.index(content.end - lost);
                let missing = (end - lost) as u64;
                let before = &stream.bytes[at..lost];
                if *as_cut {
                    host.chunk(side, before, missing);
                } else {
                    host.chunk(side, before, 0).lose(side, missing);
                }
                at = end;
            }
            host.chunk(side, &stream.bytes[at..], 0);
        }
        host.close();
        prop_assert_eq!(host.count(Counter::GapDesync), 0);
        prop_assert_eq!(host.out.len(), plan.len());
        for ((id, planned), t) in plan.iter().enumerate().zip(&host.out) {
            prop_assert_eq!(&t.path, &format!("/{id}"));
            prop_assert_eq!(t.status, Some(planned.status));
            let id = id.to_string();
            prop_assert_eq!(t.resp_headers.get("x-id"), Some(id.as_str()));
        }
    }

    #[test]
    fn no_loss_ever_makes_a_wrong_pair(
        plan in plan(),
        steps in steps(),
        fates in prop::collection::vec((0..8_u8, any::<Index>()), 1..40),
        server in any::<bool>(),
        closes in any::<bool>(),
    ) {
        let (requests, responses) = serialise(&plan);
        let mut host = host();
        let mut walk = Walk { streams: [&requests, &responses], at: [0; 2] };
        for (step, (fate, at)) in steps.iter().cycle().zip(fates.iter().cycle()) {
            let Some((stream, range)) = walk.next(*step) else { break };
            let side = sides(server)[stream];
            let bytes = &walk.streams[stream].bytes[range.clone()];
            match fate {
                0 => host.lose(side, bytes.len() as u64),
                1 => {
                    let (kept, cut) = bytes.split_at(at.index(bytes.len()));
                    host.chunk(side, kept, cut.len() as u64)
                }
                2 => {
                    // Earlier bytes come again, with or without these.
                    let from = at.index(range.start + 1);
                    host.chunk(side, bytes, 0);
                    let again = &walk.streams[stream].bytes[from..range.end];
                    host.chunk_at(side, from as u64, again, 0)
                }
                _ => host.chunk(side, bytes, 0),
            };
        }
        if closes {
            host.close();
        }
        for t in host.out.iter().filter(|t| t.status.is_some()) {
            let id = t.path.trim_start_matches('/');
            prop_assert_eq!(t.resp_headers.get("x-id"), Some(id));
        }
        let seen = |path: &str| host.out.iter().filter(|t| t.path == path).count();
        for id in 0..plan.len() {
            prop_assert!(seen(&format!("/{id}")) <= 1, "/{} twice", id);
        }
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        fuzz_entry(&bytes);
    }

    #[test]
    fn arbitrary_fragments_do_no_harm(records in prop::collection::vec(record(), 0..30)) {
        fuzz_entry(&records.concat());
    }
}

/// A record of the fuzzer's input with pieces of HTTP in it.
fn record() -> impl Strategy<Value = Vec<u8>> {
    let fragment = select(vec![
        "GET / HTTP/1.1\r\n",
        "POST /a HTTP/1.1\r\n",
        "CONNECT a:1 HTTP/1.1\r\n",
        "HEAD / HTTP/1.0\r\n",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 100 Continue\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n",
        "HTTP/1.1 304 Not Modified\r\n",
        "GET  /b HTTP/1.2 \n",
        "X@y: 1\r\n",
        " folded\n",
        "no colon\r\n",
        "Content-Length : 3\r\n",
        "3\nabc\n",
        "0\n\n",
        "Content-Length: 3\r\n",
        "Content-Length: 40\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Content-Encoding: gzip\r\n",
        "\r\n",
        "abc",
        "3\r\nabc\r\n",
        "14\r\n01234567890123456789\r\n",
        "0\r\n\r\n",
        "\n",
        "PRI * HTTP/2.0\r\n\r\n",
        "\0",
    ]);
    let control = prop_oneof![4 => 0..2_u8, 1 => any::<u8>()];
    (control, prop::collection::vec(fragment, 0..8), any::<[u8; 3]>()).prop_map(
        |(control, fragments, optional)| {
            let data = fragments.concat();
            let extra = [8, 16, 32].into_iter().filter(|bit| control & bit != 0).count();
            let mut record = vec![control];
            record.extend(&optional[..extra]);
            record.push(u8::try_from(data.len()).unwrap_or(u8::MAX));
            record.extend(data.bytes().take(usize::from(u8::MAX)));
            record
        },
    )
}
