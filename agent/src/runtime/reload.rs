//! Another configuration while the agent runs.

use std::sync::Arc;

use ipnet::IpNet;

use super::core::{Core, by_operator};
use crate::config::{self, Config, Purpose};
use crate::decide::{Which, subject_of};
use crate::enforce::{EnforceError, PolicyMaps};
use crate::report::event_log::Event;

impl<P: PolicyMaps> Core<P> {
    /// Reads the configuration file again. A bad one changes nothing. Returns what a reload
    /// cannot change.
    ///
    /// # Errors
    /// Every mistake of the file, a line each.
    pub fn reload(&mut self) -> Result<Vec<String>, String> {
        let result = self.try_reload();
        let now = self.now();
        let (ok, messages) = match &result {
            Ok(warnings) => {
                self.totals.reloads += 1;
                tracing::info!("the configuration has been reloaded");
                (true, warnings.clone())
            }
            Err(mistakes) => {
                self.totals.reloads_failed += 1;
                tracing::error!("the configuration is not reloaded, the old one holds:");
                (false, mistakes.lines().map(str::to_owned).collect())
            }
        };
        for message in &messages {
            if ok { tracing::warn!("{message}") } else { tracing::error!("{message}") }
        }
        self.log.append(now, &Event::Reload { ts: now, ok, messages: &messages });
        result
    }

    fn try_reload(&mut self) -> Result<Vec<String>, String> {
        let loaded = config::load(&self.config_path, Purpose::Run)
            .map_err(|invalid| invalid.to_string())?;
        self.log.reopen().map_err(|error| error.to_string())?;
        let mut warnings: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
        let fixed = config::changes_that_need_restart(&self.configured, &loaded.config);
        warnings.extend(fixed.iter().map(|key| format!("{key} changes at the next start only")));
        let before: Vec<IpNet> = self.config.blocked.iter().map(|block| block.target).collect();
        self.adopt(loaded.config).map_err(|error| error.to_string())?;
        self.unblock_no_longer_configured(&before);
        self.block_configured(&before);
        Ok(warnings)
    }

    /// Makes `configured`, with what operators allowed, the configuration of every part that
    /// can change while it runs.
    pub(super) fn adopt(&mut self, configured: Config) -> Result<(), EnforceError> {
        let mut effective = configured.clone();
        effective.guards.allow.extend(&self.allowed_by_operator);
        self.configured = configured;
        self.config = Arc::new(effective);
        let now = self.now();
        let lifted = self.pipeline.reconfigure(Arc::clone(&self.config), now);
        self.carry_out_lifts(lifted);
        self.write_policy()
    }

    fn unblock_no_longer_configured(&mut self, before: &[IpNet]) {
        let now = self.now();
        let listed = |target: &IpNet| self.config.blocked.iter().any(|b| b.target == *target);
        let gone: Vec<_> = before.iter().filter(|target| !listed(target)).collect();
        for target in gone {
            let Some(subject) = subject_of(*target) else { continue };
            let held = self.pipeline.decider().in_force();
            let ids: Vec<_> = held
                .filter(|decision| decision.subject == subject && by_operator(decision))
                .map(|decision| decision.id.clone())
                .collect();
            for id in ids {
                let lifted = self.pipeline.decider_mut().lift(Which::Id(&id), now);
                self.carry_out_lifts(lifted);
            }
        }
    }
}
