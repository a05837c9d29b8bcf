//! Which TLS libraries do the running processes use, and can their plaintext be seen?
//!
//! Reads `/proc/PID/maps` (proc_pid_maps(5)), and opens each library through its process, so
//! that the files of containers are found as well. What a process names and maps is its own
//! choice: nothing here trusts it further than to read a bounded piece of a regular file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use object::read::ReadCache;

use super::elf::Functions;
use super::examined::{Examined, FileId, Verdict, Version, problem_of, version_of};
use super::go;

/// Longest ELF file whose symbols are read, in bytes.
const MAX_FILE: u64 = 1024 * 1024 * 1024;
/// Lines of one `maps` file that are read; the kernel's default limit of mappings.
const MAX_MAPPINGS: usize = 65_530;

/// What kind of TLS implementation a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stack {
    OpenSsl3,
    /// A `libssl` that is not OpenSSL 3: OpenSSL 1, LibreSSL or BoringSSL.
    OtherLibSsl,
    GnuTls,
    Nss,
    /// OpenSSL or a relative of it, linked into a program.
    StaticOpenSsl,
    /// The Go standard library, linked into a program.
    Go,
    /// A Java virtual machine, whose TLS is written in Java.
    Java,
}

impl Stack {
    pub const fn name(self) -> &'static str {
        match self {
            Self::OpenSsl3 => "OpenSSL 3",
            Self::OtherLibSsl => "another libssl",
            Self::GnuTls => "GnuTLS",
            Self::Nss => "NSS",
            Self::StaticOpenSsl => "OpenSSL or BoringSSL, built in",
            Self::Go => "Go",
            Self::Java => "Java",
        }
    }
}

/// One file, however many processes map it and by whatever name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LibraryFile {
    /// A path that opens the file from here. It leads through a process when the file is in
    /// another mount namespace or has been replaced, and then lives as long as the process.
    pub path: PathBuf,
    /// As the processes name it.
    pub mapped_as: PathBuf,
    pub dev: u64,
    pub inode: u64,
    pub stack: Stack,
    /// Why its plaintext cannot be seen; `None` when it can.
    pub problem: Option<String>,
    /// In ascending order.
    pub pids: Vec<u32>,
}

impl LibraryFile {
    /// Its plaintext can be seen.
    pub fn supported(&self) -> bool {
        self.problem.is_none()
    }
}

/// What a look at all processes found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// In order of path.
    pub libraries: Vec<LibraryFile>,
    /// Processes that could not be looked into, for lack of permission.
    pub unreadable: usize,
}

/// Looks at every process under `proc`, normally `/proc`, for as long as that takes.
///
/// # Errors
/// When `proc` cannot be listed. A process that ends meanwhile is left out.
pub fn scan_fully(proc: &Path) -> io::Result<Scan> {
    scan(proc, &mut Examined::patiently())
}

/// Looks at every process under `proc`. Files that `examined` has no time for are left out.
///
/// # Errors
/// When `proc` cannot be listed. A process that ends meanwhile is left out.
pub fn scan(proc: &Path, examined: &mut Examined) -> io::Result<Scan> {
    examined.begin();
    let mut found: BTreeMap<FileId, Vec<Mapping>> = BTreeMap::new();
    let mut unreadable = 0;
    for pid in processes(proc)? {
        let wanted = &mut |id: &FileId, file: &Mapping| is_tls(proc, id, file, examined);
        let Process { libraries, denied } = scan_process(proc, pid, wanted);
        unreadable += usize::from(denied);
        for (id, mapping) in libraries {
            found.entry(id).or_default().push(mapping);
        }
    }
    let mut libraries: Vec<_> = found
        .into_iter()
        .filter_map(|(id, mappings)| identify(proc, &id, &mappings, examined))
        .collect();
    examined.forget_unseen();
    libraries.sort_by(|a, b| (&a.path, a.inode).cmp(&(&b.path, b.inode)));
    Ok(Scan { libraries, unreadable })
}

/// The TLS libraries of one process, as of this moment. Empty when it has ended.
pub fn scan_one(proc: &Path, pid: u32, examined: &mut Examined) -> Vec<LibraryFile> {
    examined.begin();
    let wanted = &mut |id: &FileId, file: &Mapping| is_tls(proc, id, file, examined);
    let libraries = scan_process(proc, pid, wanted).libraries.into_iter();
    libraries.filter_map(|(id, mapping)| identify(proc, &id, &[mapping], examined)).collect()
}

/// Whether a file holds TLS by its name, or by what is in it.
fn is_tls(proc: &Path, id: &FileId, file: &Mapping, examined: &mut Examined) -> bool {
    stack_of_path(&file.path).is_some() || examine(proc, id, file, examined).is_some()
}

fn examine(proc: &Path, id: &FileId, file: &Mapping, examined: &mut Examined) -> Option<Verdict> {
    if !file.executable {
        return None;
    }
    let open = || Some(file.open(proc, id.1).ok()?.1);
    examined.verdict(id, || file.version(proc, id.1), open)
}

