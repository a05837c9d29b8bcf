//! Which library files have been tried, and which of them no process maps any more.

use std::collections::{HashMap, HashSet};

use super::libraries::Scan;

/// Device and inode.
pub type FileId = (u64, u64);

/// Looks at all processes in a row that have to miss a file: a service that restarts is between
/// two processes for a moment.
const GONE_AFTER: u32 = 2;

/// `P` is what a file's probes are taken off with.
pub struct Inventory<P> {
    files: HashMap<FileId, Entry<P>>,
}

struct Entry<P> {
    /// `None` when they could not be attached.
    probes: Option<P>,
    /// Whoever maps it.
    kept: bool,
    missed: u32,
}

impl<P> Inventory<P> {
    pub fn new() -> Self {
        Self { files: HashMap::new() }
    }

    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// A process maps the file now. Whether it has been tried.
    pub fn sighted(&mut self, id: FileId) -> bool {
        let Some(entry) = self.files.get_mut(&id) else { return false };
        entry.missed = 0;
        true
    }

    /// The file has probes, or can't have any.
    pub fn insert(&mut self, id: FileId, probes: Option<P>, kept: bool) {
        // One without probes is worth another try when somebody comes to use it.
        let kept = kept && probes.is_some();
        self.files.insert(id, Entry { probes, kept, missed: 0 });
    }

    /// All processes have been looked at. One that can't be looked into counts for nothing: no
    /// file is found through it, and none is kept for it, for there may always be such processes.
    pub fn rescanned(&mut self, scan: &Scan) {
        let mapped: HashSet<_> = scan.libraries.iter().map(|file| (file.dev, file.inode)).collect();
        for (&(dev, inode), entry) in &mut self.files {
            // A file that could not be opened has no device.
            if mapped.contains(&(dev, inode)) || mapped.contains(&(0, inode)) {
                entry.missed = 0;
            } else if !entry.kept {
                entry.missed = entry.missed.saturating_add(1);
            }
        }
    }

    /// Forgets the file, if it has been tried.
    pub fn take(&mut self, id: FileId) -> Option<P> {
        self.files.remove(&id)?.probes
    }

    /// Whether [`Self::take_gone`] has something to take.
    pub fn has_gone(&self) -> bool {
        self.files.values().any(Entry::is_gone)
    }

    /// Forgets one file that nobody maps any more.
    pub fn take_gone(&mut self) -> Option<(FileId, Option<P>)> {
        let id = self.files.iter().find_map(|(id, entry)| entry.is_gone().then_some(*id))?;
        Some((id, self.files.remove(&id)?.probes))
    }
}

impl<P> Entry<P> {
    fn is_gone(&self) -> bool {
        self.missed >= GONE_AFTER
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::libraries::{LibraryFile, Stack};
    use super::*;

    const ID: FileId = (7, 4711);

    fn scan(ids: &[FileId]) -> Scan {
        let file = |&(dev, inode): &FileId| LibraryFile {
            path: PathBuf::new(),
            mapped_as: PathBuf::new(),
            dev,
            inode,
            stack: Stack::OpenSsl3,
            problem: None,
            pids: vec![1],
        };
        Scan { libraries: ids.iter().map(file).collect(), unreadable: 0 }
    }

    fn with(probes: Option<u32>, kept: bool) -> Inventory<u32> {
        let mut inventory = Inventory::new();
        inventory.insert(ID, probes, kept);
        inventory
    }

    #[test]
    fn a_file_that_two_looks_in_a_row_miss_is_gone() {
        let mut inventory = with(Some(5), false);
        // Seen by a scan, or by a look at one process, in between.
        for by_scan in [true, false] {
            inventory.rescanned(&scan(&[(7, 1)]));
            if by_scan {
                inventory.rescanned(&scan(&[ID]));
            } else {
                assert!(inventory.sighted(ID));
            }
            inventory.rescanned(&scan(&[(7, 1)]));
            assert_eq!(inventory.take_gone(), None);
            assert!(inventory.sighted(ID));
        }
        inventory.rescanned(&scan(&[]));
        inventory.rescanned(&scan(&[]));
        assert!(inventory.has_gone());
        assert_eq!(inventory.take_gone(), Some((ID, Some(5))));
        assert!(!inventory.has_gone() && !inventory.sighted(ID) && inventory.len() == 0);
    }

    #[test]
    fn a_usual_place_stays_unless_it_has_failed() {
        for (probes, gone) in [(Some(5), None), (None, Some((ID, None)))] {
            let mut inventory = with(probes, true);
            inventory.rescanned(&scan(&[]));
            inventory.rescanned(&scan(&[]));
            assert_eq!(inventory.take_gone(), gone);
        }
    }

    #[test]
    fn a_file_that_is_mapped_but_can_not_be_opened_is_kept() {
        let mut inventory = with(Some(5), false);
        inventory.rescanned(&scan(&[(0, ID.1)]));
        inventory.rescanned(&scan(&[(0, ID.1)]));
        assert!(!inventory.has_gone());
    }
}
