//! The event log: one JSON object a line, in a file that may be rotated under the agent.
//!
//! Every line has `event`, its kind, and `ts`, seconds since the epoch. Findings, decisions and
//! lifts are written in their own formats with `event` added. No line holds a value from a
//! request.
//!
//! Writing never fails and never stops the agent: what could not be written is counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::decision::{Decision, Lift, Mode};
use crate::finding::Finding;
use crate::rule::Target;
use crate::time::Timestamp;

use super::snapshot::EventLogCount;

/// Mode of a log file that the agent creates.
const FILE_MODE: u32 = 0o640;
/// How long after a rotation the old file may still be written to.
const ROTATION_CHECK: Duration = Duration::from_secs(1);

/// What is worth a line.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    Start {
        ts: Timestamp,
        version: &'a str,
        pid: u32,
        mode: Mode,
        interfaces: &'a [String],
    },
    Stop {
        ts: Timestamp,
        reason: &'a str,
    },
    Finding(&'a Finding),
    Decision(&'a Decision),
    /// A decision ended before its time.
    Lift(&'a Lift),
    /// The first packet that a block dropped.
    FirstDrop {
        ts: Timestamp,
        /// The decision behind the block.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        target: Target,
        /// From the decision to the packet.
        #[serde(skip_serializing_if = "Option::is_none")]
        after_ms: Option<f64>,
    },
    /// Connections of a client that is now blocked were closed.
    SocketsClosed {
        ts: Timestamp,
        /// The decision behind it.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        closed: u64,
        /// Connections that the kernel would not close.
        failed: u64,
    },
    /// An operator's command through the control socket.
    Operator {
        ts: Timestamp,
        uid: u32,
        command: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        target: Option<Target>,
        /// As the operator gave it.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'a str>,
        ok: bool,
    },
    /// An interface has its program.
    Attach {
        ts: Timestamp,
        interface: &'a str,
        /// Absent for the agent's own.
        #[serde(skip_serializing_if = "Option::is_none")]
        namespace: Option<&'a Path>,
        hook: &'a str,
        /// In the place of an earlier agent's, or under another name than before.
        taken_over: bool,
        /// Why better hooks were not to be had.
        #[serde(skip_serializing_if = "<[String]>::is_empty")]
        passed_over: &'a [String],
    },
    /// An interface has its program no more, most often because it has gone.
    Detach {
        ts: Timestamp,
        interface: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        namespace: Option<&'a Path>,
        reason: &'a str,
    },
    /// An interface that is there could not be given a program.
    AttachFailed {
        ts: Timestamp,
        interface: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        namespace: Option<&'a Path>,
        reason: &'a str,
    },
    /// The configuration was read again.
    Reload {
        ts: Timestamp,
        ok: bool,
        /// What was wrong with it, or what a reload cannot change.
        messages: &'a [String],
    },
    /// More of something was lost since the last such line.
    Loss {
        ts: Timestamp,
        name: &'a str,
        events: u64,
        bytes: u64,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("can't write the event log {path}: the directory {dir} does not exist")]
    NoDirectory { path: PathBuf, dir: PathBuf },
    #[error("can't write the event log {path}")]
    Open { path: PathBuf, source: io::Error },
}

/// Where events go: a file, or the journal when none is configured.
#[derive(Debug)]
pub struct EventLog {
    file: Option<LogFile>,
    count: EventLogCount,
}

#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    /// `None`: the path could not be opened again after a rotation; tried again at each check.
    open: Option<OpenFile>,
    next_check: Timestamp,
    failing: bool,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    dev: u64,
    inode: u64,
    /// The file ends within a line, so the next one begins with a newline.
    torn: bool,
}

impl EventLog {
    /// Events are appended to the file at `path`, created with mode 0640 when missing.
    ///
    /// # Errors
    /// When the file cannot be opened for appending, or its directory does not exist.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let file = LogFile {
            path: path.to_owned(),
            open: Some(OpenFile::new(path)?),
            next_check: Timestamp::default(),
            failing: false,
        };
        Ok(Self { file: Some(file), count: EventLogCount::default() })
    }

    /// Events go to the journal, as messages of level info.
    pub fn journal() -> Self {
        Self { file: None, count: EventLogCount::default() }
    }

    /// Writes one event. `now` says when to look whether the file has been rotated.
    pub fn append(&mut self, now: Timestamp, event: &Event<'_>) {
        let written = match (serde_json::to_vec(event), &mut self.file) {
            (Ok(line), Some(file)) => file.append(now, line),
            (Ok(line), None) => {
                tracing::info!(target: "portcullis::event", "{}", String::from_utf8_lossy(&line));
                true
            }
            (Err(error), _) => {
                tracing::error!(%error, "an event could not be written as JSON");
                false
            }
        };
        let counter = if written { &mut self.count.written } else { &mut self.count.failed };
        *counter = counter.saturating_add(1);
    }

    /// Opens the path again, as after a rotation.
    ///
    /// # Errors
    /// As [`EventLog::open`]; the file that was open before stays in use.
    pub fn reopen(&mut self) -> Result<(), OpenError> {
        if let Some(file) = &mut self.file {
            file.open = Some(OpenFile::new(&file.path)?);
        }
        Ok(())
    }

    /// The file written to; `None` for the journal.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| file.path.as_path())
    }

    pub fn count(&self) -> EventLogCount {
        self.count
    }
}

