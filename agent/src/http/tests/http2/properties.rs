//! Whatever the exchanges and however their bytes are cut: the same transactions, and never a
//! response with the wrong request.

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;
use crate::http::fuzz_http2_entry;

const EXCERPT: usize = 24;

#[derive(Clone, Debug)]
struct Planned {
    post: bool,
    request: Vec<String>,
    interim: bool,
    status: u16,
    response: Vec<String>,
    trailers: bool,
    /// Header blocks go on in continuations of so many bytes.
    fragment: usize,
    padding: u8,
}

/// Text that looks like frames, so that a reader which lost its place would be deceived.
fn content() -> impl Strategy<Value = String> {
    let deceptive = String::from_utf8([ok(1, ""), get(3, "/999"), reset(1)].concat());
    let deceptive = deceptive.unwrap_or_else(|_| "\0\0\u{4}\u{3}\0\0\0\0\u{1}\0\0\0\0".to_owned());
    prop_oneof![Just(String::new()), "[a-z]{0,60}".prop_map(String::from), Just(deceptive)]
}

fn planned() -> impl Strategy<Value = Planned> {
    let bodies = || prop::collection::vec(content(), 0..4);
    let status = select(vec![200_u16, 204, 401, 404, 503]);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (flags, bodies(), status, bodies(), 1..80_usize, 0..20_u8).prop_map(
        |((post, interim, trailers), request, status, response, fragment, padding)| Planned {
            post,
            request,
            interim,
            status,
            response,
            trailers,
            fragment,
            padding,
        },
    )
}

/// An encoder whose table never overflows.
#[derive(Default)]
struct Encoder(Vec<(String, String)>);

impl Encoder {
    fn field(&mut self, name: &str, value: &str) -> Vec<u8> {
        let field = (name.to_owned(), value.to_owned());
        match self.0.iter().rev().position(|known| *known == field) {
            Some(at) => indexed(LATEST + at),
            None => {
                self.0.push(field);
                literal(name, value, true)
            }
        }
    }
}

/// One frame each; those of a header block together.
fn block(planned: &Planned, stream: u32, ends: bool, fields: &[Vec<u8>]) -> Vec<u8> {
    let bytes = fields.concat();
    let mut fragments = bytes.chunks(planned.fragment).peekable();
    let (first, padding) = (fragments.next().unwrap(), planned.padding);
    let payload = [&[padding][..], first, &vec![0; usize::from(padding)]].concat();
    let last = |more: bool| if more { 0 } else { END_HEADERS };
    let flags = 0x8 | u8::from(ends) | last(fragments.peek().is_some());
    let mut frames = frame(1, flags, stream, &payload);
    while let Some(fragment) = fragments.next() {
        frames.extend(frame(9, last(fragments.peek().is_some()), stream, fragment));
    }
    frames
}

fn body(frames: &mut Vec<Vec<u8>>, stream: u32, pieces: &[String], ends: bool) {
    for (n, piece) in (1..).zip(pieces) {
        frames.push(data(stream, u8::from(ends && n == pieces.len()), piece));
    }
}

fn stream_of(id: usize) -> u32 {
    2 * id as u32 + 1
}

/// The frames of one request, or of its response.
fn request(id: usize, planned: &Planned, encoder: &mut Encoder) -> Vec<Vec<u8>> {
    let (stream, method) = (stream_of(id), if planned.post { POST } else { GET });
    let fields = [
        indexed(method),
        named(PATH, &format!("/{id}"), false),
        encoder.field(":authority", "shop.example"),
        encoder.field("x-group", &(id / 3).to_string()),
    ];
    let mut frames = vec![block(planned, stream, planned.request.is_empty(), &fields)];
    body(&mut frames, stream, &planned.request, true);
    frames
}

fn response(id: usize, planned: &Planned, encoder: &mut Encoder) -> Vec<Vec<u8>> {
    let stream = stream_of(id);
    let mut frames = Vec::new();
    if planned.interim {
        frames.push(block(planned, stream, false, &[named(STATUS, "103", false)]));
    }
    let status = encoder.field(":status", &planned.status.to_string());
    let text = id.to_string();
    let own = if id.is_multiple_of(2) {
        literal("x-id", &text, false)
    } else {
        encoder.field("x-id", &text)
    };
    let fields = [status, own, encoder.field("x-b", "1")];
    let ends = planned.response.is_empty() && !planned.trailers;
    frames.push(block(planned, stream, ends, &fields));
    body(&mut frames, stream, &planned.response, !planned.trailers);
    if planned.trailers {
        frames.push(block(planned, stream, true, &[encoder.field("x-sum", "1")]));
    }
    frames
}

