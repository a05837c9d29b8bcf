//! The pipeline over recorded transactions, on their own clock.
//!
//! Inputs are read one after the other and lines in their order; nothing is sorted. A line that
//! is earlier than the one before it is judged like a response that took long: it counts while
//! it is within the window of what is known of its client, and not at all once it is older. So
//! give files in the order of their time. Guards of the host do not apply, since the recording
//! may be of another one; those of the configuration do.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;

use crate::config::Config;
use crate::decide::HostGuards;
use crate::detect::client;
use crate::finding::DetectorName;
use crate::pipeline::{Output, Pipeline};
use crate::time::Timestamp;
use crate::transaction::{Direction, Transaction};

mod lines;

#[cfg(test)]
mod tests;

pub use lines::MAX_LINE;

use lines::{Line, Lines};

/// Clients counted one by one for the summary; from there on it says "at least".
const MAX_COUNTED_ACTORS: usize = 2_000_000;

/// How often, on the recording's clock, what has expired is let go of.
const TICK: Duration = Duration::from_secs(1);

/// Files to write, as JSON Lines; what is there is replaced.
#[derive(Clone, Debug, Default)]
pub struct Outputs {
    pub decisions: Option<PathBuf>,
    pub findings: Option<PathBuf>,
}

/// What a replay came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Read, and judged unless this host was the client.
    pub transactions: u64,
    pub unreadable_lines: u64,
    /// Transactions earlier than one before them.
    pub out_of_order: u64,
    /// Different clients; see `actors_at_least`.
    pub actors: usize,
    /// Whether there were more clients than are counted one by one.
    pub actors_at_least: bool,
    /// From the earliest transaction to the latest, in seconds.
    pub span_s: f64,
    /// Transactions a second of the recording.
    pub rate_per_s: f64,
    /// What the replay took, in seconds of this machine's clock.
    pub elapsed_s: f64,
    /// Transactions a second of the replay.
    pub replayed_per_s: f64,
    pub findings: BTreeMap<&'static str, u64>,
    /// By action ([`crate::decision::Action::name`]).
    pub decisions: BTreeMap<&'static str, u64>,
}

/// Replays `inputs`, `-` being the standard input, and writes to `outputs`. Lines that can't be
/// read are named on `stderr` and counted, and the rest goes on.
///
/// # Errors
/// When an input can't be read or an output can't be written. All are opened, and an output that
/// is an input or the other output is refused, before anything is overwritten.
pub fn run(
    config: &Config,
    inputs: &[PathBuf],
    outputs: Outputs,
    stderr: &mut dyn Write,
) -> anyhow::Result<Summary> {
    let mut opened = Vec::new();
    for path in inputs {
        opened.push((path.display().to_string(), open(path)?));
    }
    refuse_overwriting(inputs, &outputs)?;
    let mut replay = Replay::new(config, &outputs)?;
    for (name, input) in opened {
        replay.input(&name, input, stderr)?;
    }
    replay.finish()
}

fn open(path: &Path) -> anyhow::Result<Box<dyn BufRead>> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin().lock()));
    }
    let file = File::open(path).with_context(|| format!("can't open {}", path.display()))?;
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        bail!("{} is a directory", path.display());
    }
    Ok(Box::new(BufReader::with_capacity(256 * 1024, file)))
}

/// Fails if an output is an input or the other output.
fn refuse_overwriting(inputs: &[PathBuf], outputs: &Outputs) -> anyhow::Result<()> {
    // Special files such as /dev/null may be named more than once.
    let identity = |path: &Path| {
        let metadata = fs::metadata(path).ok().filter(|metadata| metadata.is_file())?;
        Some((metadata.dev(), metadata.ino()))
    };
    let outputs: Vec<&PathBuf> = outputs.decisions.iter().chain(&outputs.findings).collect();
    for output in &outputs {
        let id = identity(output);
        if inputs.iter().any(|input| id.is_some() && identity(input) == id) {
            bail!("{} is an input and can't be an output", output.display());
        }
    }
    if let [one, other] = outputs[..] {
        let both = identity(one).is_some_and(|id| identity(other) == Some(id));
        if both || (one == other && identity(one).is_none() && !one.exists()) {
            bail!("{} can't hold both decisions and findings", one.display());
        }
    }
    Ok(())
}

/// A file that lines are written to.
struct Sink {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Sink {
    fn create(path: &Path) -> anyhow::Result<Self> {
        let file =
            File::create(path).with_context(|| format!("can't create {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file) })
    }

    fn write(&mut self, items: &[impl Serialize]) -> anyhow::Result<()> {
        let mut write = || -> anyhow::Result<()> {
            for item in items {
                serde_json::to_writer(&mut self.file, item)?;
                self.file.write_all(b"\n")?;
            }
            Ok(())
        };
        write().with_context(|| format!("can't write {}", self.path.display()))
    }

    fn finish(mut self) -> anyhow::Result<()> {
        self.file.flush().with_context(|| format!("can't write {}", self.path.display()))
    }
}

struct Replay<'a> {
    config: &'a Config,
    pipeline: Pipeline,
    out: Output,
    decisions: Option<Sink>,
    findings: Option<Sink>,
    actors: HashSet<IpAddr>,
    earliest: Timestamp,
    latest: Timestamp,
    next_tick: Timestamp,
    started: Instant,
    summary: Summary,
}

impl<'a> Replay<'a> {
    fn new(config: &'a Config, outputs: &Outputs) -> anyhow::Result<Self> {
        let sink = |path: &Option<PathBuf>| path.as_deref().map(Sink::create).transpose();
        Ok(Self {
            config,
            pipeline: Pipeline::new(Arc::new(config.clone()), HostGuards::default(), 0),
            out: Output::default(),
            decisions: sink(&outputs.decisions)?,
            findings: sink(&outputs.findings)?,
            actors: HashSet::new(),
            earliest: Timestamp::from_nanos(u64::MAX),
            latest: Timestamp::default(),
            next_tick: Timestamp::default(),
            started: Instant::now(),
            summary: Summary::default(),
        })
    }

