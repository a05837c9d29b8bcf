//! Frames (RFC 9113, section 4 and 6): what of them matters here, out of bytes in any pieces.

pub const HEADER: usize = 9;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The longest frame that a peer must be ready for (RFC 9113, section 4.2).
const COMMON_LENGTH: u32 = 16_384;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const WITH_PRIORITY: u8 = 0x20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub length: u32,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Header {
    pub fn of(bytes: [u8; HEADER]) -> Self {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = bytes;
        Self {
            length: u32::from_be_bytes([0, l0, l1, l2]),
            kind,
            flags,
            // The first bit is reserved and ignored.
            stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
        }
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Bytes of the payload before the content: the length of the padding, priority, a stream.
    fn prefix(&self) -> u32 {
        let padded = u32::from(self.has(PADDED));
        match self.kind {
            DATA => padded,
            HEADERS => padded + if self.has(WITH_PRIORITY) { 5 } else { 0 },
            PUSH_PROMISE => padded + 4,
            _ => 0,
        }
    }

    fn is_padded(&self) -> bool {
        matches!(self.kind, DATA | HEADERS | PUSH_PROMISE) && self.has(PADDED)
    }

    fn opens_block(&self) -> bool {
        matches!(self.kind, HEADERS | PUSH_PROMISE)
    }

    /// Whether the frame may follow where `block` is the stream of a header block that has not
    /// ended: nothing but its continuation may (RFC 9113, section 4.3).
    fn may_follow(&self, block: Option<u32>) -> bool {
        match block {
            Some(stream) => self.kind == CONTINUATION && self.stream == stream,
            None => self.kind != CONTINUATION,
        }
    }

    /// The stream whose header block goes on after this frame.
    fn leaves_open(&self, block: Option<u32>) -> Option<u32> {
        match self.kind {
            HEADERS | PUSH_PROMISE | CONTINUATION if self.has(END_HEADERS) => None,
            HEADERS | PUSH_PROMISE | CONTINUATION => Some(self.stream),
            _ => block,
        }
    }

    /// Whether length and stream are as RFC 9113, section 6 demands; a connection with another
    /// frame ends.
    fn is_valid(&self) -> bool {
        let on_stream = self.stream != 0;
        match self.kind {
            DATA | HEADERS | PUSH_PROMISE => on_stream && self.length >= self.prefix(),
            PRIORITY | CONTINUATION => on_stream,
            RST_STREAM => on_stream && self.length == 4,
            SETTINGS if self.has(ACK) => !on_stream && self.length == 0,
            SETTINGS => !on_stream && self.length.is_multiple_of(6),
            PING => !on_stream && self.length == 8,
            GOAWAY => !on_stream && self.length >= 8,
            WINDOW_UPDATE => self.length == 4,
            _ => true,
        }
    }

    /// Whether bytes that might be anything look like a frame: known type, flags and length, and
    /// a stream that a client may have opened.
    fn is_plausible(&self) -> bool {
        const PRIORITY_UPDATE: u8 = 16;
        let flags = match self.kind {
            DATA => END_STREAM | PADDED,
            HEADERS => END_STREAM | END_HEADERS | PADDED | WITH_PRIORITY,
            PUSH_PROMISE => END_HEADERS | PADDED,
            CONTINUATION => END_HEADERS,
            SETTINGS | PING => ACK,
            _ => 0,
        };
        let kind = match self.kind {
            DATA => self.length > 0 || self.has(END_STREAM),
            HEADERS => self.length > 0,
            PRIORITY => self.length == 5,
            PRIORITY_UPDATE => self.stream == 0 && self.length >= 4,
            kind => kind <= CONTINUATION,
        };
        let stream = self.stream == 0 || self.stream % 2 == 1;
        kind && stream
            && self.flags & !flags == 0
            && self.length <= COMMON_LENGTH
            && self.is_valid()
    }
}

/// Whether `bytes` begin like a frame.
pub fn begins_like_a_frame(bytes: &[u8]) -> bool {
    bytes.first_chunk().is_some_and(|header| Header::of(*header).is_plausible())
}

/// Follows headers of frames through bytes that might be something else.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Chain {
    block: Option<u32>,
}

impl Chain {
    /// Whether `header` may be that of the next frame.
    pub fn takes(&mut self, header: Header) -> bool {
        let fits = header.is_plausible() && header.may_follow(self.block);
        self.block = header.leaves_open(self.block);
        fits
    }

