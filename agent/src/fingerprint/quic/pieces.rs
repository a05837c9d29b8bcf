//! The bytes of a handshake, in whatever order they come.

use super::frames::Crypto;
use crate::fingerprint::client_hello::MAX_HELLO;

/// The longest handshake that is put together, in bytes.
const MAX_BYTES: usize = MAX_HELLO;
/// Pieces of a handshake. Browsers cut a hello into a score of them, on purpose.
const MAX_PIECES: usize = 256;

/// Pieces, none of which begins where another does.
#[derive(Debug, Default)]
pub struct Pieces {
    /// Ordered by where they begin.
    pieces: Vec<(usize, Box<[u8]>)>,
    bytes: usize,
}

impl Pieces {
    /// Whether there was room for it.
    pub fn add(&mut self, piece: Crypto<'_>) -> bool {
        let Ok(offset) = usize::try_from(piece.offset) else { return false };
        if piece.data.is_empty() {
            return true;
        }
        if offset.saturating_add(piece.data.len()) > MAX_BYTES {
            return false;
        }
        match self.pieces.binary_search_by_key(&offset, |(begin, _)| *begin) {
            Ok(index) => self.lengthen(index, piece.data),
            Err(_) if self.is_full(piece.data.len()) => false,
            Err(index) => {
                self.pieces.insert(index, (offset, piece.data.into()));
                self.bytes += piece.data.len();
                true
            }
        }
    }

    fn is_full(&self, more: usize) -> bool {
        self.pieces.len() >= MAX_PIECES || self.bytes.saturating_add(more) > MAX_BYTES
    }

    /// A piece that came before, and may go further now.
    fn lengthen(&mut self, index: usize, data: &[u8]) -> bool {
        let Some((_, known)) = self.pieces.get_mut(index) else { return false };
        let Some(more) = data.len().checked_sub(known.len()) else { return true };
        if self.bytes.saturating_add(more) > MAX_BYTES {
            return false;
        }
        self.bytes += more;
        *known = data.into();
        true
    }

    /// Bytes kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What is there from the first byte on without a gap.
    pub fn message(&self) -> Vec<u8> {
        let mut message = Vec::with_capacity(self.bytes);
        for (begin, data) in &self.pieces {
            // What came twice is left out.
            let Some(known) = message.len().checked_sub(*begin) else { break };
            message.extend_from_slice(data.get(known..).unwrap_or_default());
        }
        message
    }
}
