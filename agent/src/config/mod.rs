//! Configuration: TOML in, a checked [`Config`] out, or every mistake at once with its place.
//!
//! `schema` declares each key where it is read; `section` reads tables key by key; `kinds` and
//! `words` are the forms that values have. `reference` lists the keys from the same declarations.

mod blocks;
mod damage;
mod interfaces;
mod kinds;
mod problem;
mod reference;
mod schema;
mod section;
mod service;
#[cfg(test)]
mod tests;
mod types;
mod words;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use toml::de::DeTable;

pub use interfaces::{is_pattern, selects};
pub use problem::{Invalid, Loaded, Problem};
pub use reference::{KeyDoc, changes_that_need_restart, reference, reference_markdown};
pub use types::*;

use damage::Damage;
use problem::Source;
use section::Findings;

/// Longest configuration that is read, in bytes.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// What the configuration is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To run the agent, which needs interfaces.
    Run,
    /// To replay transactions, which needs none.
    Replay,
}

/// Reads and checks the configuration at `path`.
///
/// # Errors
/// All mistakes, or why the file cannot be read.
pub fn load(path: &Path, purpose: Purpose) -> Result<Loaded, Invalid> {
    let file_name = path.display().to_string();
    match read_bounded(path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => parse(&text, &file_name, purpose),
            Err(error) => Err(not_utf8(&error, &file_name)),
        },
        Err(error) => Err(Invalid {
            problems: vec![Problem {
                file: file_name,
                line: None,
                column: None,
                key: String::new(),
                message: format!("can't be read: {error}"),
            }],
        }),
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > MAX_FILE_BYTES) {
        return Err(io::Error::other(format!("longer than {MAX_FILE_BYTES} bytes")));
    }
    Ok(bytes)
}

fn not_utf8(error: &std::string::FromUtf8Error, file_name: &str) -> Invalid {
    let valid = error.utf8_error().valid_up_to();
    let text = String::from_utf8_lossy(error.as_bytes().get(..valid).unwrap_or_default());
    let source = Source::new(file_name, &text);
    let message = "not valid TOML: a byte that is not UTF-8".to_owned();
    Invalid { problems: vec![source.problem(valid, "", message)] }
}

/// Checks the configuration in `text`; `file_name` is how messages call it.
///
/// # Errors
/// All mistakes, in the order of the file.
pub fn parse(text: &str, file_name: &str, purpose: Purpose) -> Result<Loaded, Invalid> {
    let source = Source::new(file_name, text);
    let (table, errors) = DeTable::parse_recoverable(text);
    let damage = Damage::new(&errors, &source);
    let mut findings = Findings::of_file(&source, &damage);
    let mut config = Config::default();
    findings.top(Some(table.get_ref()), |top| {
        let interfaces = schema::read(top, &mut config);
        let nowhere = config.interfaces.is_empty() && config.namespaces.is_empty();
        if purpose == Purpose::Run && nowhere {
            let message = "names no network interface: write for example interfaces = [\"eth0\"]";
            top.missing(&interfaces.list, message.to_owned());
        }
    });
    let Findings { mut problems, mut warnings, .. } = findings;
    problems.retain(|problem| damage.spares(problem));
    problems.extend(damage.problems);
    let by_place = |problem: &Problem| (problem.line, problem.column);
    problems.sort_by_key(by_place);
    warnings.sort_by_key(by_place);
    if problems.is_empty() { Ok(Loaded { config, warnings }) } else { Err(Invalid { problems }) }
}