/// The files of one process with parts of OpenSSL in them: libssl and libcrypto by their names, and
/// what has all of it.
pub fn openssl_files(
    proc: &Path,
    pid: u32,
    examined: &mut Examined,
) -> Vec<(PathBuf, OpenLibrary)> {
    examined.begin();
    let is_openssl = &mut |id: &FileId, file: &Mapping| {
        let name = file.path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| has_stem(name, "libssl") || has_stem(name, "libcrypto"))
            || examine(proc, id, file, examined)
                .is_some_and(|(stack, problem)| stack == Stack::StaticOpenSsl && problem.is_none())
    };
    let files = scan_process(proc, pid, is_openssl).libraries.into_iter();
    files
        .filter_map(|((_, inode), mapping)| {
            let (_, file) = mapping.open(proc, inode).ok()?;
            Some((mapping.path, OpenLibrary(file)))
        })
        .collect()
}

/// A library file by its path, whoever maps it.
///
/// # Errors
/// When it is no regular file that can be opened.
pub fn inspect(path: &Path) -> io::Result<LibraryFile> {
    let file = open_regular(path)?;
    let meta = file.metadata()?;
    let (stack, problem) = match go::verdict(&file) {
        Some(problem) => (Stack::Go, problem),
        None => verdict(Stack::OtherLibSsl, file),
    };
    Ok(LibraryFile {
        path: path.to_owned(),
        mapped_as: path.to_owned(),
        dev: meta.dev(),
        inode: meta.ino(),
        stack,
        problem,
        pids: Vec::new(),
    })
}

/// A library file that is open, and so stays what it is when its path leads nowhere any more:
/// one through a process ends with the process, be it in the midst of attaching.
pub struct OpenLibrary(File);

impl OpenLibrary {
    /// # Errors
    /// When the path of `library` leads to it no more.
    pub fn open(library: &LibraryFile) -> io::Result<Self> {
        let file = open_regular(&library.path)?;
        let meta = file.metadata()?;
        if (meta.dev(), meta.ino()) != (library.dev, library.inode) {
            return Err(io::Error::new(io::ErrorKind::NotFound, "another file is there now"));
        }
        Ok(Self(file))
    }

    pub fn file(&self) -> &File {
        &self.0
    }

    /// A path that leads this process to the file for as long as it is open.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    /// Its content, read where it is asked for.
    ///
    /// # Errors
    /// When it can't be opened once more.
    pub fn content(&self) -> io::Result<ReadCache<File>> {
        Ok(ReadCache::new(self.0.try_clone()?))
    }
}

/// Every process there is, in ascending order.
fn processes(proc: &Path) -> io::Result<BTreeSet<u32>> {
    let pid = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    Ok(fs::read_dir(proc)?.flatten().filter_map(pid).collect())
}

/// Where a process maps a library.
struct Mapping {
    pid: u32,
    /// The address range, as a name in `map_files`.
    range: String,
    path: PathBuf,
    deleted: bool,
    executable: bool,
}

#[derive(Default)]
struct Process {
    libraries: BTreeMap<FileId, Mapping>,
    denied: bool,
}

/// The files that `wanted` wants; it is asked for each mapping.
fn scan_process(
    proc: &Path,
    pid: u32,
    wanted: &mut dyn FnMut(&FileId, &Mapping) -> bool,
) -> Process {
    let file = match File::open(proc.join(pid.to_string()).join("maps")) {
        Ok(file) => file,
        Err(error) => {
            let denied = error.kind() == io::ErrorKind::PermissionDenied;
            return Process { denied, ..Process::default() };
        }
    };
    let mut process = Process::default();
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    for _ in 0..MAX_MAPPINGS {
        line.clear();
        match reader.read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => {
                process.denied = error.kind() == io::ErrorKind::PermissionDenied;
                break;
            }
        }
        if let Some((id, mapping)) = parse_mapping(pid, &line)
            && wanted(&id, &mapping)
        {
            process.libraries.entry(id).or_insert(mapping);
        }
    }
    process
}

/// Reads a line like `7f00-7f10 r-xp 00000000 fe:01 4711      /usr/lib/libssl.so.3 (deleted)`.
fn parse_mapping(pid: u32, line: &[u8]) -> Option<(FileId, Mapping)> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let slash = line.iter().position(|&byte| byte == b'/')?;
    let (fields, name) = line.split_at_checked(slash)?;
    let stripped = name.strip_suffix(b" (deleted)");
    let path = Path::new(std::ffi::OsStr::from_bytes(stripped.unwrap_or(name)));
    path.file_name()?;
    let mut fields = str::from_utf8(fields).ok()?.split_ascii_whitespace();
    let range = fields.next()?.to_owned();
    let executable = fields.next()?.contains('x');
    let dev = fields.nth(1)?.to_owned();
    let inode = fields.next()?.parse().ok()?;
    let path = path.to_owned();
    Some(((dev, inode), Mapping { pid, range, path, deleted: stripped.is_some(), executable }))
}

fn stack_of_path(path: &Path) -> Option<Stack> {
    stack_of_name(path.file_name()?.to_str()?)
}

