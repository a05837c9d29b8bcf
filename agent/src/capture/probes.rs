//! The probes in TLS libraries: one set per library file, attached before or soon after the
//! first process maps it.
//!
//! A probe belongs to the file (its device and inode), so every process that maps the file
//! later is seen from its first byte. All of it happens on a thread of its own, because
//! attaching takes milliseconds.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, MapData};
use aya::programs::BtfTracePoint;
use aya::programs::uprobe::{UProbe, UProbeAttachLocation, UProbeLinkId, UProbeScope};
use aya::{Btf, Ebpf};
use aya_log::EbpfLogger;
use portcullis_common::names::{map, program};

use super::carriers::Carriers;
use super::examined::Examined;
use super::go;
use super::inventory::{FileId, Inventory};
use super::libraries::{self, LibraryFile, OpenLibrary, Stack};
use super::sites::{self, Site};
use super::writes::Writes;
use crate::config::{Capture, ProbeSites};
use crate::kernel::{self, SharedEbpf};

/// Every entry program for OpenSSL. All have the same return program; only that of `SSL_new` is
/// another, and has no entry program.
const ENTRIES: [&str; 6] = [
    program::SSL_ENTER_HANDSHAKE,
    program::SSL_ENTER_READ,
    program::SSL_ENTER_READ_EX,
    program::SSL_ENTER_WRITE,
    program::SSL_ENTER_WRITE_EX,
    program::SSL_ENTER_WRITE_EX2,
];

const GO: [&str; 5] = [
    program::GO_ENTER_READ,
    program::GO_ENTER_WRITE,
    program::GO_ENTER_SHAKE,
    program::GO_LEAVE,
    program::GO_LEAVE_SHAKE,
];

/// Programs for Go and their tracepoints. Attached with the first program in Go, since they cost
/// something whenever any socket is used.
pub const GO_TRACEPOINTS: [(&str, &str); 2] =
    [(program::GO_SOCK_SEND, program::SOCK_SEND), (program::GO_SOCK_RECV, program::SOCK_RECV)];

/// The tracepoints that capture cannot do without; each program is called like its own.
/// `sock_send_length` and `sock_recv_length` came with Linux 6.3.
pub const TRACEPOINTS: [&str; 4] =
    [program::SOCK_SEND, program::SOCK_RECV, program::SOCK_STATE, program::EXEC];

/// Those of [`TRACEPOINTS`] that the running kernel has not: with any of them absent, no API call
/// can be seen there.
pub fn missing_tracepoints(btf: &kernel::Btf) -> Vec<&'static str> {
    let is_absent = |name: &&str| !btf.has_type(&format!("btf_trace_{name}"));
    TRACEPOINTS.into_iter().filter(is_absent).collect()
}

/// Where distributions put the library. Attached to at the start, so that no process that maps
/// one of them has to be noticed first.
const USUAL_PLACES: [&str; 7] = [
    "/usr/lib/x86_64-linux-gnu/libssl.so.3",
    "/usr/lib/aarch64-linux-gnu/libssl.so.3",
    "/usr/lib64/libssl.so.3",
    "/usr/lib/libssl.so.3",
    "/usr/local/lib64/libssl.so.3",
    "/usr/local/lib/libssl.so.3",
    "/usr/local/ssl/lib64/libssl.so.3",
];

/// When to look at a process after it replaced its program: the dynamic loader maps the
/// libraries a little later, and a program may load one itself later still.
const LOOKS: [Duration; 3] =
    [Duration::from_millis(10), Duration::from_millis(100), Duration::from_secs(1)];
/// All processes are looked at this often, for what the looks above came too early for.
const RESCAN: Duration = Duration::from_secs(10);
/// Looks waiting at one time; more are left to the next rescan, and counted.
const MAX_LOOKS: usize = 1_024;
/// Library files with probes at one time; more are refused, and counted.
const MAX_LIBRARIES: usize = 512;

