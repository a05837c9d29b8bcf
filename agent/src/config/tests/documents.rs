//! The example and the reference stay true to the declarations.

use super::super::{Config, Purpose, parse, reference, reference_markdown};
use crate::decision::Mode;

const EXAMPLE: &str = include_str!("../../../examples/portcullis.toml");

/// The example with its commented defaults in force.
fn uncommented_defaults() -> String {
    let uncomment = |line: &'static str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => rest,
        _ => line,
    };
    EXAMPLE.lines().map(uncomment).collect::<Vec<_>>().join("\n")
}

/// The indented samples of the example, which are no defaults.
fn samples() -> String {
    EXAMPLE.lines().filter_map(|line| line.strip_prefix("#     ")).collect::<Vec<_>>().join("\n")
}

fn lookup<'a>(table: &'a toml::Table, key: &str) -> Option<&'a toml::Value> {
    let (first, rest) = key.split_once('.').map_or((key, None), |(a, b)| (a, Some(b)));
    let value = table.get(first)?;
    let Some(rest) = rest else { return Some(value) };
    match value {
        toml::Value::Table(table) => lookup(table, rest),
        toml::Value::Array(entries) => {
            entries.iter().filter_map(toml::Value::as_table).find_map(|table| lookup(table, rest))
        }
        _ => None,
    }
}

#[test]
fn the_example_is_the_default_configuration() {
    let default = Config { interfaces: vec!["eth0".into()], ..Config::default() };
    for text in [EXAMPLE.to_owned(), uncommented_defaults()] {
        let loaded = parse(&text, "portcullis.toml", Purpose::Run).unwrap();
        assert_eq!(loaded.config, default);
        assert_eq!(loaded.warnings, []);
    }
}

#[test]
fn the_samples_of_the_example_are_right() {
    let loaded = parse(&samples(), "samples", Purpose::Replay).unwrap();
    assert_eq!(loaded.warnings, []);
    assert_eq!((loaded.config.blocked.len(), loaded.config.lists.len()), (5, 1));
    assert_eq!(loaded.config.namespaces[0].interfaces, ["eth*"]);
    let [shop] = loaded.config.services.as_slice() else { panic!("{:?}", loaded.config) };
    assert_eq!((&*shop.name, shop.mode), ("shop", Some(Mode::Observe)));
    assert_eq!(shop.logins[0].failure.len(), 3);
}

#[test]
fn the_example_shows_every_key_and_its_default() {
    let defaults: toml::Table = uncommented_defaults().parse().unwrap();
    let samples: toml::Table = samples().parse().unwrap();
    for doc in reference() {
        let shown = lookup(&defaults, doc.key).or_else(|| lookup(&samples, doc.key));
        let shown = shown.unwrap_or_else(|| panic!("{} is not in the example", doc.key));
        let default = format!("value = {}", doc.default).parse::<toml::Table>();
        if let (Some(_), Ok(default)) = (lookup(&defaults, doc.key), default)
            && doc.key != "interfaces"
        {
            assert_eq!(Some(shown), default.get("value"), "{}", doc.key);
        }
    }
}

#[test]
fn the_example_marks_the_keys_that_need_a_restart() {
    for doc in reference().into_iter().filter(|doc| !doc.key.starts_with("service.")) {
        let (section, name) = doc.key.rsplit_once('.').unwrap_or(("", doc.key));
        if ["block", "list", "namespace"].contains(&section) {
            continue;
        }
        let body = match section {
            "" => EXAMPLE,
            section => EXAMPLE.split_once(&format!("[{section}]\n")).unwrap().1,
        };
        let shown = body
            .lines()
            .position(|line| line.trim_start_matches('#').starts_with(&format!("{name} = ")));
        let above: Vec<&str> = body.lines().take(shown.unwrap()).collect();
        let comment = above.iter().rev().find(|line| line.starts_with("# "));
        let marked = comment.is_some_and(|line| line.ends_with("(restart)"));
        assert_eq!(marked, doc.restart, "{}", doc.key);
    }
}

#[test]
fn keys_are_declared_once_and_documented() {
    let docs = reference();
    let mut keys: Vec<_> = docs.iter().map(|doc| doc.key).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), docs.len());
    assert!(docs.iter().all(|doc| doc.doc.len() > 10 && !doc.allowed.is_empty()));
}

#[test]
fn the_reference_is_a_markdown_table() {
    let table = reference_markdown();
    assert_eq!(table.lines().count(), reference().len() + 2);
    let row = "| `decide.ttl` | a duration from \"1s\" to \"365d\" | `\"10m\"` | How long the first \
               decision on a client holds. | yes |";
    assert!(table.lines().any(|line| line == row), "{table}");
    let row = "| `kernel.attach` | \"auto\", \"xdp-native\", \"xdp-generic\", \"tc\" or \"clsact\" | `\"auto\"` |";
    assert!(table.lines().any(|line| line.starts_with(row) && line.ends_with("| restart |")));
}
