//! Debian packages.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};

use crate::exec::{self, UserMustAct};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub package: &'static str,
    /// Completes the sentence "PACKAGE …".
    pub why: &'static str,
}

/// Those of `wanted` that dpkg does not have.
pub fn missing(wanted: &[Wanted]) -> Vec<Wanted> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${binary:Package} ${db:Status-Status}\n"]);
    query.args(wanted.iter().map(|wanted| wanted.package));
    // dpkg-query fails when it does not know one of them, and still prints the others.
    let known = query.output().map(|output| output.stdout).unwrap_or_default();
    let known = String::from_utf8_lossy(&known);
    wanted.iter().copied().filter(|wanted| !is_installed(&known, wanted.package)).collect()
}

fn is_installed(query_output: &str, package: &str) -> bool {
    query_output.lines().filter_map(|line| line.split_once(' ')).any(|(name, status)| {
        // A multi-arch package is shown as `name:architecture`.
        name.split(':').next() == Some(package) && status == "installed"
    })
}

/// Installs `wanted`, saying what and why; does nothing when it is empty.
pub fn install(wanted: &[Wanted]) -> anyhow::Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = wanted.iter().map(|wanted| wanted.package).collect();
    let list = wanted
        .iter()
        .map(|wanted| format!("\n  {:<24} {}", wanted.package, wanted.why))
        .collect::<String>();
    let Some(apt) = exec::find_program("apt-get") else {
        return Err(UserMustAct(format!(
            "this machine has no apt-get; install what these Debian packages hold:{list}"
        ))
        .into());
    };
    if !exec::is_root() {
        return Err(UserMustAct(format!(
            "these Debian packages are missing, and installing them needs root:{list}\n\
             run `sudo apt-get install {}`, or xtask as root",
            names.join(" ")
        ))
        .into());
    }
    eprintln!("xtask: installing Debian packages:{list}");
    let interrupted = hold_interrupts()?;
    let starts_services = names.contains(&"nginx");
    let policy = starts_services.then(NoServiceStarts::begin).transpose()?.flatten();
    let result = apt_get(&apt, &["update"]).and_then(|()| {
        apt_get(&apt, &[&["install", "--yes", "--no-install-recommends"], &names[..]].concat())
    });
    drop(policy);
    if interrupted.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    result?;
    if starts_services { never_start_at_boot("nginx.service") } else { Ok(()) }
}

fn apt_get(apt: &Path, args: &[&str]) -> anyhow::Result<()> {
    exec::run(
        Command::new(apt)
            .env("DEBIAN_FRONTEND", "noninteractive")
            // Wait for another apt instead of failing.
            .args(["--quiet", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"])
            .args(args),
    )
}

/// From here on Ctrl-C ends apt-get, and xtask only after it has cleaned up.
fn hold_interrupts() -> anyhow::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .context("cannot handle signals")?;
    }
    Ok(interrupted)
}

/// The server is for the laboratory, which starts its own; the host's ports stay as they were.
fn never_start_at_boot(unit: &str) -> anyhow::Result<()> {
    if !super::exists("/run/systemd/system") {
        return Ok(());
    }
    eprintln!("xtask: disabling {unit}: the laboratory starts its own");
    exec::run(Command::new("systemctl").args(["--quiet", "disable", unit]))
}

/// While it lives, packages being installed do not start their services.
/// <https://people.debian.org/~hmh/invokerc.d-policyrc.d-specification.txt>
struct NoServiceStarts {
    path: PathBuf,
}

const POLICY: &str =
    "#!/bin/sh\n# Made by Portcullis' `cargo xtask setup` while it installs packages.\nexit 101\n";

impl NoServiceStarts {
    fn begin() -> anyhow::Result<Option<Self>> {
        Self::begin_at(Path::new("/usr/sbin/policy-rc.d"))
    }

    /// `None` when the administrator has a policy already: that one holds.
    fn begin_at(path: &Path) -> anyhow::Result<Option<Self>> {
        // One left over by a set-up that was killed.
        if fs::read_to_string(path).is_ok_and(|text| text == POLICY) {
            return Ok(Some(Self { path: path.to_owned() }));
        }
        match OpenOptions::new().write(true).create_new(true).mode(0o755).open(path) {
            Ok(mut file) => {
                let policy = Self { path: path.to_owned() };
                file.write_all(POLICY.as_bytes())?;
                Ok(Some(policy))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot write {}", path.display())),
        }
    }
}

impl Drop for NoServiceStarts {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            eprintln!("xtask: remove {} yourself: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "libzstd-dev:amd64 installed\nnginx installed\nwrk config-files\n";

    #[test]
    fn reads_dpkgs_answer() {
        assert!(is_installed(OUTPUT, "libzstd-dev"));
        assert!(is_installed(OUTPUT, "nginx"));
        assert!(!is_installed(OUTPUT, "wrk"), "only its configuration is left");
        assert!(!is_installed(OUTPUT, "libzstd"));
    }

    #[test]
    fn nothing_wanted_nothing_run() {
        install(&[]).expect("nothing to do");
    }

    #[test]
    fn policy_is_gone_afterwards_and_never_replaces_another() {
        let dir = std::env::temp_dir().join(format!("xtask-policy-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("temporary directory");
        let path = dir.join("policy-rc.d");

        let policy = NoServiceStarts::begin_at(&path).expect("writable").expect("made");
        assert!(NoServiceStarts::begin_at(&path).expect("readable").is_some(), "ours, left over");
        assert!(!path.exists(), "the second one has ended");
        fs::write(&path, POLICY).expect("writable");
        drop(policy);
        assert!(!path.exists());

        fs::write(&path, "#!/bin/sh\nexit 0\n").expect("writable");
        assert!(NoServiceStarts::begin_at(&path).expect("readable").is_none());
        assert!(path.exists());
        fs::remove_dir_all(&dir).expect("removable");
    }
}
