//! Where a direction of a connection has got to, and what a chunk adds to it.

use super::Chunk;

/// The position up to which one direction of a connection has been seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position(u64);

/// What a chunk adds to its direction, in this order: lost bytes, bytes, lost bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Bytes lost between what was seen before and `data`.
    pub missing_before: u64,
    pub data: &'a [u8],
    /// Bytes lost after `data`: the end of the call was cut off.
    pub missing_after: u64,
    /// Bytes of the chunk that had been seen, or given up as lost, before.
    pub repeated: u64,
}

impl Position {
    /// What `chunk` adds. The position moves to its end; it never moves back.
    pub fn place<'a>(&mut self, chunk: &Chunk<'a>) -> Piece<'a> {
        let copied = u64::try_from(chunk.data.len()).unwrap_or(u64::MAX);
        let end = chunk.offset.saturating_add(chunk.len.max(copied));
        let expected = self.0;
        if end <= expected {
            return Piece { repeated: end.saturating_sub(chunk.offset), ..Piece::default() };
        }
        self.0 = end;
        let repeated = expected.saturating_sub(chunk.offset);
        let known = usize::try_from(repeated).unwrap_or(usize::MAX).min(chunk.data.len());
        let data = chunk.data.get(known..).unwrap_or_default();
        let data_end = chunk.offset.saturating_add(copied).max(expected);
        Piece {
            missing_before: chunk.offset.saturating_sub(expected),
            data,
            missing_after: end.saturating_sub(data_end),
            repeated,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Piece, Position};
    use crate::flow::{Chunk, Side};
    use crate::time::Timestamp;

    fn place(position: &mut Position, offset: u64, len: u64, data: &'static str) -> Piece<'static> {
        position.place(&Chunk {
            connection: 1,
            side: Side::Read,
            ts: Timestamp::default(),
            local: ([127, 0, 0, 1], 1).into(),
            remote: ([127, 0, 0, 1], 2).into(),
            pid: 1,
            comm: "",
            offset,
            len,
            data: data.as_bytes(),
            ja4: None,
        })
    }

    #[test]
    fn each_chunk_adds_what_was_not_seen_before() {
        // (offset, len, data) in turn, then what it adds: (before, data, after, repeated).
        let table = [
            ((0, 3, "abc"), (0, "abc", 0, 0)),
            ((3, 2, "de"), (0, "de", 0, 0)),
            ((5, 10, "fgh"), (0, "fgh", 7, 0)),
            ((20, 1, "z"), (5, "z", 0, 0)),
            ((0, 3, "abc"), (0, "", 0, 3)),
            ((20, 3, "zyx"), (0, "yx", 0, 1)),
            ((20, 9, "zy"), (0, "", 6, 3)),
            ((29, 0, ""), (0, "", 0, 0)),
            // More copied than moved cannot be: the data is what counts.
            ((29, 1, "ab"), (0, "ab", 0, 0)),
            ((u64::MAX, 5, "end"), (u64::MAX - 31, "end", 0, 0)),
        ];
        let mut position = Position::default();
        for ((offset, len, data), (before, added, after, repeated)) in table {
            let expected = Piece {
                missing_before: before,
                data: added.as_bytes(),
                missing_after: after,
                repeated,
            };
            assert_eq!(place(&mut position, offset, len, data), expected, "{offset} {len} {data}");
        }
    }
}