/// A library file with probes, or why it has none.
#[derive(Clone, Debug)]
pub struct Probed {
    pub library: LibraryFile,
    pub problem: Option<String>,
}

/// What the thread has done so far.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub probed: Vec<Probed>,
    /// Processes that were not looked at because too many started at once.
    pub looks_skipped: u64,
    /// Libraries that were refused: too many have probes already, or this one is not as the probes
    /// need it.
    pub libraries_refused: u64,
    /// Processes that carry ciphertext themselves, and were refused because too many do.
    pub carriers_refused: u64,
}

impl State {
    pub fn attached(&self) -> usize {
        self.probed.iter().filter(|probed| probed.problem.is_none()).count()
    }
}

/// What the thread is asked for.
enum Request {
    /// To look at a process that has replaced its program.
    Look(u32),
    /// To probe where records leave the TLS library of a process.
    Carrier(u32),
    /// To see what [`Writes`] has.
    Wake,
    Stop,
}

/// The thread that attaches. Dropping it detaches everything.
pub struct Probes {
    requests: SyncSender<Request>,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

impl Probes {
    /// Attaches to what is there now, then goes on in the background.
    ///
    /// # Errors
    /// When the kernel refuses a program or a tracepoint; a library that can't be attached to
    /// is no error but told in [`State`].
    pub fn start(ebpf: SharedEbpf, proc: PathBuf, config: &Capture) -> Result<Self> {
        // What the programs themselves have to say, through the `log` crate.
        let programs_log =
            EbpfLogger::init(&mut ebpf.lock()).context("can't read the programs' own messages")?;
        let carriers = Carriers::new(take_carriers(&mut ebpf.lock())?);
        load_probes(&mut ebpf.lock())?;
        attach_tracepoints(&mut ebpf.lock())?;
        let state = Arc::new(Mutex::new(State::default()));
        let (requests, received) = mpsc::sync_channel(MAX_LOOKS);
        let wake = requests.clone();
        let mut attacher = Attacher {
            ebpf,
            proc,
            state: Arc::clone(&state),
            inventory: Inventory::new(),
            examined: Examined::in_steps(),
            carriers,
            go_is_traced: false,
            // With no room in the queue, the thread is awake.
            writes: Writes::start(move || drop(wake.try_send(Request::Wake)))?,
            programs_log,
            symbols_only: config.probe_sites == ProbeSites::Symbols,
        };
        attacher.attach_files(&config.libraries);
        attacher.rescan();
        let thread = std::thread::Builder::new()
            .name("probes".into())
            .spawn(move || attacher.run(&received))
            .context("can't start the probe thread")?;
        Ok(Self { requests, state, thread: Some(thread) })
    }

    /// A process has replaced its program.
    pub fn process_started(&self, pid: u32) {
        self.ask(Request::Look(pid));
    }

    /// A process carries ciphertext between the TLS library and its sockets itself.
    pub fn carrier_found(&self, pid: u32) {
        self.ask(Request::Carrier(pid));
    }

    fn ask(&self, request: Request) {
        if let Err(TrySendError::Full(_)) = self.requests.try_send(request) {
            lock(&self.state).looks_skipped += 1;
        }
    }

