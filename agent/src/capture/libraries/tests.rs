use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use object::ReadRef as _;

use super::*;

/// A `/proc` of our making, with one root directory for all processes.
struct FakeProc {
    dir: TempDir,
}

impl FakeProc {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(dir.path().join("root/lib")).expect("a root");
        fs::create_dir(dir.path().join("proc")).expect("a proc");
        fs::write(dir.path().join("proc/uptime"), "1.0 1.0\n").expect("not a process");
        Self { dir }
    }

    fn proc(&self) -> PathBuf {
        self.dir.path().join("proc")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("root").join(name)
    }

    fn process(&self, pid: u32, maps: &str) -> PathBuf {
        let dir = self.proc().join(pid.to_string());
        fs::create_dir_all(dir.join("map_files")).expect("a process");
        fs::write(dir.join("maps"), maps).expect("maps");
        symlink(self.dir.path().join("root"), dir.join("root")).expect("a root");
        dir
    }

    fn scan(&self) -> Scan {
        scan_fully(&self.proc()).expect("readable")
    }
}

fn look_at(fake: &FakeProc, pid: u32) -> Vec<LibraryFile> {
    scan_one(&fake.proc(), pid, &mut Examined::patiently())
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).expect("exists").ino()
}

fn maps_line(inode: u64, name: &str) -> String {
    format!(
        "55aa-55ab r--p 00000000 00:00 0          [heap]\n\
         7f00-7f10 r--p 00000000 fe:01 {inode}                      {name}\n\
         7f10-7f20 r-xp 00010000 fe:01 {inode}                      {name}\n"
    )
}

/// The machine's own libssl, as a file that surely is OpenSSL 3.
fn system_libssl() -> PathBuf {
    let listing = Command::new("ldconfig").arg("-p").output().expect("ldconfig runs");
    String::from_utf8_lossy(&listing.stdout)
        .lines()
        .find_map(|line| line.trim().strip_prefix("libssl.so.3")?.split("=> ").nth(1))
        .map(PathBuf::from)
        .expect("libssl.so.3 is installed")
}

#[test]
fn one_file_is_one_entry_with_all_its_processes() {
    let fake = FakeProc::new();
    let path = fake.file("lib/libssl.so.3");
    fs::copy(system_libssl(), &path).expect("copied");
    for pid in [30, 4, 200] {
        fake.process(pid, &maps_line(inode(&path), "/lib/libssl.so.3"));
    }
    let scan = fake.scan();
    let [library] = scan.libraries.as_slice() else { panic!("{scan:?}") };
    assert_eq!(library.stack, Stack::OpenSsl3);
    assert!(library.supported(), "{library:?}");
    assert_eq!(library.pids, [4, 30, 200]);
    assert_eq!(library.mapped_as, Path::new("/lib/libssl.so.3"));
    // Seen from outside, the file is not at the path that the process names.
    assert_eq!(inode(&library.path), inode(&path));
    assert!(library.path.starts_with(fake.proc()), "{library:?}");
    assert_eq!((library.inode, library.dev), (inode(&path), fs::metadata(&path).unwrap().dev()));
}

#[test]
fn a_replaced_library_is_read_through_its_mapping() {
    let fake = FakeProc::new();
    let old = fake.file("lib/old");
    fs::copy(system_libssl(), &old).expect("copied");
    // An upgrade has put another file at the path; the process still maps the old one.
    fs::write(fake.file("lib/libssl.so.3"), "new").expect("written");
    for (pid, name) in [(7, "/lib/libssl.so.3 (deleted)"), (8, "/lib/libssl.so.3")] {
        let dir = fake.process(pid, &maps_line(inode(&old), name));
        symlink(&old, dir.join("map_files/7f00-7f10")).expect("a mapping");
        let found = look_at(&fake, pid);
        let [library] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(library.path, dir.join("map_files/7f00-7f10"));
        assert!(library.supported(), "{library:?}");
        assert_eq!(library.mapped_as, Path::new("/lib/libssl.so.3"));
    }
}

