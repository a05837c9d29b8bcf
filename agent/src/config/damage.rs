//! Mistakes in the TOML itself, and what can still be said about the rest of such a file.

use std::collections::HashSet;

use toml::de::Error;

use super::problem::{Problem, Source};

pub(super) struct Damage {
    /// One for each damaged line.
    pub(super) problems: Vec<Problem>,
    lines: HashSet<usize>,
    /// The text of the damaged lines.
    text: String,
    /// The first line from which on keys may seem to belong where they do not.
    shifted_from: Option<usize>,
}

impl Damage {
    pub(super) fn new(errors: &[Error], source: &Source) -> Self {
        let starts = || errors.iter().map(|error| (error, error.span().unwrap_or_default().start));
        let text: Vec<&str> = starts().map(|(_, start)| source.line_text(start)).collect();
        let shifted = starts().filter(|(error, start)| shifts(error, source.line_text(*start)));
        Self {
            problems: problems(errors, source),
            lines: starts().map(|(_, start)| source.line(start)).collect(),
            text: text.join("\n"),
            shifted_from: shifted.map(|(_, start)| source.line(start)).min(),
        }
    }

    /// Whether a key that was not found is not in the file either.
    pub(super) fn absent_is_certain(&self, key: &str) -> bool {
        let last = key.rsplit_once('.').map_or(key, |(_, last)| last);
        self.shifted_from.is_none() && !self.text.contains(last)
    }

    /// Whether `problem` is more than a consequence of the damage.
    pub(super) fn spares(&self, problem: &Problem) -> bool {
        problem.line.is_some_and(|line| {
            self.shifted_from.is_none_or(|from| line < from) && !self.lines.contains(&line)
        })
    }
}

/// Whether a mistake can change which table later keys belong to.
fn shifts(error: &Error, line: &str) -> bool {
    let message = error.message();
    line.trim_start().starts_with('[')
        || ["unclosed", "missing comma"].iter().any(|start| message.starts_with(start))
        || message.contains("multi-line")
}

/// The first mistake of each line: a second one mostly follows from it.
fn problems(errors: &[Error], source: &Source) -> Vec<Problem> {
    let mut problems: Vec<Problem> = errors.iter().map(|error| problem(error, source)).collect();
    // Of two at one place, that something around it stays unclosed is the consequence.
    problems.sort_by_key(|problem| {
        (problem.line, problem.column, problem.message.contains("unclosed"))
    });
    problems.dedup_by_key(|problem| problem.line);
    problems
}

fn problem(error: &Error, source: &Source) -> Problem {
    let span = error.span().unwrap_or_default();
    let start = span.start;
    let message = match error.message() {
        "duplicate key" => format!("`{}` is already defined", source.slice(span)),
        message => format!("not valid TOML: {message}"),
    };
    source.problem(start, "", message)
}
