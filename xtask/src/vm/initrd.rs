//! The initial file system: a shell, the modules that it takes to mount the host's root, and two
//! scripts. An archive as in Documentation/driver-api/early-userspace/buffer-format.rst.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

use super::package::{self, Unpacked};
use crate::exec;

const INIT: &str = include_str!("init.sh");
/// Drivers and file systems between the kernel and the host's root.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];
const DIRS: [&str; 9] = ["bin", "dev", "host", "modules", "over", "proc", "root", "run", "sys"];

/// Writes the archive into `dir`, which is made anew; `suite` is the script to go on with.
pub fn write(dir: &Path, kernel: &Unpacked, suite: &str) -> anyhow::Result<PathBuf> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    let root = dir.join("initrd");
    for name in DIRS {
        fs::create_dir_all(root.join(name))?;
    }
    let busybox = root.join("bin/busybox");
    fs::copy(package::unpacked_program("busybox-static", "bin/busybox")?, &busybox)?;
    fs::write(root.join("init"), INIT)?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
    fs::write(root.join("suite.sh"), suite)?;
    for (number, module) in modules(kernel)?.iter().enumerate() {
        copy_module(module, &root.join("modules"), number)?;
    }
    archive(&busybox, &root, &dir.join("initrd.cpio"))
}

/// Files of the modules, each after those that it needs.
fn modules(kernel: &Unpacked) -> anyhow::Result<Vec<PathBuf>> {
    let mut modprobe = Command::new(package::program("modprobe")?);
    modprobe.args(["--set-version", package::release(&kernel.package), "--dirname"]);
    modprobe.arg(&kernel.dir).args(["--show-depends", "--all"]).args(MODULES);
    let output = modprobe.stderr(Stdio::inherit()).output().context("cannot run modprobe")?;
    ensure!(output.status.success(), "modprobe finds not all of {}", MODULES.join(", "));
    Ok(listed(&String::from_utf8_lossy(&output.stdout)))
}

/// Of lines such as `insmod /lib/modules/…/virtio.ko `; what is built in needs no file.
fn listed(output: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for file in output.lines().filter_map(|line| line.strip_prefix("insmod ")) {
        let file = PathBuf::from(file.trim());
        if !files.contains(&file) {
            files.push(file);
        }
    }
    files
}

/// Uncompressed: not every kernel can load what is compressed by itself.
fn copy_module(module: &Path, dir: &Path, number: usize) -> anyhow::Result<()> {
    let to = dir.join(format!("{number:02}.ko"));
    if module.extension().is_none_or(|extension| extension != "xz") {
        fs::copy(module, to).with_context(|| format!("cannot copy {}", module.display()))?;
        return Ok(());
    }
    let mut xz = Command::new(package::program("xz")?);
    xz.args(["--decompress", "--stdout"]).arg(module).stdout(fs::File::create(to)?);
    ensure!(exec::status(&mut xz)?.success(), "cannot unpack {}", module.display());
    Ok(())
}

fn archive(busybox: &Path, root: &Path, to: &Path) -> anyhow::Result<PathBuf> {
    let mut cpio = Command::new(busybox);
    cpio.args(["cpio", "-o", "-H", "newc"]).current_dir(root);
    let mut cpio = cpio
        .stdin(Stdio::piped())
        .stdout(fs::File::create(to)?)
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run busybox")?;
    let mut names = cpio.stdin.take().context("cpio has no stdin")?;
    for name in files_below(root)? {
        writeln!(names, "{}", name.display())?;
    }
    drop(names);
    if !cpio.wait()?.success() {
        bail!("busybox cannot write {}", to.display());
    }
    Ok(to.to_owned())
}

/// Directories before what is in them, relative to `root`.
fn files_below(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(root.join(&dir))? {
            let entry = entry?;
            let name = dir.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                dirs.push(name.clone());
            }
            found.push(name);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_listed_once_and_in_order() {
        let output = "builtin virtio_pci\ninsmod /m/9pnet.ko \ninsmod /m/9p.ko.xz \n\
                      insmod /m/9pnet.ko \n";
        assert_eq!(listed(output), [Path::new("/m/9pnet.ko"), Path::new("/m/9p.ko.xz")]);
    }

    #[test]
    fn the_scripts_have_no_mistakes_in_their_syntax() {
        for script in [INIT, include_str!("suite.sh")] {
            let mut sh = Command::new("sh");
            let mut sh = sh.arg("-n").stdin(Stdio::piped()).spawn().expect("a shell");
            sh.stdin.take().expect("a pipe").write_all(script.as_bytes()).expect("written");
            assert!(sh.wait().expect("ended").success());
        }
    }
}
