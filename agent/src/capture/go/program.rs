//! A program in Go as a file. Only what is needed of it is read: such programs can have hundreds
//! of megabytes.

use std::fs::File;
use std::ops::Range;

use anyhow::{Context as _, Result, ensure};
use memchr::memmem;
use object::LittleEndian;
use object::elf::{
    DF_1_PIE, DT_FLAGS_1, EM_X86_64, ET_EXEC, FileHeader64, PT_INTERP, SHT_NOBITS, SectionHeader64,
};
use object::read::elf::{
    Dyn as _, FileHeader as _, ProgramHeader as _, SectionHeader as _, SectionTable,
};
use object::read::{ReadCache, ReadRef as _};

use super::code::Function;
use super::pclntab::{Table, u64_at};

/// Names of the section with the function table. The second is that of programs that can be
/// loaded at any address, by some releases and linkers.
const TABLES: [&str; 2] = [".gopclntab", ".data.rel.ro.gopclntab"];
/// Longest section that is read, in bytes; the function tables of Kubernetes' programs have a
/// tenth of that.
const MAX_SECTION: u64 = 512 * 1024 * 1024;
/// Where the linker puts `runtime.firstmoduledata`: in the first since Go 1.26.
const MODULES: [&str; 3] = [".go.module", ".noptrdata", ".data"];
/// Relocations of a program that can be loaded at any address, by Go's linker and by others.
const RELOCATIONS: [&str; 2] = [".rela", ".rela.dyn"];
/// Offsets in `struct moduledata` (src/runtime/symtab.go of Go's source), the same from Go 1.16 to
/// 1.27. Its first field is the address of the function table.
const MIN_PC: u64 = 160;
const MAX_PC: u64 = 168;
const TEXT: u64 = 176;
/// Longest table for the dynamic loader that is read, in bytes; they have a thousandth of that.
const MAX_DYNAMIC: u64 = 1024 * 1024;
/// Longest function that is looked into, in bytes.
const MAX_FUNCTION: u64 = 64 * 1024;

type Cache<'a> = ReadCache<&'a File>;
type Header = FileHeader64<LittleEndian>;
type Section = SectionHeader64<LittleEndian>;
/// Of a relocation, without a symbol (System V ABI, AMD64 supplement, 4.4).
const R_X86_64_RELATIVE: u64 = 8;
const LITTLE: LittleEndian = LittleEndian;

pub struct Program<'a> {
    file: &'a Cache<'a>,
    sections: SectionTable<'a, Header, &'a Cache<'a>>,
    table: Table<'a>,
    /// What the table's entries count from.
    base: u64,
}

/// Whether it is a program, no shared library, with a function table; by the headers alone.
///
/// # Errors
/// When it is no ELF file of 64 bits.
pub fn has_table(file: &File) -> Result<bool> {
    let cache = ReadCache::new(file);
    let (header, sections) = sections(&cache)?;
    Ok(one_of(&sections, &TABLES).is_some() && is_program(header, &cache)?)
}

