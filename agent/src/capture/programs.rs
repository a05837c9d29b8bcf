//! Which programs have TLS linked in?
//!
//! A program is looked into once, however many processes run it and however often: its verdict is
//! kept by the version of its file.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, Metadata};
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use lru::LruCache;
use object::read::ReadCache;
use object::{Object as _, ObjectSymbol as _};

use super::go;
use super::libraries::{LibraryFile, Stack, open_regular};

/// Programs whose verdict is kept; the least recently seen is looked into again.
const MAX_KNOWN: NonZeroUsize = NonZeroUsize::new(4_096).expect("not zero");

/// A file as it was: device, inode, and when it was changed.
type Version = (u64, u64, i64, i64);

/// Programs in Go that use `crypto/tls`, among processes.
pub struct Programs {
    /// Those that are not have `None`.
    known: LruCache<Version, Option<Verdict>>,
}

/// Why the plaintext can't be seen; `None` when it can.
type Verdict = Option<String>;

impl Programs {
    pub fn new() -> Self {
        Self { known: LruCache::new(MAX_KNOWN) }
    }

    /// Those of the processes `pids`.
    pub fn of(&mut self, proc: &Path, pids: impl IntoIterator<Item = u32>) -> Vec<LibraryFile> {
        let mut found: HashMap<Version, LibraryFile> = HashMap::new();
        for pid in pids {
            let link = proc.join(pid.to_string()).join("exe");
            // A kernel thread has no program, and one that has ended needs no attention.
            let Ok(meta) = fs::metadata(&link) else { continue };
            let version = version_of(&meta);
            let verdict = match self.known.get(&version) {
                Some(verdict) => verdict.clone(),
                None => {
                    let Ok(file) = open_same(&link, version) else { continue };
                    let verdict = go_verdict(&file);
                    self.known.put(version, verdict.clone());
                    verdict
                }
            };
            if let Some(problem) = verdict {
                let program =
                    found.entry(version).or_insert_with(|| entry(&link, &meta, Stack::Go, problem));
                program.pids.push(pid);
            }
        }
        found.into_values().collect()
    }
}

/// The file that the link still leads to, if it is that one.
fn open_same(link: &Path, version: Version) -> std::io::Result<File> {
    let file = open_regular(link)?;
    if version_of(&file.metadata()?) == version {
        Ok(file)
    } else {
        Err(std::io::Error::new(std::io::ErrorKind::NotFound, "another file is there now"))
    }
}

/// Of a program in Go with `crypto/tls`; `None` for any other.
pub fn go_verdict(file: &File) -> Option<Verdict> {
    if !go::has_table(file).unwrap_or(false) {
        return None;
    }
    match go::choose(file) {
        Ok(None) => None,
        Ok(Some(_)) => Some(None),
        Err(error) => Some(Some(format!("Go: {error:#}: its plaintext is not seen"))),
    }
}

/// All programs with TLS linked in, for people. One that maps a TLS library as well is left to
/// that, unless it is in Go.
pub fn scan(proc: &Path, pids: BTreeSet<u32>, libraries: &[LibraryFile]) -> Vec<LibraryFile> {
    let mut found = Programs::new().of(proc, pids.iter().copied());
    let known = libraries.iter().chain(&found).flat_map(|file| file.pids.iter().copied());
    let known: BTreeSet<u32> = known.collect();
    let mut others: HashMap<Version, Option<LibraryFile>> = HashMap::new();
    for pid in pids.difference(&known) {
        let link = proc.join(pid.to_string()).join("exe");
        let Ok(meta) = fs::metadata(&link) else { continue };
        let program =
            others.entry(version_of(&meta)).or_insert_with(|| static_openssl(&link, &meta));
        if let Some(program) = program {
            program.pids.push(*pid);
        }
    }
    found.extend(others.into_values().flatten());
    found
}

fn static_openssl(link: &Path, meta: &Metadata) -> Option<LibraryFile> {
    let file = open_regular(link).ok()?;
    let cache = ReadCache::new(file);
    let elf = object::File::parse(&cache).ok()?;
    let mut symbols = elf.dynamic_symbols().chain(elf.symbols());
    let stack = Stack::StaticOpenSsl;
    symbols
        .any(|symbol| symbol.is_definition() && symbol.name_bytes() == Ok(b"SSL_read"))
        .then(|| entry(link, meta, stack, Some(stack.not_seen())))
}

fn entry(link: &Path, meta: &Metadata, stack: Stack, problem: Option<String>) -> LibraryFile {
    LibraryFile {
        path: link.to_owned(),
        mapped_as: fs::read_link(link).unwrap_or_else(|_| link.to_owned()),
        dev: meta.dev(),
        inode: meta.ino(),
        stack,
        problem,
        pids: Vec::new(),
    }
}

fn version_of(meta: &Metadata) -> Version {
    (meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec())
}
