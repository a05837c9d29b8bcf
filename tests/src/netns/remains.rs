//! What a laboratory leaves on the machine, and its removal: at its end, on a signal, or by the
//! next one after a SIGKILL.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{process, thread};

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{PATIENCE, end_all_in, path_of};
use crate::slot::Slot;
use crate::wait;

/// Namespaces by name of the laboratory, for [`clean_up_on_signals`].
static LIVE: Mutex<BTreeMap<String, Vec<String>>> = Mutex::new(BTreeMap::new());

/// Removed from the machine when this is dropped.
pub struct Remains {
    name: String,
    dir: PathBuf,
    pin_dir: PathBuf,
}

impl Remains {
    pub fn register(name: &str, namespaces: Vec<String>) -> Self {
        live().insert(name.to_owned(), namespaces);
        Self { name: name.to_owned(), dir: dir_of(name), pin_dir: pin_dir_of(name) }
    }

    /// Runs `work`, which makes what must be removed; not at all once a signal's clean-up has
    /// begun, and to its end if that begins meanwhile.
    pub fn make<T>(&self, work: impl FnOnce() -> T) -> T {
        let _live = live();
        work()
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }
}

impl Drop for Remains {
    fn drop(&mut self) {
        // Held to the end: a signal's clean-up must not end the process in the middle of this.
        let mut live = live();
        let namespaces = live.remove(&self.name).unwrap_or_default();
        remove(&self.name, &namespaces);
    }
}

/// From here on SIGINT, SIGTERM and SIGHUP remove every laboratory of this process, then end it
/// with status 128 + signal, as a shell would say.
pub fn clean_up_on_signals() -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot handle signals")?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        // Held to the end: no laboratory is removed twice, none is made any more.
        let mut live = live();
        for (name, namespaces) in std::mem::take(&mut *live) {
            remove(&name, &namespaces);
        }
        process::exit(128 + signal);
    })?;
    Ok(())
}

/// Removes what laboratories called `PREFIX-s…` left whose processes are gone.
pub fn sweep(prefix: &str) -> anyhow::Result<()> {
    let mut leftovers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for namespace in names_in(Path::new("/run/netns"))? {
        if let Some((lab, _)) = namespace.rsplit_once('-') {
            leftovers.entry(lab.to_owned()).or_default().push(namespace);
        }
    }
    for lab in names_in(&std::env::temp_dir())? {
        leftovers.entry(lab).or_default();
    }
    for (lab, namespaces) in leftovers {
        let Some(number) = slot_of(prefix, &lab) else { continue };
        // Somebody who has the slot is alive, or has removed this before.
        if let Some(_slot) = Slot::try_take(number)? {
            remove(&lab, &namespaces);
        }
    }
    Ok(())
}

/// The slot in the name of a laboratory with this prefix.
fn slot_of(prefix: &str, lab: &str) -> Option<u8> {
    let (slot, pid) = lab.strip_prefix(prefix)?.strip_prefix("-s")?.split_once("-p")?;
    pid.parse::<u32>().ok()?;
    slot.parse().ok()
}

fn remove(lab: &str, namespaces: &[String]) {
    for namespace in namespaces {
        if let Err(error) = end_all_in(namespace) {
            eprintln!("{error:#}");
        }
    }
    for namespace in namespaces.iter().filter(|namespace| path_of(namespace).exists()) {
        let mut delete = process::Command::new("ip");
        // Another Ctrl-C on the terminal must not reach it.
        delete.args(["netns", "delete", namespace]).process_group(0);
        let deleted = delete.status();
        if !deleted.is_ok_and(|status| status.success()) {
            eprintln!(
                "the namespace {namespace} is left over; `ip netns delete {namespace}` removes it"
            );
        }
    }
    for dir in [pin_dir_of(lab), dir_of(lab)] {
        if let Err(error) = remove_dir(&dir) {
            eprintln!("{} is left over: {error:#}", dir.display());
        }
    }
}

/// Removes `dir` and all that is in it, if it is there. After a signal, a thread of this process
/// may still be writing files to it.
fn remove_dir(dir: &Path) -> anyhow::Result<()> {
    wait::until(PATIENCE, "its last file", || match fs::remove_dir_all(dir) {
        Ok(()) => Ok(Some(())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(())),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(None),
        Err(error) => Err(error.into()),
    })
}

fn dir_of(lab: &str) -> PathBuf {
    std::env::temp_dir().join(lab)
}

fn pin_dir_of(lab: &str) -> PathBuf {
    Path::new("/sys/fs/bpf").join(format!("portcullis-{lab}"))
}

fn names_in(dir: &Path) -> anyhow::Result<Vec<String>> {
    match fs::read_dir(dir) {
        Ok(entries) => {
            Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
        }
        // No namespace was made since boot.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot list {}", dir.display())),
    }
}

fn live() -> MutexGuard<'static, BTreeMap<String, Vec<String>>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_laboratories_of_the_prefix_are_ours() {
        assert_eq!(slot_of("pcx", "pcx-s12-p345"), Some(12));
        assert_eq!(slot_of("pcx", "pcx-s12-p345-srv"), None);
        assert_eq!(slot_of("pcx", "pcx-demo-s1-p2"), None);
        assert_eq!(slot_of("pcx", "other-s1-p2"), None);
        assert_eq!(slot_of("pcx", "pcx-s999-p2"), None);
    }
}