impl LogFile {
    fn append(&mut self, now: Timestamp, line: Vec<u8>) -> bool {
        if now >= self.next_check {
            self.next_check = now.saturating_add(ROTATION_CHECK);
            self.follow_rotation();
        }
        let Some(open) = &mut self.open else { return false };
        let result = write_line(&mut open.file, &mut open.torn, line);
        if let Err(error) = &result
            && !self.failing
        {
            // Once per failure, not once per event: a full disk must not flood the journal too.
            tracing::error!(path = %self.path.display(), %error, "the event log can't be written");
        }
        self.failing = result.is_err();
        result.is_ok()
    }

    fn follow_rotation(&mut self) {
        if self.open.as_ref().is_some_and(|open| open.is_at(&self.path)) {
            return;
        }
        match OpenFile::new(&self.path) {
            Ok(open) => self.open = Some(open),
            // Whatever is still open is better than nothing.
            Err(error) => {
                if !self.failing {
                    tracing::error!(%error, "the event log can't be opened again");
                }
                self.failing = true;
            }
        }
    }
}

impl OpenFile {
    fn new(path: &Path) -> Result<Self, OpenError> {
        let fail = |source: io::Error| match path.parent() {
            Some(dir)
                if source.kind() == io::ErrorKind::NotFound
                    && !dir.as_os_str().is_empty()
                    && !dir.exists() =>
            {
                OpenError::NoDirectory { path: path.to_owned(), dir: dir.to_owned() }
            }
            _ => OpenError::Open { path: path.to_owned(), source },
        };
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(FILE_MODE)
            .open(path)
            .map_err(fail)?;
        let about = file.metadata().map_err(fail)?;
        let torn = about.is_file() && ends_within_line(&mut file).map_err(fail)?;
        Ok(Self { file, dev: about.dev(), inode: about.ino(), torn })
    }

    fn is_at(&self, path: &Path) -> bool {
        std::fs::metadata(path)
            .is_ok_and(|there| (there.dev(), there.ino()) == (self.dev, self.inode))
    }
}

/// Appends the line, with one write when the file system allows it, so that lines of several
/// writers do not mix. `torn` says whether the file ends within a line, before and after.
fn write_line(out: &mut impl Write, torn: &mut bool, mut line: Vec<u8>) -> io::Result<()> {
    line.push(b'\n');
    if *torn {
        line.insert(0, b'\n');
    }
    let mut rest = line.as_slice();
    while !rest.is_empty() {
        match out.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                *torn = rest.get(..written).and_then(<[u8]>::last) != Some(&b'\n');
                rest = rest.get(written..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether the last byte is something else than a newline, as after a crash or a full disk.
fn ends_within_line(file: &mut File) -> io::Result<bool> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

#[cfg(test)]
mod tests;
