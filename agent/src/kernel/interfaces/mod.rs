//! The programs on every configured interface, for as long as the agent runs: interfaces come
//! and go, are renamed, and move with their network namespaces.
//!
//! A thread of its own listens for news of them. Whatever the news, it lists what there is and
//! makes the attached programs match, so that nothing depends on a message being received. It
//! never waits for the rest of the agent, nor that for it.

mod table;

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::Notify;

use self::table::Place;
use super::attach::{Attacher, Attachment, SharedEbpf};
use super::links;
use super::pins::{PinDir, remove_file};
use crate::config::{Answer, Config, is_pattern};

/// A namespace that comes and goes without a mount (`/proc/PID/ns/net`) is noticed within this
/// time, in milliseconds.
const LOOK_AGAIN: u16 = 1_000;
/// Changes that wait to be told; when more come, the oldest go untold.
const MAX_CHANGES: usize = 1_024;

/// Which interfaces, of which network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Path of the namespace; `None` for the agent's own.
    pub namespace: Option<PathBuf>,
    /// As [`crate::config::selects`] takes them.
    pub interfaces: Vec<String>,
}

impl Scope {
    /// All that `config` names, the agent's own namespace first.
    pub fn all(config: &Config) -> Vec<Self> {
        let own = Self { namespace: None, interfaces: config.interfaces.clone() };
        let named = config.namespaces.iter().map(|namespace| Self {
            namespace: Some(namespace.path.clone()),
            interfaces: namespace.interfaces.clone(),
        });
        std::iter::once(own).chain(named).collect()
    }
}

/// Something that happened to a configured interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Attached(Attachment),
    Detached {
        interface: String,
        namespace: Option<PathBuf>,
        reason: String,
    },
    /// It is there, but no program could be attached to it.
    Refused {
        interface: String,
        namespace: Option<PathBuf>,
        problem: String,
    },
}

/// A configured interface without a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub interface: String,
    pub namespace: Option<PathBuf>,
    pub problem: String,
}

/// What the thread has done so far.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub attached: Vec<Attachment>,
    pub waiting: Vec<Waiting>,
    pub totals: Totals,
}

/// Changes since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub attached: u64,
    pub detached: u64,
    pub refused: u64,
    /// Changes that no event tells of.
    pub untold: u64,
}

#[derive(Default)]
struct Shared {
    state: State,
    changes: VecDeque<Change>,
    /// Set by a reload, taken by the thread.
    scopes: Option<Vec<Scope>>,
    stop: bool,
}

