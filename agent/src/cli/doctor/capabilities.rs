//! Which capabilities this process has, and what does not work without the others.

use caps::{CapSet, Capability, CapsHashSet};

use super::{Check, State};

const AREA: &str = "capabilities";

struct Need {
    capability: Capability,
    /// Nothing works without it.
    essential: bool,
    /// `CAP_SYS_ADMIN` includes it (capabilities(7)).
    in_admin: bool,
    /// What lacks without it.
    without: &'static str,
}

const NEEDS: [Need; 7] = [
    Need {
        capability: Capability::CAP_BPF,
        essential: true,
        in_admin: true,
        without: "no program or map can be loaded",
    },
    Need {
        capability: Capability::CAP_NET_ADMIN,
        essential: true,
        in_admin: false,
        without: "no program can be attached to an interface",
    },
    Need {
        capability: Capability::CAP_PERFMON,
        essential: true,
        in_admin: true,
        without: "no uprobe or tracepoint can be attached, so no API call is seen",
    },
    Need {
        capability: Capability::CAP_SYS_PTRACE,
        essential: false,
        in_admin: false,
        without: "other users' processes can't be searched for TLS libraries",
    },
    Need {
        capability: Capability::CAP_DAC_READ_SEARCH,
        essential: false,
        in_admin: false,
        without: "library files and pins in directories closed to this user can't be opened; \
                  systemd mounts bpffs so that it is closed to all but root",
    },
    Need {
        capability: Capability::CAP_SYS_ADMIN,
        essential: false,
        in_admin: true,
        without: "bpffs can't be mounted, and kernels with the fix of CVE-2025-38466 refuse \
                  uprobes",
    },
    Need {
        capability: Capability::CAP_CHECKPOINT_RESTORE,
        essential: false,
        in_admin: true,
        without: "libraries that were replaced while in use can't be opened",
    },
];

pub(super) fn look(checks: &mut Vec<Check>) {
    match caps::read(None, CapSet::Effective) {
        Ok(effective) => checks.extend(judge(&effective)),
        Err(error) => checks.push(Check::warning(
            AREA,
            "effective set",
            format!("can't be read: {error}"),
            "is /proc mounted?",
        )),
    }
}

/// Logs what does not work for lack of a capability, ahead of the errors that come of it.
pub(in crate::cli) fn warn_of_absent() {
    let Ok(effective) = caps::read(None, CapSet::Effective) else { return };
    for check in judge(&effective).iter().filter(|check| check.state != State::Ok) {
        tracing::warn!("{} is {}", check.name, check.found);
    }
}

fn judge(effective: &CapsHashSet) -> Vec<Check> {
    let judge = |need: &Need| {
        let name = need.capability.to_string();
        if effective.contains(&need.capability) {
            return Check::ok(AREA, name, "present");
        }
        if need.in_admin && effective.contains(&Capability::CAP_SYS_ADMIN) {
            return Check::ok(AREA, name, "included in CAP_SYS_ADMIN");
        }
        let found = format!("absent: {}", need.without);
        let advice = format!(
            "run as root, or add {name} to AmbientCapabilities= and CapabilityBoundingSet="
        );
        if need.essential {
            Check::missing(AREA, name, found, advice)
        } else {
            Check::warning(AREA, name, found, advice)
        }
    };
    NEEDS.iter().map(judge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(capabilities: impl IntoIterator<Item = Capability>) -> Vec<State> {
        let checks = judge(&capabilities.into_iter().collect());
        checks.into_iter().map(|check| check.state).collect()
    }

    #[test]
    fn each_missing_capability_is_judged_by_what_lacks_without_it() {
        use State::{Missing, Ok, Warning};
        assert_eq!(states([]), [Missing, Missing, Missing, Warning, Warning, Warning, Warning]);
        assert_eq!(states(NEEDS.map(|need| need.capability)), [Ok; 7]);
        let admin = [Capability::CAP_SYS_ADMIN];
        assert_eq!(states(admin), [Ok, Missing, Ok, Warning, Warning, Ok, Ok]);
    }
}
