//! Rules of this project that no general linter knows. Each reports file, line and why.

mod imports;
mod length;
mod names;
mod paths;
mod purity;
mod source;
mod tokens;

use std::fmt;

use anyhow::bail;

use crate::exec;
use source::Source;

/// One breach of one rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Breach {
    file: String,
    line: usize,
    why: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.why)
    }
}

/// A rule looks at one file at a time.
type Rule = fn(&Source) -> Vec<Breach>;

const RULES: [Rule; 5] = [imports::check, purity::check, length::check, names::check, paths::check];

pub fn run() -> anyhow::Result<()> {
    let sources = source::all(exec::root())?;
    let mut breaches: Vec<Breach> =
        sources.iter().flat_map(|source| RULES.iter().flat_map(|rule| rule(source))).collect();
    breaches.sort();
    breaches.dedup();
    for breach in &breaches {
        eprintln!("{breach}");
    }
    if !breaches.is_empty() {
        bail!("tidy: {} breaches in {} files", breaches.len(), sources.len());
    }
    eprintln!("xtask: tidy: {} files follow the rules", sources.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breach_reads_like_a_compilers_message() {
        let breach = Breach { file: "a/b.rs".into(), line: 7, why: "because".into() };
        assert_eq!(breach.to_string(), "a/b.rs:7: because");
    }

    #[test]
    fn this_checkout_is_read() {
        let sources = source::all(exec::root()).expect("readable");
        let has = |path: &str| sources.iter().any(|source| source.path() == path);
        assert!(has("xtask/src/tidy/mod.rs") && has("Cargo.toml"));
        assert!(!sources.iter().any(|source| source.path().starts_with("target/")));
    }
}