/// Whether a file name is that of `library` in some version. Wheels and similar packages add a hash
/// to it: `libssl-3e69114b.so.3`.
fn has_stem(name: &str, library: &str) -> bool {
    let stem = name.split_once(".so").map(|(stem, _)| stem);
    let rest = stem.and_then(|stem| stem.strip_prefix(library));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// What a library of this name holds at first sight.
fn stack_of_name(name: &str) -> Option<Stack> {
    let is = |library: &str| has_stem(name, library);
    if is("libssl") {
        Some(Stack::OtherLibSsl)
    } else if is("libgnutls") {
        Some(Stack::GnuTls)
    } else if is("libnspr4") || is("libnss3") || is("libssl3") {
        Some(Stack::Nss)
    } else if is("libjvm") {
        Some(Stack::Java)
    } else {
        None
    }
}

/// Opens the file through the first process that still lets us, and looks at what it really is.
/// `None` when it is gone with its processes.
fn identify(
    proc: &Path,
    id: &FileId,
    mappings: &[Mapping],
    examined: &mut Examined,
) -> Option<LibraryFile> {
    let (_, inode) = id;
    let first = mappings.first()?;
    let by_name = stack_of_path(&first.path);
    let mut library = LibraryFile {
        path: first.path.clone(),
        mapped_as: first.path.clone(),
        dev: 0,
        inode: *inode,
        stack: by_name.unwrap_or(Stack::StaticOpenSsl),
        problem: None,
        pids: mappings.iter().map(|mapping| mapping.pid).collect(),
    };
    let mut failure = None;
    for mapping in mappings {
        match mapping.open(proc, *inode) {
            Ok((path, file)) => {
                library.dev = file.metadata().ok()?.dev();
                library.path = path;
                library.mapped_as.clone_from(&mapping.path);
                (library.stack, library.problem) = match by_name {
                    Some(stack) => verdict(stack, file),
                    None => examine(proc, id, mapping, examined)?,
                };
                return Some(library);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => failure = Some(error),
        }
    }
    library.problem = Some(format!("the file can't be opened: {}", failure?));
    Some(library)
}

impl Mapping {
    /// When the file was last changed, if it can be seen; without opening it.
    fn version(&self, proc: &Path, inode: u64) -> Option<Version> {
        let there = fs::metadata(self.through_root(proc)).ok();
        let there = there.filter(|there| !self.deleted && there.ino() == inode);
        let there = there.or_else(|| fs::metadata(self.through_mapping(proc)).ok());
        there.map(|there| version_of(&there))
    }

    fn through_root(&self, proc: &Path) -> PathBuf {
        let inside = self.path.strip_prefix("/").unwrap_or(&self.path);
        proc.join(self.pid.to_string()).join("root").join(inside)
    }

    fn through_mapping(&self, proc: &Path) -> PathBuf {
        proc.join(self.pid.to_string()).join("map_files").join(&self.range)
    }

    /// The plain path when it leads to the same file, for that outlives the process; else
    /// through the process's root directory; else, for a file that has been replaced or deleted,
    /// through the mapping itself, which takes `CAP_CHECKPOINT_RESTORE` or `CAP_SYS_ADMIN`.
    fn open(&self, proc: &Path, inode: u64) -> io::Result<(PathBuf, File)> {
        let through_root = self.through_root(proc);
        if !self.deleted
            && let Ok(file) = open_regular(&through_root)
        {
            let there = file.metadata()?;
            // Only inode numbers are compared with `maps`: on some file systems (btrfs,
            // overlayfs) it shows another device number than stat(2).
            if there.ino() == inode {
                let same =
                    |plain: &fs::Metadata| (plain.dev(), plain.ino()) == (there.dev(), there.ino());
                let plain = fs::metadata(&self.path).is_ok_and(|meta| same(&meta));
                return Ok((if plain { self.path.clone() } else { through_root }, file));
            }
        }
        let through_mapping = self.through_mapping(proc);
        let file = open_regular(&through_mapping)?;
        Ok((through_mapping, file))
    }
}

fn open_regular(path: &Path) -> io::Result<File> {
    // Without O_NONBLOCK a named pipe in a container could hold the agent up.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() > MAX_FILE {
        return Err(io::Error::other("not a regular file of a reasonable size"));
    }
    Ok(file)
}

fn verdict(stack: Stack, file: File) -> (Stack, Option<String>) {
    match stack {
        Stack::OtherLibSsl => {
            let cache = ReadCache::new(file);
            match object::File::parse(&cache) {
                Ok(elf) => match problem_of(&Functions::of(&elf, &cache)) {
                    None => (Stack::OpenSsl3, None),
                    problem => (Stack::OtherLibSsl, problem),
                },
                Err(error) => {
                    (Stack::OtherLibSsl, Some(format!("its symbols can't be read: {error}")))
                }
            }
        }
        other => (other, Some(format!("{}: its plaintext is not seen yet", other.name()))),
    }
}

#[cfg(test)]
mod tests;
