//! An HTTP/2 connection (RFC 9113): frames in both directions, paired by their streams.
//!
//! What can be lost or malformed, and what follows:
//!
//! | lost or malformed | what follows |
//! |---|---|
//! | content of a body, within a frame | the rest of the body is not kept; sizes stay exact |
//! | part of a header block, within a frame | that head is unknown, and so are the fields that later ones take from the table's entries of before |
//! | more than the rest of a frame | frames are read again from a chunk on that proves to begin with them ([`scan`]); then as above |
//! | a frame that ends a connection by RFC 9113 | the connection is given up |
//! | HPACK that nobody could read on after | the same |
//! | a message without what it must have | it is left out |
//!
//! [`head::UNKNOWN`] stands for what came from unknown entries; a value whose field's name is
//! unknown becomes a hash, for it might be a credential. Entries that were added since have their
//! names, so that placeholders become fewer as the table turns over.

mod frame;
mod head;
pub(in crate::http) mod hpack;
mod huffman;
mod scan;
mod streams;
mod table;

pub use frame::begins_like_a_frame;
pub use scan::{Role, Scan};

use super::Ignore;
use super::context::{Context, Output};
use super::counts::Counter;
use crate::flow::{Piece, Side};
use crate::time::Timestamp;
use crate::transaction::Direction;
use frame::{Event, Frames, Skip};
use head::Head;
use hpack::Decoder;
use streams::Streams;

#[derive(Debug)]
pub struct Http2 {
    request_side: Side,
    requests: Half,
    responses: Half,
    streams: Streams,
}

/// One direction.
#[derive(Debug)]
struct Half {
    frames: Frames,
    /// Where it is unknown where frames begin.
    scan: Option<Scan>,
    decoder: Decoder,
    block: Option<Block>,
}

/// A header block that has not ended.
struct Block {
    stream: u32,
    end_stream: bool,
    promise: bool,
    /// `None` once some of it was lost.
    head: Option<Head>,
}

impl std::fmt::Debug for Block {
    /// Without fields, which may hold what is not to be seen.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Block({})", self.stream)
    }
}

impl Half {
    fn new(frames: Frames) -> Self {
        Self { frames, scan: None, decoder: Decoder::default(), block: None }
    }

    /// Whose beginning was not seen.
    fn midway() -> Self {
        let mut half = Self::new(Frames::at_boundary());
        half.decoder.forget();
        half
    }

    fn weight(&self) -> usize {
        // A head in the making takes about what its block's fields may.
        let scan = self.scan.as_ref().map_or(0, Scan::heap_bytes);
        let head = self.block.as_ref().and_then(|block| block.head.as_ref());
        [self.decoder.heap_bytes(), scan, head.map_or(0, Head::heap_bytes)]
            .into_iter()
            .fold(0, usize::saturating_add)
    }

    /// The head that is being read is not to be known.
    fn lose_block(&mut self) {
        self.decoder.forget();
        if let Some(block) = &mut self.block {
            block.head = None;
        }
    }
}

impl Http2 {
    /// A connection whose client's preface goes on `request_side`.
    pub fn new(request_side: Side) -> Self {
        let halves = (Half::new(Frames::of_client()), Half::new(Frames::at_boundary()));
        Self::with(request_side, halves)
    }

    /// A connection on both sides of which frames begin next, after what was not seen.
    pub fn midway(request_side: Side) -> Self {
        Self::with(request_side, (Half::midway(), Half::midway()))
    }

    /// A connection whose client's preface comes next on `request_side`, after some of the other
    /// side, where `scan` has looked, was lost.
    pub fn without_responses(request_side: Side, scan: Scan) -> Self {
        let responses = Half { scan: Some(scan), ..Half::midway() };
        Self::with(request_side, (Half::new(Frames::of_client()), responses))
    }

    fn with(request_side: Side, (requests, responses): (Half, Half)) -> Self {
        let direction = match request_side {
            Side::Read => Direction::In,
            Side::Write => Direction::Out,
        };
        Self { request_side, requests, responses, streams: Streams::new(direction) }
    }

