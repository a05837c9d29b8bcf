//! What can be wrong with a configuration, and where.

use std::fmt;
use std::ops::Range;

use serde::Serialize;

use super::types::Config;

/// One mistake, or one thing that works but is hardly meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub file: String,
    /// From 1; `None` when the mistake is about the file as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// From 1, in characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
    /// Dotted path of the key, entries of a list by their number from 0; empty for mistakes in
    /// the TOML itself.
    pub key: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        for number in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{number}")?;
        }
        f.write_str(": ")?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that is wrong with a configuration, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Invalid {
    pub problems: Vec<Problem>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}

/// A configuration that holds, with what its writer should still look at.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    pub config: Config,
    pub warnings: Vec<Problem>,
}

/// The text of a configuration file, to find lines and columns in.
pub(super) struct Source<'a> {
    pub(super) file: &'a str,
    text: &'a str,
    line_starts: Vec<usize>,
}

impl<'a> Source<'a> {
    pub(super) fn new(file: &'a str, text: &'a str) -> Self {
        let after_newlines = text.match_indices('\n').map(|(at, _)| at.saturating_add(1));
        Self { file, text, line_starts: std::iter::once(0).chain(after_newlines).collect() }
    }

    /// The line that byte `offset` is on, from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    pub(super) fn slice(&self, span: Range<usize>) -> &'a str {
        self.text.get(span).unwrap_or_default()
    }

    /// The text of the line that byte `offset` is on.
    pub(super) fn line_text(&self, offset: usize) -> &'a str {
        self.text.lines().nth(self.line(offset).saturating_sub(1)).unwrap_or_default()
    }

    /// A problem at byte `offset`.
    pub(super) fn problem(&self, offset: usize, key: &str, message: String) -> Problem {
        let line = self.line(offset);
        let start = self.line_starts.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let before = self.text.get(start..offset).unwrap_or_default();
        let before = before.trim_start_matches('\u{feff}');
        Problem {
            file: self.file.to_owned(),
            line: Some(line),
            column: Some(before.chars().count().saturating_add(1)),
            key: key.to_owned(),
            message,
        }
    }
}
