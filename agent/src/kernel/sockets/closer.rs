//! Closes connections on a thread of its own: the kernel walks its whole table of sockets for
//! each look.

use std::collections::{HashSet, VecDeque};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};

use super::close::{self, Closing, Fingerprints, MAX_BATCH, Peers};
use super::diag::Diag;

/// Closings that wait. More than that in the time of a look, some milliseconds, is left out.
const QUEUE: usize = 4_096;
/// Closures kept until they are asked for.
const MAX_TOLD: usize = 1_024;

/// Closes connections, or stands for that in a test.
pub trait CloseSockets: Send {
    /// Asks for it and returns at once.
    fn close(&mut self, closing: Closing);

    /// What has come of closings since this was last asked, for those that closed something.
    fn take_closures(&mut self) -> Vec<Closure>;

    fn counts(&self) -> Counts;
}

/// Knows which connections have which TLS fingerprint, or stands for that in a test.
pub trait FindFingerprints: Send {
    /// The connections with one of `keys`.
    fn find(&self, keys: &HashSet<u64>) -> Result<Fingerprints>;
}

/// What came of a closing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closure {
    pub rule_id: u64,
    pub closed: u64,
    /// Connections that the kernel would not close.
    pub failed: u64,
}

/// Counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections closed.
    pub closed: u64,
    /// Connections, or whole looks, that failed.
    pub failed: u64,
    /// Closings that left some connections open because there were too many.
    pub unfinished: u64,
    /// Closings that were left out because the queue was full.
    pub queue_full: u64,
}

/// Closes connections in the kernel.
pub struct Closer {
    /// `None` when it takes nothing more.
    queue: Option<SyncSender<Closing>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    closed: AtomicU64,
    failed: AtomicU64,
    unfinished: AtomicU64,
    queue_full: AtomicU64,
    told: Mutex<VecDeque<Closure>>,
}

impl Closer {
    /// Closes connections of this network namespace, and of those that the files stand for as long
    /// as they do.
    ///
    /// # Errors
    /// When sockets can't be listed, or when the kernel closes none: a sentence on what that means.
    pub fn start(
        other_namespaces: &[PathBuf],
        fingerprints: Box<dyn FindFingerprints>,
    ) -> Result<Self> {
        let mut own = Diag::open()?;
        anyhow::ensure!(
            own.can_close()?,
            "this kernel closes no sockets for others (CONFIG_INET_DIAG_DESTROY): connections of \
             blocked clients stay open until either side gives up"
        );
        let own = Place { path: None, open: Some((None, own)) };
        let others = other_namespaces.iter().cloned();
        let others = others.map(|path| Place { path: Some(path), open: None });
        let places: Vec<Place> = std::iter::once(own).chain(others).collect();
        let (queue, asked) = sync_channel(QUEUE);
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("close-sockets".into())
            .spawn(move || work(places, &*fingerprints, &asked, &theirs))
            .context("can't start a thread")?;
        Ok(Self { queue: Some(queue), thread: Some(thread), shared })
    }
}

impl CloseSockets for Closer {
    fn close(&mut self, closing: Closing) {
        let refused = |queue: &SyncSender<_>| queue.try_send(closing).is_err();
        if self.queue.as_ref().is_none_or(refused) {
            self.shared.queue_full.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn take_closures(&mut self) -> Vec<Closure> {
        self.shared.told().drain(..).collect()
    }

    fn counts(&self) -> Counts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            closed: get(&self.shared.closed),
            failed: get(&self.shared.failed),
            unfinished: get(&self.shared.unfinished),
            queue_full: get(&self.shared.queue_full),
        }
    }
}

impl Closer {
    /// Carries out what was asked for before, and takes nothing more.
    pub fn finish(&mut self) {
        self.queue = None;
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the thread that closes connections died");
        }
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        self.finish();
    }
}

fn work(
    mut places: Vec<Place>,
    fingerprints: &dyn FindFingerprints,
    asked: &Receiver<Closing>,
    shared: &Shared,
) {
    while let Ok(first) = asked.recv() {
        let more = asked.try_iter().take(MAX_BATCH - 1);
        let batch: Vec<Closing> = std::iter::once(first).chain(more).collect();
        let fingerprints = fingerprints_of(&batch, fingerprints).unwrap_or_else(|error| {
            shared.failed.fetch_add(1, Ordering::Relaxed);
            tracing::error!("connections of blocked TLS clients can't be found: {error:#}");
            Fingerprints::new()
        });
        for place in &mut places {
            match place.close(&batch, &fingerprints) {
                Ok(None) => {}
                Ok(Some(tallies)) => shared.count(&batch, &tallies),
                Err(error) => {
                    place.open = None;
                    shared.failed.fetch_add(1, Ordering::Relaxed);
                    tracing::error!("connections of blocked clients can't be closed: {error:#}");
                }
            }
        }
    }
}

/// The connections with the fingerprints that a batch is about.
fn fingerprints_of(batch: &[Closing], find: &dyn FindFingerprints) -> Result<Fingerprints> {
    let keys = batch.iter().flat_map(|closing| match &closing.peers {
        Peers::Fingerprint { keys, .. } => keys.as_slice(),
        Peers::Network(_) | Peers::Flow(_) => &[],
    });
    let keys: HashSet<u64> = keys.copied().collect();
    if keys.is_empty() { Ok(Fingerprints::new()) } else { find.find(&keys) }
}

/// A network namespace, opened when it is needed.
struct Place {
    /// `None`: the agent's own.
    path: Option<PathBuf>,
    /// What the file was when its namespace was opened, and the namespace's sockets.
    open: Option<(Identity, Diag)>,
}

/// Device and inode of a namespace's file: another namespace has others.
type Identity = Option<(u64, u64)>;

impl Place {
    /// `None` when there is no such namespace at the moment.
    fn close(
        &mut self,
        batch: &[Closing],
        fingerprints: &Fingerprints,
    ) -> Result<Option<Vec<close::Tally>>> {
        let mut identity = None;
        if let Some(path) = &self.path {
            let Ok(meta) = std::fs::metadata(path) else {
                self.open = None;
                return Ok(None);
            };
            identity = Some((meta.dev(), meta.ino()));
        }
        let open = self.open.take().filter(|(opened, _)| *opened == identity);
        let (_, diag) = match open {
            Some(open) => self.open.insert(open),
            None => {
                let diag = self.path.as_ref().map_or_else(Diag::open, |path| Diag::open_in(path));
                self.open.insert((identity, diag?))
            }
        };
        Ok(Some(close::close(diag, batch, fingerprints)?))
    }
}

impl Shared {
    fn count(&self, batch: &[Closing], tallies: &[close::Tally]) {
        for (closing, tally) in batch.iter().zip(tallies) {
            self.closed.fetch_add(tally.closed, Ordering::Relaxed);
            self.failed.fetch_add(tally.failed, Ordering::Relaxed);
            self.unfinished.fetch_add(u64::from(tally.left), Ordering::Relaxed);
            if tally.closed + tally.failed > 0 {
                let mut told = self.told();
                if told.len() == MAX_TOLD {
                    // The totals still hold it.
                    told.pop_front();
                }
                told.push_back(Closure {
                    rule_id: closing.rule_id,
                    closed: tally.closed,
                    failed: tally.failed,
                });
            }
        }
    }

    fn told(&self) -> MutexGuard<'_, VecDeque<Closure>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
