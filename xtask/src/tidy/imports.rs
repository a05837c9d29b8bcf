//! Which room of the agent may use which: `flow → http → detect → decide` never looks back.

use syn::visit::{self, Visit};

use super::Breach;
use super::source::Source;
use super::tokens::{self, NamedPath};

/// Plain data, which may know only other plain data.
const DATA: [&str; 6] = ["config", "decision", "finding", "rule", "time", "transaction"];

/// What each room of the pipeline may use beside itself.
const PIPELINE: [(&str, &[&str]); 6] = [
    ("fingerprint", &["time"]),
    ("flow", &["config", "time"]),
    ("http", &["config", "flow", "time", "transaction"]),
    ("detect", &["config", "decision", "finding", "time", "transaction"]),
    ("decide", &["config", "decision", "finding", "rule", "time"]),
    (
        "pipeline",
        &[
            "config",
            "decide",
            "decision",
            "detect",
            "finding",
            "flow",
            "http",
            "rule",
            "time",
            "transaction",
        ],
    ),
];

pub fn check(source: &Source) -> Vec<Breach> {
    let (Some(room), Some(file)) = (source.room(), source.syntax()) else { return Vec::new() };
    if source.is_test_only() {
        return Vec::new();
    }
    let mut breaches: Vec<Breach> = tokens::paths(file)
        .iter()
        .filter_map(|path| Some((path.line, used_room(path, source)?)))
        .filter_map(|(line, used)| Some(source.breach(line, forbidden(room, &used)?)))
        .collect();
    if room != "kernel" {
        breaches.extend(policy_map_implementations(source, file));
    }
    breaches
}

/// Why `room` may not use `used`; `None` if it may.
fn forbidden(room: &str, used: &str) -> Option<String> {
    if room == used {
        return None;
    }
    if let Some((_, allowed)) = PIPELINE.iter().find(|(name, _)| *name == room) {
        return (!allowed.contains(&used)).then(|| {
            format!(
                "`{room}` uses `{used}`: this part of the pipeline may use only {}",
                allowed.join(", ")
            )
        });
    }
    if DATA.contains(&room) && !DATA.contains(&used) {
        return Some(format!(
            "`{room}` uses `{used}`: plain data depends on nothing but plain data"
        ));
    }
    if room == "report" && used == "kernel" {
        return Some("`report` uses `kernel`: it tells what was decided and touches no map".into());
    }
    None
}

/// The room that `path` leads into.
fn used_room(path: &NamedPath, source: &Source) -> Option<String> {
    let mut segments = path.segments.iter().map(String::as_str);
    match segments.next()? {
        "crate" => segments.next().map(str::to_owned),
        "super" => {
            let mut depth = module_depth(source).checked_sub(1)?;
            for segment in segments {
                if segment == "super" {
                    depth = depth.checked_sub(1)?;
                } else {
                    // Only a path that has climbed to the crate's root names a room.
                    return (depth == 0).then(|| segment.to_owned());
                }
            }
            None
        }
        _ => None,
    }
}

/// How many `super` lead from this file's module to the crate's root.
fn module_depth(source: &Source) -> usize {
    let inside = source.path().strip_prefix("agent/src/").unwrap_or_default();
    let parts = inside.split('/').count();
    if inside.ends_with("/mod.rs") { parts - 1 } else { parts }
}

fn policy_map_implementations(source: &Source, file: &syn::File) -> Vec<Breach> {
    let mut finder = Implementations::default();
    finder.visit_file(file);
    let why = "only `kernel` writes the kernel's policy maps: `PolicyMaps` is implemented there and in tests";
    finder.lines.into_iter().map(|line| source.breach(line, why)).collect()
}

/// Lines of `impl PolicyMaps for …` outside of tests.
#[derive(Default)]
struct Implementations {
    lines: Vec<usize>,
}

impl<'ast> Visit<'ast> for Implementations {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !tokens::is_cfg_test(tokens::item_attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let named = item.trait_.as_ref().and_then(|(_, path, _)| path.segments.last());
        if named.is_some_and(|segment| segment.ident == "PolicyMaps") {
            self.lines.push(item.impl_token.span.start().line);
        }
        visit::visit_item_impl(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, code: &str) -> Vec<usize> {
        let source = Source::parse(path, code.to_owned()).expect("valid Rust");
        check(&source).into_iter().map(|breach| breach.line).collect()
    }

    #[test]
    fn looking_ahead_is_fine_and_back_is_not() {
        assert_eq!(lines("agent/src/http/mod.rs", "use crate::flow::Chunk;"), [0; 0]);
        assert_eq!(lines("agent/src/flow/mod.rs", "\nuse crate::http::Head;"), [2]);
        assert_eq!(lines("agent/src/detect/rate.rs", "use crate::decide::Decider;"), [1]);
        assert_eq!(lines("agent/src/decide.rs", "use crate::enforce::PolicyMaps;"), [1]);
        assert_eq!(lines("agent/src/pipeline.rs", "use crate::{flow::Chunk, report::Log};"), [1]);
    }

    #[test]
    fn every_way_to_name_a_room_counts() {
        let bad = [
            "fn f() { crate::kernel::load(); }",
            "use super::super::kernel;",
            "fn f() { info!(\"{}\", crate::kernel::NAME); }",
            "type T = Option<crate::kernel::Maps>;",
        ];
        for code in bad {
            assert_eq!(lines("agent/src/http/body.rs", code), [1], "{code}");
        }
        assert_eq!(lines("agent/src/http/mod.rs", "use super::kernel;"), [1]);
        assert_eq!(lines("agent/src/decide.rs", "use super::kernel;"), [1]);
        assert_eq!(lines("agent/src/http/body.rs", "use super::head;"), [0; 0]);
    }

    #[test]
    fn data_knows_data_only() {
        assert_eq!(lines("agent/src/finding.rs", "use crate::time::Timestamp;"), [0; 0]);
        assert_eq!(lines("agent/src/finding.rs", "use crate::detect::Rule;"), [1]);
    }

    #[test]
    fn report_reads_no_maps() {
        assert_eq!(lines("agent/src/report/log.rs", "use crate::kernel::Maps;"), [1]);
        assert_eq!(lines("agent/src/report/log.rs", "use crate::enforce::Block;"), [0; 0]);
    }

    #[test]
    fn tests_may_use_everything() {
        let code = "#[cfg(test)] mod tests { use crate::kernel; }";
        assert_eq!(lines("agent/src/flow/mod.rs", code), [0; 0]);
        assert_eq!(lines("agent/src/flow/tests.rs", "use crate::kernel;"), [0; 0]);
    }

    #[test]
    fn only_the_kernel_room_implements_the_policy() {
        let code = "impl crate::enforce::PolicyMaps for Mine {}";
        assert_eq!(lines("agent/src/kernel/maps.rs", code), [0; 0]);
        assert_eq!(lines("agent/src/runtime.rs", code), [1]);
        let fake = format!("#[cfg(test)] mod tests {{ {code} }}");
        assert_eq!(lines("agent/src/runtime.rs", &fake), [0; 0]);
    }
}