/// One that can be loaded at any address says so, or names its dynamic loader.
fn is_program(header: &Header, cache: &Cache<'_>) -> Result<bool> {
    if header.e_type(LITTLE) == ET_EXEC {
        return Ok(true);
    }
    for segment in header.program_headers(LITTLE, cache)? {
        if segment.p_type(LITTLE) == PT_INTERP {
            return Ok(true);
        }
        if segment.p_filesz(LITTLE) > MAX_DYNAMIC {
            continue;
        }
        let entries = segment.dynamic(LITTLE, cache)?.unwrap_or_default();
        let is_flag = |tag, value| tag == DT_FLAGS_1 && value & DF_1_PIE.0 != 0;
        if entries.iter().any(|entry| is_flag(entry.d_tag(LITTLE), entry.d_val(LITTLE))) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl<'a> Program<'a> {
    /// # Errors
    /// When it is not a program in Go, or of a layout that is not known.
    pub fn open(file: &'a Cache<'a>) -> Result<Self> {
        let (header, sections) = sections(file)?;
        ensure!(header.e_machine(LITTLE) == EM_X86_64, "it is not for x86-64");
        let section = one_of(&sections, &TABLES).context("it has no function table of Go's")?;
        let table = Table::parse(data(file, section)?)?;
        let mut program = Self { file, sections, table, base: 0 };
        program.base = program.find_base(section.sh_addr(LITTLE))?;
        Ok(program)
    }

    pub fn find<const N: usize>(&self, wanted: [&str; N]) -> Result<[Option<Range<u64>>; N]> {
        let found = self.table.find(wanted)?;
        Ok(found.map(|range| {
            range.map(|range| {
                range.start.saturating_add(self.base)..range.end.saturating_add(self.base)
            })
        }))
    }

    pub fn function(&self, addresses: Range<u64>) -> Result<Function> {
        let length = addresses.end.saturating_sub(addresses.start);
        ensure!(length <= MAX_FUNCTION, "a function of {length} bytes");
        let section = self.section_at(addresses.start).context("a function without code")?;
        let end = section.sh_addr(LITTLE).saturating_add(section.sh_size(LITTLE));
        ensure!(addresses.end <= end, "a function that ends in another section");
        let offset = self.file_offset(addresses.start).context("a function without code")?;
        let code = self.file.read_bytes_at(offset, length).ok().context("the file is cut off")?;
        Function::decode(code, addresses.start)
    }

    pub fn file_offset(&self, address: u64) -> Option<u64> {
        let section = self.section_at(address)?;
        let (start, _) = section.file_range(LITTLE)?;
        start.checked_add(address - section.sh_addr(LITTLE))
    }

    fn section_at(&self, address: u64) -> Option<&'a Section> {
        self.sections.iter().find(|section| {
            let offset = address.checked_sub(section.sh_addr(LITTLE));
            section.sh_addr(LITTLE) != 0
                && section.sh_type(LITTLE) != SHT_NOBITS
                && offset.is_some_and(|offset| offset < section.sh_size(LITTLE))
        })
    }

    /// Where the code starts, by the program's `moduledata`. (The function table has it too, but not
    /// since Go 1.26, nor in a program that can be loaded at any address.) What is taken for one
    /// must have the same first and last address of code as the table.
    fn find_base(&self, table: u64) -> Result<u64> {
        let relocated = self.relocations()?;
        let wanted = table.to_le_bytes();
        for section in self.named(&MODULES) {
            let start = section.sh_addr(LITTLE);
            let bytes = data(self.file, section)?;
            let value = |at: u64| {
                let index = usize::try_from(at.checked_sub(start)?).ok()?;
                Some(relocated.value(at).unwrap_or(u64_at(bytes, index)?))
            };
            let places = memmem::find_iter(bytes, &wanted);
            let places = places.filter_map(|index| start.checked_add(index as u64));
            let places = places.chain(relocated.places_of(table));
            for place in places.filter(|place| place % 8 == 0) {
                let field = |offset: u64| value(place.checked_add(offset)?);
                if let Some(base) = self.base_by(field)? {
                    return Ok(base);
                }
            }
        }
        anyhow::bail!("the start of its code can't be found")
    }

    fn base_by(&self, field: impl Fn(u64) -> Option<u64>) -> Result<Option<u64>> {
        let extent = self.table.extent()?;
        let base = if self.table.has_addresses() { Some(0) } else { field(TEXT) };
        let Some((base, (first, last))) = base.zip(field(MIN_PC).zip(field(MAX_PC))) else {
            return Ok(None);
        };
        let matches = base.checked_add(extent.start) == Some(first)
            && base.checked_add(extent.end) == Some(last);
        Ok(matches.then_some(base))
    }

    fn relocations(&self) -> Result<Relocations<'a>> {
        let mut tables = Vec::new();
        for section in self.named(&RELOCATIONS) {
            tables.push(data(self.file, section)?);
        }
        Ok(Relocations(tables))
    }

    fn named(&self, names: &'static [&'static str]) -> impl Iterator<Item = &'a Section> {
        let sections = self.sections;
        let find = move |name: &&str| sections.section_by_name(LITTLE, name.as_bytes());
        names.iter().filter_map(find).map(|(_, section)| section)
    }
}

/// Pointers that the dynamic loader fills in, which some linkers leave empty in the file.
struct Relocations<'a>(Vec<&'a [u8]>);

impl Relocations<'_> {
    /// Places and values of those that depend on nothing but where the program is loaded.
    fn all(&self) -> impl Iterator<Item = (u64, u64)> {
        // Elf64_Rela: offset, symbol and type, addend.
        let entries = self.0.iter().flat_map(|table| table.chunks_exact(24));
        entries.filter_map(|entry| {
            let is_relative = u64_at(entry, 8)? == R_X86_64_RELATIVE;
            is_relative.then_some((u64_at(entry, 0)?, u64_at(entry, 16)?))
        })
    }

    fn value(&self, place: u64) -> Option<u64> {
        self.all().find_map(|(other, value)| (other == place).then_some(value))
    }

    fn places_of(&self, value: u64) -> impl Iterator<Item = u64> {
        self.all().filter_map(move |(place, other)| (other == value).then_some(place))
    }
}

fn sections<'a>(
    file: &'a Cache<'a>,
) -> Result<(&'a Header, SectionTable<'a, Header, &'a Cache<'a>>)> {
    let header = Header::parse(file).context("not an ELF file of 64 bits")?;
    ensure!(header.is_little_endian(), "it is not for x86-64");
    Ok((header, header.sections(LITTLE, file).context("its sections can't be read")?))
}

fn one_of<'a>(
    sections: &SectionTable<'a, Header, &'a Cache<'a>>,
    names: &[&str],
) -> Option<&'a Section> {
    let mut found =
        names.iter().filter_map(|name| sections.section_by_name(LITTLE, name.as_bytes()));
    found.next().map(|(_, section)| section)
}

fn data<'a>(file: &'a Cache<'a>, section: &'a Section) -> Result<&'a [u8]> {
    ensure!(section.sh_size(LITTLE) <= MAX_SECTION, "a section of it is too long");
    section.data(LITTLE, file).context("a section of it can't be read")
}
