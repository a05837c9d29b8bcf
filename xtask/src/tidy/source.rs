//! The files that rules look at.

use std::fs;
use std::path::Path;

use anyhow::Context;

use super::Breach;

/// A text file of the checkout; parsed if it is Rust.
pub struct Source {
    path: String,
    text: String,
    syntax: Option<syn::File>,
}

impl Source {
    /// `path` is relative to the root of the checkout, with `/`.
    pub fn parse(path: &str, text: String) -> anyhow::Result<Self> {
        let syntax = if path.ends_with(".rs") {
            let parsed = syn::parse_file(&text);
            Some(parsed.map_err(|error| {
                let at = error.span().start();
                anyhow::anyhow!("{path}:{}:{}: {error}", at.line, at.column + 1)
            })?)
        } else {
            None
        };
        Ok(Self { path: path.to_owned(), text, syntax })
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// `None` for files that are not Rust.
    pub fn syntax(&self) -> Option<&syn::File> {
        self.syntax.as_ref()
    }

    /// The room of the agent this file belongs to: `http` for `agent/src/http/body.rs`.
    pub fn room(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("agent/src/")?;
        Some(
            inside.split_once('/').map_or_else(|| inside.trim_end_matches(".rs"), |(room, _)| room),
        )
    }

    /// Whether the whole file is compiled for tests only, by this project's convention.
    pub fn is_test_only(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    pub fn breach(&self, line: usize, why: impl Into<String>) -> Breach {
        Breach { file: self.path.clone(), line, why: why.into() }
    }
}

/// Every text file under `root` that is the project's own.
pub fn all(root: &Path) -> anyhow::Result<Vec<Source>> {
    let mut sources = Vec::new();
    walk(root, "", &mut sources)?;
    Ok(sources)
}

/// Made by tools, not written.
const SKIPPED: [&str; 6] = [
    ".git",
    "target",
    "tests/fuzz/target",
    "tests/fuzz/corpus",
    "tests/fuzz/artifacts",
    "Cargo.lock",
];

fn walk(root: &Path, inside: &str, sources: &mut Vec<Source>) -> anyhow::Result<()> {
    let dir = root.join(inside);
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = if inside.is_empty() { name } else { format!("{inside}/{name}") };
        if SKIPPED.contains(&path.as_str()) {
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_dir() {
            walk(root, &path, sources)?;
        } else if kind.is_file() {
            // Fixtures may be anything; what is not text has no lines to check.
            let Ok(text) = String::from_utf8(fs::read(entry.path())?) else { continue };
            sources.push(Source::parse(&path, text)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms() {
        let room =
            |path| Source::parse(path, String::new()).expect("empty").room().map(str::to_owned);
        assert_eq!(room("agent/src/http/body.rs").as_deref(), Some("http"));
        assert_eq!(room("agent/src/decide.rs").as_deref(), Some("decide"));
        assert_eq!(room("xtask/src/main.rs"), None);
    }

    #[test]
    fn a_syntax_error_has_its_place() {
        let error = Source::parse("a.rs", "fn a() {}\nfn b( {}\n".into()).err().expect("refused");
        assert!(error.to_string().starts_with("a.rs:2:"), "{error}");
    }
}
