//! Which files have TLS in them that is seen, whatever they are called: programs and extension
//! modules that OpenSSL is linked into, libraries under other names, and programs in Go. Each file is
//! opened and read once, for as long as a process maps it and it stays the same.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use object::read::ReadCache;
use object::{Object as _, ObjectSection as _, ReadRef};

use super::elf::Functions;
use super::go;
use super::libraries::Stack;

/// As long as one look may spend on files that it sees for the first time; those that are left are
/// for the next.
const BUDGET: Duration = Duration::from_millis(200);
/// Files remembered; beyond, all are forgotten and read again.
const MAX_FILES: usize = 65_536;
/// No file with all of OpenSSL in it is smaller, in bytes.
const MIN_STATIC: u64 = 1024 * 1024;
/// As much constant data of a file is searched, in bytes.
const MAX_CONSTANTS: u64 = 64 * 1024 * 1024;
/// The source file that OpenSSL's error reports name (ssl/ssl_lib.c), which no other library has; in two
/// parts, for else this program would have it.
const MARK: [&[u8]; 2] = [b"ssl/ssl_", b"lib.c"];

/// What has to be there: `SSL_CTX_new_ex` is in OpenSSL 3 only; of the rest, one of each line.
const NEEDED: [&[&str]; 5] = [
    &["SSL_CTX_new_ex"],
    &["SSL_new"],
    &["SSL_do_handshake"],
    &["SSL_read", "SSL_read_ex"],
    &["SSL_write", "SSL_write_ex", "SSL_write_ex2"],
];

/// What a file holds, and why its plaintext can't be seen.
pub type Verdict = (Stack, Option<String>);

/// A file as `maps` names it: major and minor device number in hexadecimal, and inode.
pub type FileId = (String, u64);

/// When a file was last changed, in seconds and nanoseconds: another file may get its number, and the
/// same one another content.
pub type Version = (i64, i64);

pub fn version_of(meta: &Metadata) -> Version {
    (meta.ctime(), meta.ctime_nsec())
}

pub struct Examined {
    files: HashMap<FileId, Known>,
    /// How many looks have begun.
    looks: u64,
    budget: Option<Duration>,
    deadline: Option<Instant>,
    unfinished: bool,
}

struct Known {
    /// `None` for files without such TLS.
    verdict: Option<Verdict>,
    version: Version,
    /// The look that has compared its version.
    compared: u64,
    /// Since the last [`Examined::forget_unseen`].
    seen: bool,
}

impl Examined {
    /// For one who can wait.
    pub fn patiently() -> Self {
        Self { files: HashMap::new(), looks: 0, budget: None, deadline: None, unfinished: false }
    }

    /// For one who has other things to do between looks.
    pub fn in_steps() -> Self {
        Self { budget: Some(BUDGET), ..Self::patiently() }
    }

    /// A look begins, at one process or all of them.
    pub fn begin(&mut self) {
        self.deadline = self.budget.map(|budget| Instant::now() + budget);
        self.unfinished = false;
        self.looks += 1;
    }

    /// Whether the look left files for the next.
    pub fn is_unfinished(&self) -> bool {
        self.unfinished
    }

    /// All processes have been looked at: what none of them maps is no more, and another file may get
    /// its number.
    pub fn forget_unseen(&mut self) {
        self.files.retain(|_, known| std::mem::take(&mut known.seen));
    }

    /// What is in the file that `open` opens, unless it is known of this `version`.
    pub fn verdict(
        &mut self,
        id: &FileId,
        version: impl FnOnce() -> Option<Version>,
        open: impl FnOnce() -> Option<File>,
    ) -> Option<Verdict> {
        if let Some(known) = self.files.get_mut(id) {
            let is_same = known.compared == self.looks
                || version().is_none_or(|version| version == known.version);
            if is_same {
                known.seen = true;
                known.compared = self.looks;
                return known.verdict.clone();
            }
            self.files.remove(id);
        }
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.unfinished = true;
            return None;
        }
        if self.files.len() >= MAX_FILES {
            self.files.clear();
        }
        let file = open()?;
        let version = version_of(&file.metadata().ok()?);
        let verdict = examine(file);
        let known = Known { verdict: verdict.clone(), version, compared: self.looks, seen: true };
        self.files.insert(id.clone(), known);
        verdict
    }
}

/// A program in Go can have OpenSSL beside it (cgo); that is read where Go's own TLS can't be.
fn examine(file: File) -> Option<Verdict> {
    let go = go::verdict(&file);
    if go == Some(None) {
        return Some((Stack::Go, None));
    }
    let openssl = examine_openssl(file);
    if openssl.as_ref().is_some_and(|(_, problem)| problem.is_none()) {
        return openssl;
    }
    go.map(|problem| (Stack::Go, problem)).or(openssl)
}

fn examine_openssl(file: File) -> Option<Verdict> {
    let len = file.metadata().ok()?.len();
    let cache = ReadCache::new(file);
    let elf = object::File::parse(&cache).ok()?;
    let functions = Functions::of(&elf, &cache);
    if functions.get("SSL_read").or_else(|| functions.get("SSL_read_ex")).is_some() {
        return Some((Stack::StaticOpenSsl, problem_of(&functions)));
    }
    if len < MIN_STATIC || !has_mark(&elf, &cache) {
        return None;
    }
    let problem = "OpenSSL is in it without symbols: its plaintext can't be seen";
    Some((Stack::StaticOpenSsl, Some(problem.to_owned())))
}

/// Whether all is there that takes probes.
pub fn problem_of(functions: &Functions<'_>) -> Option<String> {
    let has_one = |names: &[&str]| names.iter().any(|name| functions.get(name).is_some());
    let is_whole = NEEDED.into_iter().all(has_one);
    (!is_whole).then(|| "not OpenSSL 3: its plaintext is not seen yet".to_owned())
}

fn has_mark<'a, R: ReadRef<'a>>(elf: &object::File<'a, R>, data: R) -> bool {
    let constants = elf.section_by_name(".rodata").and_then(|section| section.file_range());
    let Some((at, size)) = constants else { return false };
    let constants = data.read_bytes_at(at, size.min(MAX_CONSTANTS)).unwrap_or_default();
    let [start, end] = MARK;
    memchr::memmem::find_iter(constants, start)
        .any(|at| constants.get(at + start.len()..).is_some_and(|rest| rest.starts_with(end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_opened_when_it_is_new_or_changed_and_compared_once_in_a_look() {
        let path = tempfile::NamedTempFile::new().expect("a file");
        let version = version_of(&path.path().metadata().expect("a file"));
        let id = ("fe:01".to_owned(), 1);
        let mut examined = Examined::patiently();
        // The version found in each look, if it is asked for, and whether the file is opened.
        let changed = (version.0 + 1, version.1);
        for (found, opens) in
            [(Some(version), true), (Some(version), false), (None, false), (Some(changed), true)]
        {
            examined.begin();
            let (mut compared, mut opened) = (0, 0);
            for _ in 0..3 {
                let version = || {
                    compared += 1;
                    found
                };
                let open = || {
                    opened += 1;
                    File::open(path.path()).ok()
                };
                assert_eq!(examined.verdict(&id, version, open), None);
            }
            assert_eq!(opened, i32::from(opens), "{found:?}");
            assert!(compared <= 1, "{found:?}");
        }
    }
}
