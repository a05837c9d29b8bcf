//! The list of all keys, generated from the declarations that read them.

use std::fmt::Write;

use serde::Serialize;

use super::damage::Damage;
use super::problem::Source;
use super::schema;
use super::section::Findings;
use super::types::Config;

/// All that is to be said about one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyDoc {
    /// Dotted, from the top of the file.
    pub key: &'static str,
    /// The type and the range, as it follows "must be".
    pub allowed: String,
    /// In TOML; empty when there is none.
    pub default: String,
    pub doc: &'static str,
    /// Whether a change waits for the next start.
    pub restart: bool,
}

/// Every key, in the order of the documentation.
pub fn reference() -> Vec<KeyDoc> {
    describe(&Config::default())
}

/// Every key as a Markdown table.
pub fn reference_markdown() -> String {
    let mut table =
        "| key | allowed | default | meaning | reload |\n|---|---|---|---|---|\n".to_owned();
    for KeyDoc { key, allowed, default, doc, restart } in reference() {
        let default = if default.is_empty() { default } else { format!("`{default}`") };
        let reload = if restart { "restart" } else { "yes" };
        let cells = [format!("`{key}`"), allowed, default, doc.to_owned(), reload.to_owned()];
        let row = cells.map(|cell| cell.replace('|', "\\|")).join(" | ");
        // Writing to a string cannot fail.
        let _ = writeln!(table, "| {row} |");
    }
    table
}

/// The keys that differ and that a reload cannot change: their new values wait for the next start.
pub fn changes_that_need_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let new = describe(new);
    describe(old)
        .into_iter()
        .zip(new)
        .filter(|(old, new)| old.restart && old.default != new.default)
        .map(|(old, _)| old.key)
        .collect()
}

/// Every key with the value it has in `config` as its default.
fn describe(config: &Config) -> Vec<KeyDoc> {
    let source = Source::new("", "");
    let damage = Damage::new(&[], &source);
    let mut findings = Findings::of_declarations(&source, &damage);
    let mut config = config.clone();
    findings.top(None, |top| {
        schema::read(top, &mut config);
    });
    findings.into_docs()
}
