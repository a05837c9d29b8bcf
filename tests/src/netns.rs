//! Network namespaces: one server host and some client hosts on one Ethernet, with no way out.
//!
//! ```text
//!  client 0 eth0 ──┐
//!  client 1 eth0 ──┤ bridge (a namespace of its own) ├── eth0 server
//!  …             ──┘
//! ```
//! Every host has an IPv4 and an IPv6 address and no default route. The server has one interface,
//! so that programs attach in one place as on a real host.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use std::{panic, thread};

use anyhow::{Context, bail, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::{self, Process};
use crate::slot::Slot;
use crate::wait;

mod remains;

use remains::Remains;
pub use remains::clean_up_on_signals;

/// Client hosts of one laboratory at most: each has 4,096 addresses of the /16.
pub const MAX_CLIENTS: usize = 15;
/// Addresses of one client host at most: the /16's broadcast address is nobody's.
pub const MAX_ADDRESSES: u16 = 4_094;
/// The interface of every host.
pub const INTERFACE: &str = "eth0";
/// For killed processes to end, and for what they did to be removed.
const PATIENCE: Duration = Duration::from_secs(5);

/// The namespaces; removed, with everything that runs in them, when this is dropped.
pub struct Lab {
    name: String,
    server: Host,
    clients: Vec<Host>,
    remains: Remains,
    // Last: the slot is free when nothing is left.
    _slot: Slot,
}

impl Lab {
    /// Makes a server host and `clients` client hosts. Namespaces are called
    /// `PREFIX-sSLOT-pPID-HOST`; what dead processes left under this prefix is removed first.
    pub fn new(prefix: &str, clients: usize) -> anyhow::Result<Self> {
        Self::with_queues(prefix, clients, 1)
    }

    /// As [`Self::new`], with so many queues in each direction of every interface, as a network card has
    /// one for each processor.
    pub fn with_queues(prefix: &str, clients: usize, queues: usize) -> anyhow::Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root");
        ensure!(clients <= MAX_CLIENTS, "{clients} client hosts are more than {MAX_CLIENTS}");
        remains::sweep(prefix)?;
        let slot = Slot::take()?;
        let number = slot.number();
        let name = format!("{prefix}-s{number}-p{}", std::process::id());
        let server = Host::new(&name, "srv", Addresses::of_server(number));
        let clients: Vec<Host> = (0..clients)
            .map(|index| {
                Host::new(&name, &format!("c{index}"), Addresses::of_client(number, index))
            })
            .collect();
        let switch = switch_of(&name);
        let namespaces = clients
            .iter()
            .chain([&server])
            .map(|host| host.namespace.clone())
            .chain([switch.clone()]);
        let remains = Remains::register(&name, namespaces.collect());
        // From here on, dropping the laboratory removes what there is of it.
        let lab = Self { name, server, clients, remains, _slot: slot };
        lab.build(&switch, queues)
            .with_context(|| format!("cannot make the laboratory {}", lab.name))?;
        Ok(lab)
    }

    /// Unique on this machine.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// For configuration, logs, sockets; removed with the laboratory. Others may pass, not list.
    pub fn dir(&self) -> &Path {
        self.remains.dir()
    }

    /// Where the agent pins its maps; removed with the laboratory.
    pub fn pin_dir(&self) -> &Path {
        self.remains.pin_dir()
    }

    pub fn server(&self) -> &Host {
        &self.server
    }

    /// The namespace of the bridge.
    pub fn switch(&self) -> String {
        switch_of(&self.name)
    }

    /// The bridge's interface on the server's side.
    pub fn switch_port(&self) -> &str {
        &self.server.role
    }

    /// Switches features of that interface on and off: `ethtool --features INTERFACE ARGUMENTS`.
    pub fn set_switch_port(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.switch(), "ethtool", "--features"]);
        command.arg(self.switch_port()).args(arguments).process_group(0);
        let output = command.output().context("cannot run ip (package iproute2)")?;
        ensure!(output.status.success(), "ethtool: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// # Panics
    /// If the laboratory was made with fewer clients.
    pub fn client(&self, index: usize) -> &Host {
        self.clients.get(index).expect("the laboratory was made with fewer clients")
    }

    pub fn clients(&self) -> &[Host] {
        &self.clients
    }

    /// Runs `command` to its end on `host`.
    pub fn run_in(&self, host: &Host, command: Command) -> anyhow::Result<Output> {
        host.output(command)
    }

    /// Starts `command` on `host`, its output in `NAME.log` of the laboratory's directory; see
    /// [`Process::spawn`] for how long it lives.
    pub fn spawn(&self, host: &Host, command: Command, name: &str) -> anyhow::Result<Process> {
        host.spawn(command, &self.dir().join(format!("{name}.log")))
    }

    fn build(&self, switch: &str, queues: usize) -> anyhow::Result<()> {
        let hosts = || self.clients.iter().chain([&self.server]);
        self.remains.make(|| {
            fs::create_dir(self.dir())?;
            fs::set_permissions(self.dir(), fs::Permissions::from_mode(0o711))?;
            let mut namespaces = hosts().map(|host| host.namespace.as_str()).chain([switch]);
            namespaces.try_for_each(|namespace| ip(None, &format!("netns add {namespace}\n")))
        })?;
        in_namespace(switch, || set_ipv6("disable_ipv6", 1))??;
        ip(Some(switch), "link add br0 type bridge forward_delay 0\nlink set br0 up\n")?;
        for host in hosts() {
            host.build(switch, queues)?;
        }
        Ok(())
    }
}

