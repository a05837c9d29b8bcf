//! Processes that carry ciphertext between the TLS library and their sockets themselves, and the
//! probes that they alone have for it. What the kernel has found is in a map of its own, so a
//! report that is lost is made up for.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, MapData};

/// Processes with such probes at one time; more are refused, and counted.
const MAX_CARRIERS: usize = 256;

/// `P` is what a process's probes are taken off with.
pub struct Carriers<P> {
    found: HashMap<MapData, u32, u32>,
    probed: BTreeMap<u32, Probed<P>>,
}

struct Probed<P> {
    /// Another process may get the number; this one it has not.
    started: Option<u64>,
    probes: P,
}

impl<P> Carriers<P> {
    pub fn new(found: HashMap<MapData, u32, u32>) -> Self {
        Self { found, probed: BTreeMap::new() }
    }

    pub fn is_full(&self) -> bool {
        self.probed.len() >= MAX_CARRIERS
    }

    pub fn has(&self, pid: u32) -> bool {
        self.probed.contains_key(&pid)
    }

    pub fn insert(&mut self, proc: &Path, pid: u32, probes: P) {
        self.probed.insert(pid, Probed { started: start_time(proc, pid), probes });
    }

    /// Processes that the kernel has found, and that have no probes.
    pub fn waiting(&self) -> Vec<u32> {
        self.found.keys().flatten().filter(|pid| !self.has(*pid)).collect()
    }

    /// Forgets one process that is no more, or is another by now.
    ///
    /// # Errors
    /// When the kernel can't be made to look for it anew.
    pub fn take_gone(&mut self, proc: &Path) -> Result<Option<P>> {
        let mut all = self.probed.iter();
        let gone = all.find(|(pid, probed)| {
            let now = start_time(proc, **pid);
            now.is_none() || now != probed.started
        });
        let Some(pid) = gone.map(|(pid, _)| *pid) else { return Ok(None) };
        let probes = self.probed.remove(&pid).map(|probed| probed.probes);
        match self.found.remove(&pid) {
            Ok(()) | Err(aya::maps::MapError::KeyNotFound) => Ok(probes),
            Err(error) => Err(error).context("can't forget a process"),
        }
    }
}

/// When a process started, in clock ticks since the kernel did (proc_pid_stat(5), field 22).
fn start_time(proc: &Path, pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(proc.join(pid.to_string()).join("stat")).ok()?;
    // The second field is a name in parentheses, and may have both in it.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_times_are_read_past_odd_names() {
        let proc = tempfile::tempdir().expect("a directory");
        fs::create_dir(proc.path().join("7")).expect("a process");
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 99 98\n";
        fs::write(proc.path().join("7/stat"), stat).expect("its state");
        assert_eq!(start_time(proc.path(), 7), Some(4711));
        assert_eq!(start_time(proc.path(), 8), None);
        assert!(start_time(Path::new("/proc"), std::process::id()).is_some());
    }
}