    /// Takes what came on `side`.
    pub fn piece(
        &mut self,
        side: Side,
        piece: &Piece<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(), Ignore> {
        let role = if side == self.request_side { Role::Requests } else { Role::Responses };
        self.gap(role, piece.missing_before, cx);
        let half = self.half(role);
        match &mut half.scan {
            None => {
                self.read(role, piece.data, cx)?;
                self.gap(role, piece.missing_after, cx);
                // A frame may have ended with what was lost.
                self.read(role, b"", cx)?;
            }
            Some(scan) => {
                cx.output.counts.add(Counter::GapBytes, piece.missing_after);
                if scan.look(piece, cx.settings.max_head_bytes) {
                    let bytes = scan.take();
                    *half = Half::midway();
                    self.read(role, &bytes, cx)?;
                }
            }
        }
        self.streams.late(self.responses.scan.is_some(), cx);
        Ok(())
    }

    /// Hands on what waits, because the connection ended or is given up.
    pub fn finish(self, now: Timestamp, output: &mut Output<'_>) {
        if self.requests.block.is_some() {
            output.counts.one(Counter::IncompleteRequests);
        }
        self.streams.finish(now, output);
    }

    /// Bytes of memory, about.
    pub fn weight(&self) -> usize {
        [self.requests.weight(), self.responses.weight(), self.streams.weight()]
            .into_iter()
            .fold(size_of::<Self>(), usize::saturating_add)
    }

    fn half(&mut self, role: Role) -> &mut Half {
        match role {
            Role::Requests => &mut self.requests,
            Role::Responses => &mut self.responses,
        }
    }

    fn read(&mut self, role: Role, mut data: &[u8], cx: &mut Context<'_>) -> Result<(), Ignore> {
        loop {
            match self.half(role).frames.next(&mut data) {
                Ok(Some(event)) => self.event(role, event, cx)?,
                Ok(None) => return Ok(()),
                Err(frame::Malformed) => {
                    cx.output.counts.one(role.pick(Counter::RequestFrame, Counter::ResponseFrame));
                    return Err(Ignore);
                }
            }
        }
    }

    fn event(&mut self, role: Role, event: Event<'_>, cx: &mut Context<'_>) -> Result<(), Ignore> {
        match (event, role) {
            (Event::BlockBegins { stream, promise, end_stream }, _) => {
                let head = Some(Head::default());
                self.half(role).block = Some(Block { stream, end_stream, promise, head });
            }
            (Event::Fragment(bytes), _) => self.fragment(role, bytes, cx)?,
            (Event::BlockEnds, _) => self.block_ended(role, cx)?,
            (Event::Data { stream, bytes }, Role::Requests) => {
                self.streams.request_data(stream, bytes);
            }
            (Event::Data { stream, bytes }, Role::Responses) => {
                self.streams.response_data(stream, bytes, cx);
            }
            (Event::StreamEnds { stream }, Role::Requests) => self.streams.request_ended(stream),
            (Event::StreamEnds { stream }, Role::Responses) => {
                self.streams.response_ended(stream, cx);
            }
            (Event::Reset { stream }, _) => self.streams.reset(stream, cx),
        }
        Ok(())
    }

    fn fragment(&mut self, role: Role, bytes: &[u8], cx: &mut Context<'_>) -> Result<(), Ignore> {
        let (max, key) = (cx.settings.max_head_bytes, cx.key);
        let half = self.half(role);
        let Some(head) = half.block.as_mut().and_then(|block| block.head.as_mut()) else {
            return Ok(());
        };
        let fed = half.decoder.feed(bytes, max, |field| head.add(field, max, key));
        let too_large = std::mem::take(&mut half.decoder.tables_too_large);
        cx.output.counts.add(Counter::HeaderTablesTooLarge, too_large);
        match fed {
            Ok(()) => {}
            Err(hpack::Error::TooLong) => {
                count_too_long(role, cx);
                half.lose_block();
            }
            Err(hpack::Error::Malformed) => return Err(malformed_block(role, cx)),
        }
        Ok(())
    }

    fn block_ended(&mut self, role: Role, cx: &mut Context<'_>) -> Result<(), Ignore> {
        let half = self.half(role);
        let Some(block) = half.block.take() else { return Ok(()) };
        if let Some(head) = &block.head {
            half.decoder.end().map_err(|_| malformed_block(role, cx))?;
            cx.output.counts.add(Counter::UnknownFields, head.unknown);
            if head.too_long {
                count_too_long(role, cx);
            }
        }
        let Block { stream, end_stream, promise, head } = block;
        match role {
            _ if promise => cx.output.counts.one(Counter::PushedResponses),
            // Clients open streams with odd numbers, servers push on the others.
            Role::Requests if stream % 2 == 1 => {
                self.streams.request(stream, end_stream, head, cx);
            }
            Role::Responses if stream % 2 == 1 => {
                self.streams.response(stream, end_stream, head, cx);
            }
            Role::Requests | Role::Responses => {}
        }
        Ok(())
    }

    fn gap(&mut self, role: Role, missing: u64, cx: &mut Context<'_>) {
        if missing == 0 {
            return;
        }
        cx.output.counts.add(Counter::GapBytes, missing);
        let half = self.half(role);
        if half.scan.is_some() {
            return;
        }
        match (half.frames.skip(missing), role) {
            (Skip::Data { stream, bytes, exact }, Role::Requests) => {
                self.streams.request_lost(stream, bytes, exact);
            }
            (Skip::Data { stream, bytes, exact }, Role::Responses) => {
                self.streams.response_lost(stream, bytes, exact, cx);
            }
            (Skip::Block, _) => half.lose_block(),
            (Skip::Other, _) => {}
            (Skip::Unknown, _) => self.lose(role, cx),
        }
    }

    /// Where frames begin is unknown from here on.
    fn lose(&mut self, role: Role, cx: &mut Context<'_>) {
        cx.output.counts.one(Counter::GapDesync);
        let half = self.half(role);
        *half = Half { scan: Some(Scan::default()), ..Half::midway() };
        match role {
            Role::Requests => self.streams.requests_lost(),
            Role::Responses => self.streams.responses_lost(cx),
        }
    }
}

impl Role {
    fn pick<T>(self, of_requests: T, of_responses: T) -> T {
        match self {
            Self::Requests => of_requests,
            Self::Responses => of_responses,
        }
    }
}

fn count_too_long(role: Role, cx: &mut Context<'_>) {
    cx.output.counts.one(role.pick(Counter::RequestHeadTooLong, Counter::ResponseHeadTooLong));
}

fn malformed_block(role: Role, cx: &mut Context<'_>) -> Ignore {
    let counter = role.pick(Counter::RequestCompression, Counter::ResponseCompression);
    cx.output.counts.one(counter);
    Ignore
}
