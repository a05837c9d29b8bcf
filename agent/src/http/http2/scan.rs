//! Where frames begin in a direction whose start, or part, was not seen.
//!
//! A chunk often begins with a frame, but need not. It is taken to do so when [`PROOF`] headers
//! of frames follow each other from there on, each exactly where the one before ends: by chance,
//! nothing else does that. Whoever writes such content on purpose misleads nobody but about the
//! requests of the connection's own client, which could have sent them as well.

use super::frame::{Chain, HEADER, Header, block_start};
use crate::flow::Piece;

/// Headers of frames in a row.
const PROOF: usize = 3;

/// What a connection's side carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Requests,
    Responses,
}

/// Looks for frames in one direction.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// From the beginning of what may be a frame.
    bytes: Vec<u8>,
    chain: Chain,
    frames: usize,
    /// Where the next header is expected in `bytes`, perhaps beyond their end.
    next: usize,
    /// The latest beginning of a frame that a reader could begin with.
    start: usize,
}

impl Scan {
    /// Takes a chunk, of which at most about `max` bytes and a frame are kept. Whether frames are
    /// proven.
    pub fn look(&mut self, piece: &Piece<'_>, max: usize) -> bool {
        if piece.missing_before > 0 {
            *self = Self::default();
        }
        // What was a frame before this chunk need not be one; then this chunk may begin with one.
        if !self.follow(piece.data, max) {
            *self = Self::default();
            if !self.follow(piece.data, max) {
                *self = Self::default();
            }
        }
        if piece.missing_after > 0 {
            *self = Self::default();
        }
        self.is_proven()
    }

    pub fn is_proven(&self) -> bool {
        self.frames >= PROOF
    }

    /// The bytes from the first frame on that is still there.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self).bytes
    }

    pub fn heap_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// False when `data` does not go on with frames.
    fn follow(&mut self, data: &[u8], max: usize) -> bool {
        self.bytes.extend_from_slice(data);
        while let Some(bytes) = self.bytes.get(self.next..).and_then(|rest| rest.first_chunk()) {
            if self.chain.is_between_blocks() {
                self.start = self.next;
            }
            let header = Header::of(*bytes);
            if !self.chain.takes(header) {
                return false;
            }
            self.frames = self.frames.saturating_add(1);
            self.next = self.next.saturating_add(HEADER).saturating_add(header.length as usize);
        }
        // No plausible length begins with anything else.
        if self.bytes.get(self.next).is_some_and(|&first| first != 0) {
            return false;
        }
        if self.bytes.len() > max {
            self.bytes.drain(..self.start);
            self.next = self.next.saturating_sub(self.start);
            self.start = 0;
        }
        // A header block without end.
        self.bytes.len() <= max.saturating_mul(2)
    }

    /// What the side carries, if the frames tell: the fields that a request or a response begins
    /// with are in HPACK's static table.
    pub fn role(&self) -> Option<Role> {
        let mut rest = self.bytes.as_slice();
        while let Some(bytes) = rest.first_chunk() {
            if let Some(role) = block_start(rest).and_then(role_of) {
                return Some(role);
            }
            let length = Header::of(*bytes).length as usize;
            rest = rest.get(HEADER.saturating_add(length)..).unwrap_or_default();
        }
        None
    }
}