/// What happens on a connection: frames of both sides, those of several streams mixed, each
/// response after the head of its request.
fn calls(plan: &[Planned], order: &[Index]) -> Vec<(Side, Vec<u8>)> {
    let (mut asking, mut answering) = (Encoder::default(), Encoder::default());
    let begin = [PREFACE, &settings()].concat();
    let mut calls = vec![(Side::Read, begin), (Side::Write, settings())];
    // Heads in the order of their streams, each as its encoder's table then is.
    let mut bodies: Vec<Vec<(Side, Vec<u8>)>> = Vec::new();
    let mut order = order.iter().cycle();
    for (id, planned) in plan.iter().enumerate() {
        let mut frames = request(id, planned, &mut asking).into_iter();
        calls.push((Side::Read, frames.next().unwrap()));
        bodies.push(frames.map(|frame| (Side::Read, frame)).collect());
        if order.next().unwrap().index(2) == 0 {
            drain_one(&mut bodies, order.next().unwrap(), &mut calls);
        }
    }
    while bodies.iter().any(|rest| !rest.is_empty()) {
        drain_one(&mut bodies, order.next().unwrap(), &mut calls);
    }
    for (id, planned) in plan.iter().enumerate().rev() {
        let frames = response(id, planned, &mut answering).into_iter();
        calls.extend(frames.map(|frame| (Side::Write, frame)));
    }
    calls
}

fn drain_one(bodies: &mut [Vec<(Side, Vec<u8>)>], at: &Index, calls: &mut Vec<(Side, Vec<u8>)>) {
    let mut open: Vec<_> = bodies.iter_mut().filter(|rest| !rest.is_empty()).collect();
    if !open.is_empty() {
        let at = at.index(open.len());
        calls.push(open[at].remove(0));
    }
}

fn bounded() -> Host {
    Host::with(Settings { body_excerpt: EXCERPT, ..Settings::default() })
}