fn switch_of(lab: &str) -> String {
    format!("{lab}-sw")
}

/// One host: a namespace with one interface.
#[derive(Debug)]
pub struct Host {
    namespace: String,
    role: String,
    addresses: Addresses,
}

impl Host {
    fn new(lab: &str, role: &str, addresses: Addresses) -> Self {
        Self { namespace: format!("{lab}-{role}"), role: role.to_owned(), addresses }
    }

    fn build(&self, switch: &str, queues: usize) -> anyhow::Result<()> {
        let Self { namespace, role, .. } = self;
        let queues = format!("numtxqueues {queues} numrxqueues {queues}");
        let link = format!(
            "link add {INTERFACE} netns {namespace} {queues} type veth peer name {role} netns {switch} \
             {queues}\n"
        );
        ip(None, &link)?;
        ip(Some(switch), &format!("link set {role} master br0 up\n"))?;
        in_namespace(namespace, || {
            // Addresses work at once, and only those given.
            set_ipv6("accept_dad", 0).and_then(|()| set_ipv6("accept_ra", 0))
        })??;
        ip(Some(namespace), &format!("link set lo up\nlink set {INTERFACE} up\n"))?;
        self.add_address(self.v4().into())?;
        self.add_address(self.v6().into())
    }

    /// The name that `ip netns exec` takes.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The first IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        self.addresses.v4(0)
    }

    /// The first IPv6 address.
    pub fn v6(&self) -> Ipv6Addr {
        self.addresses.v6(0)
    }

    /// The `n`th IPv4 address of this host; the first one is there, others are after
    /// [`Self::add_addresses`].
    ///
    /// # Panics
    /// If `n` is [`MAX_ADDRESSES`] or more.
    pub fn nth_v4(&self, n: u16) -> Ipv4Addr {
        self.addresses.v4(n)
    }

    /// The `n`th IPv6 address, each in a /64 of its own.
    ///
    /// # Panics
    /// If `n` is [`MAX_ADDRESSES`] or more.
    pub fn nth_v6(&self, n: u16) -> Ipv6Addr {
        self.addresses.v6(n)
    }

    /// Adds the IPv4 and IPv6 addresses up to the `count`th, for as many simulated clients.
    pub fn add_addresses(&self, count: u16) -> anyhow::Result<()> {
        let lines: String = (1..count)
            .flat_map(|n| [IpAddr::from(self.nth_v4(n)), IpAddr::from(self.nth_v6(n))])
            .map(address_line)
            .collect();
        ip(Some(&self.namespace), &lines)
    }

    /// Adds one address of the laboratory's network.
    pub fn add_address(&self, address: IpAddr) -> anyhow::Result<()> {
        ip(Some(&self.namespace), &address_line(address))
    }

    /// Runs `work` on a thread in this namespace. Sockets stay in the namespace they were made
    /// in, so a connection may be returned and used elsewhere.
    pub fn run<T: Send>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        in_namespace(&self.namespace, work)?
    }

    /// Runs `command` here to its end.
    pub fn output(&self, mut command: Command) -> anyhow::Result<Output> {
        let name = command.get_program().to_string_lossy().into_owned();
        self.enter(&mut command)?;
        process::tie_to_this_thread(&mut command);
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {name}"))
    }

    /// Starts `command` here; see [`Process::spawn`].
    pub fn spawn(&self, mut command: Command, log: &Path) -> anyhow::Result<Process> {
        self.enter(&mut command)?;
        Process::spawn(command, log)
    }

    /// Processes whose main thread is in this namespace.
    pub fn processes(&self) -> Vec<Pid> {
        processes_in(&self.namespace)
    }

    /// Makes `command` start in this namespace.
    fn enter(&self, command: &mut Command) -> anyhow::Result<()> {
        let namespace = open(&self.namespace)?;
        // SAFETY: between fork and exec the closure makes one system call, setns, on a
        // descriptor it owns, and allocates nothing.
        unsafe {
            command.pre_exec(move || Ok(setns(&namespace, CloneFlags::CLONE_NEWNET)?));
        }
        Ok(())
    }
}

