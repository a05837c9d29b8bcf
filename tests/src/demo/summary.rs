//! How it ended, in figures.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::attack::Run;
use super::innocent::Tally;
use super::screen::{BAD, GOOD, Screen, Timeline, Who};
use crate::agent::Agent;
use crate::wait;

/// For the agent to have counted what was answered last.
const PATIENCE: Duration = Duration::from_secs(2);

/// One attacker, and how it was beaten, if it was.
#[derive(Debug)]
pub struct Victory {
    who: Who,
    source: IpAddr,
    run: Run,
    /// Of the decision.
    id: Option<String>,
    /// Milliseconds from the decisive answer to the first dropped packet, in the kernel's clock.
    decisive_to_drop_ms: Option<f64>,
    first_guess_to_drop_ms: Option<i64>,
    packets_dropped: u64,
    pub answered_later: bool,
}

impl Victory {
    pub fn new(who: Who, source: IpAddr, run: Run) -> Self {
        Self {
            who,
            source,
            run,
            id: None,
            decisive_to_drop_ms: None,
            first_guess_to_drop_ms: None,
            packets_dropped: 0,
            answered_later: false,
        }
    }

    /// What the agent's events say of it.
    pub fn blocked_by(&mut self, decision: &Value, first_drop: &Value, timeline: &Timeline) {
        self.id = decision["id"].as_str().map(str::to_owned);
        self.decisive_to_drop_ms = first_drop["after_ms"].as_f64();
        let dropped = first_drop["ts"].as_f64().map(|ts| timeline.of_epoch(ts));
        self.first_guess_to_drop_ms = dropped.map(|ms| ms - self.run.first_guess_ms);
    }

    fn is_complete(&self) -> bool {
        self.run.silenced && self.packets_dropped > 0 && !self.answered_later
    }
}

pub struct Summary {
    victories: Vec<Victory>,
    innocent: Tally,
    /// HTTP exchanges that the agent followed to their end.
    seen: u64,
    /// Times the agent lost something.
    lost: u64,
    block_list: String,
    took: Duration,
}

impl Summary {
    /// Asks the agent for its part.
    pub fn measure(
        agent: &Agent,
        mut victories: Vec<Victory>,
        innocent: Tally,
        took: Duration,
    ) -> anyhow::Result<Self> {
        let blocks = agent.json("blocks", &[])?;
        for victory in &mut victories {
            let block = blocks.as_array().into_iter().flatten();
            let block = block.into_iter().find(|block| {
                victory.id.as_deref().is_some_and(|id| block["id"].as_str() == Some(id))
            });
            victory.packets_dropped = block.and_then(|b| b["packets"].as_u64()).unwrap_or(0);
        }
        let output = agent.command("blocks", &[])?;
        let block_list = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut summary = Self { victories, innocent, seen: 0, lost: 0, block_list, took };
        let answered = summary.answered();
        let begin = Instant::now();
        wait::until(PATIENCE * 2, "the agent's counters", || {
            let status = agent.json("status", &[])?;
            summary.seen = status["transactions"].as_u64().unwrap_or(0);
            let losses = status["losses"].as_object().into_iter().flatten();
            summary.lost = losses.filter_map(|(_, lost)| lost["events"].as_u64()).sum();
            // The last answers may still be on their way to it. What never comes is told.
            let done = summary.seen >= answered || begin.elapsed() >= PATIENCE;
            Ok(done.then_some(()))
        })?;
        Ok(summary)
    }

    /// Answers that clients got.
    fn answered(&self) -> u64 {
        let by =
            |victory: &Victory| u64::from(victory.run.answered) + u64::from(victory.answered_later);
        self.innocent.answered + self.victories.iter().map(by).sum::<u64>()
    }

    /// Every attacker was stopped and stayed out, and every request of the innocent was served.
    pub fn is_as_promised(&self) -> bool {
        let Tally { made, served, .. } = self.innocent;
        self.victories.iter().all(Victory::is_complete) && made > 0 && served == made
    }

