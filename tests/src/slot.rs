//! Numbers that tell laboratories apart, on this machine at this moment.
//!
//! The holder of a slot has its lock file locked; the kernel unlocks it when the holder dies,
//! whatever it dies of. So an unlocked slot's namespaces are leftovers, and nobody else's.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

const DIR: &str = "/run/portcullis-lab";
/// Each slot is one of the networks 10.20.0.0/16 to 10.219.0.0/16.
const SLOTS: u8 = 200;

/// A number that nobody else has while this lives.
#[derive(Debug)]
pub struct Slot {
    number: u8,
    _lock: Flock<File>,
}

impl Slot {
    /// The lowest free one.
    pub fn take() -> anyhow::Result<Self> {
        Self::take_in(Path::new(DIR))
    }

    /// That one, if it is free.
    pub fn try_take(number: u8) -> anyhow::Result<Option<Self>> {
        Self::try_take_in(Path::new(DIR), number)
    }

    pub fn number(&self) -> u8 {
        self.number
    }

    fn take_in(dir: &Path) -> anyhow::Result<Self> {
        for number in 0..SLOTS {
            if let Some(slot) = Self::try_take_in(dir, number)? {
                return Ok(slot);
            }
        }
        bail!("{SLOTS} laboratories run on this machine already");
    }

    fn try_take_in(dir: &Path, number: u8) -> anyhow::Result<Option<Self>> {
        let path = lock_file(dir, number);
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let file = File::options().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Self { number, _lock: lock })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => {
                Err(error).with_context(|| format!("cannot lock {}", path.display()))
            }
        }
    }
}

fn lock_file(dir: &Path, number: u8) -> PathBuf {
    dir.join(format!("slot-{number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_has_one_holder_and_is_free_after_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let first = Slot::take_in(dir.path()).expect("free");
        let second = Slot::take_in(dir.path()).expect("free");
        assert_ne!(first.number(), second.number());
        let number = first.number();
        assert!(Slot::try_take_in(dir.path(), number).expect("readable").is_none());
        drop(first);
        assert!(Slot::try_take_in(dir.path(), number).expect("readable").is_some());
    }
}
