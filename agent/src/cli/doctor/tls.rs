//! The TLS libraries in use, and whose plaintext is seen.

use std::fs;
use std::path::Path;

use super::Check;
use crate::capture::libraries::{LibraryFile, scan_fully};

const AREA: &str = "TLS libraries";
/// Processes that are named for one library.
const MAX_NAMED: usize = 5;

pub(super) fn look(proc: &Path, checks: &mut Vec<Check>) {
    let found = match scan_fully(proc) {
        Ok(found) => found,
        Err(error) => {
            let advice = "is /proc mounted?";
            checks.push(Check::missing(AREA, "processes", error.to_string(), advice));
            return;
        }
    };
    for library in &found.libraries {
        checks.push(judge(proc, library));
    }
    if found.unreadable > 0 {
        checks.push(Check::warning(
            AREA,
            "processes",
            format!("{} can't be looked into", found.unreadable),
            "run as root, or with CAP_SYS_PTRACE",
        ));
    }
    if !found.libraries.iter().any(LibraryFile::supported) {
        checks.push(Check::warning(
            AREA,
            "OpenSSL 3 or Go",
            "no process uses either now",
            "start the service to be protected; the agent finds it when it starts, too",
        ));
    }
}

fn judge(proc: &Path, library: &LibraryFile) -> Check {
    let name = library.mapped_as.display().to_string();
    let users = processes(proc, &library.pids);
    match &library.problem {
        None => Check::ok(AREA, name, format!("{}, used by {users}", library.stack.name())),
        Some(problem) => Check::warning(
            AREA,
            name,
            format!("{problem}; used by {users}"),
            "if these processes serve APIs, put a server that uses OpenSSL 3 or Go in front of them",
        ),
    }
}

/// `nginx (712, 713), curl (900) and 3 more processes`.
fn processes(proc: &Path, pids: &[u32]) -> String {
    let name_of = |pid: u32| {
        let comm = fs::read_to_string(proc.join(pid.to_string()).join("comm"));
        comm.map_or_else(|_| "?".to_owned(), |comm| comm.trim_end().to_owned())
    };
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    for &pid in pids.iter().take(MAX_NAMED) {
        let name = name_of(pid);
        match groups.iter_mut().find(|(other, _)| *other == name) {
            Some((_, pids)) => pids.push(pid.to_string()),
            None => groups.push((name, vec![pid.to_string()])),
        }
    }
    let groups: Vec<_> =
        groups.into_iter().map(|(name, pids)| format!("{name} ({})", pids.join(", "))).collect();
    match pids.len().saturating_sub(MAX_NAMED) {
        0 => groups.join(", "),
        1 => format!("{} and 1 more process", groups.join(", ")),
        more => format!("{} and {more} more processes", groups.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_named_up_to_a_limit() {
        let proc = tempfile::tempdir().expect("a directory");
        for (pid, comm) in [(1, "nginx\n"), (2, "nginx\n"), (3, "curl\n")] {
            fs::create_dir(proc.path().join(pid.to_string())).expect("a process");
            fs::write(proc.path().join(format!("{pid}/comm")), comm).expect("its name");
        }
        assert_eq!(processes(proc.path(), &[1, 2, 3, 4]), "nginx (1, 2), curl (3), ? (4)");
        let many: Vec<_> = (1..=7).collect();
        assert!(processes(proc.path(), &many).ends_with("? (4, 5) and 2 more processes"));
    }
}
