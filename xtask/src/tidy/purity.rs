//! The pipeline does no IO and reads no clock: bytes and a timestamp in, decisions out.

use super::Breach;
use super::source::Source;
use super::tokens::{self, NamedPath};

const PURE: [&str; 6] = ["fingerprint", "flow", "http", "detect", "decide", "pipeline"];

/// Beginnings of paths that do IO.
const IO: &[&[&str]] = &[
    &["std", "env"],
    &["std", "fs"],
    &["std", "os"],
    &["std", "process"],
    &["std", "thread"],
    &["aya"],
    &["axum"],
    &["libc"],
    &["nix"],
    &["procfs"],
    &["tokio"],
    &["tracing"],
    &["print"],
    &["println"],
    &["eprint"],
    &["eprintln"],
    &["dbg"],
];

/// Names that do IO wherever they come from.
const SOCKETS: &[&str] =
    &["TcpStream", "TcpListener", "UdpSocket", "UnixStream", "UnixListener", "ToSocketAddrs"];
const CLOCKS: &[&str] = &["SystemTime", "Instant"];

pub fn check(source: &Source) -> Vec<Breach> {
    let (Some(room), Some(file)) = (source.room(), source.syntax()) else { return Vec::new() };
    if !PURE.contains(&room) || source.is_test_only() {
        return Vec::new();
    }
    let breach = |path: &NamedPath| {
        let named = path.segments.join("::");
        let why = impurity(path)?;
        Some(source.breach(path.line, format!("`{named}` in `{room}`: the pipeline {why}")))
    };
    tokens::paths(file).iter().filter_map(breach).collect()
}

fn impurity(path: &NamedPath) -> Option<&'static str> {
    let names =
        |list: &[&str]| path.segments.iter().any(|segment| list.contains(&segment.as_str()));
    if names(CLOCKS) {
        Some("reads no clock; time is an argument (`crate::time::Timestamp`)")
    } else if names(SOCKETS) || IO.iter().any(|prefix| path.begins_with(prefix)) {
        Some("does no IO; return it to the caller instead")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaches(path: &str, code: &str) -> usize {
        check(&Source::parse(path, code.to_owned()).expect("valid Rust")).len()
    }

    #[test]
    fn io_and_clocks_are_found() {
        let bad = [
            "use std::fs;",
            "use std::{collections::HashMap, fs::File};",
            "use std::net::{IpAddr, TcpStream};",
            "use std::time::{Duration, Instant};",
            "fn f() { let now = std::time::SystemTime::now(); }",
            "use std::time as t; fn f() { t::Instant::now(); }",
            "fn f() { println!(\"seen\"); }",
            "fn f() { tracing::warn!(\"seen\"); }",
            "use tokio::sync::mpsc;",
            "fn f() { assert!(later(Instant::now())); }",
        ];
        for code in bad {
            assert_eq!(breaches("agent/src/detect/rate.rs", code), 1, "{code}");
        }
    }

    #[test]
    fn plain_types_are_fine() {
        let good = "use std::net::{IpAddr, SocketAddr}; use std::time::Duration; use std::fmt;";
        assert_eq!(breaches("agent/src/decide.rs", good), 0);
    }

    #[test]
    fn only_the_pipeline_is_pure() {
        assert_eq!(breaches("agent/src/report/log.rs", "use std::fs;"), 0);
        assert_eq!(breaches("agent/src/http/mod.rs", "#[cfg(test)] mod tests { use std::fs; }"), 0);
    }
}