    pub fn tell(&self, screen: &Screen) {
        screen.heading("The block list: `portcullis blocks`");
        screen.quote(&self.block_list);
        screen.heading("What was measured");
        for row in self.rows() {
            screen.text(&format!("  {row}"));
        }
        let verdict = if self.is_as_promised() {
            format!("{GOOD}Both attackers were stopped; the innocent noticed nothing.{GOOD:#}")
        } else {
            let innocent = self.innocent.made - self.innocent.served;
            let at_large = self.victories.iter().filter(|v| !v.is_complete()).count();
            format!(
                "{BAD}FAILED: {at_large} attackers not stopped, {innocent} innocent requests not served.{BAD:#}"
            )
        };
        screen.text(&format!("\n{verdict} The story took {:.1} s.", self.took.as_secs_f64()));
    }

    fn rows(&self) -> Vec<String> {
        let mut rows = Vec::new();
        for victory in &self.victories {
            let or_never = |ms: Option<String>| ms.unwrap_or_else(|| "never".to_owned());
            let decisive = victory.decisive_to_drop_ms.map(|ms| format!("{ms:.1} ms"));
            let whole = victory.first_guess_to_drop_ms.map(|ms| format!("{ms} ms"));
            let facts = [
                ("guesses answered before the block", victory.run.answered.to_string()),
                ("first guess to first dropped packet", or_never(whole)),
                ("decisive answer to first dropped packet", or_never(decisive)),
                ("packets dropped", victory.packets_dropped.to_string()),
                ("answered afterwards", if victory.answered_later { "YES" } else { "no" }.into()),
            ];
            rows.push(format!("{} {}", victory.who.name(), victory.source));
            rows.extend(facts.map(|(name, value)| format!("  {name:<42}{value:>10}")));
        }
        let Tally { made, served, slowest, .. } = self.innocent;
        let percent = self.innocent.percent();
        let slowest = slowest.as_secs_f64() * 1e3;
        rows.push(Who::Innocent.name().to_owned());
        rows.push(format!(
            "  {:<42}{:>10}",
            "requests made / served",
            format!("{made} / {served}  ({percent} %)")
        ));
        rows.push(format!("  {:<42}{:>10}", "slowest answer", format!("{slowest:.1} ms")));
        rows.push(Who::Agent.name().to_owned());
        let seen = format!("{} / {}", self.seen, self.answered());
        rows.push(format!("  {:<42}{seen:>10}", "exchanges seen / answers clients got"));
        rows.push(format!("  {:<42}{:>10}", "losses counted", self.lost));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(silenced: bool, dropped: u64, answered_later: bool, served: u64) -> Summary {
        let run = Run { answered: 10, first_guess_ms: 0, silenced };
        let mut victory = Victory::new(Who::Attacker, IpAddr::from([10, 0, 0, 1]), run);
        victory.packets_dropped = dropped;
        victory.answered_later = answered_later;
        let innocent = Tally { made: 5, served, answered: 5, slowest: Duration::ZERO };
        let (block_list, took) = (String::new(), Duration::ZERO);
        Summary { victories: vec![victory], innocent, seen: 15, lost: 0, block_list, took }
    }

    #[test]
    fn nothing_less_than_all_is_success() {
        assert!(summary(true, 3, false, 5).is_as_promised());
        assert!(!summary(false, 3, false, 5).is_as_promised(), "never silenced");
        assert!(!summary(true, 0, false, 5).is_as_promised(), "silent by another cause");
        assert!(!summary(true, 3, true, 5).is_as_promised(), "came back");
        assert!(!summary(true, 3, false, 4).is_as_promised(), "the innocent suffered");
    }

    #[test]
    fn what_never_happened_is_said() {
        let rows = summary(false, 0, false, 5).rows().join("\n");
        assert_eq!(rows.matches("never").count(), 2, "{rows}");
        assert!(rows.contains("5 / 5  (100 %)") && rows.contains("15 / 15"), "{rows}");
    }
}
