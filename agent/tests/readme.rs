//! The README says what the code does. What can be derived from the code is written into it by
//! `UPDATE_README=1 cargo test --package portcullis --test readme`.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use portcullis::config::{self, Purpose};
use portcullis::decide;
use portcullis::detect::counter;
use portcullis::finding::DetectorName;
use portcullis::http;
use portcullis_common::event::Loss;
use portcullis_common::policy::Reason;

const GOLDEN_METRICS: &str = include_str!("../src/report/metrics/golden.txt");

/// Tests that update the file take turns.
static TURN: Mutex<()> = Mutex::new(());

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the agent lies in the workspace")
}

fn path() -> PathBuf {
    root().join("README.md")
}

fn readme() -> String {
    fs::read_to_string(path()).expect("there is a README")
}

/// What stands between the markers of `name`.
fn between<'a>(text: &'a str, name: &str) -> &'a str {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let found = text.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end));
    found.unwrap_or_else(|| panic!("the README has no markers of {name}")).0
}

/// The text from one second-level heading to the next.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let (_, rest) = text.split_once(&format!("\n## {heading}\n")).expect(heading);
    rest.split("\n## ").next().expect("a split has a first part")
}

/// Compares the part with what the code says, or writes it there if asked to.
fn assert_generated(name: &str, expected: &str) {
    let _turn = TURN.lock().expect("no other test of this file has failed while writing");
    let text = readme();
    let part = between(&text, name);
    if part == expected {
        return;
    }
    if env::var_os("UPDATE_README").is_some() {
        let (before, after) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
        let old = format!("{before}{part}{after}");
        let new = format!("{before}{expected}{after}");
        return fs::write(path(), text.replace(&old, &new)).expect("the README is writable");
    }
    panic!(
        "{name} in the README is not what the code says; set UPDATE_README=1 to write this:\n{expected}"
    );
}

/// Everything in backticks.
fn quoted(text: &str) -> BTreeSet<&str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn the_keys_are_those_of_the_configuration() {
    assert_generated("keys", &config::reference_markdown());
}

#[test]
fn the_commands_are_those_of_the_program() {
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis")).arg("--help").output();
    let help = String::from_utf8(output.expect("the program starts").stdout).expect("UTF-8");
    let (_, rest) = help.split_once("\nCommands:\n").expect("help lists the commands");
    let (commands, _) = rest.split_once("\n\n").expect("something follows them");
    let own = commands.lines().map(str::trim).filter(|line| !line.starts_with("help "));
    let rows: String = own
        .map(|line| {
            let (name, about) = line.split_once(' ').expect("a command and what it does");
            format!("| `portcullis {name}` | {} |\n", about.trim())
        })
        .collect();
    assert_generated("commands", &format!("| command | |\n|---|---|\n{rows}"));
}

#[test]
fn the_metrics_are_those_of_the_agent() {
    let rows: String = GOLDEN_METRICS
        .lines()
        .filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '))
        .map(|(name, help)| {
            let labels = labels_of(name);
            format!("| `{name}` | {labels} | {help} |\n")
        })
        .collect();
    assert!(rows.contains("portcullis_transactions_total"), "{rows}");
    assert_generated("metrics", &format!("| metric | labels | |\n|---|---|---|\n{rows}"));
}

/// The labels of the metric's first sample.
fn labels_of(name: &str) -> String {
    let sample = GOLDEN_METRICS.lines().find_map(|line| line.strip_prefix(&format!("{name}{{")));
    let names = sample.unwrap_or_default().split("\",").filter_map(|label| label.split_once("=\""));
    names.map(|(label, _)| format!("`{label}`")).collect::<Vec<_>>().join(", ")
}

