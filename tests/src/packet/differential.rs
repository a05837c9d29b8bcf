//! A program and the plain reference of the policy, side by side on many frames.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use portcullis_common::policy::Reason;

use super::corpus::Corpus;
use super::frame::ethertype;
use super::harness::{Hook, Input, Kernel, Verdict};
use super::random::Frames;

/// Frames between two looks at the kernel's counters.
const BATCH: usize = 1_024;

/// What the kernel takes for a test run: XDP frames of many pages, TC frames of one.
pub fn max_len(hook: Hook) -> usize {
    match hook {
        Hook::Xdp => 20_000,
        Hook::Tc | Hook::TcL3 => 3_500,
    }
}

/// A frame and what is to become of it.
struct Case {
    frame: Vec<u8>,
    linear: Option<usize>,
    expected: Reason,
}

impl Case {
    fn input(&self) -> Input<'_> {
        Input { linear: self.linear, ..(&self.frame).into() }
    }
}

/// One program, what was expected of it so far, and the frames since the last look at the
/// kernel's counters.
pub struct Comparison<'a, R> {
    hook: Hook,
    kernel: &'a Kernel,
    reference: R,
    /// Packets and bytes, in the order of [`Reason::ALL`].
    expected: [(u64, u64); Reason::ALL.len()],
    batch: Vec<Case>,
    frames: u64,
    kept_in: PathBuf,
}

impl<'a, R: FnMut(&[u8]) -> Reason> Comparison<'a, R> {
    /// The kernel must have judged nothing yet, and `reference` have its policy.
    pub fn new(hook: Hook, kernel: &'a Kernel, reference: R) -> Self {
        let expected = [(0, 0); Reason::ALL.len()];
        let batch = Vec::with_capacity(BATCH);
        Self { hook, kernel, reference, expected, batch, frames: 0, kept_in: regressions() }
    }

    /// Writes a frame that makes a difference there, not among the regressions.
    pub fn keeping_in(mut self, dir: PathBuf) -> Self {
        self.kept_in = dir;
        self
    }

    /// Frames that both have judged.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// How many frames had each reason.
    pub fn tally(&self) -> BTreeMap<&'static str, u64> {
        let names = Reason::ALL.iter().map(|reason| reason.name());
        names.zip(self.expected.iter().map(|(packets, _)| *packets)).collect()
    }

    /// Has both judge a frame of which `linear` bytes can be read in place, and returns what the
    /// reference says; `None` when the kernel cannot run the program on such a frame.
    ///
    /// # Errors
    /// When the verdicts differ, or the program has counted this or one of the last [`BATCH`]
    /// frames otherwise. The frame is then among the regressions.
    pub fn show(&mut self, frame: &[u8], linear: Option<usize>) -> Result<Option<Reason>> {
        if self.hook != Hook::Xdp && !tc_can_run(frame) {
            return Ok(None);
        }
        let expected = (self.reference)(frame);
        // No driver begins a second buffer so early and behind the packet; the programs count on it.
        let linear = linear.filter(|len| self.hook == Hook::Xdp && !holds_packet(&frame[..*len]));
        let case = Case { frame: frame.to_vec(), linear, expected };
        let (verdict, _) = self
            .kernel
            .run(self.hook, case.input())
            .with_context(|| format!("{:?} on {}", self.hook, hex(&case.frame)))?;
        if verdict != Verdict::of(expected) {
            return Err(self.difference(&case, &format!("the verdict is {verdict:?}")));
        }
        let count = self.expected.iter_mut().zip(Reason::ALL).find(|(_, other)| *other == expected);
        let (count, _) = count.context("a reason that is not in the list of all")?;
        *count = (count.0 + 1, count.1 + case.frame.len() as u64);
        self.frames += 1;
        self.batch.push(case);
        if self.batch.len() == BATCH {
            self.check()?;
        }
        Ok(Some(expected))
    }

    /// Compares the counters, and looks for the culprit if they differ.
    pub fn check(&mut self) -> Result<()> {
        let counted = self.kernel.loaded.reasons.all()?;
        let agree = counted
            .iter()
            .zip(&self.expected)
            .all(|(found, expected)| (found.packets, found.bytes) == *expected);
        if agree {
            self.batch.clear();
            return Ok(());
        }
        for case in self.batch.iter().filter(|case| !depends_on_others(case.expected)) {
            match self.kernel.judge(self.hook, case.input()) {
                Ok((_, reason)) if reason == case.expected => {}
                Ok((_, reason)) => {
                    return Err(self.difference(case, &format!("it is counted as {reason:?}")));
                }
                Err(error) => return Err(self.difference(case, &format!("{error:#}"))),
            }
        }
        let last = self.frames;
        bail!(
            "{:?}: some of the frames {} to {last} were counted otherwise, but none of them is \
             when it comes alone: the counters are {counted:?}, not {:?}",
            self.hook,
            last - self.batch.len() as u64,
            self.tally()
        )
    }

    fn difference(&self, case: &Case, found: &str) -> anyhow::Error {
        let Case { frame, linear, expected } = case;
        let kept = keep(&self.kept_in, self.hook, frame)
            .map_or_else(|error| format!("not kept: {error:#}"), |path| path.display().to_string());
        anyhow::anyhow!(
            "{:?}, frame {} ({kept}), first {linear:?} bytes in place: expected {expected:?}, but \
             {found}: {}",
            self.hook,
            self.frames,
            hex(frame)
        )
    }
}

