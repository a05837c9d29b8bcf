//! The file system that pins live in.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

const MOUNT_POINT: &str = "/sys/fs/bpf";

/// Makes `dir`, mounting the BPF file system first where the host has not. Only the agent's
/// own user may look inside.
pub(super) fn make_pin_dir(dir: &Path) -> Result<()> {
    let mount_point = Path::new(MOUNT_POINT);
    if dir.starts_with(mount_point) && !is_bpffs(mount_point)? {
        mount(Some("bpf"), mount_point, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .with_context(|| {
                format!("can't mount the BPF file system; as root: mount -t bpf bpf {MOUNT_POINT}")
            })?;
        tracing::info!("mounted the BPF file system on {MOUNT_POINT}");
    }
    if !dir.is_dir() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("can't make the pin directory {}", dir.display()))?;
    }
    ensure!(is_bpffs(dir)?, "{} does not lie on a BPF file system", dir.display());
    Ok(())
}

fn is_bpffs(path: &Path) -> Result<bool> {
    let stat = statfs(path).with_context(|| format!("can't stat {}", path.display()))?;
    Ok(stat.filesystem_type() == BPF_FS_MAGIC)
}

/// The names in a directory; none when it does not exist.
pub(super) fn names_in(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(error).with_context(|| format!("can't read {}", dir.display()));
        }
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("can't read {}", dir.display()))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
