//! The files of networks that the configuration names, into the kernel.

use std::time::Instant;

use sha2::{Digest, Sha256};

use super::core::Core;
use crate::config::{Config, ListFile};
use crate::decision::Origin;
use crate::enforce::{EnforceError, List, NewBlock, PolicyMaps};
use crate::lists;
use crate::report::snapshot;

/// Lists as they were read.
#[derive(Default)]
pub(super) struct ReadLists {
    lists: Vec<List>,
    told: Vec<snapshot::List>,
    /// What could not be read of them.
    pub messages: Vec<String>,
}

/// Reads the files that `config` names.
///
/// # Errors
/// With a sentence for each file that can't be read, beside what could be read of the others.
pub(super) fn read(config: &Config) -> Result<ReadLists, (ReadLists, Vec<String>)> {
    let mut read = ReadLists::default();
    let mut errors = Vec::new();
    for file in &config.lists {
        match lists::read(&file.file) {
            Ok(found) => read.add(file, found),
            Err(error) => errors.push(error.to_string()),
        }
    }
    if errors.is_empty() { Ok(read) } else { Err((read, errors)) }
}

impl ReadLists {
    fn add(&mut self, file: &ListFile, found: lists::Networks) {
        self.told.push(snapshot::List {
            name: file.name.to_string(),
            networks: found.networks.len() as u64,
            bad_lines: found.bad_lines,
        });
        self.messages.extend(found.messages);
        self.lists.push(List {
            name: file.name.clone(),
            rule: NewBlock {
                ttl: None,
                rule_id: rule_id(&file.name),
                origin: Origin::Configured,
                effect: file.effect,
                count_only: false,
                service: None,
            },
            networks: found.networks,
        });
    }
}

/// The first 64 bits of SHA-256 over the name: a list that is read again keeps its counters.
fn rule_id(name: &str) -> u64 {
    let digest = Sha256::digest(format!("list\n{name}").as_bytes());
    digest.iter().take(8).fold(0, |id, byte| id << 8 | u64::from(*byte))
}

impl<P: PolicyMaps> Core<P> {
    /// Replaces all lists in the kernel.
    pub(super) fn write_lists(&mut self, read: ReadLists) -> Result<(), EnforceError> {
        let started = Instant::now();
        self.maps.set_lists(&read.lists)?;
        let networks: u64 = read.told.iter().map(|list| list.networks).sum();
        if networks > 0 {
            let took = started.elapsed().as_millis();
            tracing::info!("{networks} networks of lists are in the kernel, after {took} ms");
        }
        self.lists = read.told;
        Ok(())
    }

    /// At start: what can't be read keeps nothing else from being enforced.
    pub(super) fn start_lists(&mut self) {
        let config = self.config();
        let read = match read(&config) {
            Ok(read) => read,
            Err((read, errors)) => {
                errors.iter().for_each(|error| tracing::error!("{error}"));
                read
            }
        };
        read.messages.iter().for_each(|message| tracing::warn!("{message}"));
        if let Err(error) = self.write_lists(read) {
            self.totals.blocks_failed += 1;
            tracing::error!("the lists can't be written: {error:#}");
        }
    }
}