/// What begins with this header block (RFC 7541, section 6 and appendix A).
fn role_of(mut block: &[u8]) -> Option<Role> {
    let is_resize = |byte: &u8| (0x20..0x3f).contains(byte);
    while let Some((_, rest)) = block.split_first().filter(|(byte, _)| is_resize(byte)) {
        block = rest;
    }
    let index = match block.first()? {
        byte @ 0x80.. => byte & 0x7f,
        byte @ 0x40.. => byte & 0x3f,
        byte @ ..0x20 => byte & 0x0f,
        _ => return None,
    };
    match index {
        1..=7 => Some(Role::Requests),
        8..=14 => Some(Role::Responses),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Role, Scan};
    use crate::flow::Piece;

    const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    const WINDOW: &[u8] = &[0, 0, 4, 8, 0, 0, 0, 0, 3, 0, 0, 1, 0];
    /// HEADERS without END_HEADERS, and the continuation.
    const SPLIT: &[u8] = &[0, 0, 1, 1, 0, 0, 0, 0, 3, 0x82, 0, 0, 1, 9, 4, 0, 0, 0, 3, 0x87];

    fn piece(data: &[u8]) -> Piece<'_> {
        Piece { data, ..Piece::default() }
    }

    /// Whether these chunks prove frames, and the bytes from the first of them on.
    fn look(chunks: &[&[u8]]) -> (bool, Vec<u8>) {
        let mut scan = Scan::default();
        let proven = chunks.iter().fold(false, |_, chunk| scan.look(&piece(chunk), 1_000));
        (proven, scan.take())
    }

    #[test]
    fn three_frames_in_a_row_prove_themselves_however_they_are_cut() {
        let bytes = [PING, WINDOW, SPLIT].concat();
        for step in 1..=bytes.len() {
            let chunks: Vec<_> = bytes.chunks(step).collect();
            assert_eq!(look(&chunks), (true, bytes.clone()), "by {step}");
        }
        assert!(!look(&[PING, WINDOW]).0);
        // A chunk that begins within a frame is passed over.
        assert_eq!(look(&[&WINDOW[3..], PING, SPLIT]), (true, [PING, SPLIT].concat()));
    }

    #[test]
    fn other_bytes_prove_nothing() {
        let half = [PING, WINDOW, &[0, 0, 8, 6]].concat();
        let table: &[&[u8]] = &[
            b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n",
            &[0; 4_000],
            &[0xff; 100],
            &[0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 2],
            &half,
            // A continuation of nothing.
            &SPLIT[10..].repeat(3),
            // Another frame within a header block.
            &[&SPLIT[..10], PING, PING].concat(),
        ];
        for bytes in table {
            assert!(!look(&[bytes]).0, "{bytes:?}");
        }
    }

    #[test]
    fn a_loss_begins_anew() {
        let mut scan = Scan::default();
        assert!(!scan.look(&piece(&[PING, WINDOW].concat()), 1_000));
        assert!(!scan.look(&Piece { missing_before: 1, ..piece(PING) }, 1_000));
        assert!(!scan.look(&Piece { missing_after: 1, ..piece(&PING.repeat(3)) }, 1_000));
        assert!(!scan.look(&piece(&PING.repeat(2)), 1_000));
        assert!(scan.look(&piece(PING), 1_000));
    }

    #[test]
    fn what_is_kept_is_bounded_and_begins_with_a_frame() {
        let mut scan = Scan::default();
        let data = [&[0, 3, 232, 0, 0, 0, 0, 0, 1][..], &[7; 1_000]].concat();
        for _ in 0..20 {
            for chunk in data.chunks(100) {
                scan.look(&piece(chunk), 2_000);
                assert!(scan.bytes.len() <= 3_100);
            }
        }
        assert!(scan.is_proven());
        assert_eq!(scan.take()[..9], data[..9]);
        // A header block without end is not kept for ever.
        let headers = [&[0, 1, 0, 1, 0, 0, 0, 0, 1][..], &[0x82; 256]].concat();
        let continued = [&[0, 1, 0, 9, 0, 0, 0, 0, 1][..], &[0x82; 256]].concat();
        scan.look(&piece(&headers), 2_000);
        for _ in 0..50 {
            scan.look(&piece(&continued), 2_000);
            assert!(scan.bytes.len() <= 4_300);
        }
    }

    #[test]
    fn the_first_field_tells_who_speaks() {
        let role = |block: &[u8]| {
            let length = block.len() as u8;
            let header = [0, 0, length, 1, 4, 0, 0, 0, 1];
            let mut scan = Scan::default();
            scan.look(&piece(&[PING, &header, block].concat()), 1_000);
            scan.role()
        };
        assert_eq!(role(&[0x82, 0x87]), Some(Role::Requests));
        assert_eq!(role(&[0x20, 0x3e, 0x44, 1, b'/']), Some(Role::Requests));
        assert_eq!(role(&[0x88]), Some(Role::Responses));
        assert_eq!(role(&[0x48, 3, b'4', b'0', b'1']), Some(Role::Responses));
        assert_eq!(role(&[0x08, 3, b'4', b'0', b'1']), Some(Role::Responses));
        assert_eq!(role(&[0xbe, 0x88]), None);
        assert_eq!(role(&[0x3f, 1, 0x88]), None);
    }
}
