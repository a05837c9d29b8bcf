//! The latest decisions and findings, for `portcullis decisions`, `findings` and `blocks`.

use std::collections::{HashMap, VecDeque};

use crate::decision::Decision;
use crate::finding::Finding;
use crate::time::Timestamp;

/// How many of each are kept.
const LIMIT: usize = 1_000;

#[derive(Default)]
pub(super) struct Recent {
    decisions: VecDeque<Made>,
    findings: VecDeque<Finding>,
    /// Decisions so far, by their rule's number.
    by_rule: HashMap<u64, u64>,
    /// The number of the first decision in `decisions`.
    first: u64,
}

/// A decision, and when what it was made on happened: the end of the response for a detector's,
/// the command for an operator's.
pub(super) struct Made {
    pub decision: Decision,
    pub cause: Timestamp,
}

impl Recent {
    pub fn decision(&mut self, decision: Decision, cause: Timestamp) {
        if self.decisions.len() == LIMIT
            && let Some(oldest) = self.decisions.pop_front()
        {
            self.first += 1;
            if let Some(rule) = oldest.decision.rule_id() {
                self.by_rule.remove(&rule);
            }
        }
        if let Some(rule) = decision.rule_id() {
            self.by_rule.insert(rule, self.first + self.decisions.len() as u64);
        }
        self.decisions.push_back(Made { decision, cause });
    }

    pub fn finding(&mut self, finding: Finding) {
        if self.findings.len() == LIMIT {
            self.findings.pop_front();
        }
        self.findings.push_back(finding);
    }

    pub fn by_rule(&self, rule: u64) -> Option<&Made> {
        let number = self.by_rule.get(&rule)?.checked_sub(self.first)?;
        self.decisions.get(usize::try_from(number).ok()?)
    }

    /// The latest `limit`, oldest first.
    pub fn decisions(&self, limit: usize) -> impl Iterator<Item = &Decision> {
        let skip = self.decisions.len().saturating_sub(limit);
        self.decisions.iter().skip(skip).map(|made| &made.decision)
    }

    /// The latest `limit`, oldest first.
    pub fn findings(&self, limit: usize) -> impl Iterator<Item = &Finding> {
        self.findings.iter().skip(self.findings.len().saturating_sub(limit))
    }
}
