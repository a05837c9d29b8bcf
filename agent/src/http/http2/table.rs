//! The tables of header fields that HPACK refers to (RFC 7541, section 2.3).

use std::collections::VecDeque;

/// What an entry takes beside its text (RFC 7541, section 4.1).
const OVERHEAD: usize = 32;
/// The size that a table has until its encoder says otherwise (RFC 9113, section 6.5.2).
const INITIAL: usize = 4_096;
/// Larger tables are kept up to this size.
pub const MAX_TABLE: usize = 64 * 1024;

/// A field; `None` for what was not seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Field<'a> {
    pub name: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
}

/// No table has an entry with this index.
#[derive(Debug, PartialEq, Eq)]
pub struct OutOfRange;

/// The entries that one direction of a connection has added, as far as they were seen.
///
/// Indices count from the latest entry, so what was added before the connection was joined, or
/// what was lost, makes no difference to later entries: only older ones have no name. When some
/// may be unseen, the table keeps entries for as long as it has room: an encoder that has evicted
/// them does not refer to them.
///
/// How large a table may be is for its two sides to settle: the encoder says so when it changes.
#[derive(Debug)]
pub struct Table {
    /// The latest first.
    entries: VecDeque<Entry>,
    /// Of the entries, as RFC 7541, section 4.1 has it.
    size: usize,
    max: usize,
    /// Whether there may be older entries than those known.
    partial: bool,
}

#[derive(Debug)]
struct Entry {
    /// Name and value.
    text: Box<[u8]>,
    /// Where the name ends; `None` for an unknown one.
    name: Option<usize>,
    /// Whether anything is known of it.
    seen: bool,
}

impl Entry {
    fn size(&self) -> usize {
        self.text.len().saturating_add(OVERHEAD)
    }

    fn field(&self) -> Field<'_> {
        match self.name {
            _ if !self.seen => Field::default(),
            Some(end) => Field { name: self.text.get(..end), value: self.text.get(end..) },
            None => Field { name: None, value: Some(&self.text) },
        }
    }
}

impl Default for Table {
    fn default() -> Self {
        Self { entries: VecDeque::new(), size: 0, max: INITIAL, partial: false }
    }
}

impl Table {
    /// Entries may have been added unseen: none of those known has a known index.
    pub fn forget(&mut self) {
        *self = Self { max: MAX_TABLE, partial: true, ..Self::default() };
    }

    pub fn get(&self, index: usize) -> Result<Field<'_>, OutOfRange> {
        let at = index.checked_sub(1).ok_or(OutOfRange)?;
        if let Some((name, value)) = STATIC.get(at) {
            return Ok(Field { name: Some(name.as_bytes()), value: Some(value.as_bytes()) });
        }
        match self.entries.get(at.saturating_sub(STATIC.len())) {
            Some(entry) => Ok(entry.field()),
            None if self.partial => Ok(Field::default()),
            None => Err(OutOfRange),
        }
    }

    /// Adds an entry, whose name may be unknown. One that is larger than the table empties it.
    pub fn add(&mut self, name: Option<&[u8]>, value: &[u8]) {
        let text = [name.unwrap_or_default(), value].concat().into_boxed_slice();
        self.push(Entry { text, name: name.map(<[u8]>::len), seen: true });
        if self.entries.is_empty() && self.max == MAX_TABLE {
            // The table may really be larger than what is kept, and have it.
            self.partial = true;
            self.push(Entry { text: Box::default(), name: None, seen: false });
        }
    }

    fn push(&mut self, entry: Entry) {
        let size = entry.size();
        self.evict(self.max.saturating_sub(size));
        if size <= self.max {
            self.size = self.size.saturating_add(size);
            self.entries.push_front(entry);
        }
    }

    /// The encoder's new size; false when it is larger than what is kept.
    pub fn resize(&mut self, max: usize) -> bool {
        self.max = max.min(MAX_TABLE);
        self.evict(self.max);
        // Nothing is left, known or not.
        self.partial = max > MAX_TABLE || (self.partial && max > 0);
        max <= MAX_TABLE
    }

    fn evict(&mut self, room: usize) {
        while self.size > room {
            let Some(entry) = self.entries.pop_back() else { return };
            self.size = self.size.saturating_sub(entry.size());
        }
    }

    /// Bytes of memory, about.
    pub fn heap_bytes(&self) -> usize {
        let entries = self.entries.capacity().saturating_mul(size_of::<Entry>());
        self.size.saturating_add(entries)
    }
}

