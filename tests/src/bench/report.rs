//! What a benchmark found: as one JSON object, or as a table.

use std::fmt;

use nix::sys::utsname::uname;
use serde_json::{Map, Value, json};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    Lower,
    Higher,
}

/// Median and extremes of what the rounds measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Summary {
    /// # Panics
    /// When nothing was measured.
    pub fn of(measured: &[f64]) -> Self {
        let mut sorted = measured.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (sorted[0], sorted[sorted.len() - 1]);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Self { median: (low + high) / 2.0, min, max }
    }
}

/// One figure and its target: a ratio where there is a peer, else in `unit`.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    pub name: &'static str,
    pub unit: &'static str,
    pub ours: Summary,
    /// The peer's name, and what it did in the same rounds.
    pub peer: Option<(&'static str, Summary)>,
    pub target: f64,
    pub better: Better,
}

impl Case {
    fn ratio(&self) -> Option<f64> {
        self.peer.map(|(_, theirs)| self.ours.median / theirs.median)
    }

    pub fn met(&self) -> bool {
        let value = self.ratio().unwrap_or(self.ours.median);
        match self.better {
            Better::Lower => value <= self.target,
            Better::Higher => value >= self.target,
        }
    }

    fn to_json(&self) -> Value {
        let mut object = Map::new();
        let mut put = |key: &str, value: Value| drop(object.insert(key.to_owned(), value));
        put("case", self.name.into());
        put("unit", self.unit.into());
        let mut put_summary = |key: &str, summary: Summary| {
            put(key, rounded(summary.median));
            put(&format!("{key}_min"), rounded(summary.min));
            put(&format!("{key}_max"), rounded(summary.max));
        };
        put_summary("ours", self.ours);
        if let Some((peer, theirs)) = self.peer {
            put_summary("theirs", theirs);
            put("peer", peer.into());
        }
        if let Some(ratio) = self.ratio() {
            put("ratio", rounded(ratio));
        }
        put("target", self.target.into());
        put("better", if self.better == Better::Lower { "lower" } else { "higher" }.into());
        put("met", self.met().into());
        object.into()
    }
}

/// More digits than any benchmark repeats, and few enough to read.
fn rounded(value: f64) -> Value {
    ((value * 1e3).round() / 1e3).into()
}

#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    pub bench: &'static str,
    pub rounds: usize,
    pub cases: Vec<Case>,
}

impl Report {
    pub fn to_json(&self) -> Value {
        let kernel = uname().map(|name| name.release().to_string_lossy().into_owned());
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        json!({
            "bench": self.bench,
            "machine": { "kernel": kernel.unwrap_or_default(), "cpus": cpus },
            "rounds": self.rounds,
            "cases": self.cases.iter().map(Case::to_json).collect::<Vec<_>>(),
        })
    }
}

/// A table for people.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, medians of {} rounds", self.bench, self.rounds)?;
        let heads = ["case", "ours", "theirs", "ratio", "target", "met", "unit, peer"];
        writeln!(
            f,
            "  {:<24} {:>10} {:>10} {:>6} {:>9} {:<4} {}",
            heads[0], heads[1], heads[2], heads[3], heads[4], heads[5], heads[6]
        )?;
        for case in &self.cases {
            let number = |value: Option<f64>, digits: usize| {
                value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
            };
            let theirs = case.peer.map(|(_, theirs)| theirs.median);
            let sign = if case.better == Better::Lower { "≤" } else { "≥" };
            writeln!(
                f,
                "  {:<24} {:>10} {:>10} {:>6} {:>9} {:<4} {}{}",
                case.name,
                number(Some(case.ours.median), 1),
                number(theirs, 1),
                number(case.ratio(), 2),
                format!("{sign} {}", case.target),
                if case.met() { "yes" } else { "no" },
                case.unit,
                case.peer.map(|(peer, _)| format!(", {peer}")).unwrap_or_default(),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(peer: Option<f64>, target: f64, better: Better) -> Case {
        Case {
            name: "drop_hit",
            unit: "ns/packet",
            ours: Summary::of(&[32.0, 30.0, 31.0]),
            peer: peer.map(|theirs| ("xdp-filter", Summary::of(&[theirs]))),
            target,
            better,
        }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        let odd = Summary::of(&[5.0, 1.0, 3.0]);
        assert_eq!((odd.median, odd.min, odd.max), (3.0, 1.0, 5.0));
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
    }

    #[test]
    fn a_target_is_of_the_ratio_where_there_is_a_peer() {
        assert!(case(Some(62.0), 0.65, Better::Lower).met());
        assert!(!case(Some(40.0), 0.65, Better::Lower).met());
        assert!(case(Some(10.0), 2.5, Better::Higher).met());
        assert!(case(None, 31.0, Better::Lower).met());
        assert!(!case(None, 40.0, Better::Higher).met());
    }

    #[test]
    fn json_has_the_agreed_keys() {
        let report =
            |peer| Report { bench: "xdp", rounds: 3, cases: vec![case(peer, 0.65, Better::Lower)] };
        let json = report(Some(62.0)).to_json();
        assert_eq!((&json["bench"], &json["rounds"]), (&json!("xdp"), &json!(3)));
        assert!(json["machine"]["kernel"].is_string() && json["machine"]["cpus"].is_u64());
        let expected = json!({
            "case": "drop_hit", "unit": "ns/packet",
            "ours": 31.0, "ours_min": 30.0, "ours_max": 32.0,
            "theirs": 62.0, "theirs_min": 62.0, "theirs_max": 62.0, "peer": "xdp-filter",
            "ratio": 0.5, "target": 0.65, "better": "lower", "met": true,
        });
        assert_eq!(json["cases"][0], expected);

        let alone = &report(None).to_json()["cases"][0];
        for key in ["peer", "theirs", "ratio"] {
            assert!(alone.get(key).is_none(), "{key} without a peer");
        }
    }
}
