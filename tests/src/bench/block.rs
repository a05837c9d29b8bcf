//! Time to block: from the end of the response that made the case to the first packet dropped.

use anyhow::{Context as _, Result, ensure};
use std::time::Duration;

use super::Effort;
use super::report::{Better, Case, Report, Summary};
use crate::agent::Agent;
use crate::client::{Client, Request};
use crate::netns::Lab;
use crate::nginx::{Nginx, Options};
use crate::shop::Shop;

/// Milliseconds, for the slowest of a hundred attacks.
const TARGET: f64 = 50.0;
const SOON: Duration = Duration::from_secs(10);
/// Many times what the detector needs.
const MOST_GUESSES: u32 = 500;

pub fn run(effort: Effort) -> Result<Report> {
    let attacks: u16 = if effort.quick { 10 } else { 100 };
    let lab = Lab::new("pcbench", 1)?;
    let _shop = Shop::start(&lab)?;
    let nginx = Nginx::start(&lab, &Options::default())?;
    let mut agent = Agent::start(&lab, "")?;
    lab.client(0).add_addresses(attacks)?;
    let client = Client::trusting(&nginx.certs().ca)?.timeout(Duration::from_millis(500));

    let mut times = Vec::new();
    for number in 0..attacks {
        let address = lab.client(0).nth_v4(number);
        let attacker = client.clone().from(address.into());
        lab.client(0).run(|| attack(&attacker, &nginx))?;
        let target = format!("{address}/32");
        let drop = agent.wait_for_event(SOON, "the first dropped packet", |event| {
            event["event"] == "first_drop" && event["target"] == target.as_str()
        })?;
        let after = drop["after_ms"].as_f64();
        times.push(after.with_context(|| format!("a drop without its decision: {drop}"))?);
    }
    eprintln!("block: {attacks} attacks, the slowest block took {:.2} ms", max(&times));
    agent.stop()?;
    let case = |name, share| {
        let value = percentile(&times, share);
        let ours = Summary { median: value, ..Summary::of(&times) };
        Case { name, unit: "ms", ours, peer: None, target: TARGET, better: Better::Lower }
    };
    let cases = vec![case("time_to_block_p50", 0.5), case("time_to_block_p99", 0.99)];
    Ok(Report { bench: "block", rounds: attacks.into(), cases })
}

/// Guesses passwords, each as soon as the last was refused, until nothing comes back.
fn attack(client: &Client, nginx: &Nginx) -> Result<()> {
    let mut connection = client.connect(nginx.address_v4())?;
    for guess in 0..MOST_GUESSES {
        let login = Request::login(&format!("user{guess}@example.com"), "hunter2");
        if connection.request(&login).is_err() {
            return Ok(());
        }
    }
    ensure!(false, "{MOST_GUESSES} guesses were answered");
    Ok(())
}

/// The smallest value that at least `share` of all do not exceed.
fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

fn max(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), 50.0);
        assert_eq!(percentile(&values, 0.99), 99.0);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
    }
}
