//! `.gopclntab`: where each function of a Go program begins and ends. Go's runtime needs it for
//! stack traces, so it is there in a stripped program too (src/debug/gosym/pclntab.go and
//! src/cmd/link/internal/ld/pcln.go of Go's source).
//!
//! The header says which of the layouts it is; one that is not known here is refused. Every offset
//! in the table is checked against its end before it is followed.

use std::ops::Range;

use memchr::memmem;
use thiserror::Error;

/// Bytes of a header that say what the rest of it is like.
const PREAMBLE: usize = 8;
/// Of a pointer. 32-bit programs are not read.
const POINTER: usize = 8;
/// Functions of one program; the largest known have a tenth of that.
const MAX_FUNCTIONS: usize = 4_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// Go 1.16 and 1.17: entries are addresses.
    Go116,
    /// Go 1.18 and 1.19: entries are distances from the start of the code.
    Go118,
    /// Since Go 1.20; what has changed is not used here.
    Go120,
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TableError {
    #[error("its function table has the layout of Go 1.15 or older")]
    Old,
    #[error("its function table has an unknown layout ({0:#010x})")]
    Unknown(u32),
    #[error("its function table is not that of a 64-bit x86 program")]
    Machine,
    #[error("its function table is damaged")]
    Damaged,
    #[error("its function table has {0} twice")]
    Twice(String),
}

pub struct Table<'a> {
    layout: Layout,
    functions: usize,
    names: &'a [u8],
    /// The index of functions, and after it what it points into.
    entries: &'a [u8],
}

/// What the table knows of one function.
struct Entry {
    /// Of its first instruction: see [`Table::code_start`].
    at: u64,
    name: usize,
}

impl<'a> Table<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TableError> {
        let magic = u32_at(bytes, 0).ok_or(TableError::Damaged)?;
        let layout = match magic {
            0xffff_fffa => Layout::Go116,
            0xffff_fff0 => Layout::Go118,
            0xffff_fff1 => Layout::Go120,
            0xffff_fffb => return Err(TableError::Old),
            other => return Err(TableError::Unknown(other)),
        };
        // Two zeros, the smallest instruction, and the size of a pointer.
        if bytes.get(4..PREAMBLE) != Some(&[0, 0, 1, POINTER as u8]) {
            return Err(TableError::Machine);
        }
        Self::behind_preamble(layout, bytes).ok_or(TableError::Damaged)
    }

    fn behind_preamble(layout: Layout, bytes: &'a [u8]) -> Option<Self> {
        // Numbers of functions and files, since 1.18 the start of the code, then the offsets of names,
        // units, files, `pctab` and functions.
        let word = |index: usize| usize_at(bytes, PREAMBLE + index * POINTER);
        let offsets = if layout == Layout::Go116 { 2 } else { 3 };
        let functions = word(0).filter(|functions| *functions <= MAX_FUNCTIONS)?;
        let (names, units, entries) = (word(offsets)?, word(offsets + 1)?, word(offsets + 4)?);
        let names = bytes.get(names..units)?;
        let entries = bytes.get(entries..)?;
        let table = Self { layout, functions, names, entries };
        // The index is whole, with the end of the last function.
        table.start(functions).map(|_| table)
    }

    /// Where the functions `wanted` are, in that order; `None` for one that the program has not.
    ///
    /// # Errors
    /// When the table contradicts itself, or there are two of one name.
    pub fn find<const N: usize>(
        &self,
        wanted: [&str; N],
    ) -> Result<[Option<Range<u64>>; N], TableError> {
        let names = wanted.map(|name| self.name_offset(name));
        let mut found = [const { None }; N];
        if names.iter().all(Option::is_none) {
            return Ok(found);
        }
        for index in 0..self.functions {
            let entry = self.entry(index).ok_or(TableError::Damaged)?;
            let Some(which) = names.iter().position(|name| *name == Some(entry.name)) else {
                continue;
            };
            let end = self.start(index + 1).ok_or(TableError::Damaged)?;
            if end <= entry.at {
                return Err(TableError::Damaged);
            }
            if found[which].replace(entry.at..end).is_some() {
                return Err(TableError::Twice(wanted[which].to_owned()));
            }
        }
        Ok(found)
    }

    /// Whether the functions are at addresses, and not at distances from the start of the code.
    pub fn has_addresses(&self) -> bool {
        self.layout == Layout::Go116
    }

    /// From the first function to the end of the last.
    pub fn extent(&self) -> Result<Range<u64>, TableError> {
        let ends = self.start(0).zip(self.start(self.functions));
        ends.map(|(start, end)| start..end).ok_or(TableError::Damaged)
    }

    /// Where in the names this one is.
    fn name_offset(&self, name: &str) -> Option<usize> {
        // Each ends in a zero byte, and so begins behind one, unless it is the first.
        let whole = [b"\0", name.as_bytes(), b"\0"].concat();
        if self.names.starts_with(&whole[1..]) {
            return Some(0);
        }
        memmem::find(self.names, &whole).map(|at| at + 1)
    }

    /// Where function `index` begins; the one behind the last is the end of the last.
    fn start(&self, index: usize) -> Option<u64> {
        let at = index.checked_mul(self.entry_size())?;
        match self.layout {
            Layout::Go116 => u64_at(self.entries, at),
            Layout::Go118 | Layout::Go120 => u32_at(self.entries, at).map(u64::from),
        }
    }

    fn entry(&self, index: usize) -> Option<Entry> {
        let at = self.start(index)?;
        let half = self.entry_size() / 2;
        let place = index.checked_mul(self.entry_size())?.checked_add(half)?;
        let record = match self.layout {
            Layout::Go116 => usize_at(self.entries, place)?,
            Layout::Go118 | Layout::Go120 => u32_at(self.entries, place)? as usize,
        };
        // The record begins with the entry once more, and then has the name.
        let name = u32_at(self.entries, record.checked_add(half)?)? as usize;
        Some(Entry { at, name })
    }

    /// Of the index: twice as much as it takes to say where a function is.
    fn entry_size(&self) -> usize {
        if self.layout == Layout::Go116 { 2 * POINTER } else { 8 }
    }
}

pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    bytes.try_into().ok().map(u64::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    bytes.try_into().ok().map(u32::from_le_bytes)
}

fn usize_at(bytes: &[u8], at: usize) -> Option<usize> {
    u64_at(bytes, at).and_then(|value| value.try_into().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAGICS: [u32; 3] = [0xffff_fffa, 0xffff_fff0, 0xffff_fff1];
    /// The second is in the name of the first.
    const NAMES: [&str; 3] = ["main.main", "main", "crypto/tls.(*Conn).Read"];

    /// The table of a program whose functions of 16 bytes begin at 0.
    fn table(magic: u32, names: &[&str]) -> Vec<u8> {
        let old = magic == MAGICS[0];
        let start: &[u64] = if old { &[] } else { &[0] };
        let header = PREAMBLE + (7 + start.len()) * POINTER;
        let place = |value: usize| match old {
            true => (value as u64).to_le_bytes().to_vec(),
            false => (value as u32).to_le_bytes().to_vec(),
        };
        let mut text = Vec::new();
        let (mut index, mut records) = (Vec::new(), Vec::new());
        let index_length = (names.len() * 2 + 1) * place(0).len();
        for (n, name) in names.iter().enumerate() {
            index.extend([place(n * 16), place(index_length + records.len())].concat());
            records.extend(place(n * 16));
            records.extend((text.len() as u32).to_le_bytes());
            text.extend([name.as_bytes(), b"\0"].concat());
        }
        index.extend(place(names.len() * 16));
        let behind_names = (header + text.len()) as u64;
        let counts = [names.len() as u64, 0];
        let offsets = [header as u64, behind_names, behind_names, behind_names, behind_names];
        let mut bytes = magic.to_le_bytes().to_vec();
        bytes.extend([0, 0, 1, 8]);
        let words = [&counts[..], start, &offsets[..]].concat();
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        [bytes, text, index, records].concat()
    }

    #[test]
    fn functions_are_found_in_every_layout() {
        for magic in MAGICS {
            let bytes = table(magic, &NAMES);
            let table = Table::parse(&bytes).expect("a table");
            let found = table.find([NAMES[2], NAMES[1], "mai", "main.main"]).expect("whole");
            assert_eq!(found, [Some(32..48), Some(16..32), None, Some(0..16)], "{magic:#x}");
            assert_eq!(table.extent(), Ok(0..48));
            assert_eq!(table.has_addresses(), magic == MAGICS[0]);
        }
    }

    #[test]
    fn other_layouts_are_refused() {
        let refusal = |magic: u32| Table::parse(&table(magic, &NAMES)).err();
        assert_eq!(refusal(0xffff_fffb), Some(TableError::Old));
        assert_eq!(refusal(0xffff_fff2), Some(TableError::Unknown(0xffff_fff2)));
        let mut narrow = table(MAGICS[2], &NAMES);
        narrow[7] = 4;
        assert_eq!(Table::parse(&narrow).err(), Some(TableError::Machine));
    }

    #[test]
    fn a_name_that_is_there_twice_is_nobodys() {
        let mut bytes = table(MAGICS[2], &["a", "b", "c"]);
        // The name of the third function is that of the first.
        let name = bytes.len() - 4;
        bytes[name..].copy_from_slice(&0u32.to_le_bytes());
        let table = Table::parse(&bytes).expect("a table");
        assert_eq!(table.find(["a"]), Err(TableError::Twice("a".into())));
        assert_eq!(table.find(["b", "c"]), Ok([Some(16..32), None]));
    }

    #[test]
    fn damaged_tables_are_errors() {
        for magic in MAGICS {
            let whole = table(magic, &NAMES);
            for length in 0..whole.len() {
                let table = Table::parse(&whole[..length]);
                assert!(table.and_then(|table| table.find(NAMES)).is_err(), "{length} bytes");
            }
            // Whatever comes of it, it comes back.
            for at in 0..whole.len() {
                for value in [0, 1, 0x7f, 0xff] {
                    let mut damaged = whole.clone();
                    damaged[at] = value;
                    let _ = Table::parse(&damaged).and_then(|table| table.find(NAMES));
                }
            }
        }
    }
}
