//! The commands that the running agent answers.

use anyhow::anyhow;
use ipnet::IpNet;
use serde_json::Value;

use super::args::{Allow, Block, Global, Subject, Unblock};
use super::config_file;
use super::failure::Failure;
use super::output::{self, Table};
use crate::decision::Decision;
use crate::report::control::{
    AllowInfo, AllowOrigin, BlockAction, BlockInfo, Client, ErrorKind, Request, Response,
};
use crate::report::snapshot::Snapshot;
use crate::rule::Target;
use crate::time::Timestamp;

pub fn status(global: &Global) -> Result<(), Failure> {
    let Response::Status(snapshot) = call(global, &Request::Status)? else {
        return unexpected();
    };
    if global.json {
        return Ok(output::json(&snapshot)?);
    }
    Ok(output::print(&status_text(&snapshot))?)
}

pub fn block(global: &Global, args: &Block) -> Result<(), Failure> {
    let request = Request::Block {
        target: target(&args.subject)?,
        action: args.action.into(),
        rate: args.rate().map_err(wrong)?,
        service: args.subject.service.clone(),
        ttl_s: args.ttl.map(|ttl| ttl.as_secs()),
        reason: args.reason.clone(),
    };
    let Response::Blocked { block } = call(global, &request)? else { return unexpected() };
    if matches!(block.target, Target::Fingerprint(_)) {
        eprintln!(
            "portcullis: a fingerprint is shared by all who use the same software: \
             `portcullis blocks` shows how many packets it names"
        );
    }
    if global.json {
        return Ok(output::json(&block)?);
    }
    Ok(output::print(&blocked_text(&block))?)
}

/// `203.0.113.7 blocked on shop for 10m`.
fn blocked_text(block: &BlockInfo) -> String {
    let until = match block.remaining_s {
        Some(seconds) => format!("for {}", output::duration(seconds)),
        None => "until it is lifted".to_owned(),
    };
    let verb = match (block.action, block.count_only) {
        (_, true) => "counting (observe mode)".to_owned(),
        (BlockAction::Drop, false) => "blocked".to_owned(),
        (BlockAction::RateLimit, false) => format!("limited to {}", rate_text(block)),
        (BlockAction::Deceive, false) => "deceived".to_owned(),
        (BlockAction::Count, false) => "counted".to_owned(),
    };
    let service = block.service.as_ref().map(|name| format!(" on {name}")).unwrap_or_default();
    format!("{} {verb}{service} {until}\n", block.target)
}

fn rate_text(block: &BlockInfo) -> String {
    block.rate.map_or_else(|| "-".to_owned(), |rate| rate.to_string())
}

fn target(subject: &Subject) -> Result<Target, Failure> {
    subject.target().map_err(wrong)
}

fn wrong(message: String) -> Failure {
    Failure::Wrong(anyhow!(message))
}

pub fn unblock(global: &Global, args: &Unblock) -> Result<(), Failure> {
    let request = Request::Unblock {
        target: target(&args.subject)?,
        action: args.action.map(Into::into),
        service: args.subject.service.clone(),
    };
    let Response::Unblocked { target } = call(global, &request)? else { return unexpected() };
    if global.json {
        return Ok(output::json(&serde_json::json!({"unblocked": target}))?);
    }
    Ok(output::print(&format!("{target} unblocked\n"))?)
}

pub fn blocks(global: &Global) -> Result<(), Failure> {
    let Response::Blocks { blocks } = call(global, &Request::Blocks)? else {
        return unexpected();
    };
    if global.json {
        return Ok(output::json(&blocks)?);
    }
    Ok(output::print(&blocks_text(&blocks))?)
}

pub fn allow(global: &Global, change: Option<&Allow>) -> Result<(), Failure> {
    let request = match change {
        None | Some(Allow::List) => Request::AllowList,
        Some(Allow::Add(args)) => Request::AllowAdd { target: args.target },
        Some(Allow::Remove(args)) => Request::AllowRemove { target: args.target },
    };
    let Response::Allowed { allowed } = call(global, &request)? else { return unexpected() };
    if global.json {
        return Ok(output::json(&allowed)?);
    }
    Ok(output::print(&allowed_text(&allowed))?)
}