    fn input(
        &mut self,
        name: &str,
        input: impl BufRead,
        stderr: &mut dyn Write,
    ) -> anyhow::Result<()> {
        let mut lines = Lines::new(input);
        let mut number = 0u64;
        loop {
            number = number.saturating_add(1);
            let line = lines.next().with_context(|| format!("can't read {name}:{number}"))?;
            match line {
                None => return Ok(()),
                Some(Line::Blank) => {}
                Some(Line::Transaction(tx)) => self.transaction(&tx)?,
                Some(Line::Unreadable(why)) => {
                    self.summary.unreadable_lines = self.summary.unreadable_lines.saturating_add(1);
                    // That the message can't be shown does not make the line readable: go on.
                    let _ = writeln!(stderr, "{name}:{number}: {why}");
                }
            }
        }
    }

    fn transaction(&mut self, tx: &Transaction) -> anyhow::Result<()> {
        let summary = &mut self.summary;
        summary.transactions = summary.transactions.saturating_add(1);
        if tx.ts < self.latest {
            summary.out_of_order = summary.out_of_order.saturating_add(1);
        }
        self.earliest = self.earliest.min(tx.ts);
        self.latest = self.latest.max(tx.ts);
        self.count_actor(tx);
        if tx.ts >= self.next_tick {
            self.pipeline.tick(tx.ts);
            self.next_tick = tx.ts.saturating_add(TICK);
        }
        self.pipeline.transaction(tx, &mut self.out);
        self.drain()
    }

    fn count_actor(&mut self, tx: &Transaction) {
        match tx.direction {
            Direction::In => {}
            Direction::Out => return,
        }
        let ip = client::actor_of(self.config, tx).ip;
        if self.actors.len() < MAX_COUNTED_ACTORS {
            self.actors.insert(ip);
        } else if !self.actors.contains(&ip) {
            self.summary.actors_at_least = true;
        }
    }

    /// Writes and counts what has come out.
    fn drain(&mut self) -> anyhow::Result<()> {
        if let Some(sink) = &mut self.findings {
            sink.write(&self.out.findings)?;
        }
        if let Some(sink) = &mut self.decisions {
            sink.write(&self.out.decisions)?;
        }
        for finding in self.out.findings.drain(..) {
            *self.summary.findings.entry(finding.detector.as_str()).or_default() += 1;
        }
        for decision in self.out.decisions.drain(..) {
            *self.summary.decisions.entry(decision.action.name()).or_default() += 1;
        }
        Ok(())
    }

    fn finish(mut self) -> anyhow::Result<Summary> {
        self.findings.take().map(Sink::finish).transpose()?;
        self.decisions.take().map(Sink::finish).transpose()?;
        let mut summary = self.summary;
        let transactions = summary.transactions as f64;
        let per = |seconds: f64| if seconds > 0.0 { transactions / seconds } else { 0.0 };
        summary.actors = self.actors.len();
        summary.span_s = self.latest.since(self.earliest).as_secs_f64();
        summary.rate_per_s = per(summary.span_s);
        summary.elapsed_s = self.started.elapsed().as_secs_f64();
        summary.replayed_per_s = per(summary.elapsed_s);
        for detector in DetectorName::ALL {
            summary.findings.entry(detector.as_str()).or_default();
        }
        for action in ["drop", "alert"] {
            summary.decisions.entry(action).or_default();
        }
        Ok(summary)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at_least = if self.actors_at_least { "at least " } else { "" };
        writeln!(
            f,
            "transactions  {} in {:.1} s of traffic ({:.1}/s), replayed in {:.2} s ({:.0}/s)",
            self.transactions, self.span_s, self.rate_per_s, self.elapsed_s, self.replayed_per_s
        )?;
        if self.out_of_order > 0 {
            writeln!(f, "out of order  {}", self.out_of_order)?;
        }
        writeln!(f, "unreadable    {} lines", self.unreadable_lines)?;
        writeln!(f, "actors        {at_least}{}", self.actors)?;
        let list = |counts: &BTreeMap<&str, u64>| {
            let all = counts.iter().map(|(name, count)| format!("{name} {count}"));
            all.collect::<Vec<_>>().join(", ")
        };
        writeln!(f, "findings      {}", list(&self.findings))?;
        write!(f, "decisions     {}", list(&self.decisions))
    }
}
