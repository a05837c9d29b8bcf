//! Programs that never outlive the laboratory.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::Host;
use crate::wait;

const PATIENCE: Duration = Duration::from_secs(10);

/// A running program; killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output in `log`.
    ///
    /// The kernel kills it when the *thread* that called this ends: start processes on a thread
    /// that lives as long as they should, not inside [`crate::netns::in_namespace`].
    pub fn spawn(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let file = fs::File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        tie_to_this_thread(&mut command);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { child, name, log: log.to_owned() })
    }

    pub fn pid(&self) -> Pid {
        pid_of(&self.child)
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill(self.pid(), signal).with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    pub fn exited(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot ask for {}", self.name))
    }

    /// An error with its last output if it has ended.
    pub fn must_run(&mut self) -> anyhow::Result<()> {
        match self.exited()? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status}):\n{}", self.name, self.log()),
        }
    }

    /// Waits at most `limit` until it accepts connections from `host` at `address`.
    pub fn wait_until_it_accepts(
        &mut self,
        limit: Duration,
        host: &Host,
        address: SocketAddr,
    ) -> anyhow::Result<()> {
        let what = format!("{} to accept connections", self.name);
        host.run(|| {
            wait::until(limit, &what, || {
                self.must_run()?;
                Ok(TcpStream::connect(address).ok())
            })
        })?;
        Ok(())
    }

    /// Waits at most `limit` until it has printed `text`.
    pub fn wait_until_it_says(&mut self, limit: Duration, text: &str) -> anyhow::Result<()> {
        let what = format!("{} to say {text:?}", self.name);
        wait::until(limit, &what, || {
            self.must_run()?;
            Ok(self.log().contains(text).then_some(()))
        })
    }

    /// Waits at most `limit` for its end.
    pub fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        wait::until(limit, &what, || self.exited())
    }

    /// Asks it to end and waits.
    pub fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        if self.exited()?.is_none() {
            self.signal(Signal::SIGTERM)?;
        }
        self.wait(PATIENCE)
    }

    /// Ends it without asking, and waits: nothing of it runs any more.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().with_context(|| format!("cannot kill {}", self.name))?;
        let status = self.child.wait()?;
        match status.signal() {
            Some(_) => Ok(()),
            None => bail!("{} had ended by itself ({status}):\n{}", self.name, self.log()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The kernel will kill what `command` starts when the calling thread ends, even by SIGKILL.
/// Ctrl-C on the terminal does not reach it: the laboratory ends it in order.
pub fn tie_to_this_thread(command: &mut Command) {
    let parent = nix::unistd::getpid();
    command.process_group(0);
    // SAFETY: between fork and exec the closure makes only system calls (prctl, getppid) and
    // allocates nothing.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have died before the line above.
            if nix::unistd::getppid() == parent {
                Ok(())
            } else {
                Err(std::io::ErrorKind::Interrupted.into())
            }
        });
    }
}

/// Processes whose parent is `pid`.
pub fn children(pid: Pid) -> Vec<Pid> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
}

/// Whether any thread of `pid` still runs; one that has ended may wait for its parent to notice.
pub fn is_running(pid: Pid) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // proc_pid_stat(5): the state follows the name, which is in parentheses.
    let ended = stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']));
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    !ended || threads > 1
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("process numbers are below 2^22"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> (tempfile::TempDir, Process) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let process = Process::spawn(command, &dir.path().join("log")).expect("there is a shell");
        (dir, process)
    }

    fn is_alive(pid: Pid) -> bool {
        kill(pid, None).is_ok()
    }

    #[test]
    fn an_early_end_shows_its_last_words() {
        let (_dir, mut process) = sh("echo broken; exit 3");
        let status = process.wait(PATIENCE).expect("ends");
        assert_eq!(status.code(), Some(3));
        let error = process.must_run().expect_err("ended").to_string();
        assert!(error.contains("broken"), "{error}");
    }

    #[test]
    fn dropping_kills() {
        let (_dir, process) = sh("exec sleep 1000");
        let pid = process.pid();
        assert!(is_alive(pid) && is_running(pid));
        drop(process);
        assert!(!is_alive(pid) && !is_running(pid));
    }

    #[test]
    fn one_that_ended_unnoticed_does_not_run() {
        let (_dir, process) = sh("exit 0");
        let pid = process.pid();
        wait::until(PATIENCE, "the end", || Ok((!is_running(pid)).then_some(()))).expect("ends");
        assert!(is_alive(pid), "nobody has asked for its status");
    }

    #[test]
    fn dies_with_the_thread_that_started_it() {
        let (_dir, mut process) =
            std::thread::spawn(|| sh("exec sleep 1000")).join().expect("started");
        let status = process.wait(PATIENCE).expect("killed by the kernel");
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
    }
}
