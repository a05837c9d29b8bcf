//! `cargo xtask demo`: an attack on an API and its end, told as it happens.
//!
//! Everything in it is real: NGINX, TLS, the agent and its configuration, the clients, the
//! kernel. Every figure is measured: by the clients, by the agent in its event log, or by the
//! kernel in the block list.

mod attack;
mod events;
mod innocent;
mod look_inside;
mod screen;
mod summary;

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use portcullis::decision::Subject;

use crate::agent::Agent;
use crate::client::Client;
use crate::netns::{INTERFACE, Lab, clean_up_on_signals};
use crate::nginx::{Nginx, Options};
use crate::shop::Shop;
use crate::wait;

use attack::Attacker;
use events::Events;
use innocent::{Innocent, PACE};
use screen::{Screen, Timeline, Who};
use summary::{Summary, Victory};

const PREFIX: &str = "pcx-demo";
const PATIENCE: Duration = Duration::from_secs(5);
/// The innocent's requests before the first attack.
const BEFORE: u64 = 10;

const INTRODUCTION: &str = "\
A shop's API behind NGINX and TLS. A customer shops; two bots try stolen passwords at the same
door. To a firewall all three look alike: encrypted packets to port 443. Portcullis reads the
requests where NGINX decrypts them (probes in OpenSSL: no proxy, no certificate, no change to the
shop), recognises the bots by what they do, and has their packets dropped where they enter the
host, before they cost the shop anything. The customer must not notice.";

/// Everything that a story needs.
struct Stage<'a> {
    lab: &'a Lab,
    nginx: &'a Nginx,
    agent: &'a Agent<'a>,
    /// Where the agent drops packets, as part of a sentence.
    place: String,
}

/// Plays it and tells whether it went as it should: both attackers stopped, the innocent served.
/// With `keep` it returns only on errors; a signal ends it.
pub fn run(keep: bool) -> anyhow::Result<bool> {
    clean_up_on_signals()?;
    let screen = Screen::new();
    screen.hush_on_signals()?;
    screen.heading("Portcullis: an attack on an API, and its end");
    screen.text(INTRODUCTION);

    let begin = Instant::now();
    let lab = Lab::new(PREFIX, 3)?;
    let shop = Shop::start(&lab)?;
    let nginx = Nginx::start(&lab, &Options::default())?;
    let agent = Agent::start(&lab, "")?;
    let stage = Stage { lab: &lab, nginx: &nginx, agent: &agent, place: place(&agent)? };
    introduce(&stage, &screen, begin.elapsed())?;

    let summary = play(&stage, &screen)?;
    summary.tell(&screen);
    if keep {
        look_inside::explain(&stage, &screen);
        loop {
            thread::park();
        }
    }
    agent.stop()?;
    drop((nginx, shop, lab));
    screen.text("\nEverything is removed.");
    Ok(summary.is_as_promised())
}

/// Where the agent drops packets, as it says itself.
fn place(agent: &Agent) -> anyhow::Result<String> {
    let status = agent.json("status", &[])?;
    let interface = status["interfaces"].get(0).context("the agent watches no interface")?;
    let part = |key: &str| interface[key].as_str().unwrap_or("?").to_owned();
    Ok(format!("at {} ({})", part("name"), part("hook")))
}

fn introduce(stage: &Stage, screen: &Screen, took: Duration) -> anyhow::Result<()> {
    let Stage { lab, agent, .. } = stage;
    screen.heading("The laboratory: network namespaces with no way out");
    let hosts = [
        (Who::Attacker, lab.client(0).v4().into(), "┐"),
        (Who::SecondAttacker, IpAddr::from(lab.client(1).v6()), "┼"),
        (Who::Innocent, lab.client(2).v4().into(), "┘"),
    ];
    for (who, address, corner) in hosts {
        let server = match who {
            Who::SecondAttacker => format!("── {INTERFACE} of the server {}", lab.server().v4()),
            Who::Innocent => "   Portcullis ▸ NGINX (TLS) ▸ shop API".to_owned(),
            _ => String::new(),
        };
        let address = format!("{address} ");
        let row = format!("  {:<10}  {address:─<24}{corner}{server}", who.name());
        screen.text(row.trim_end());
    }
    let config = &agent.files().config;
    screen.heading("The agent's whole configuration");
    screen.text(&format!("`portcullis run --config {}` runs, with:", config.display()));
    screen.quote(&fs::read_to_string(config)?);
    screen.text("Only `interfaces` must be set; the rest keeps this laboratory apart from others.");
    screen.text(&format!("Ready after {:.1} s.", took.as_secs_f64()));
    Ok(())
}

