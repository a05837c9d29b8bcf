//! Which files with probes are written to?
//!
//! A probe stays at its place in the file whatever comes to be there, and the next process that
//! runs the file would have it in the midst of other instructions. While a program runs, the
//! kernel lets nobody write to its file; so there is time between the first write and the next
//! start, and the probes have to go in it.

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use super::inventory::FileId;

pub struct Writes {
    shared: Arc<Shared>,
    watched: HashMap<WatchDescriptor, FileId>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    inotify: Inotify,
    stop: EventFd,
    /// At most as many as are watched, since each watch ends with its first event.
    written: Mutex<Vec<WatchDescriptor>>,
}

impl Writes {
    /// Calls `wake` on a thread of its own when [`Self::take`] has something new.
    pub fn start(wake: impl Fn() + Send + 'static) -> Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
        let stop = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let shared = Arc::new(Shared {
            inotify: inotify.context("can't watch files")?,
            stop: stop.context("can't make an event")?,
            written: Mutex::default(),
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("file writes".into())
            .spawn(move || theirs.run(&wake))
            .context("can't start the thread that watches files")?;
        Ok(Self { shared, watched: HashMap::new(), thread: Some(thread) })
    }

    /// Tells of the next write to the file that `path` leads to now.
    pub fn watch(&mut self, path: &Path, id: FileId) -> nix::Result<()> {
        let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_ONESHOT;
        let watch = self.shared.inotify.add_watch(path, flags)?;
        self.watched.insert(watch, id);
        Ok(())
    }

    pub fn forget(&mut self, id: FileId) {
        let watches = self.watched.extract_if(|_, watched| *watched == id);
        for (watch, _) in watches.collect::<Vec<_>>() {
            // It may have had its event.
            let _ = self.shared.inotify.rm_watch(watch);
        }
    }

    /// The files that have been written to since.
    pub fn take(&mut self) -> Vec<FileId> {
        let written = std::mem::take(&mut *self.shared.written());
        written.iter().filter_map(|watch| self.watched.remove(watch)).collect()
    }
}

impl Drop for Writes {
    fn drop(&mut self) {
        // Fails only when it would overflow, and then it has been told.
        let _ = self.shared.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self, wake: &impl Fn()) {
        loop {
            let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
            let mut fds = [readable(self.inotify.as_fd()), readable(self.stop.as_fd())];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return tracing::error!("can't watch files any more: {error}"),
            }
            if fds[1].any().unwrap_or(true) {
                return;
            }
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(error) => return tracing::error!("can't watch files any more: {error}"),
            };
            let written = events.iter().filter(|e| e.mask.contains(AddWatchFlags::IN_MODIFY));
            self.written().extend(written.map(|event| event.wd));
            wake();
        }
    }

    fn written(&self) -> std::sync::MutexGuard<'_, Vec<WatchDescriptor>> {
        // A list that is whole after every statement.
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_first_write_to_a_watched_file_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["one", "two", "three"].map(|name| dir.path().join(name));
        files.iter().for_each(|file| fs::write(file, "old").unwrap());
        let (told, woken) = mpsc::channel();
        let mut writes = Writes::start(move || told.send(()).unwrap()).unwrap();
        for (number, file) in (1..).zip(&files) {
            writes.watch(file, (7, number)).unwrap();
        }
        writes.forget((7, 1));
        files.iter().take(2).for_each(|file| fs::write(file, "new").unwrap());
        let mut written = Vec::new();
        while written.is_empty() {
            woken.recv_timeout(Duration::from_secs(10)).expect("told");
            written = writes.take();
        }
        assert_eq!(written, [(7, 2)]);
        assert!(writes.take().is_empty());
    }
}
