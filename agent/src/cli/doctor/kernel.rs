//! What the running kernel can do.

use std::fs;
use std::path::Path;

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{is_map_supported, is_program_supported};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::Check;
use crate::capture::probes::{TRACEPOINTS, missing_tracepoints};
use crate::kernel::{Btf, sock_offsets, system_calls};

const AREA: &str = "kernel";
/// The oldest that the policy programs are tested on.
const ENFORCES: Version = Version(6, 1);
/// `sock_send_length` and `sock_recv_length` came with it.
const CAPTURES: Version = Version(6, 3);
const TCX: Version = Version(6, 6);
/// From here on, BPF memory is not charged to `RLIMIT_MEMLOCK`.
const MEMCG: Version = Version(5, 11);

/// Major and minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

impl Version {
    fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        Some(Self(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

pub(super) fn look(checks: &mut Vec<Check>) {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = Version::parse(&release);
    checks.push(look_at_version(&release, version));
    look_at_btf(checks);
    checks.push(look_at_bpffs());
    checks.push(look_at_ring_buffer());
    checks.push(look_at_xdp());
    checks.push(look_at_tcx(version));
    checks.push(look_at_uprobes());
    checks.push(look_at_lockdown());
    checks.push(look_at_memlock(version));
    checks.extend(look_at_unprivileged());
    checks.extend(look_at_paranoia());
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn look_at_version(release: &str, version: Option<Version>) -> Check {
    match version {
        Some(version) if version >= CAPTURES => Check::ok(AREA, "version", release),
        Some(version) if version >= ENFORCES => {
            Check::warning(AREA, "version", release, ONLY_ENFORCES)
        }
        Some(_) => Check::missing(
            AREA,
            "version",
            release,
            "use Linux 6.3 or later: Portcullis is not tested on any before 6.1, and before 6.3 \
             no API call is seen",
        ),
        None => Check::warning(AREA, "version", "can't be read", "is /proc mounted?"),
    }
}

/// Of a kernel without the tracepoints that tell which socket TLS data belongs to.
const ONLY_ENFORCES: &str = "blocks are enforced, but no API call is seen: use Linux 6.3 or later, \
                             or set `capture.enabled = false` if blocks by hand are all you want";

fn look_at_btf(checks: &mut Vec<Check>) {
    let btf = match Btf::of_running_kernel() {
        Ok(btf) => btf,
        Err(error) => {
            let advice = "use a kernel built with CONFIG_DEBUG_INFO_BTF, as distributions' are";
            checks.push(Check::missing(AREA, "BTF", format!("{error:#}"), advice));
            return;
        }
    };
    checks.push(Check::ok(AREA, "BTF", "/sys/kernel/btf/vmlinux"));
    let missing = missing_tracepoints(&btf);
    for tracepoint in TRACEPOINTS {
        let name = format!("tracepoint {tracepoint}");
        checks.push(if missing.contains(&tracepoint) {
            Check::warning(AREA, name, "absent", ONLY_ENFORCES)
        } else {
            Check::ok(AREA, name, "present")
        });
    }
    let layouts = [
        ("layout of struct sock", sock_offsets(&btf).map(drop)),
        ("layout of struct pt_regs", system_calls(&btf).map(drop)),
    ];
    for (name, layout) in layouts {
        let advice = "this kernel's structures are not understood yet: please report its version";
        checks.push(match layout {
            Ok(()) => Check::ok(AREA, name, "known"),
            Err(error) => Check::missing(AREA, name, format!("{error:#}"), advice),
        });
    }
}

fn look_at_bpffs() -> Check {
    let path = "/sys/fs/bpf";
    match statfs(path) {
        Ok(stat) if stat.filesystem_type() == BPF_FS_MAGIC => Check::ok(AREA, "bpffs", path),
        _ => Check::warning(
            AREA,
            "bpffs",
            "not mounted",
            "`portcullis run` mounts it when it has CAP_SYS_ADMIN; \
             else, as root: mount -t bpf bpf /sys/fs/bpf",
        ),
    }
}

fn look_at_ring_buffer() -> Check {
    probed("ring buffer", is_map_supported(MapType::RingBuf), "use Linux 5.8 or later")
}

fn look_at_xdp() -> Check {
    let advice = "the kernel is built without XDP: set `kernel.attach = \"tc\"`";
    probed("XDP programs", is_program_supported(ProgramType::Xdp), advice)
}

fn probed<E: std::error::Error>(
    name: &str,
    supported: Result<bool, E>,
    advice: &'static str,
) -> Check {
    match supported {
        Ok(true) => Check::ok(AREA, name, "supported"),
        Ok(false) => Check::missing(AREA, name, "not supported", advice),
        Err(error) => {
            let found = format!("can't tell: {error}");
            Check::warning(AREA, name, found, "run `portcullis doctor` as root")
        }
    }
}

fn look_at_tcx(version: Option<Version>) -> Check {
    if version.is_some_and(|version| version >= TCX) {
        Check::ok(AREA, "tcx", "supported")
    } else {
        let advice = "it came with Linux 6.6; interfaces without XDP get a clsact filter instead";
        Check::warning(AREA, "tcx", "not supported", advice)
    }
}

fn look_at_uprobes() -> Check {
    let pmu = "/sys/bus/event_source/devices/uprobe";
    if Path::new(pmu).join("type").exists() {
        Check::ok(AREA, "uprobes", pmu)
    } else {
        let advice = "use a kernel built with CONFIG_UPROBE_EVENTS; without it no API call is seen";
        Check::missing(AREA, "uprobes", "no uprobe event source", advice)
    }
}

fn look_at_lockdown() -> Check {
    let name = "lockdown";
    match read("/sys/kernel/security/lockdown").as_deref().map(selected) {
        Some("confidentiality") => Check::missing(
            AREA,
            name,
            "confidentiality",
            "it forbids BPF to read memory: boot with lockdown=integrity",
        ),
        Some(mode) => Check::ok(AREA, name, mode),
        // Unknown is not wrong: the kernel may be built without it.
        None => Check::ok(AREA, name, "not known: securityfs is not mounted, or there is none"),
    }
}

/// The chosen word of a list like `none [integrity] confidentiality`.
fn selected(list: &str) -> &str {
    let chosen = list.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    chosen.map_or(list, |(word, _)| word)
}

fn look_at_memlock(version: Option<Version>) -> Check {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
    let name = "memory for BPF";
    if version.is_some_and(|version| version >= MEMCG) {
        return Check::ok(AREA, name, "charged to the control group");
    }
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((RLIM_INFINITY, _)) => Check::ok(AREA, name, "no limit"),
        Ok((limit, _)) => Check::missing(
            AREA,
            name,
            format!("limited to {limit} bytes"),
            "set LimitMEMLOCK=infinity in the unit, or `ulimit -l unlimited`",
        ),
        Err(error) => Check::warning(AREA, name, error.to_string(), "see getrlimit(2)"),
    }
}

fn look_at_unprivileged() -> Option<Check> {
    let name = "unprivileged BPF";
    Some(match read("/proc/sys/kernel/unprivileged_bpf_disabled")?.as_str() {
        "0" => Check::warning(
            AREA,
            name,
            "allowed",
            "nothing here needs it: sysctl kernel.unprivileged_bpf_disabled=2",
        ),
        _ => Check::ok(AREA, name, "forbidden"),
    })
}

/// Only of interest to a process without `CAP_PERFMON`, so never a mistake by itself.
fn look_at_paranoia() -> Option<Check> {
    let level = read("/proc/sys/kernel/perf_event_paranoid")?;
    Some(Check::ok(AREA, "perf_event_paranoid", format!("{level} (CAP_PERFMON goes before it)")))
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn releases_are_understood() {
        let table = [
            ("6.1.0-31-cloud-amd64", Some(Version(6, 1))),
            ("6.18.44", Some(Version(6, 18))),
            ("5.15", Some(Version(5, 15))),
            ("", None),
            ("six", None),
        ];
        for (release, version) in table {
            assert_eq!(Version::parse(release), version, "{release}");
        }
        assert!(Version(6, 18) > CAPTURES && Version(6, 1) < CAPTURES);
    }

    #[test]
    fn an_old_kernel_is_told_so() {
        let older = look_at_version("5.15.0", Some(Version(5, 15)));
        assert_eq!(older.state, State::Missing);
        let old = look_at_version("6.1.0", Some(Version(6, 1)));
        assert_eq!(old.state, State::Warning);
        for check in [older, old] {
            assert!(check.advice.is_some_and(|advice| advice.contains("Linux 6.3")));
        }
    }

    #[test]
    fn the_chosen_lockdown_is_read() {
        assert_eq!(selected("none [integrity] confidentiality"), "integrity");
        assert_eq!(selected("[none] integrity confidentiality"), "none");
    }
}