/// RFC 7541, appendix A.
#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"),
    (":path", "/index.html"), (":scheme", "http"), (":scheme", "https"), (":status", "200"),
    (":status", "204"), (":status", "206"), (":status", "304"), (":status", "400"),
    (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""),
    ("accept", ""), ("access-control-allow-origin", ""), ("age", ""), ("allow", ""),
    ("authorization", ""), ("cache-control", ""), ("content-disposition", ""),
    ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""),
    ("date", ""), ("etag", ""), ("expect", ""), ("expires", ""), ("from", ""), ("host", ""),
    ("if-match", ""), ("if-modified-since", ""), ("if-none-match", ""), ("if-range", ""),
    ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""), ("location", ""),
    ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""),
    ("via", ""), ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::{Field, MAX_TABLE, OutOfRange, STATIC, Table};

    fn known(name: &'static str, value: &'static str) -> Result<Field<'static>, OutOfRange> {
        Ok(Field { name: Some(name.as_bytes()), value: Some(value.as_bytes()) })
    }

    const UNKNOWN: Result<Field<'static>, OutOfRange> = Ok(Field { name: None, value: None });

    #[test]
    fn the_static_table_comes_first() {
        let table = Table::default();
        assert_eq!(table.get(1), known(":authority", ""));
        assert_eq!(table.get(8), known(":status", "200"));
        assert_eq!(table.get(61), known("www-authenticate", ""));
        assert_eq!(STATIC.len(), 61);
        assert_eq!((table.get(0), table.get(62)), (Err(OutOfRange), Err(OutOfRange)));
        assert_eq!(table.get(usize::MAX), Err(OutOfRange));
    }

    #[test]
    fn the_oldest_entries_make_room() {
        let mut table = Table::default();
        assert!(table.resize(100));
        table.add(Some(b"a"), b"1");
        table.add(Some(b"b"), b"2");
        assert_eq!((table.get(62), table.get(63)), (known("b", "2"), known("a", "1")));
        table.add(Some(b"c"), b"3");
        assert_eq!((table.get(63), table.get(64)), (known("b", "2"), Err(OutOfRange)));
        // 34 and 34 bytes: one of them fits.
        assert!(table.resize(67));
        assert_eq!((table.get(62), table.get(63)), (known("c", "3"), Err(OutOfRange)));
        // Larger than the table: not an error, and nothing is left.
        table.add(Some(b"d"), &[b'x'; 40]);
        assert_eq!((table.get(62), table.size), (Err(OutOfRange), 0));
    }

    #[test]
    fn a_table_joined_midway_names_what_came_since() {
        let mut table = Table::default();
        table.add(Some(b"a"), b"1");
        table.forget();
        assert_eq!((table.get(62), table.get(1_000)), (UNKNOWN, UNKNOWN));
        table.add(Some(b"b"), b"2");
        table.add(None, b"3");
        let nameless = Ok(Field { name: None, value: Some(&b"3"[..]) });
        assert_eq!(
            (table.get(62), table.get(63), table.get(64)),
            (nameless, known("b", "2"), UNKNOWN)
        );
        // Whatever there was, it is gone now.
        assert!(table.resize(0) && table.resize(4_096));
        assert_eq!(table.get(62), Err(OutOfRange));
    }

    #[test]
    fn larger_tables_than_the_bound_are_kept_in_part() {
        let mut table = Table::default();
        assert!(!table.resize(MAX_TABLE + 1));
        for _ in 0..10_000 {
            table.add(Some(b"name"), &[b'x'; 100]);
            assert!(table.heap_bytes() <= 2 * MAX_TABLE);
        }
        assert_eq!(table.get(62 + 5_000), UNKNOWN);
        // It may have a place in the real table, before those that come later.
        table.add(Some(b"huge"), &[b'x'; MAX_TABLE]);
        table.add(Some(b"b"), b"2");
        assert_eq!((table.get(62), table.get(63)), (known("b", "2"), UNKNOWN));
    }
}
