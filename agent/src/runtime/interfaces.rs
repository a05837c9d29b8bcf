//! What happens to interfaces, into the event log and the status.

use std::sync::Arc;

use tokio::sync::Notify;

use super::core::Core;
use crate::enforce::PolicyMaps;
use crate::kernel::{Change, Interfaces};
use crate::report::event_log::Event;
use crate::report::snapshot::{Interface, InterfaceChanges, Snapshot, WaitingInterface};
use crate::time::Timestamp;

impl<P: PolicyMaps> Core<P> {
    pub fn set_interfaces(&mut self, interfaces: Interfaces) {
        self.interfaces = Some(interfaces);
    }

    /// Notified when [`Self::tell_interfaces`] has something to tell.
    pub fn interfaces_changed(&self) -> Arc<Notify> {
        self.interfaces.as_ref().map(Interfaces::changed).unwrap_or_default()
    }

    /// Tells what has happened to interfaces, and looks what that changed in the host's addresses.
    pub fn tell_interfaces(&mut self) {
        let changes = self.interfaces.as_ref().map(Interfaces::take_changes).unwrap_or_default();
        let ts = self.wall_now();
        for change in &changes {
            self.log.append(ts, &event(ts, change));
        }
        self.refresh_host(self.now());
    }

    pub(super) fn interface_status(&self, snapshot: &mut Snapshot) {
        let Some(state) = self.interfaces.as_ref().map(Interfaces::state) else { return };
        let shown = |path: std::path::PathBuf| path.display().to_string();
        let interfaces = state.attached.into_iter().map(|at| Interface {
            name: at.interface,
            namespace: at.namespace.map(shown),
            hook: at.hook.name().into(),
            passed_over: at.passed_over,
        });
        snapshot.interfaces = interfaces.collect();
        let waiting = state.waiting.into_iter().map(|waiting| WaitingInterface {
            name: waiting.interface,
            namespace: waiting.namespace.map(shown),
            problem: waiting.problem,
        });
        snapshot.waiting = waiting.collect();
        snapshot.interface_changes = InterfaceChanges {
            attached: state.totals.attached,
            detached: state.totals.detached,
            failed: state.totals.refused,
            untold: state.totals.untold,
        };
    }
}

fn event(ts: Timestamp, change: &Change) -> Event<'_> {
    match change {
        Change::Attached(at) => Event::Attach {
            ts,
            interface: &at.interface,
            namespace: at.namespace.as_deref(),
            hook: at.hook.name(),
            taken_over: at.taken_over,
            passed_over: &at.passed_over,
        },
        Change::Detached { interface, namespace, reason } => {
            Event::Detach { ts, interface, namespace: namespace.as_deref(), reason }
        }
        Change::Refused { interface, namespace, problem } => {
            Event::AttachFailed { ts, interface, namespace: namespace.as_deref(), reason: problem }
        }
    }
}
