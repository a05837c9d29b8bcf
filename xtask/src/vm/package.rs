//! Debian packages, unpacked into the user's cache without being installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::exec::{self, UserMustAct};
use crate::setup;

/// An unpacked package.
pub struct Unpacked {
    /// With its version, as `NAME=VERSION`.
    pub package: String,
    pub dir: PathBuf,
}

/// Debian's stock kernel of a line of versions such as "6.1".
pub fn kernel(line: &str) -> anyhow::Result<Unpacked> {
    let package = match newest(line) {
        Some(package) => package,
        None => {
            update()?;
            newest(line).ok_or_else(|| unknown(line))?
        }
    };
    let unpacked = unpack(&package, &format!("linux-{line}"))?;
    let modules = unpacked.dir.join("lib/modules");
    if !modules.join(release(&package)).join("modules.dep.bin").is_file() {
        let mut depmod = Command::new(program("depmod")?);
        exec::run(depmod.arg("--basedir").arg(&unpacked.dir).arg(release(&package)))?;
    }
    Ok(unpacked)
}

/// A program of one package, unpacked as kernels are.
pub fn unpacked_program(package: &str, path: &str) -> anyhow::Result<PathBuf> {
    let version = match field(package, "Version") {
        Some(version) => version,
        None => {
            update()?;
            field(package, "Version").with_context(|| format!("apt knows no package {package}"))?
        }
    };
    Ok(unpack(&format!("{package}={version}"), package)?.dir.join(path))
}

/// The version that the kernel of a package calls itself (`uname -r`).
pub fn release(package: &str) -> &str {
    let name = package.split_once('=').map_or(package, |(name, _)| name);
    name.strip_prefix("linux-image-").unwrap_or(name)
}

pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    exec::find_program(name).with_context(|| format!("there is no program {name}"))
}

/// The package that Debian's meta-package for a line depends on. The release's own kernel has a
/// meta-package without a version.
fn newest(line: &str) -> Option<String> {
    [format!("linux-image-{line}-amd64"), "linux-image-amd64".to_owned()]
        .iter()
        .filter_map(|meta| image(&field(meta, "Depends")?))
        .find(|package| is_of_line(package, line))
}

/// `linux-image-6.1.0-1-amd64 (= 6.1.2-3)` of a list of dependencies, as `NAME=VERSION`.
fn image(depends: &str) -> Option<String> {
    let dependency =
        depends.split(',').map(str::trim).find(|name| name.starts_with("linux-image-"))?;
    let (name, version) = dependency.split_once(" (= ")?;
    Some(format!("{name}={}", version.strip_suffix(')')?))
}

fn is_of_line(package: &str, line: &str) -> bool {
    let rest = release(package).strip_prefix(line);
    rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn unknown(line: &str) -> UserMustAct {
    let mut search = Command::new("apt-cache");
    search.args(["search", "--names-only", r"^linux-image-([0-9]+\.[0-9]+-)?amd64$"]);
    let packages = exec::output(&mut search).unwrap_or_default();
    UserMustAct(format!("Debian's archive has no kernel {line} here; it has\n{packages}"))
}

/// A field of the version of a package that apt would install.
fn field(package: &str, name: &str) -> Option<String> {
    let mut show = Command::new("apt-cache");
    show.args(["--no-all-versions", "show", package]);
    let record = exec::output(&mut show)?;
    let line = record.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    line.map(ToOwned::to_owned)
}

fn update() -> anyhow::Result<()> {
    exec::run(Command::new("apt-get").args(["--quiet", "update"]))
}

/// Downloads and unpacks `package` (`NAME=VERSION`) into the place called `name`, unless it is
/// there; another version that is there goes.
fn unpack(package: &str, name: &str) -> anyhow::Result<Unpacked> {
    let place = setup::cache_dir()?.join("packages").join(name);
    let (stamp, dir) = (place.join("package"), place.join("root"));
    let unpacked = Unpacked { package: package.to_owned(), dir };
    if fs::read_to_string(&stamp).is_ok_and(|text| text == package) {
        return Ok(unpacked);
    }
    eprintln!("xtask: downloading Debian's {package} into {} (once)", place.display());
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    fs::create_dir_all(&place)?;
    let mut apt = Command::new("apt-get");
    exec::run(apt.current_dir(&place).args(["--quiet", "download", package]))?;
    let archive = downloaded(&place)?;
    exec::run(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&unpacked.dir))?;
    fs::remove_file(&archive)?;
    // Last: without it, what is there is taken for unfinished.
    fs::write(&stamp, package)?;
    Ok(unpacked)
}

fn downloaded(dir: &Path) -> anyhow::Result<PathBuf> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            return Ok(path);
        }
    }
    bail!("apt-get downloaded nothing into {}", dir.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_of_a_meta_package_is_found() {
        let depends = "initramfs-tools (>= 0.1), linux-image-6.1.0-56-amd64 (= 6.1.192-2)";
        let package = image(depends).expect("a kernel");
        assert_eq!(package, "linux-image-6.1.0-56-amd64=6.1.192-2");
        assert_eq!(release(&package), "6.1.0-56-amd64");
        assert_eq!(image("initramfs-tools (>= 0.1)"), None);
    }

    #[test]
    fn one_line_is_not_the_beginning_of_another() {
        assert!(is_of_line("linux-image-6.1.0-56-amd64=6.1.192-2", "6.1"));
        assert!(is_of_line("linux-image-6.12.1+deb12-amd64=6.12.1-1", "6.12"));
        assert!(!is_of_line("linux-image-6.12.1+deb12-amd64=6.12.1-1", "6.1"));
    }
}