#[test]
fn what_is_not_openssl_3_says_so() {
    let fake = FakeProc::new();
    let table = [
        (1, "lib/libssl.so.1.1", "not an ELF file", Stack::OtherLibSsl, "symbols can't be read"),
        (2, "lib/libgnutls.so.30", "", Stack::GnuTls, "GnuTLS: its plaintext is not seen yet"),
        (3, "lib/libnspr4.so", "", Stack::Nss, "NSS: its plaintext is not seen yet"),
        (4, "lib/libjvm.so", "", Stack::Java, "Java: its plaintext is not seen yet"),
    ];
    for (pid, name, content, stack, problem) in table {
        let path = fake.file(name);
        fs::write(&path, content).expect("written");
        fake.process(pid, &maps_line(inode(&path), &format!("/{name}")));
        let found = look_at(&fake, pid);
        let [library] = found.as_slice() else { panic!("{name}: {found:?}") };
        assert_eq!(library.stack, stack);
        let said = library.problem.as_deref().expect("a problem");
        assert!(said.contains(problem), "{name}: {said}");
    }
    // A library of another kind under libssl's name is not taken for OpenSSL 3.
    let libc = fake.file("lib/libssl.so.3");
    let libcrypto = system_libssl().with_file_name("libcrypto.so.3");
    fs::copy(libcrypto, &libc).expect("copied");
    fake.process(5, &maps_line(inode(&libc), "/lib/libssl.so.3"));
    assert_eq!(look_at(&fake, 5)[0].stack, Stack::OtherLibSsl);
}

#[test]
fn names_are_told_apart() {
    let table = [
        ("libssl.so.3", Some(Stack::OtherLibSsl)),
        ("libssl-3e69114b.so.3", Some(Stack::OtherLibSsl)),
        ("libssl3.so", Some(Stack::Nss)),
        ("libgnutls-dane.so.0", Some(Stack::GnuTls)),
        ("libsslcommon.so", None),
        ("libssl.a", None),
        ("libc.so.6", None),
    ];
    for (name, stack) in table {
        assert_eq!(stack_of_name(name), stack, "{name}");
    }
}

#[test]
fn odd_lines_are_passed_over() {
    for line in [
        &b""[..],
        b"\n",
        b"7f00-7f10 r--p",
        b"/libssl.so.3",
        b"7f00-7f10 r--p 0 fe:01 x /libssl.so.3",
        b"7f00-7f10 r--p 0 fe:01 99999999999999999999999 /libssl.so.3",
        b"\xff\xff r--p 0 fe:01 5 /libssl.so.3",
        b"7f00-7f10 r--p 0 fe:01 5 /",
    ] {
        assert!(parse_mapping(1, line).is_none(), "{}", line.escape_ascii());
    }
}

#[test]
fn a_process_that_has_ended_is_left_out() {
    let fake = FakeProc::new();
    fake.process(9, &maps_line(12345, "/lib/libssl.so.3"));
    assert_eq!(fake.scan(), Scan::default());
    assert_eq!(look_at(&fake, 10), []);
}

#[test]
fn a_pipe_under_a_librarys_name_is_not_waited_for() {
    let fake = FakeProc::new();
    let path = fake.file("lib/libssl.so.3");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    fake.process(9, &maps_line(inode(&path), "/lib/libssl.so.3"));
    assert!(fake.scan().libraries.iter().all(|library| !library.supported()));
}