/// Whether the IP packet ends within `first`, the beginning of a frame.
fn holds_packet(first: &[u8]) -> bool {
    let number = |at: usize| Some(u16::from_be_bytes([*first.get(at)?, *first.get(at + 1)?]));
    let mut at = 12;
    while matches!(number(at), Some(0x8100 | 0x88a8 | 0x9100)) {
        at += 4;
    }
    let network = at + 2;
    let len = match number(at) {
        Some(0x0800) => number(network + 2),
        Some(0x86dd) => number(network + 4).map(|payload| payload.saturating_add(40)),
        _ => None,
    };
    len.is_some_and(|len| network + usize::from(len) <= first.len())
}

/// Whether it says something of earlier frames too, so that the kernel says otherwise if asked again.
fn depends_on_others(reason: Reason) -> bool {
    matches!(reason, Reason::PassWithinLimit | Reason::DropLimited)
}

/// An endless mixture of new frames and of mutants of those met.
pub struct Mixture {
    frames: Frames,
    corpus: Corpus,
}

impl Mixture {
    /// `frames` and `seed` decide what comes.
    pub fn new(frames: Frames, seed: u64) -> Self {
        Self { frames, corpus: Corpus::new(seed) }
    }

    pub fn corpus_len(&self) -> usize {
        self.corpus.len()
    }

    /// A frame, and how much of it to lay in the first buffer.
    pub fn next_frame(&mut self, number: u64) -> (Vec<u8>, Option<usize>) {
        let mutant = match number % 3 {
            0 => None,
            _ => self.corpus.mutant(self.frames.max_len),
        };
        let frame = mutant.unwrap_or_else(|| self.frames.next_frame());
        let linear = self.frames.linear(frame.len());
        (frame, linear)
    }

    /// Takes note of what became of a frame.
    pub fn met(&mut self, frame: &[u8], reason: Reason) {
        self.corpus.offer(frame, reason);
    }
}

/// The kernel itself refuses a frame on its way to a TC test run when it is said to hold an IP
/// header and does not.
pub fn tc_can_run(frame: &[u8]) -> bool {
    let header = match frame.get(12..14) {
        Some(kind) if kind == ethertype::IPV4.to_be_bytes() => 20,
        Some(kind) if kind == ethertype::IPV6.to_be_bytes() => 40,
        _ => 1,
    };
    frame.len() >= 14 + header
}

/// Where frames lie that a program and the reference once disagreed on; each is a file.
pub fn regressions() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/regressions/policy")
}

/// Where frames lie that the mutation begins with.
pub fn seeds() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/policy")
}

/// The frames of a directory, by name; none when there is no such directory.
pub fn frames_in(dir: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut frames = BTreeMap::new();
    if dir.exists() {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            frames.insert(path.clone(), fs::read(path)?);
        }
    }
    Ok(frames)
}

/// Writes the frame into `dir`.
fn keep(dir: &Path, hook: Hook, frame: &[u8]) -> Result<PathBuf> {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    frame.hash(&mut hasher);
    let hook = match hook {
        Hook::Xdp => "xdp",
        Hook::Tc => "tc",
        Hook::TcL3 => "tc-l3",
    };
    fs::create_dir_all(dir)?;
    let path = dir.join(format!("{hook}-{:016x}", hasher.finish()));
    fs::write(&path, frame)?;
    Ok(path)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