fn kept(pieces: &[String]) -> Option<String> {
    let text: String = pieces.concat().chars().take(EXCERPT).collect();
    Some(text).filter(|text| !text.is_empty())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_same_bytes_cut_anywhere_give_the_same_transactions(
        plan in prop::collection::vec(planned(), 1..8),
        order in prop::collection::vec(any::<Index>(), 1..40),
        steps in prop::collection::vec(1..50_usize, 1..20),
    ) {
        let calls = calls(&plan, &order);
        let mut whole = bounded();
        let mut cut = bounded();
        let mut steps = steps.iter().cycle();
        for (side, bytes) in &calls {
            whole.chunk(*side, bytes, 0);
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(rest.len().min(*steps.next().unwrap()));
                cut.chunk(*side, piece, 0);
                rest = after;
            }
        }
        whole.close();
        cut.close();
        prop_assert_eq!(&whole.out, &cut.out);
        prop_assert_eq!(whole.http.counts(), cut.http.counts());
        prop_assert_eq!(whole.http.buffered_bytes(), 0);
        prop_assert_eq!(whole.out.len(), plan.len());
        for t in &whole.out {
            let id: usize = t.path[1..].parse().unwrap();
            let planned = &plan[id];
            prop_assert_eq!(t.status, Some(planned.status));
            prop_assert_eq!(&t.host, "shop.example");
            let group = (id / 3).to_string();
            prop_assert_eq!(t.req_headers.get("x-group"), Some(group.as_str()));
            let text = id.to_string();
            prop_assert_eq!(t.resp_headers.get("x-id"), Some(text.as_str()));
            prop_assert_eq!(&t.req_body, &kept(&planned.request));
            prop_assert_eq!(&t.resp_body, &kept(&planned.response));
            let sent: usize = planned.request.iter().map(String::len).sum();
            prop_assert_eq!(t.req_bytes, Some(sent as u64));
        }
    }

    #[test]
    fn no_loss_ever_makes_a_wrong_pair(
        plan in prop::collection::vec(planned(), 1..8),
        order in prop::collection::vec(any::<Index>(), 1..40),
        fates in prop::collection::vec((0..8_u8, any::<Index>()), 1..40),
    ) {
        let mut host = bounded();
        for ((side, bytes), (fate, at)) in calls(&plan, &order).iter().zip(fates.iter().cycle()) {
            let (kept, lost) = bytes.split_at(at.index(bytes.len()));
            match fate {
                0 => host.lose(*side, bytes.len() as u64),
                1 => host.chunk(*side, kept, lost.len() as u64),
                2 => host.lose(*side, kept.len() as u64).chunk(*side, lost, 0),
                _ => host.chunk(*side, bytes, 0),
            };
        }
        host.close();
        let mut seen = std::collections::HashSet::new();
        for t in host.out.iter().filter(|t| t.path != "*") {
            let id: usize = t.path[1..].parse().unwrap();
            prop_assert!(seen.insert(id), "/{} twice", id);
            prop_assert!(t.status.is_none_or(|status| status == plan[id].status));
            let text = id.to_string();
            prop_assert!(t.resp_headers.get("x-id").is_none_or(|found| found == text));
            let text = (id / 3).to_string();
            prop_assert!(t.req_headers.get("x-group").is_none_or(|found| found == text));
        }
    }

    #[test]
    fn a_connection_joined_anywhere_names_nothing_wrongly(
        plan in prop::collection::vec(planned(), 4..12),
        order in prop::collection::vec(any::<Index>(), 1..40),
        joined in any::<Index>(),
    ) {
        let calls = calls(&plan, &order);
        let mut host = bounded();
        let joined = joined.index(calls.len());
        for (n, (side, bytes)) in calls.iter().enumerate() {
            if n < joined {
                host.lose(*side, bytes.len() as u64);
            } else {
                host.chunk(*side, bytes, 0);
            }
        }
        host.close();
        for t in host.out.iter().filter(|t| t.path != "*") {
            let id: usize = t.path[1..].parse().unwrap();
            prop_assert!(t.status.is_none_or(|status| status == plan[id].status));
            prop_assert!(t.host.is_empty() || t.host == "shop.example");
            let text = (id / 3).to_string();
            prop_assert!(t.req_headers.get("x-group").is_none_or(|found| found == text));
        }
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        fuzz_http2_entry(&bytes);
    }

    #[test]
    fn arbitrary_frames_do_no_harm(records in prop::collection::vec(record(), 0..40)) {
        fuzz_http2_entry(&records.concat());
    }
}

/// A record of the fuzzer's input with a likely frame in it.
fn record() -> impl Strategy<Value = Vec<u8>> {
    let fields = vec![
        indexed(GET),
        indexed(POST),
        indexed(STATUS),
        indexed(LATEST),
        indexed(LATEST + 1),
        named(PATH, "/a", true),
        named(STATUS, "401", true),
        named(STATUS, "100", false),
        type_of("application/grpc"),
        literal("grpc-status", "16", true),
        literal("content-length", "3", false),
        vec![0x20],
        vec![0x3f, 0xe1, 0x1f],
        vec![0x40, 0x85],
    ];
    let block = prop::collection::vec(select(fields), 0..6).prop_map(|fields| fields.concat());
    let payload = prop_oneof![3 => block, 1 => prop::collection::vec(any::<u8>(), 0..40)];
    let kind = prop_oneof![
        5 => Just(1_u8), 2 => Just(0), 2 => Just(9), 1 => Just(3), 1 => 0..12_u8
    ];
    let flags = prop_oneof![4 => select(vec![0, 1, 4, 5]), 1 => any::<u8>()];
    let control = prop_oneof![6 => 0..2_u8, 1 => any::<u8>()];
    let stream = select(vec![0_u8, 1, 1, 2, 3, 3, 5, 7]);
    (control, kind, flags, stream, payload, any::<[u8; 3]>()).prop_map(
        |(control, kind, flags, stream, payload, optional)| {
            let data = [&[kind, flags, stream][..], &payload].concat();
            let extra = [8, 16, 32].into_iter().filter(|bit| control & bit != 0).count();
            let mut record = vec![control];
            record.extend(&optional[..extra]);
            record.push(u8::try_from(data.len()).unwrap_or(u8::MAX));
            record.extend(data.iter().take(usize::from(u8::MAX)));
            record
        },
    )
}