    /// Whether a reader could begin with the next frame.
    pub fn is_between_blocks(&self) -> bool {
        self.block.is_none()
    }
}

/// The first byte of the header block that the frame at the start of `bytes` opens, if it does.
pub fn block_start(bytes: &[u8]) -> Option<&[u8]> {
    let header = Header::of(*bytes.first_chunk()?);
    if header.kind != HEADERS {
        return None;
    }
    bytes.get(HEADER..)?.get(header.prefix() as usize..)
}

/// What a frame says.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Fragments of a header block follow; it is of a request that a server announces if
    /// `promise`. The stream's side ends behind it if `end_stream`.
    BlockBegins {
        stream: u32,
        promise: bool,
        end_stream: bool,
    },
    Fragment(&'a [u8]),
    BlockEnds,
    Data {
        stream: u32,
        bytes: &'a [u8],
    },
    /// After the last data of this side.
    StreamEnds {
        stream: u32,
    },
    Reset {
        stream: u32,
    },
}

/// The rules of RFC 9113 are broken in a way that ends the connection.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

/// Where lost bytes lay.
#[derive(Debug, PartialEq, Eq)]
pub enum Skip {
    /// Within content of this stream; `exact` tells whether it was all `bytes` of them.
    Data { stream: u32, bytes: u64, exact: bool },
    /// Within a header block.
    Block,
    /// In a frame that does not matter.
    Other,
    /// Not certainly within one frame: where the next begins is unknown.
    Unknown,
}

/// Reads the frames of one direction.
#[derive(Debug)]
pub struct Frames {
    state: State,
    /// Stream of a header block that goes on.
    block: Option<u32>,
}

#[derive(Debug)]
enum State {
    /// So much of the client's preface has come.
    Preface(usize),
    Header {
        bytes: [u8; HEADER],
        have: usize,
    },
    Payload(Payload),
}

#[derive(Debug)]
struct Payload {
    header: Header,
    /// Bytes to come, padding included.
    rest: u32,
    /// Of them, those before the content.
    prefix: u32,
    padding: u32,
}

impl Frames {
    /// Of a client, whose preface comes first.
    pub fn of_client() -> Self {
        Self { state: State::Preface(0), block: None }
    }

    /// A frame begins next.
    pub fn at_boundary() -> Self {
        Self { state: State::Header { bytes: [0; HEADER], have: 0 }, block: None }
    }

    /// Reads from `data` up to the next event. To be called until there is none, with no data
    /// left.
    pub fn next<'a>(&mut self, data: &mut &'a [u8]) -> Result<Option<Event<'a>>, Malformed> {
        loop {
            match &mut self.state {
                State::Preface(have) => {
                    let Some((&byte, rest)) = data.split_first() else { return Ok(None) };
                    if PREFACE.get(*have) != Some(&byte) {
                        return Err(Malformed);
                    }
                    *data = rest;
                    *have = have.saturating_add(1);
                    if *have == PREFACE.len() {
                        self.state = Self::at_boundary().state;
                    }
                }
                State::Header { bytes, have } => {
                    let Some(space) = bytes.get_mut(*have..) else { return Err(Malformed) };
                    let taken = space.len().min(data.len());
                    let (now, rest) = data.split_at_checked(taken).unwrap_or_default();
                    space.iter_mut().zip(now).for_each(|(to, from)| *to = *from);
                    *data = rest;
                    *have = have.saturating_add(taken);
                    if *have < HEADER {
                        return Ok(None);
                    }
                    let header = Header::of(*bytes);
                    if let Some(event) = self.begin(header)? {
                        return Ok(Some(event));
                    }
                }
                State::Payload(payload) => {
                    if let Some(event) = payload.next(data)? {
                        return Ok(Some(event));
                    }
                    if payload.rest > 0 {
                        return Ok(None);
                    }
                    let header = payload.header;
                    self.state = Self::at_boundary().state;
                    if let Some(event) = closing(header) {
                        return Ok(Some(event));
                    }
                }
            }
        }
    }

    fn begin<'a>(&mut self, header: Header) -> Result<Option<Event<'a>>, Malformed> {
        if !header.is_valid() || !header.may_follow(self.block) {
            return Err(Malformed);
        }
        self.block = header.leaves_open(self.block);
        let prefix = header.prefix();
        self.state = State::Payload(Payload { header, rest: header.length, prefix, padding: 0 });
        Ok(header.opens_block().then_some(Event::BlockBegins {
            stream: header.stream,
            promise: header.kind == PUSH_PROMISE,
            end_stream: header.kind == HEADERS && header.has(END_STREAM),
        }))
    }

    /// Passes over `missing` lost bytes if all of them must have been within the frame that is
    /// being read.
    pub fn skip(&mut self, missing: u64) -> Skip {
        let State::Payload(payload) = &mut self.state else { return Skip::Unknown };
        let Some(missing) = u32::try_from(missing).ok().filter(|&lost| lost <= payload.rest) else {
            return Skip::Unknown;
        };
        let content = payload.rest.saturating_sub(payload.padding);
        payload.rest = payload.rest.saturating_sub(missing);
        payload.padding = payload.padding.min(payload.rest);
        let exact = payload.prefix == 0;
        payload.prefix = 0;
        match payload.header.kind {
            DATA => Skip::Data {
                stream: payload.header.stream,
                bytes: u64::from(content.min(missing)),
                exact,
            },
            HEADERS | PUSH_PROMISE | CONTINUATION => Skip::Block,
            _ => Skip::Other,
        }
    }
}