pub fn decisions(global: &Global, limit: usize) -> Result<(), Failure> {
    let Response::Decisions { decisions } = call(global, &Request::Decisions { limit })? else {
        return unexpected();
    };
    if global.json {
        return Ok(output::json_lines(&decisions)?);
    }
    Ok(output::print(&decisions_text(&decisions))?)
}

pub fn findings(global: &Global, limit: usize) -> Result<(), Failure> {
    let Response::Findings { findings } = call(global, &Request::Findings { limit })? else {
        return unexpected();
    };
    if global.json {
        return Ok(output::json_lines(&findings)?);
    }
    Ok(output::print(&findings_text(&findings))?)
}

fn call(global: &Global, request: &Request) -> Result<Response, Failure> {
    let path = match &global.socket {
        Some(path) => path.clone(),
        None => config_file::read_or_default(&global.config).report.control_socket,
    };
    match Client::connect(&path)?.call(request)? {
        Response::Error { kind, message } => {
            let error = anyhow!(output::printable(&message));
            Err(match kind {
                ErrorKind::BadRequest | ErrorKind::BadConfig => Failure::Wrong(error),
                ErrorKind::Refused | ErrorKind::Failed | ErrorKind::Busy => Failure::Failed(error),
            })
        }
        response => Ok(response),
    }
}

fn unexpected() -> Result<(), Failure> {
    Err(anyhow!("the agent gave another answer than the one asked for").into())
}

/// A single address without its prefix length.
fn shown(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

fn or_dash(text: Option<&String>) -> String {
    text.cloned().unwrap_or_else(|| "-".to_owned())
}

fn status_text(of: &Snapshot) -> String {
    let mut table = Table::bare();
    let mut line = |name: &str, value: String| table.row([name.to_owned(), value]);
    let mode = match of.mode {
        crate::decision::Mode::Enforce => "enforce",
        crate::decision::Mode::Observe => "observe (nothing is blocked)",
    };
    line("version", of.version.clone());
    line("process", of.pid.to_string());
    line("mode", mode.to_owned());
    line("running for", output::duration(of.uptime_s as u64));
    for interface in &of.interfaces {
        let name = in_namespace(&interface.name, interface.namespace.as_ref());
        line("interface", format!("{name} ({})", interface.hook));
        for reason in &interface.passed_over {
            line("", format!("not {reason}"));
        }
    }
    for waiting in &of.waiting {
        let name = in_namespace(&waiting.name, waiting.namespace.as_ref());
        line("no program on", format!("{name}: {}", waiting.problem));
    }
    let blocks = of.blocks;
    line("blocks", format!("{} of {}", blocks.in_force, blocks.capacity));
    for (kind, count) in of.rules.iter().filter(|(_, count)| **count > 0) {
        line("", format!("{count} {kind}"));
    }
    for list in &of.lists {
        let bad = match list.bad_lines {
            0 => String::new(),
            lines => format!(", {lines} bad lines left out"),
        };
        line("list", format!("{}: {} networks{bad}", list.name, list.networks));
    }
    line("connections closed", of.sockets.closed.to_string());
    if let Some(problem) = &of.decoy.problem {
        line("decoy", format!("none: {problem}"));
    } else if of.decoy.steered > 0 {
        line("decoy", format!("{} connections", of.decoy.steered));
    }
    line("TLS libraries", of.libraries_attached.to_string());
    line("connections", of.connections.to_string());
    line("clients", of.actors.to_string());
    line("transactions", of.transactions.to_string());
    let mut text = table.render();
    section(&mut text, "Packets", of.packets.iter().map(|(k, v)| (k.as_ref(), v.packets)));
    section(&mut text, "Findings", of.findings.iter().map(|(k, v)| (k.as_ref(), *v)));
    section(&mut text, "Decisions", of.decisions.iter().map(|(k, v)| (k.as_ref(), *v)));
    section(&mut text, "Kept back by a guard", of.guarded.iter().map(|(k, v)| (k.as_ref(), *v)));
    section(&mut text, "fingerprints", of.fingerprints.iter().map(|(k, v)| (k.as_ref(), *v)));
    section(&mut text, "HTTP", of.http.iter().map(|(k, v)| (k.as_ref(), *v)));
    let losses = of.losses.iter().map(|(name, lost)| (name.as_ref(), lost.events));
    let failures = [
        ("blocks not written", of.blocks.failed),
        ("connections not closed", of.sockets.failed),
        ("connections refused without a decoy", of.decoy.refused),
        ("events not logged", of.event_log.failed),
        ("failed reloads", of.reloads.failed),
        ("failed attachments", of.interface_changes.failed),
        ("changes of interfaces not told", of.interface_changes.untold),
    ];
    section(&mut text, "Lost or failed", losses.chain(failures));
    text
}

fn in_namespace(interface: &str, namespace: Option<&String>) -> String {
    namespace.map_or_else(|| interface.to_owned(), |path| format!("{interface} in {path}"))
}

/// Counters under a heading; those at zero are left out, and the heading with the last.
fn section<'a>(text: &mut String, heading: &str, counts: impl Iterator<Item = (&'a str, u64)>) {
    let mut table = Table::bare();
    let mut empty = true;
    for (name, count) in counts.filter(|(_, count)| *count > 0) {
        table.row([format!("  {name}"), count.to_string()]);
        empty = false;
    }
    if !empty {
        text.push_str(&format!("{heading}\n{}", table.render()));
    }
}

