//! The agent's own words: its event log, told as it is written.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::screen::{Timeline, Who};
use crate::agent::Agent;
use crate::wait;

const POLL: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(5);

/// Every event so far.
#[derive(Default)]
pub struct Events(Mutex<Vec<Value>>);

impl Events {
    /// Reads the log until `stop`, and tells what is new in it.
    pub fn follow(
        &self,
        agent: &Agent,
        timeline: &Timeline,
        place: &str,
        stop: &AtomicBool,
    ) -> anyhow::Result<()> {
        loop {
            // Asked before reading, so that what was written until the stop is read.
            let last = stop.load(Ordering::Relaxed);
            let events = agent.events()?;
            let told = self.0.lock().unwrap_or_else(PoisonError::into_inner).len();
            for event in events.iter().skip(told) {
                for (who, what) in sentences(event, place) {
                    timeline.tell_at(time_of(event, timeline), who, &what);
                }
            }
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = events;
            if last {
                return Ok(());
            }
            thread::sleep(POLL);
        }
    }

    /// The first event that `wanted` accepts, as soon as it has been told.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        wait::until(PATIENCE, what, || {
            let events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(events.iter().find(|event| wanted(event)).cloned())
        })
    }
}

/// When it happened, in whole milliseconds that have passed.
fn time_of(event: &Value, timeline: &Timeline) -> i64 {
    let ms = timeline.of_epoch(event["ts"].as_f64().unwrap_or_default());
    // A decision holds from the millisecond that follows what it was made on; the time in every
    // other event is rounded down.
    if event["event"] == "decision" { ms - 1 } else { ms }
}

/// What the timeline says of an event; `place` is where packets are dropped.
fn sentences(event: &Value, place: &str) -> Vec<(Who, String)> {
    let text = |pointer: &str| match event.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => "?".to_owned(),
    };
    match text("/event").as_str() {
        // Told before the story begins.
        "start" => Vec::new(),
        "finding" => vec![
            (Who::Agent, format!("FINDING {} by {}", text("/detector"), text("/actor/ip"))),
            (Who::Agent, format!("    {}", text("/reason"))),
            (Who::Agent, format!("    thresholds: {}", thresholds(event))),
        ],
        "decision" => {
            let (mode, owasp, score) = (text("/mode"), text("/owasp"), text("/score"));
            let what = format!("DECISION {} {}", text("/action"), subject(event));
            let more = format!("    mode {mode}, OWASP {owasp}, score {score}");
            vec![(Who::Agent, what), (Who::Agent, more)]
        }
        "first_drop" => {
            let first = format!("FIRST PACKET of {} dropped {place}", address(&text("/target")));
            let after = event["after_ms"].as_f64();
            let after = after.map(|ms| format!(", {ms:.1} ms after the decisive answer"));
            vec![(Who::Kernel, first + &after.unwrap_or_default())]
        }
        "loss" => vec![(Who::Agent, format!("LOST {} times: {}", text("/events"), text("/name")))],
        other => vec![(Who::Agent, other.to_owned())],
    }
}

/// Whom a decision is about, and for how long.
fn subject(event: &Value) -> String {
    let subject = event.pointer("/subject/ip").or(event.pointer("/subject/cidr"));
    let minutes = event["ttl_s"].as_f64().unwrap_or_default() / 60.0;
    format!("every packet of {} for {minutes} min", subject.and_then(Value::as_str).unwrap_or("?"))
}

/// What the evidence says had to be reached.
fn thresholds(finding: &Value) -> String {
    let evidence = finding["evidence"].as_object().into_iter().flatten();
    let parts = evidence.filter_map(|(name, value)| {
        let name = name.strip_suffix("_threshold")?.replace('_', " ");
        Some(format!("{name} {value}"))
    });
    parts.collect::<Vec<_>>().join(", ")
}

/// A single address without its prefix length.
fn address(target: &str) -> &str {
    target.strip_suffix("/32").or(target.strip_suffix("/128")).unwrap_or(target)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figures_come_from_the_event() {
        let drop =
            json!({"event": "first_drop", "ts": 1.0, "target": "10.0.0.1/32", "after_ms": 0.84});
        let told = sentences(&drop, "at eth0");
        let what = "FIRST PACKET of 10.0.0.1 dropped at eth0, 0.8 ms after the decisive answer";
        assert_eq!(told, [(Who::Kernel, what.to_owned())]);

        let decision = json!({"event": "decision", "action": "alert", "ttl_s": 90,
            "subject": {"cidr": "fd00::/64"}, "owasp": "A", "score": 0.5, "mode": "observe"});
        let told: Vec<String> = sentences(&decision, "").into_iter().map(|told| told.1).collect();
        let expected = [
            "DECISION alert every packet of fd00::/64 for 1.5 min",
            "    mode observe, OWASP A, score 0.5",
        ];
        assert_eq!(told, expected);

        let evidence = json!({"failures": 12, "failures_threshold": 10, "window_s": 300.0});
        assert_eq!(thresholds(&json!({"evidence": evidence})), "failures 10");
    }

    #[test]
    fn an_event_of_another_kind_is_told_by_its_name() {
        assert_eq!(sentences(&json!({"event": "reload"}), ""), [(Who::Agent, "reload".to_owned())]);
        assert_eq!(sentences(&json!({"event": "start"}), ""), []);
    }
}