    pub fn state(&self) -> State {
        lock(&self.state).clone()
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        // Fails only when the thread has ended.
        let _ = self.requests.send(Request::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    // The state is only counters and lists that are whole after every statement.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn load_probes(ebpf: &mut Ebpf) -> Result<()> {
    let others =
        [program::SSL_RETURN, program::SSL_CREATED, program::SSL_CLEARED, program::BIO_WRITTEN];
    for name in ENTRIES.into_iter().chain(others).chain(GO) {
        uprobe(ebpf, name)?
            .load()
            .with_context(|| format!("the verifier refuses the program {name}"))?;
    }
    Ok(())
}

fn take_carriers(ebpf: &mut Ebpf) -> Result<HashMap<MapData, u32, u32>> {
    let map = ebpf.take_map(map::CARRIERS).context("the object has no map of carriers")?;
    map.try_into().context("the map of carriers is of another kind")
}

fn attach_tracepoints(ebpf: &mut Ebpf) -> Result<()> {
    let btf = Btf::from_sys_fs().context("can't read the kernel's BTF")?;
    TRACEPOINTS.into_iter().try_for_each(|name| attach_tracepoint(ebpf, name, name, &btf))
}

fn attach_tracepoint(ebpf: &mut Ebpf, name: &str, tracepoint: &str, btf: &Btf) -> Result<()> {
    let program: &mut BtfTracePoint = ebpf
        .program_mut(name)
        .with_context(|| format!("the object has no program {name}"))?
        .try_into()?;
    program
        .load(tracepoint, btf)
        .with_context(|| format!("the verifier refuses the program {name}"))?;
    program.attach().with_context(|| format!("can't attach to the tracepoint {tracepoint}"))?;
    Ok(())
}

fn uprobe<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut UProbe> {
    let program =
        ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// The probes of one file, each with its program.
type Links = Vec<(&'static str, UProbeLinkId)>;

/// A look at a process that is still to come.
struct Look {
    due: Instant,
    pid: u32,
    round: usize,
}

struct Attacher {
    ebpf: SharedEbpf,
    proc: PathBuf,
    state: Arc<Mutex<State>>,
    inventory: Inventory<Links>,
    examined: Examined,
    carriers: Carriers<Links>,
    /// [`GO_TRACEPOINTS`] are attached.
    go_is_traced: bool,
    writes: Writes,
    programs_log: EbpfLogger<&'static dyn log::Log>,
    symbols_only: bool,
}

impl Attacher {
    fn run(mut self, requests: &Receiver<Request>) {
        let mut looks: VecDeque<Look> = VecDeque::new();
        // At once for what the first one had no time for.
        let mut next_rescan = Instant::now() + LOOKS[0];
        loop {
            let next_look = looks.iter().map(|look| look.due).min();
            let wake = next_look.map_or(next_rescan, |due| due.min(next_rescan));
            let mut wait = wake.saturating_duration_since(Instant::now());
            if self.inventory.has_gone() {
                wait = Duration::ZERO;
            }
            match requests.recv_timeout(wait) {
                Ok(Request::Look(pid)) => self.queue(&mut looks, pid, 0),
                Ok(Request::Carrier(pid)) => self.attend_to(pid),
                Ok(Request::Wake) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Request::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
            self.forget_written();
            self.programs_log.flush();
            self.look_at_due(&mut looks);
            // One at a time: a process that starts meanwhile is not to wait for all of them.
            self.forget_one_gone();
            if Instant::now() >= next_rescan {
                self.rescan();
                self.review_carriers();
                // Files that it had no time for are not to wait as long.
                let wait = if self.examined.is_unfinished() { LOOKS[1] } else { RESCAN };
                next_rescan = Instant::now() + wait;
            }
        }
    }

    fn queue(&self, looks: &mut VecDeque<Look>, pid: u32, round: usize) {
        let Some(delay) = LOOKS.get(round) else { return };
        if looks.len() >= MAX_LOOKS {
            lock(&self.state).looks_skipped += 1;
            return;
        }
        looks.push_back(Look { due: Instant::now() + *delay, pid, round });
    }

    fn look_at_due(&mut self, looks: &mut VecDeque<Look>) {
        for _ in 0..looks.len() {
            let Some(look) = looks.pop_front() else { return };
            if look.due > Instant::now() {
                looks.push_back(look);
                continue;
            }
            for library in libraries::scan_one(&self.proc, look.pid, &mut self.examined) {
                self.consider(library, false);
            }
            self.queue(looks, look.pid, look.round + 1);
        }
    }

    fn rescan(&mut self) {
        let follows = self.examined.is_unfinished();
        match libraries::scan(&self.proc, &mut self.examined) {
            Ok(scan) => {
                // One that follows soon for the sake of the last one says nothing of what has gone.
                if !follows {
                    self.inventory.rescanned(&scan);
                }
                scan.libraries.into_iter().for_each(|library| self.consider(library, false));
            }
            Err(error) => tracing::warn!("can't look for TLS libraries: {error}"),
        }
    }

    fn attach_files(&mut self, extra: &[PathBuf]) {
        let usual = USUAL_PLACES.iter().map(Path::new).filter(|path| path.exists());
        for path in usual.chain(extra.iter().map(PathBuf::as_path)) {
            match libraries::inspect(path) {
                Ok(library) => self.consider(library, true),
                Err(error) => tracing::warn!("can't attach to {}: {error}", path.display()),
            }
        }
    }

    /// Takes the probes off one file that no process maps any more.
    fn forget_one_gone(&mut self) {
        let Some((id, links)) = self.inventory.take_gone() else { return };
        if let Some(name) = self.forget(id, links.unwrap_or_default()) {
            tracing::info!("nothing uses {} any more", name.display());
        }
    }

    /// Takes the probes off files that have changed. The next process that maps one gives it others.
    fn forget_written(&mut self) {
        for id in self.writes.take() {
            let links = self.inventory.take(id).unwrap_or_default();
            if let Some(name) = self.forget(id, links) {
                tracing::info!("{} is written to: its probes are off", name.display());
            }
        }
    }

    /// What the file was mapped as.
    fn forget(&mut self, id: FileId, links: Links) -> Option<PathBuf> {
        self.writes.forget(id);
        self.detach(links);
        let probed = &mut lock(&self.state).probed;
        let index = probed.iter().position(|probed| id_of(&probed.library) == id)?;
        Some(probed.remove(index).library.mapped_as)
    }

    /// Probes where records leave the TLS library of one process, for that process alone: most servers
    /// have the library use the socket, and need not pay for it.
    fn attend_to(&mut self, pid: u32) {
        if self.carriers.has(pid) {
            return;
        }
        if self.carriers.is_full() {
            lock(&self.state).carriers_refused += 1;
            return;
        }
        let mut links = Vec::new();
        for (name, file) in libraries::openssl_files(&self.proc, pid, &mut self.examined) {
            match self.attach_carry(&file, pid) {
                Ok(more) => links.extend(more),
                Err(error) => {
                    tracing::warn!("can't attach to {} of {pid}: {error:#}", name.display());
                }
            }
        }
        tracing::info!("process {pid} carries ciphertext itself: {} probes for it", links.len());
        self.carriers.insert(&self.proc, pid, links);
    }

    fn attach_carry(&mut self, file: &OpenLibrary, pid: u32) -> Result<Links> {
        let pid = NonZeroU32::new(pid).context("no process has the number 0")?;
        let probes = sites::choose_carry(&file.content()?, self.symbols_only)?;
        self.attach(file, probes, UProbeScope::OneProcess(pid))
    }

    /// Takes the probes off processes that are no more, and makes up for lost reports.
    fn review_carriers(&mut self) {
        loop {
            match self.carriers.take_gone(&self.proc) {
                Ok(Some(links)) => self.detach(links),
                Ok(None) => break,
                Err(error) => tracing::warn!("{error:#}"),
            }
        }
        for pid in self.carriers.waiting() {
            if !self.carriers.is_full() {
                self.attend_to(pid);
            }
        }
    }

    /// Attaches to a library file that is supported and new. One that is `kept` has its probes
    /// until the end, whether a process maps it or not.
    fn consider(&mut self, library: LibraryFile, kept: bool) {
        let id = id_of(&library);
        if self.inventory.sighted(id) {
            return;
        }
        // Those of other makes are many, and never more than that.
        if !library.supported() && !matches!(library.stack, Stack::StaticOpenSsl | Stack::Go) {
            return;
        }
        if self.inventory.len() >= MAX_LIBRARIES {
            lock(&self.state).libraries_refused += 1;
            return;
        }
        if let Some(problem) = library.problem.clone() {
            return self.refuse(library, problem, kept);
        }
        let name = library.mapped_as.display();
        // It could be opened a moment ago, so this is no lasting obstacle: most likely the
        // process that led to it has ended. The next process that maps it gives another chance.
        let file = match OpenLibrary::open(&library) {
            Ok(file) => file,
            Err(error) => return tracing::debug!("can't open {name}: {error}"),
        };
        // Before it is read.
        if let Err(error) = self.writes.watch(&file.path(), id) {
            tracing::warn!("can't watch {name}, so it must not be written to in place: {error}");
        }
        let attached = match library.stack {
            Stack::Go => self.attach_go(&file),
            _ => self.attach_openssl(&file),
        };
        let problem = match attached {
            Ok(links) => {
                tracing::info!("reading TLS in {name}");
                self.inventory.insert(id, Some(links), kept);
                None
            }
            Err(error) => {
                let problem = format!("{error:#}");
                tracing::warn!("can't attach to {name}: {problem}");
                self.writes.forget(id);
                self.inventory.insert(id, None, kept);
                Some(problem)
            }
        };
        lock(&self.state).probed.push(Probed { library, problem });
    }

    /// One that could be read if it were as the probes need it: told once, as long as it is there.
    fn refuse(&mut self, library: LibraryFile, problem: String, kept: bool) {
        tracing::warn!("can't read TLS in {}: {problem}", library.mapped_as.display());
        self.inventory.insert(id_of(&library), None, kept);
        let mut state = lock(&self.state);
        state.libraries_refused += 1;
        state.probed.push(Probed { library, problem: Some(problem) });
    }

    fn attach_openssl(&mut self, file: &OpenLibrary) -> Result<Links> {
        let mut probes = Vec::new();
        for site in sites::choose(&file.content()?, self.symbols_only)? {
            // The return first: a call seen only at its return is no call at all.
            if site.program != program::SSL_CREATED {
                probes.push(Site { program: program::SSL_RETURN, ..site.clone() });
            }
            probes.push(site);
        }
        self.attach(file, probes, UProbeScope::AllProcesses)
    }

    fn attach_go(&mut self, file: &OpenLibrary) -> Result<Links> {
        let probes = go::choose(file.file())?.context("it does not use crypto/tls")?;
        if !self.go_is_traced {
            let btf = Btf::from_sys_fs().context("can't read the kernel's BTF")?;
            let ebpf = &mut self.ebpf.lock();
            for (name, tracepoint) in GO_TRACEPOINTS {
                attach_tracepoint(ebpf, name, tracepoint, &btf)?;
            }
            self.go_is_traced = true;
        }
        self.attach(file, probes, UProbeScope::AllProcesses)
    }

    /// Attaches all probes or none.
    fn attach(
        &mut self,
        file: &OpenLibrary,
        probes: Vec<Site>,
        scope: UProbeScope,
    ) -> Result<Links> {
        let path = file.path();
        let mut links = Vec::new();
        for probe in probes {
            tracing::debug!("{} in {} at {:#x}", probe.program, probe.function, probe.offset);
            match self.attach_at(&path, &probe, scope) {
                Ok(link) => links.push((probe.program, link)),
                Err(error) => {
                    self.detach(links);
                    return Err(error);
                }
            }
        }
        Ok(links)
    }

    fn attach_at(&mut self, path: &Path, site: &Site, scope: UProbeScope) -> Result<UProbeLinkId> {
        let at = UProbeAttachLocation::AbsoluteOffset(site.offset);
        uprobe(&mut self.ebpf.lock(), site.program)?
            .attach(at, path, scope)
            .with_context(|| format!("{} on {}", site.program, site.function))
    }

    fn detach(&mut self, links: Links) {
        for (name, link) in links {
            let detached =
                uprobe(&mut self.ebpf.lock(), name).and_then(|probe| Ok(probe.detach(link)?));
            if let Err(error) = detached {
                tracing::warn!("can't take a probe off: {error:#}");
            }
        }
    }
}

fn id_of(library: &LibraryFile) -> FileId {
    (library.dev, library.inode)
}