#[test]
fn every_counted_thing_is_named() {
    let text = readme();
    let named = quoted(section(&text, "Metrics"));
    let losses = Loss::ALL.map(Loss::name).into_iter();
    let reasons = Reason::ALL.map(Reason::name).into_iter();
    let kinds = http::Counter::ALL.iter().map(|kind| kind.name());
    let decider = decide::Counters::default().named().map(|(name, _)| name).into_iter();
    let detectors = [counter::ACTORS_EVICTED, counter::TOO_LATE, counter::LOGINS_WITHOUT_USER];
    for name in losses.chain(reasons).chain(kinds).chain(decider).chain(detectors) {
        assert!(named.contains(name), "the README does not name {name}");
    }
}

/// The last column of the limits: where each is counted.
#[test]
fn limits_are_counted_under_names_that_exist() {
    let text = readme();
    let counted = section(&text, "Limits").lines().filter_map(|line| line.rsplit('|').nth(1));
    let known = quoted(section(&text, "Metrics"));
    let mut names = 0;
    for name in counted.flat_map(quoted).filter(|name| name.contains('_')) {
        let metric = name.split('{').next().unwrap_or_default();
        assert!(known.contains(metric), "nothing is counted as {name}");
        names += 1;
    }
    assert!(names > 20, "only {names} names in the table of limits");
}

#[test]
fn every_detector_is_listed_with_what_it_covers() {
    let text = readme();
    let detectors = section(&text, "Detectors");
    for detector in DetectorName::ALL {
        let row = detectors.lines().find(|line| line.starts_with(&format!("| `{detector}` |")));
        assert!(row.is_some_and(|row| row.contains(detector.owasp())), "{detector}: {row:?}");
    }
}

#[test]
fn the_configuration_examples_have_no_mistakes() {
    let text = readme();
    let examples: Vec<&str> = text
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once("```")?.0))
        .collect();
    assert!(examples.len() >= 2, "{examples:?}");
    for example in examples {
        let loaded = config::parse(example, "README.md", Purpose::Run)
            .unwrap_or_else(|invalid| panic!("{invalid}"));
        assert_eq!(loaded.warnings, [], "{example}");
    }
}

/// The paths of the code map.
fn mapped(text: &str) -> BTreeSet<&str> {
    let rows = section(text, "Code map").lines().filter_map(|line| line.split('|').nth(1));
    rows.flat_map(quoted).collect()
}

#[test]
fn the_code_map_has_no_path_that_does_not_exist() {
    let text = readme();
    let mapped = mapped(&text);
    assert!(mapped.len() > 30, "{mapped:?}");
    for path in mapped {
        let there = root().join(path);
        let fits = if path.ends_with('/') { there.is_dir() } else { there.is_file() };
        assert!(fits, "there is no {path}");
    }
}

#[test]
fn the_code_map_has_every_module_of_the_agent_and_of_the_programs() {
    let text = readme();
    let mapped = mapped(&text);
    for dir in ["agent/src", "agent-ebpf/src", "agent-common/src"] {
        for entry in fs::read_dir(root().join(dir)).expect("it is a directory") {
            let entry = entry.expect("it can be listed");
            let name = entry.file_name().into_string().expect("UTF-8");
            let slash = if entry.path().is_dir() { "/" } else { "" };
            let path = format!("{dir}/{name}{slash}");
            // The root of a crate whose directory is in the map.
            let is_crate_root = name == "lib.rs" && mapped.contains(format!("{dir}/").as_str());
            assert!(is_crate_root || mapped.contains(path.as_str()), "{path} is not in the map");
        }
    }
}

#[test]
fn links_lead_somewhere() {
    let text = readme();
    let headings = text.lines().filter_map(|line| line.trim_start_matches('#').strip_prefix(' '));
    let anchors: BTreeSet<String> =
        headings.map(|heading| heading.to_lowercase().replace(' ', "-")).collect();
    let links: Vec<&str> =
        text.split("](#").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0)).collect();
    assert!(links.len() > 10, "{links:?}");
    for link in links {
        assert!(anchors.contains(link), "no heading is called {link}");
    }
}
