//! One run of a virtual machine.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::package;

/// Who executes the machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Accel {
    /// QEMU itself, anywhere and slowly
    Tcg,
    /// The host's processor, where it can
    Kvm,
}

/// Lines of the kernel's console that are shown when a run fails.
const CONSOLE_LINES: usize = 40;

pub struct Machine<'a> {
    pub kernel: &'a Path,
    pub initrd: &'a Path,
    pub accel: Accel,
    /// Where the kernel's console is written.
    pub console: PathBuf,
    /// After so long it is switched off.
    pub limit: Duration,
}

impl Machine<'_> {
    /// Runs until it powers off; each line of the second serial line goes to `on_line`.
    ///
    /// # Errors
    /// When it cannot be started, ends otherwise, or exceeds its limit.
    pub fn run(&self, on_line: impl FnMut(&str)) -> anyhow::Result<()> {
        let mut qemu = self.qemu()?;
        let mut child = qemu
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", qemu.get_program().display()))?;
        let result = follow(lines_of(&mut child)?, self.limit, on_line);
        if result.is_err() {
            // It may have ended meanwhile.
            let _ = child.kill();
        }
        let status = child.wait()?;
        result?;
        if !status.success() {
            bail!("QEMU ended with {status}");
        }
        Ok(())
    }

    fn qemu(&self) -> anyhow::Result<Command> {
        let (accel, cpu) = match self.accel {
            // One processor at a time: QEMU (7.2, at least) can execute an instruction that the
            // other one has replaced meanwhile, as kernels do with tracepoints, and the kernel
            // panics.
            Accel::Tcg => ("tcg,thread=single", "max"),
            Accel::Kvm => ("kvm", "host"),
        };
        let mut qemu = Command::new(package::program("qemu-system-x86_64")?);
        qemu.args(["-accel", accel, "-cpu", cpu, "-machine", "q35", "-smp", "2", "-m", "2G"]);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        qemu.arg("-kernel").arg(self.kernel).arg("-initrd").arg(self.initrd);
        // A panic restarts the machine, which `-no-reboot` makes its end.
        qemu.args(["-append", "console=ttyS0 panic=-1"]);
        qemu.arg("-serial").arg(format!("file:{}", self.console.display()));
        qemu.args(["-chardev", "stdio,id=tests,signal=off", "-serial", "chardev:tests"]);
        let root = "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap";
        qemu.args(["-virtfs", root]);
        Ok(qemu)
    }

    /// The last the kernel said.
    pub fn console_tail(&self) -> String {
        let console = fs::read(&self.console).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = console.lines().collect();
        lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
    }
}

fn lines_of(child: &mut Child) -> anyhow::Result<Receiver<String>> {
    let stdout = child.stdout.take().context("QEMU has no stdout")?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n') {
            let Ok(line) = line else { return };
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    Ok(lines)
}

/// Until there are no more lines, or for as long as `limit`.
fn follow(
    lines: Receiver<String>,
    limit: Duration,
    mut on_line: impl FnMut(&str),
) -> anyhow::Result<()> {
    let end = Instant::now() + limit;
    loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => on_line(&line),
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                bail!("the machine was still running after {} s", limit.as_secs())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_goes_on_is_ended() {
        let (sender, lines) = mpsc::channel();
        sender.send("a line".to_owned()).expect("room");
        let mut seen = Vec::new();
        let error = follow(lines, Duration::ZERO, |line| seen.push(line.to_owned()));
        assert!(error.expect_err("no end").to_string().contains("still running"));
        assert_eq!(seen, ["a line"]);
        drop(sender);
    }

    #[test]
    fn the_end_of_the_lines_is_the_end() {
        let (sender, lines) = mpsc::channel();
        drop(sender);
        follow(lines, Duration::ZERO, |_| ()).expect("ended");
    }
}
