//! Network namespaces by path (namespaces(7)): work done inside one, on a thread of its own.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::{panic, thread};

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

/// An open network namespace, which lives at least as long as this: kept open longer than for a
/// look, one that its owner deletes would not go.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    path: PathBuf,
    inode: u64,
}

impl Namespace {
    /// The namespace that is at `path`, such as `/run/netns/blue` or `/proc/PID/ns/net`; `None`
    /// when there is none now.
    ///
    /// # Errors
    /// When there is something that can't be opened.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let context = || format!("can't open the network namespace {}", path.display());
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if is_absence(&error) => return Ok(None),
            Err(error) => return Err(error).with_context(context),
        };
        // `ip netns add` makes a plain file, then mounts the namespace over it.
        if fstatfs(&file).with_context(context)?.filesystem_type() != NSFS_MAGIC {
            return Ok(None);
        }
        let inode = file.metadata().with_context(context)?.ino();
        Ok(Some(Self { file, path: path.to_owned(), inode }))
    }

    /// Which one it is, among those that live.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Does `work` on a thread of its own inside the namespace, and waits for it. Sockets stay in
    /// the namespace they were made in, so that one may be returned.
    ///
    /// # Errors
    /// When the namespace can't be entered, which takes `CAP_SYS_ADMIN`, and those of `work`.
    ///
    /// # Panics
    /// When `work` does, with its panic.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_a_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET).with_context(|| {
                format!(
                    "can't enter the network namespace {} (it takes CAP_SYS_ADMIN, and \
                     RestrictNamespaces=net of a systemd unit)",
                    self.path.display()
                )
            })?;
            work()
        })
    }
}

/// Does `work` inside `namespace`, or, without one, in the agent's own.
///
/// # Errors
/// As [`Namespace::run`].
pub(super) fn run_in<T: Send>(
    namespace: Option<&Namespace>,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    match namespace {
        Some(namespace) => namespace.run(work),
        None => on_a_thread(work),
    }
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("namespace".into())
            .spawn_scoped(scope, work)
            .context("can't start a thread")?;
        thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
    })
}

/// A process that ends takes its files with it between two steps of opening one (`ESRCH`).
fn is_absence(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_namespace_is_none() {
        assert!(Namespace::open(Path::new("/no/such/namespace")).unwrap().is_none());
        // A plain file, as `ip netns add` makes first.
        assert!(Namespace::open(Path::new("/proc/self/exe")).unwrap().is_none());
        assert!(Namespace::open(Path::new("/proc/version/x")).unwrap().is_none());
        let path = Path::new("/proc/self/ns/net");
        let own = Namespace::open(path).unwrap().unwrap();
        assert_eq!(own.inode(), std::fs::metadata(path).unwrap().ino());
    }
}