/// The thread that attaches. Dropping it ends it; the programs stay.
pub struct Interfaces {
    shared: Arc<Mutex<Shared>>,
    changed: Arc<Notify>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Interfaces {
    /// Attaches to what is there now, takes earlier agents' programs off everything else, and
    /// goes on in the background.
    ///
    /// # Errors
    /// When no configured interface is there, or one that is configured by its name is and can't
    /// be attached to.
    pub fn start(ebpf: SharedEbpf, config: &Config) -> Result<Self> {
        let attacher = Attacher {
            ebpf,
            pins: PinDir::make(&config.kernel.pin_dir)?,
            attach: config.kernel.attach,
            answers: config.enforce.answer == Answer::Reset,
        };
        let mut table = Table {
            attacher,
            places: Scope::all(config).into_iter().map(Place::new).collect(),
            mounts: File::open("/proc/self/mountinfo").context("can't watch the mounts")?,
        };
        let changes = table.look();
        table.ensure_all_is_well()?;
        table.remove_stray_pins()?;
        let shared = Arc::new(Mutex::new(Shared::default()));
        table.tell(&mut lock(&shared), changes);
        for Waiting { interface, problem, .. } in &lock(&shared).state.waiting {
            tracing::warn!("no program on {interface}: {problem}; it is waited for");
        }
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let wake = Arc::new(wake.context("can't make an event descriptor")?);
        let changed = Arc::new(Notify::new());
        changed.notify_one();
        let (to_thread, wakes, notify) =
            (Arc::clone(&shared), Arc::clone(&wake), Arc::clone(&changed));
        let thread = std::thread::Builder::new()
            .name("interfaces".into())
            .spawn(move || table.run(&to_thread, &wakes, &notify))
            .context("can't start the interface thread")?;
        Ok(Self { shared, changed, wake, thread: Some(thread) })
    }

    /// Other interfaces are configured now.
    pub fn reconfigure(&self, scopes: Vec<Scope>) {
        lock(&self.shared).scopes = Some(scopes);
        self.wake();
    }

    pub fn state(&self) -> State {
        lock(&self.shared).state.clone()
    }

    /// Notified when there are changes to take.
    pub fn changed(&self) -> Arc<Notify> {
        Arc::clone(&self.changed)
    }

    /// What has happened since the last call.
    pub fn take_changes(&self) -> Vec<Change> {
        lock(&self.shared).changes.drain(..).collect()
    }

    fn wake(&self) {
        // It fails only when 2^64 - 2 wakes wait already.
        let _ = self.wake.write(1);
    }
}

impl Drop for Interfaces {
    fn drop(&mut self) {
        lock(&self.shared).stop = true;
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // Counters and lists that are whole after every statement.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread owns.
struct Table {
    attacher: Attacher,
    places: Vec<Place>,
    /// Its readiness tells of mounts (proc_pid_mountinfo(5)), as `ip netns` makes them.
    mounts: File,
}

impl Table {
    fn run(mut self, shared: &Mutex<Shared>, wake: &EventFd, changed: &Notify) {
        loop {
            if let Err(error) = self.wait(wake) {
                tracing::error!("interfaces are no longer followed: {error:#}");
                return;
            }
            let scopes = {
                let mut shared = lock(shared);
                if shared.stop {
                    return;
                }
                shared.scopes.take()
            };
            let mut changes = scopes.map_or_else(Vec::new, |scopes| self.reconfigure(scopes));
            changes.extend(self.look());
            let is_news = !changes.is_empty();
            self.tell(&mut lock(shared), changes);
            if is_news {
                changed.notify_one();
            }
        }
    }

    fn wait(&self, wake: &EventFd) -> Result<()> {
        let mut fds = vec![
            PollFd::new(wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.mounts.as_fd(), PollFlags::POLLPRI),
        ];
        let watches = self.places.iter().filter_map(Place::watch);
        fds.extend(watches.map(|watch| PollFd::new(watch.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::from(LOOK_AGAIN)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("can't wait for news"),
        }
        // An error means that nothing has been written.
        let _ = wake.read();
        Ok(())
    }

    fn look(&mut self) -> Vec<Change> {
        let (now, mut changes) = (Instant::now(), Vec::new());
        for place in &mut self.places {
            place.look(&self.attacher, now, &mut changes);
        }
        changes
    }

    fn reconfigure(&mut self, scopes: Vec<Scope>) -> Vec<Change> {
        let (now, mut changes) = (Instant::now(), Vec::new());
        let is_kept = |place: &Place| scopes.iter().any(|s| s.namespace == place.scope.namespace);
        for place in self.places.iter_mut().filter(|place| !is_kept(place)) {
            place.reconfigure(Vec::new());
            place.look(&self.attacher, now, &mut changes);
        }
        self.places.retain(is_kept);
        for scope in scopes {
            let same = |place: &&mut Place| place.scope.namespace == scope.namespace;
            match self.places.iter_mut().find(same) {
                Some(place) => place.reconfigure(scope.interfaces),
                None => self.places.push(Place::new(scope)),
            }
        }
        changes
    }

    fn waiting(&self) -> Vec<Waiting> {
        self.places.iter().flat_map(Place::waiting).collect()
    }

    fn tell(&self, shared: &mut Shared, changes: Vec<Change>) {
        let attached = self.places.iter().flat_map(Place::attachments);
        shared.state.attached = attached.cloned().collect();
        shared.state.waiting = self.waiting();
        for change in changes {
            log(&change);
            let totals = &mut shared.state.totals;
            match &change {
                Change::Attached(_) => totals.attached += 1,
                Change::Detached { .. } => totals.detached += 1,
                Change::Refused { .. } => totals.refused += 1,
            }
            if shared.changes.len() >= MAX_CHANGES {
                totals.untold += 1;
                shared.changes.pop_front();
            }
            shared.changes.push_back(change);
        }
    }

    /// Whether an agent may start with what has been attached.
    fn ensure_all_is_well(&self) -> Result<()> {
        for place in &self.places {
            let named = |interface: &str| {
                let names = &place.scope.interfaces;
                names.iter().any(|name| name == interface && !is_pattern(name))
            };
            if let Some(refused) = place.refused().find(|refused| named(&refused.interface)) {
                bail!("can't attach to interface {}: {}", refused.interface, refused.problem);
            }
        }
        if self.places.iter().any(|place| place.attachments().next().is_some()) {
            return Ok(());
        }
        let problems = self
            .waiting()
            .into_iter()
            .map(|waiting| format!("{}: {}", waiting.interface, waiting.problem));
        let problems: Vec<_> = problems.collect();
        let there: Vec<_> = links::list()?.into_iter().map(|link| link.name).collect();
        ensure!(
            problems.is_empty(),
            "none of the configured interfaces can be attached to ({}); there are: {}",
            problems.join("; "),
            there.join(", ")
        );
        bail!("no interface matches `interfaces`; there are: {}", there.join(", "))
    }

    /// Removes the pins of earlier agents that nothing has been made of.
    fn remove_stray_pins(&self) -> Result<()> {
        for pin in self.attacher.pins.pinned_links()? {
            let is_ours = |ours: &super::pins::LinkPin| ours.path == pin.path;
            if self.places.iter().flat_map(Place::pins).any(is_ours) {
                continue;
            }
            remove_file(&pin.path)?;
            tracing::info!("detached from {}, which is not configured or has gone", pin.shown());
        }
        Ok(())
    }
}

fn log(change: &Change) {
    let shown = |interface: &str, namespace: &Option<PathBuf>| match namespace {
        Some(path) => format!("{interface} in {}", path.display()),
        None => interface.to_owned(),
    };
    match change {
        Change::Attached(at) => {
            let name = shown(&at.interface, &at.namespace);
            for reason in &at.passed_over {
                tracing::warn!("{name}: not {reason}");
            }
            let how = if at.taken_over { "took over" } else { "attached to" };
            tracing::info!("{how} {name} by {}", at.hook.name());
        }
        Change::Detached { interface, namespace, reason } => {
            tracing::info!("detached from {}: {reason}", shown(interface, namespace));
        }
        Change::Refused { interface, namespace, problem } => {
            tracing::error!("can't attach to {}: {problem}", shown(interface, namespace));
        }
    }
}
