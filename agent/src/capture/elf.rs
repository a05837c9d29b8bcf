//! Functions of an ELF file by their names. Only its tables are read: it may be a program of 100 MB.

use std::collections::{BTreeMap, BTreeSet};

use object::{Object as _, ObjectSection as _, ReadRef};

/// Longest table of symbols or names that is read, in bytes.
const MAX_TABLE: u64 = 64 * 1024 * 1024;
/// `Elf64_Sym` (elf(5)).
const SYMBOL: usize = 24;
/// `STT_FUNC`, of `ELF64_ST_TYPE`.
const FUNCTION: u8 = 2;

/// The functions that are looked for, and where exported ones are.
#[derive(Default)]
pub struct Functions<'a> {
    /// Address and size.
    named: BTreeMap<&'a str, (u64, u64)>,
    exported: BTreeSet<u64>,
}

impl<'a> Functions<'a> {
    /// Those of a 64-bit file; none of another, or of one that is damaged. A program that is linked
    /// statically has the names of its functions only where debuggers find them.
    pub fn of<R: ReadRef<'a>>(file: &object::File<'a, R>, data: R) -> Self {
        let mut functions = Self::default();
        if !file.is_64() || !file.is_little_endian() {
            return functions;
        }
        functions.add(table(file, data, ".symtab"), table(file, data, ".strtab"), false);
        functions.add(table(file, data, ".dynsym"), table(file, data, ".dynstr"), true);
        functions
    }

    pub fn get(&self, name: &str) -> Option<(u64, u64)> {
        self.named.get(name).copied()
    }

    pub fn is_exported(&self, address: u64) -> bool {
        self.exported.contains(&address)
    }

    fn add(&mut self, symbols: &'a [u8], names: &'a [u8], exported: bool) {
        for symbol in symbols.as_chunks::<SYMBOL>().0 {
            let [n0, n1, n2, n3, info, _, s0, s1, rest @ ..] = *symbol;
            // One without a section is defined elsewhere.
            if info & 0xf != FUNCTION || [s0, s1] == [0; 2] {
                continue;
            }
            let [address, size] = rest.as_chunks::<8>().0 else { continue };
            let (address, size) = (u64::from_le_bytes(*address), u64::from_le_bytes(*size));
            if exported {
                self.exported.insert(address);
            }
            let name = names.get(u32::from_le_bytes([n0, n1, n2, n3]) as usize..);
            if let Some(name) = name.and_then(looked_for) {
                self.named.insert(name, (address, size));
            }
        }
    }
}

/// The name at the front of `names`, if it is of the kind that is looked for.
fn looked_for(names: &[u8]) -> Option<&str> {
    if !names.starts_with(b"SSL_") && !names.starts_with(b"BIO_write") {
        return None;
    }
    let end = names.iter().position(|byte| *byte == 0)?;
    str::from_utf8(names.get(..end)?).ok()
}

fn table<'a, R: ReadRef<'a>>(file: &object::File<'a, R>, data: R, name: &str) -> &'a [u8] {
    let range = file.section_by_name(name).and_then(|section| section.file_range());
    let range = range.filter(|(_, size)| *size <= MAX_TABLE);
    range.and_then(|(at, size)| data.read_bytes_at(at, size).ok()).unwrap_or_default()
}