impl Payload {
    /// The next event within the payload; `None` when it has ended or `data` has.
    fn next<'a>(&mut self, data: &mut &'a [u8]) -> Result<Option<Event<'a>>, Malformed> {
        while self.prefix > 0 {
            let Some((&byte, rest)) = data.split_first() else { return Ok(None) };
            *data = rest;
            if self.prefix == self.header.prefix() && self.header.is_padded() {
                self.padding = u32::from(byte);
            }
            self.prefix = self.prefix.saturating_sub(1);
            self.rest = self.rest.saturating_sub(1);
            if self.prefix == 0 && self.padding > self.rest {
                return Err(Malformed);
            }
        }
        let content = self.take(self.rest.saturating_sub(self.padding), data);
        if content.is_empty() {
            // Padding and whatever is not looked at.
            if self.rest <= self.padding {
                self.take(self.rest, data);
            }
            return Ok(None);
        }
        let stream = self.header.stream;
        Ok(match self.header.kind {
            DATA => Some(Event::Data { stream, bytes: content }),
            HEADERS | PUSH_PROMISE | CONTINUATION => Some(Event::Fragment(content)),
            _ => None,
        })
    }

    /// Takes at most `most` bytes.
    fn take<'a>(&mut self, most: u32, data: &mut &'a [u8]) -> &'a [u8] {
        let length = data.len().min(most as usize);
        let (taken, rest) = data.split_at_checked(length).unwrap_or_default();
        *data = rest;
        self.rest = self.rest.saturating_sub(length as u32);
        taken
    }
}

