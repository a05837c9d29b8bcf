//! `portcullis doctor`: what this host offers, what is missing, and what to do about it.

mod capabilities;
mod interfaces;
mod kernel;
mod tls;

use std::path::Path;

use serde::Serialize;

pub(super) use capabilities::warn_of_absent as warn_of_absent_capabilities;

use super::args::Global;
use super::failure::Failure;
use super::output::{self, Table};
use crate::config::{self, Config, Purpose};

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    /// Works without it, or not as well.
    Warning,
    /// Needed.
    Missing,
}

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    area: &'static str,
    name: String,
    state: State,
    /// What was found.
    found: String,
    /// What to do about it, when something should be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Check {
    fn ok(area: &'static str, name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { area, name: name.into(), state: State::Ok, found: found.into(), advice: None }
    }

    fn warning(
        area: &'static str,
        name: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { state: State::Warning, advice: Some(advice.into()), ..Self::ok(area, name, found) }
    }

    fn missing(
        area: &'static str,
        name: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { state: State::Missing, ..Self::warning(area, name, found, advice) }
    }
}

pub fn run(global: &Global) -> Result<(), Failure> {
    let mut checks = Vec::new();
    let config = look_at_config(&global.config, &mut checks);
    kernel::look(&mut checks);
    capabilities::look(&mut checks);
    interfaces::look(&config, &mut checks)?;
    tls::look(Path::new("/proc"), &mut checks);
    let ok = checks.iter().all(|check| check.state != State::Missing);
    if global.json {
        output::json(&serde_json::json!({"ok": ok, "checks": checks}))?;
    } else {
        output::print(&text(&checks))?;
    }
    if ok { Ok(()) } else { Err(Failure::Told) }
}

fn look_at_config(path: &Path, checks: &mut Vec<Check>) -> Config {
    let name = path.display().to_string();
    match config::load(path, Purpose::Run) {
        Ok(loaded) if loaded.warnings.is_empty() => {
            checks.push(Check::ok("configuration", name, "no mistakes"));
            loaded.config
        }
        Ok(loaded) => {
            let found = format!("{} warnings", loaded.warnings.len());
            let advice = "`portcullis check` lists them";
            checks.push(Check::warning("configuration", name, found, advice));
            loaded.config
        }
        Err(_) => {
            let advice = "`portcullis check` lists the mistakes";
            checks.push(Check::missing("configuration", name, "can't be used", advice));
            Config::default()
        }
    }
}

/// Each piece of advice once, with all that it is for.
fn advice_in(area: &[Check]) -> Vec<(&str, Vec<&str>)> {
    let mut advice: Vec<(&str, Vec<&str>)> = Vec::new();
    for check in area {
        let Some(text) = check.advice.as_deref() else { continue };
        match advice.iter_mut().find(|(other, _)| *other == text) {
            Some((_, names)) => names.push(&check.name),
            None => advice.push((text, vec![&check.name])),
        }
    }
    advice
}

fn text(checks: &[Check]) -> String {
    let mut text = String::new();
    for area in checks.chunk_by(|a, b| a.area == b.area) {
        if let Some(first) = area.first() {
            text.push_str(&format!("{}\n", first.area));
        }
        let mut table = Table::bare();
        for check in area {
            let mark = match check.state {
                State::Ok => "ok",
                State::Warning => "warn",
                State::Missing => "MISS",
            };
            table.row([format!("  {mark}"), check.name.clone(), check.found.clone()]);
        }
        text.push_str(&table.render());
        for (advice, names) in advice_in(area) {
            text.push_str(&format!("  → {}: {advice}\n", output::printable(&names.join(", "))));
        }
    }
    let missing = checks.iter().filter(|check| check.state == State::Missing).count();
    match missing {
        0 => text.push_str("nothing that is needed is missing\n"),
        1 => text.push_str("1 thing that is needed is missing\n"),
        n => text.push_str(&format!("{n} things that are needed are missing\n")),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_groups_areas_and_says_each_advice_once() {
        let checks = [
            Check::ok("kernel", "version", "6.12"),
            Check::missing("kernel", "BTF", "absent", "another kernel"),
            Check::warning("TLS", "a", "unseen", "a proxy"),
            Check::warning("TLS", "long\u{1b}name", "unseen", "a proxy"),
        ];
        assert_eq!(
            text(&checks),
            "kernel\n  ok    version  6.12\n  MISS  BTF      absent\n  → BTF: another kernel\n\
             TLS\n  warn  a          unseen\n  warn  long\u{fffd}name  unseen\n  \
             → a, long\u{fffd}name: a proxy\n1 thing that is needed is missing\n"
        );
    }
}