fn play(stage: &Stage, screen: &Screen) -> anyhow::Result<Summary> {
    let Stage { lab, nginx, agent, .. } = stage;
    let client = Client::trusting(&nginx.certs().ca)?;
    let innocent = Innocent::new(client, [nginx.address_v4(), nginx.address_v6()]);
    let (events, stop) = (Events::default(), AtomicBool::new(false));
    let begin = Instant::now();
    let timeline = Timeline::start(screen);
    let victories = thread::scope(|scope| {
        let reader = scope.spawn(|| events.follow(agent, &timeline, &stage.place, &stop));
        let shopper = scope.spawn(|| {
            lab.client(2).run(|| {
                innocent.shop(&timeline, &stop);
                Ok(())
            })
        });
        let scenes = {
            let _stop = StopAtEnd(&stop);
            scenes(stage, &timeline, &innocent, &events)
        };
        reader.join().expect("the reader does not panic")?;
        shopper.join().expect("the innocent does not panic")?;
        scenes
    })?;
    Summary::measure(agent, victories, innocent.tally(), begin.elapsed())
}

/// Ends the threads of a story, however it ends.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn scenes(
    stage: &Stage,
    timeline: &Timeline,
    innocent: &Innocent,
    events: &Events,
) -> anyhow::Result<Vec<Victory>> {
    let Stage { lab, nginx, .. } = stage;
    let ca = &nginx.certs().ca;

    timeline.chapter("1. A customer shops, and will go on to the end");
    let pace = PACE.as_millis();
    timeline.tell(Who::Innocent, &format!("sends a request every {pace} ms, over IPv4 and IPv6"));
    wait::until(PATIENCE, "the innocent's first requests", || {
        Ok((innocent.tally().made >= BEFORE).then_some(()))
    })?;
    tell_innocent(timeline, innocent);

    timeline.chapter("2. A bot tries stolen passwords, as fast as it gets answers");
    let (host, server) = (lab.client(0), nginx.address_v4());
    let first = Attacker { who: Who::Attacker, host, server, ca, shown: 15 };
    let mut victories = vec![attack(&first, timeline, events)?];
    let again = first.come_back(timeline, "a new connection, with curl", &[])?;
    victories[0].answered_later = again;
    tell_innocent(timeline, innocent);

    timeline.chapter("3. Another bot, over IPv6, where a client has 2^64 addresses to change to");
    let (host, server) = (lab.client(1), nginx.address_v6());
    let second = Attacker { who: Who::SecondAttacker, host, server, ca, shown: 2 };
    let mut victory = attack(&second, timeline, events)?;
    let other = neighbour(host.v6());
    host.add_address(other.into())?;
    let how = format!("changes its address to {other}, with curl");
    victory.answered_later =
        second.come_back(timeline, &how, &["--interface", &other.to_string()])?;
    victories.push(victory);
    tell_innocent(timeline, innocent);
    Ok(victories)
}

/// Another address of the same /64.
fn neighbour(address: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(address.to_bits() ^ 0xbad_0000)
}

/// Lets it guess until it is silenced, and waits for what the agent says of that.
fn attack(attacker: &Attacker, timeline: &Timeline, events: &Events) -> anyhow::Result<Victory> {
    let source = attacker.source();
    let run = attacker.guess_passwords(timeline)?;
    let mut victory = Victory::new(attacker.who, source, run);
    if run.silenced {
        let subject = serde_json::to_value(Subject::client(source))?;
        let decision = events.wait_for("the agent's decision", |event| {
            event["event"] == "decision" && event["subject"] == subject
        })?;
        let first_drop = events.wait_for("the first dropped packet", |event| {
            event["event"] == "first_drop" && event["id"] == decision["id"]
        })?;
        victory.blocked_by(&decision, &first_drop, timeline);
    }
    Ok(victory)
}

fn tell_innocent(timeline: &Timeline, innocent: &Innocent) {
    let tally = innocent.tally();
    let told =
        format!("{} requests so far, {} served ({} %)", tally.made, tally.served, tally.percent());
    timeline.tell(Who::Innocent, &told);
}