/// Runs `work` on a fresh thread in `namespace`; this thread stays where it is.
///
/// # Panics
/// When `work` does, with its panic.
pub fn in_namespace<T: Send>(
    namespace: &str,
    work: impl FnOnce() -> T + Send,
) -> anyhow::Result<T> {
    let file = open(namespace)?;
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("cannot enter {namespace}"))?;
            Ok(work())
        });
        thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
    })
}

/// Which addresses a host may have, in 10.(20 + slot).0.0/16 and fd50:7063:slot::/48.
#[derive(Clone, Copy, Debug)]
struct Addresses {
    slot: u8,
    /// 0 for the server, 1 and up for clients.
    index: u8,
}

impl Addresses {
    fn of_server(slot: u8) -> Self {
        Self { slot, index: 0 }
    }

    fn of_client(slot: u8, client: usize) -> Self {
        let index = u8::try_from(client + 1).expect("at most 15 clients");
        Self { slot, index }
    }

    fn number(self, n: u16) -> u16 {
        assert!(n < MAX_ADDRESSES, "a host has at most {MAX_ADDRESSES} addresses");
        u16::from(self.index) << 12 | n
    }

    fn v4(self, n: u16) -> Ipv4Addr {
        let [high, low] = (self.number(n) + 1).to_be_bytes();
        Ipv4Addr::new(10, 20 + self.slot, high, low)
    }

    fn v6(self, n: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd50, 0x7063, self.slot.into(), self.number(n), 0, 0, 0, 1)
    }
}

fn address_line(address: IpAddr) -> String {
    match address {
        IpAddr::V4(_) => format!("address add {address}/16 dev {INTERFACE}\n"),
        IpAddr::V6(_) => format!("address add {address}/48 dev {INTERFACE} nodad\n"),
    }
}

fn set_ipv6(key: &str, value: u8) -> anyhow::Result<()> {
    let interfaces = fs::read_dir("/proc/sys/net/ipv6/conf").context("this kernel has no IPv6")?;
    for interface in interfaces {
        let file = interface?.path().join(key);
        fs::write(&file, value.to_string())
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Runs lines of `ip` in `namespace`, or in the host's.
fn ip(namespace: Option<&str>, lines: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-netns", namespace]);
    }
    // Ctrl-C on the terminal is for the laboratory, which then removes what there is.
    command.process_group(0);
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot run ip (package iproute2)")?;
    child.stdin.take().context("ip has no stdin")?.write_all(lines.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("ip: {}in:\n{lines}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn path_of(namespace: &str) -> PathBuf {
    Path::new("/run/netns").join(namespace)
}

fn open(namespace: &str) -> anyhow::Result<File> {
    File::open(path_of(namespace)).with_context(|| format!("there is no namespace {namespace}"))
}

/// Processes whose main thread is in `namespace`.
pub fn processes_in(namespace: &str) -> Vec<Pid> {
    let identity = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    let Some(wanted) = identity(&path_of(namespace)) else { return Vec::new() };
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers
        .filter(|pid: &i32| identity(Path::new(&format!("/proc/{pid}/ns/net"))) == Some(wanted))
        .map(Pid::from_raw)
        .collect()
}

/// Kills what runs in `namespace`, what that has just started too, and waits until it is gone:
/// an agent that is killed still takes its probes out of other processes.
fn end_all_in(namespace: &str) -> anyhow::Result<()> {
    let me = nix::unistd::getpid();
    let mut killed = BTreeSet::new();
    let what = format!("the processes in {namespace} to end");
    wait::until(PATIENCE, &what, || {
        let found: Vec<Pid> =
            processes_in(namespace).into_iter().filter(|pid| *pid != me).collect();
        for pid in &found {
            // It may have ended since it was listed.
            let _ = kill(*pid, Signal::SIGKILL);
        }
        killed.extend(&found);
        let is_over = found.is_empty() && !killed.iter().any(|pid| process::is_running(*pid));
        Ok(is_over.then_some(()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_clients_have_addresses_of_their_own() {
        let (server, first, second) =
            (Addresses::of_server(3), Addresses::of_client(3, 0), Addresses::of_client(3, 1));
        assert_eq!(server.v4(0).to_string(), "10.23.0.1");
        assert_eq!(first.v4(0).to_string(), "10.23.16.1");
        assert_eq!(second.v4(999).to_string(), "10.23.35.232");
        assert_eq!(first.v6(0).to_string(), "fd50:7063:3:1000::1");
        assert_eq!(first.v6(1).to_string(), "fd50:7063:3:1001::1");
        assert_ne!(first.v4(MAX_ADDRESSES - 1), second.v4(0));
        assert_ne!(Addresses::of_client(4, 0).v4(0), first.v4(0));
    }

    #[test]
    fn the_last_address_of_all_is_not_the_broadcast_address() {
        let last = Addresses::of_client(199, MAX_CLIENTS - 1).v4(MAX_ADDRESSES - 1);
        assert_eq!(last.to_string(), "10.219.255.254");
    }
}