fn blocks_text(blocks: &[BlockInfo]) -> String {
    if blocks.is_empty() {
        return "no blocks in force\n".to_owned();
    }
    let mut table = Table::new([
        "TARGET",
        "ACTION",
        "SERVICE",
        "RATE",
        "EXCEEDED",
        "PACKETS",
        "BYTES",
        "REMAINING",
        "ID",
        "DETECTOR",
        "REASON",
    ]);
    for block in blocks {
        let remaining = block.remaining_s.map_or_else(|| "no end".to_owned(), output::duration);
        let kind = if block.count_only { " (counts only)" } else { "" };
        let service = block.service.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        table.row([
            block.target.to_string(),
            format!("{}{kind}", word(&block.action)),
            service,
            rate_text(block),
            block.exceeded.to_string(),
            block.packets.to_string(),
            block.bytes.to_string(),
            remaining,
            block.id.clone(),
            or_dash(block.detector.as_ref()),
            or_dash(block.reason.as_ref()),
        ]);
    }
    table.render()
}

fn allowed_text(allowed: &[AllowInfo]) -> String {
    let mut table = Table::new(["TARGET", "ORIGIN"]);
    for entry in allowed {
        let origin = match entry.origin {
            AllowOrigin::Config => "configuration",
            AllowOrigin::TrustedProxy => "trusted proxy",
            AllowOrigin::Host => "this host, its gateway or resolver",
            AllowOrigin::Operator => "operator, until the agent stops",
        };
        table.row([shown(entry.target), origin.to_owned()]);
    }
    table.render()
}

fn decisions_text(decisions: &[Decision]) -> String {
    if decisions.is_empty() {
        return "no decisions yet\n".to_owned();
    }
    let mut table =
        Table::new(["TIME", "ID", "ACTION", "SUBJECT", "TTL", "DETECTOR", "MODE", "REASON"]);
    for decision in decisions {
        table.row([
            output::time(decision.ts),
            decision.id.clone(),
            word(&decision.action),
            decision.subject.target().map_or_else(|| "-".to_owned(), |target| target.to_string()),
            output::duration(decision.ttl_s),
            decision.detector.clone(),
            word(&decision.mode),
            decision.reason.clone(),
        ]);
    }
    table.render()
}

fn findings_text(findings: &[Value]) -> String {
    if findings.is_empty() {
        return "no findings yet\n".to_owned();
    }
    let mut table = Table::new(["TIME", "DETECTOR", "CLIENT", "SCORE", "REASON"]);
    for finding in findings {
        let part = |pointer: &str| match finding.pointer(pointer) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => "-".to_owned(),
        };
        let ts = finding.get("ts").and_then(Value::as_f64).and_then(Timestamp::from_secs_f64);
        table.row([
            ts.map_or_else(|| "-".to_owned(), output::time),
            part("/detector"),
            part("/actor/ip"),
            part("/score"),
            part("/reason"),
        ]);
    }
    table.render()
}

/// The name that an enum without data has in JSON.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        _ => "-".to_owned(),
    }
}