/// Under a name that tells nothing, as wheels have it.
#[test]
fn openssl_is_found_by_its_symbols() {
    let fake = FakeProc::new();
    let bundled = fake.file("lib/_native.abi3.so");
    let whole = fs::read(system_libssl()).expect("readable");
    fs::write(&bundled, &whole).expect("written");
    fake.process(21, &maps_line(inode(&bundled), "/lib/_native.abi3.so"));
    let found = look_at(&fake, 21);
    let [library] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((library.stack, library.supported()), (Stack::StaticOpenSsl, true));

    // No symbol has its name any more, and a program with libcrypto in it is larger.
    let mut stripped = whole;
    while let Some(at) = memchr::memmem::find(&stripped, b"\0SSL_") {
        stripped[at + 1] = b'_';
    }
    stripped.resize(2 * 1024 * 1024, 0);
    let stripped_file = fake.file("lib/stripped");
    fs::write(&stripped_file, &stripped).expect("written");
    fake.process(22, &maps_line(inode(&stripped_file), "/lib/stripped"));
    let found = look_at(&fake, 22);
    let [library] = found.as_slice() else { panic!("{found:?}") };
    assert!(library.problem.as_deref().is_some_and(|problem| problem.contains("without symbols")));

    // Whoever only calls OpenSSL has it not.
    let caller = fake.file("lib/caller");
    fs::copy("/usr/bin/openssl", &caller).expect("copied");
    fake.process(23, &maps_line(inode(&caller), "/lib/caller"));
    assert_eq!(look_at(&fake, 23), []);
}

#[test]
fn a_file_is_read_once_and_again_when_it_has_changed() {
    let fake = FakeProc::new();
    let path = fake.file("lib/other");
    fs::write(&path, "no ELF file").expect("written");
    fake.process(24, &maps_line(inode(&path), "/lib/other"));
    let mut examined = Examined::patiently();
    let mut look = || super::scan(&fake.proc(), &mut examined).expect("readable").libraries.len();
    assert_eq!(look(), 0);
    // The time of a change has the resolution of the clock's ticks.
    let before = version_of(&fs::metadata(&path).expect("a file"));
    let whole = fs::read(system_libssl()).expect("readable");
    while version_of(&fs::metadata(&path).expect("a file")) == before {
        fs::write(&path, &whole).expect("written");
    }
    assert_eq!(look(), 1);
}

/// A process that is ended when the test is, however that goes.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_live_process_with_openssl_is_found() {
    // Waits for a line on its standard input, with libssl mapped.
    let child = Command::new("openssl")
        .args(["s_server", "-nocert", "-accept", "127.0.0.1:0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl runs");
    let mut running = Running(child);
    let mut said = String::new();
    let stdout = running.0.stdout.take().expect("piped");
    // Its first line proves that it is past the dynamic linker.
    BufReader::new(stdout).read_line(&mut said).expect("says something");
    let pid = running.0.id();

    let scan = scan(Path::new("/proc"), &mut Examined::patiently()).expect("readable");
    let library = scan
        .libraries
        .iter()
        .find(|library| library.pids.contains(&pid))
        .unwrap_or_else(|| panic!("{said}: {scan:?}"));
    assert_eq!(library.stack, Stack::OpenSsl3);
    assert!(library.supported(), "{library:?}");
    assert_eq!(inode(&library.path), library.inode);
    assert!(library.path.is_absolute() && !library.path.starts_with("/proc"), "{library:?}");
}

#[test]
fn a_library_stays_open_when_its_path_is_gone() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("libssl.so.3");
    fs::write(&path, "library").expect("a file");
    let library = inspect(&path).expect("a file");
    let file = OpenLibrary::open(&library).expect("opens");

    fs::rename(&path, dir.path().join("elsewhere")).expect("renamed");
    let gone = OpenLibrary::open(&library).err().expect("gone");
    assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    fs::write(&path, "another").expect("a file");
    let replaced = OpenLibrary::open(&library).err().expect("another file");
    assert_eq!(replaced.kind(), io::ErrorKind::NotFound);

    assert_eq!(fs::metadata(file.path()).expect("a file").ino(), library.inode);
    let content = file.content().expect("read");
    assert_eq!((&content).read_bytes_at(0, 7), Ok(&b"library"[..]));
}