/// What the end of a frame means.
fn closing<'a>(header: Header) -> Option<Event<'a>> {
    let stream = header.stream;
    match header.kind {
        DATA if header.has(END_STREAM) => Some(Event::StreamEnds { stream }),
        HEADERS | PUSH_PROMISE | CONTINUATION if header.has(END_HEADERS) => Some(Event::BlockEnds),
        RST_STREAM => Some(Event::Reset { stream }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, Frames, Malformed, Skip};

    /// Events as text, content joined, and whether the frames were refused.
    fn read(mut frames: Frames, bytes: &[u8], step: usize) -> (String, Result<(), Malformed>) {
        let mut said = String::new();
        for mut piece in bytes.chunks(step) {
            loop {
                match frames.next(&mut piece) {
                    Ok(None) => break,
                    Ok(Some(event)) => tell(event, &mut said),
                    Err(malformed) => return (said, Err(malformed)),
                }
            }
            assert!(piece.is_empty());
        }
        (said, Ok(()))
    }

    fn tell(event: Event<'_>, said: &mut String) {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        *said += &match event {
            Event::BlockBegins { stream, promise, end_stream } => {
                format!(
                    "<{stream}{}{}:",
                    ["", "p"][usize::from(promise)],
                    ["", "e"][usize::from(end_stream)]
                )
            }
            Event::Fragment(bytes) | Event::Data { bytes, .. } => text(bytes),
            Event::BlockEnds => ">".to_owned(),
            Event::StreamEnds { stream } => format!("[{stream} ends]"),
            Event::Reset { stream } => format!("[{stream} reset]"),
        };
    }

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        let header = [0, length[0], length[1], kind, flags, 0, 0, 0, stream];
        [&header, payload].concat()
    }

    #[test]
    fn frames_are_read_however_they_are_cut() {
        let bytes = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, 0, &[0; 12]),
            frame(4, 1, 0, &[]),
            frame(1, 0x4, 1, b"head"),
            frame(0, 0, 1, b"body"),
            frame(0, 0x9, 1, &[&[3][..], b"more", b"pad"].concat()),
            // Padding, priority and a continuation.
            frame(1, 0x29, 3, &[&[2][..], b"\0\0\0\0\x10", b"he", b"XX"].concat()),
            frame(9, 0, 3, b""),
            frame(9, 4, 3, b"ad"),
            frame(5, 0xc, 1, &[&[1][..], b"\0\0\0\x02", b"push", b"X"].concat()),
            frame(8, 0, 0, &[0; 4]),
            frame(2, 0, 7, &[0; 5]),
            frame(3, 0, 3, &[0; 4]),
            frame(6, 0, 0, &[0; 8]),
            frame(99, 0xff, 9, b"unknown frames are passed over"),
            frame(0, 1, 5, b""),
            frame(7, 0, 0, &[0; 10]),
        ]
        .concat();
        let said = "<1:head>bodymore[1 ends]<3e:head><1p:push>[3 reset][5 ends]";
        for step in 1..=bytes.len() {
            let found = read(Frames::of_client(), &bytes, step);
            assert_eq!(found, (said.to_owned(), Ok(())), "by {step}");
        }
    }

    #[test]
    fn frames_that_end_a_connection_are_refused() {
        let table = [
            frame(0, 0, 0, b"x"),
            frame(0, 8, 1, b""),
            frame(0, 8, 1, &[5, 1, 2, 3, 4]),
            frame(1, 4, 0, b"x"),
            frame(1, 0x20, 1, &[0; 4]),
            frame(2, 0, 0, &[0; 5]),
            frame(3, 0, 0, &[0; 4]),
            frame(3, 0, 1, &[0; 5]),
            frame(4, 0, 1, &[]),
            frame(4, 0, 0, &[0; 5]),
            frame(4, 1, 0, &[0; 6]),
            frame(5, 4, 1, &[0; 3]),
            frame(6, 0, 0, &[0; 7]),
            frame(6, 0, 1, &[0; 8]),
            frame(7, 0, 0, &[0; 7]),
            frame(8, 0, 0, &[0; 3]),
            frame(9, 4, 1, b"x"),
            [frame(1, 0, 1, b"x"), frame(0, 0, 1, b"x")].concat(),
            [frame(1, 0, 1, b"x"), frame(9, 4, 3, b"x")].concat(),
            [frame(1, 0, 1, b"x"), frame(99, 0, 1, b"x")].concat(),
        ];
        for bytes in &table {
            for step in [1, 100] {
                assert_eq!(read(Frames::at_boundary(), bytes, step).1, Err(Malformed), "{bytes:?}");
            }
        }
        assert_eq!(read(Frames::of_client(), b"PRI * HTTP/2.0\r\n\r\nXX", 3).1, Err(Malformed));
    }

    #[test]
    fn losses_within_a_frame_are_located() {
        let data = frame(0, 9, 1, &[&[3][..], b"0123456789", b"pad"].concat());
        let headers = frame(1, 4, 1, b"0123456789");
        let ping = frame(6, 0, 0, &[0; 8]);
        let of = |bytes, exact| Skip::Data { stream: 1, bytes, exact };
        // A frame, bytes of it that come, bytes lost, and what that is.
        let table = [
            (&data, 12, 5, of(5, true)),
            (&data, 12, 10, of(8, true)),
            (&data, 12, 11, of(8, true)),
            (&data, 12, 12, Skip::Unknown),
            (&data, 9, 5, of(5, false)),
            (&data, 8, 1, Skip::Unknown),
            (&headers, 10, 9, Skip::Block),
            (&ping, 10, 7, Skip::Other),
            (&ping, 0, 1, Skip::Unknown),
            (&ping, 10, u64::MAX, Skip::Unknown),
        ];
        for (bytes, come, lost, expected) in table {
            let mut frames = Frames::at_boundary();
            let mut piece = &bytes[..come];
            while frames.next(&mut piece).unwrap().is_some() {}
            let case = format!("{bytes:?} {come} {lost}");
            assert_eq!(frames.skip(lost), expected, "{case}");
            if expected == Skip::Unknown {
                continue;
            }
            let rest = &bytes[come + usize::try_from(lost).unwrap()..];
            let follows = [rest, &frame(0, 1, 5, b"next")].concat();
            let (said, result) = read(frames, &follows, 1);
            assert!(said.ends_with("next[5 ends]") && result.is_ok(), "{case}: {said}");
        }
    }
}
