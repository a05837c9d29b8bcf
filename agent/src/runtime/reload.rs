//! Another configuration while the agent runs.

use std::collections::HashSet;
use std::sync::Arc;

use super::core::{Core, http_settings};
use super::lists;
use super::policy::{by_operator, canonical_rule};
use crate::config::{self, Config, Kernel, Purpose, StaticBlock};
use crate::decide::Which;
use crate::decision::Subject;
use crate::enforce::{EnforceError, Kind, PolicyMaps, RuleName};
use crate::kernel::Scope;
use crate::report::event_log::Event;

impl<P: PolicyMaps> Core<P> {
    /// Reads the configuration file again. A bad one changes nothing. Returns what a reload
    /// cannot change.
    ///
    /// # Errors
    /// Every mistake of the file, a line each.
    pub fn reload(&mut self) -> Result<Vec<String>, String> {
        let result = self.try_reload();
        let now = self.wall_now();
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
        let loaded =
            config::load(&self.config_path, Purpose::Run).map_err(|invalid| invalid.to_string())?;
        let read = lists::read(&loaded.config).map_err(|(_, errors)| errors.join("\n"))?;
        self.log.reopen().map_err(|error| error.to_string())?;
        let mut warnings: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
        let fixed = config::changes_that_need_restart(&self.configured, &loaded.config);
        warnings.extend(fixed.iter().map(|key| format!("{key} changes at the next start only")));
        warnings.extend(read.messages.iter().cloned());
        let before = self.config.blocked.clone();
        let mut config = loaded.config;
        warnings.extend(keep_fixed(&mut config, &self.configured));
        self.adopt(config).map_err(|error| error.to_string())?;
        if let Some(interfaces) = &self.interfaces {
            interfaces.reconfigure(Scope::all(&self.config));
        }
        self.unblock_no_longer_configured(&before);
        self.block_configured(&before);
        self.write_lists(read).map_err(|error| format!("the lists can't be written: {error}"))?;
        Ok(warnings)
    }

    /// Makes `configured`, with what operators allowed, the configuration of every part that
    /// can change while it runs.
    pub(super) fn adopt(&mut self, configured: Config) -> Result<(), EnforceError> {
        let mut effective = configured.clone();
        effective.guards.allow.extend(&self.allowed_by_operator);
        // The one step that can fail goes first.
        if let Err(error) = self.write_policy(&effective) {
            let old = self.config();
            self.write_policy(&old)?;
            return Err(error);
        }
        self.configured = configured;
        self.config = Arc::new(effective);
        let now = self.now();
        self.http.set_settings(http_settings(&self.config));
        let lifted = self.pipeline.reconfigure(Arc::clone(&self.config), now);
        self.carry_out_lifts(&lifted);
        Ok(())
    }

    fn unblock_no_longer_configured(&mut self, before: &[StaticBlock]) {
        let now = self.now();
        let listed: HashSet<RuleName> =
            self.config.blocked.iter().map(|block| canonical_rule(block.rule())).collect();
        let gone = before.iter().map(|block| canonical_rule(block.rule()));
        for rule in gone.filter(|rule| !listed.contains(rule)) {
            let subject = Subject::from(rule.target.clone());
            let held = self.pipeline.enforced_on(&subject);
            let ids: Vec<_> = held
                .filter(|decision| decision.rule().as_ref() == Some(&rule) && by_operator(decision))
                .map(|decision| decision.id.clone())
                .collect();
            for id in ids {
                let lifted = self.pipeline.lift(Which::Id(&id), now);
                self.carry_out_lifts(&lifted);
            }
        }
    }
}

/// Puts the values that a reload cannot change back to what the agent runs with; returns what
/// that comes to elsewhere.
fn keep_fixed(config: &mut Config, running: &Config) -> Option<String> {
    config.kernel = Kernel { tunnels: config.kernel.tunnels, ..running.kernel.clone() };
    config.capture.enabled = running.capture.enabled;
    config.capture.libraries.clone_from(&running.capture.libraries);
    config.capture.probe_sites = running.capture.probe_sites;
    config.capture.network_namespaces = running.capture.network_namespaces;
    config.capture.ring_bytes = running.capture.ring_bytes;
    config.capture.max_connections = running.capture.max_connections;
    config.enforce.answer = running.enforce.answer;
    config.enforce.answers_per_second = running.enforce.answers_per_second;
    config.decoy = running.decoy.clone();
    config.detect.max_actors = running.detect.max_actors;
    config.report.control_socket.clone_from(&running.report.control_socket);
    config.report.control_group.clone_from(&running.report.control_group);
    config.report.metrics_listen = running.report.metrics_listen;
    let deceiving = config.services.iter_mut().filter_map(|service| service.action.as_mut());
    let mut fell_back = false;
    for action in deceiving.chain([&mut config.decide.action]) {
        if *action == Kind::Steer && !config.decoy.enabled {
            *action = Kind::Drop;
            fell_back = true;
        }
    }
    fell_back.then(|| "clients are dropped, not deceived, until there is a decoy".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A configuration in which every key that needs a restart differs from the default.
    const CHANGED: &str = r#"
        interfaces = ["eth0"]
        [kernel]
        attach = "tc"
        pin_dir = "/sys/fs/bpf/elsewhere"
        max_blocks = 1000
        operator_reserve = 10
        max_allowed = 100
        [capture]
        enabled = false
        libraries = ["/opt/libssl.so.3"]
        probe_sites = "symbols"
        network_namespaces = "own"
        ring_bytes = "1MiB"
        max_connections = 100
        [detect]
        max_actors = 1000
        [enforce]
        answer = "reset"
        answers_per_second = 5
        [decoy]
        enabled = true
        listener = "127.0.0.1:8081"
        max_connections = 7
        [report]
        control_socket = "/run/elsewhere.sock"
        control_group = "adm"
        metrics_listen = "127.0.0.1:1"
    "#;

    #[test]
    fn all_that_needs_a_restart_is_kept() {
        let running = Config::default();
        let mut config = config::parse(CHANGED, "test", Purpose::Run).unwrap().config;
        let fixed = config::reference().into_iter().filter(|doc| doc.restart);
        let fixed: Vec<_> = fixed.map(|doc| doc.key).collect();
        assert_eq!(config::changes_that_need_restart(&running, &config), fixed);
        assert_eq!(keep_fixed(&mut config, &running), None);
        assert_eq!(config::changes_that_need_restart(&running, &config), Vec::<&str>::new());
    }
    #[test]
    fn nobody_is_sent_to_a_decoy_that_is_not_there_yet() {
        let text = "interfaces = ['a']\ndecoy.enabled = true\ndecide.action = 'deceive'\n\
                    [[service]]\nname = 'a'\naction = 'deceive'\n";
        let mut config = config::parse(text, "test", Purpose::Run).unwrap().config;
        let told = keep_fixed(&mut config, &Config::default());
        assert!(told.is_some_and(|told| told.contains("not deceived")));
        let service = config.services.first().and_then(|service| service.action);
        assert_eq!((config.decide.action, service), (Kind::Drop, Some(Kind::Drop)));
    }
}
