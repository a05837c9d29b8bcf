//! What the reader sees: plain text on a pipe, colours on a terminal that wants them.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

pub const BOLD: Style = Style::new().bold();
pub const GOOD: Style = AnsiColor::Green.on_default().bold();
pub const BAD: Style = AnsiColor::Red.on_default().bold();
const FAINT: Style = Style::new().dimmed();

/// Who does what a line tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Attacker,
    SecondAttacker,
    Innocent,
    Agent,
    Kernel,
}

impl Who {
    pub fn name(self) -> &'static str {
        match self {
            Self::Attacker => "attacker",
            Self::SecondAttacker => "attacker 2",
            Self::Innocent => "innocent",
            Self::Agent => "agent",
            Self::Kernel => "kernel",
        }
    }

    fn style(self) -> Style {
        let color = match self {
            Self::Attacker | Self::SecondAttacker => AnsiColor::Red,
            Self::Innocent => AnsiColor::Green,
            Self::Agent => AnsiColor::Cyan,
            Self::Kernel => AnsiColor::Magenta,
        };
        color.on_default()
    }
}

/// Standard output, shared by everybody who tells something.
pub struct Screen {
    out: Mutex<AutoStream<io::Stdout>>,
    interrupted: Arc<AtomicBool>,
}

impl Screen {
    pub fn new() -> Self {
        let out = Mutex::new(AutoStream::auto(io::stdout()));
        Self { out, interrupted: Arc::new(AtomicBool::new(false)) }
    }

    /// Shows nothing any more after a signal that ends the demo: servers and clients are killed
    /// in its clean-up, and what they look like then is no part of the story.
    pub fn hush_on_signals(&self) -> anyhow::Result<()> {
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&self.interrupted))
                .context("cannot handle signals")?;
        }
        Ok(())
    }

    /// A line or several.
    pub fn text(&self, text: &str) {
        if self.interrupted.load(Ordering::Relaxed) {
            return;
        }
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody may read any more; the exit status still tells how it went.
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }

    /// An empty line and a line that stands out.
    pub fn heading(&self, text: &str) {
        self.text(&format!("\n{BOLD}{text}{BOLD:#}"));
    }

    /// The lines, moved to the right.
    pub fn quote(&self, text: &str) {
        for line in text.trim_end().lines() {
            self.text(format!("  {FAINT}|{FAINT:#} {line}").trim_end());
        }
    }
}

/// Lines with the time since the story began.
pub struct Timeline<'a> {
    screen: &'a Screen,
    /// In whole milliseconds, as the agent's events are, so that both round alike.
    begin_ms: i64,
}

impl<'a> Timeline<'a> {
    /// The story begins now.
    pub fn start(screen: &'a Screen) -> Self {
        Self { screen, begin_ms: wall_clock_ms() }
    }

    /// Milliseconds since the beginning.
    pub fn now(&self) -> i64 {
        wall_clock_ms() - self.begin_ms
    }

    /// The same for a time of the agent's formats: seconds since the epoch, to the millisecond.
    pub fn of_epoch(&self, seconds: f64) -> i64 {
        (seconds * 1e3).round() as i64 - self.begin_ms
    }

    pub fn chapter(&self, text: &str) {
        self.screen.heading(text);
    }

    pub fn tell(&self, who: Who, what: &str) {
        self.tell_at(self.now(), who, what);
    }

    pub fn tell_at(&self, ms: i64, who: Who, what: &str) {
        self.screen.text(&line(ms, who, what));
    }
}

fn line(ms: i64, who: Who, what: &str) -> String {
    let style = who.style();
    format!("{FAINT}{ms:>+6} ms{FAINT:#}  {style}{:<10}{style:#}  {what}", who.name())
}

fn wall_clock_ms() -> i64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since_epoch.unwrap_or(Duration::ZERO).as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_without_colours() {
        let plain = |text: &str| anstream::adapter::strip_str(text).to_string();
        let first = plain(&line(7, Who::SecondAttacker, "knocks"));
        let second = plain(&line(12_345, Who::Agent, "knocks"));
        assert_eq!(first, "    +7 ms  attacker 2  knocks");
        assert_eq!(first.find("knocks"), second.find("knocks"));
    }

    #[test]
    fn the_agents_clock_is_the_timelines() {
        let screen = Screen::new();
        let timeline = Timeline { screen: &screen, begin_ms: 1_700_000_000_250 };
        assert_eq!(timeline.of_epoch(1_700_000_001.251), 1_001);
    }
}
