//! The running agent: what starts, in which order; one loop that owns the pipeline and the
//! policy; and how it stops.
//!
//! Stopping leaves the programs attached and the blocks in force: they expire by themselves, the
//! next agent takes them over, and `portcullis detach` removes them.

mod clock;
mod commands;
mod core;
mod fingerprints;
mod interfaces;
mod lists;
mod policy;
mod recent;
mod reload;
mod sockets;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::unix::AsyncFd;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use self::core::{Core, Parts};
use crate::capture::probes::{Probes, missing_tracepoints};
use crate::config::Config;
use crate::decoy::Decoy;
use crate::host::HostAddresses;
use crate::kernel::sockets::{CloseSockets, Closer};
use crate::kernel::{self, Interfaces, SharedEbpf};
use crate::report::control::{Call, ControlSocket, Server};
use crate::report::event_log::EventLog;
use crate::report::http;

/// Housekeeping: expiry, losses, the watchdog.
const TICK: Duration = Duration::from_secs(1);
/// Ring buffer records handled before anything else gets a turn.
const BATCH: usize = 1_024;
/// Requests from the control socket and the metrics endpoint that may wait.
const CALLS: usize = 64;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When something needed does not start. What was attached before stays attached.
pub fn run(config_path: &Path, config: Config) -> Result<()> {
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("can't start the asynchronous runtime")?;
    runtime.block_on(run_async(config_path.to_owned(), config))
}

async fn run_async(config_path: PathBuf, config: Config) -> Result<()> {
    let mut signals = Signals::listen()?;
    // Sockets first: a second agent fails here, before it touches the first one's maps.
    let socket =
        ControlSocket::bind(&config.report.control_socket, config.report.control_group.as_deref())?;
    let metrics = match config.report.metrics_listen {
        Some(address) => Some(http::bind(address).await?),
        None => None,
    };
    let log = match &config.report.event_log {
        Some(path) => EventLog::open(path)?,
        None => EventLog::journal(),
    };
    let (mut core, mut events) = start(config_path, config, log)?;

    let (stop, stopping) = watch::channel(false);
    let (calls, mut called) = mpsc::channel(CALLS);
    let mut servers = serve(socket, metrics, &calls, &stopping)?;
    drop(calls);

    notify(&[sd_notify::NotifyState::Ready]);
    core.log_start();
    let reason = event_loop(&mut core, &mut events, &mut called, &mut signals).await;
    notify(&[sd_notify::NotifyState::Stopping]);
    let told = reason.as_ref().map_or_else(|error| format!("{error:#}"), |reason| (*reason).into());
    core.log_stop(&told);
    stop.send_replace(true);
    drop(called);
    while servers.join_next().await.is_some() {}
    reason.map(drop)
}

/// Records from the kernel: first drops, and what is captured.
type Events = AsyncFd<RingBuf<MapData>>;

/// Loads, attaches, and puts the loop's parts together.
fn start(
    config_path: PathBuf,
    config: Config,
    log: EventLog,
) -> Result<(Core<kernel::KernelPolicy>, Events)> {
    let loaded = kernel::load(&config)?;
    for note in &loaded.notes {
        tracing::info!("{note}");
    }
    let namespaces: Vec<_> = config.namespaces.iter().map(|one| one.path.clone()).collect();
    let host = HostAddresses::read(&namespaces)?;
    let mut core = Core::new(Parts {
        config_path,
        config,
        host,
        maps: loaded.policy,
        reasons: loaded.reasons,
        losses: loaded.losses,
        answers: loaded.answers,
        hellos: loaded.hellos,
        closer: closer(&namespaces, loaded.flows),
        log,
    })?;
    // The policy is whole before the first packet meets it.
    let config = core.config();
    let ebpf = SharedEbpf::new(loaded.ebpf);
    core.set_interfaces(Interfaces::start(ebpf.clone(), &config)?);
    if let Some(decoy) = decoy(&mut ebpf.lock(), &config)? {
        core.set_decoy(decoy);
    }
    if config.capture.enabled && can_capture()? {
        core.set_probes(Probes::start(ebpf, "/proc".into(), &config.capture)?);
    }
    // SAFETY: the ring buffer owns its file descriptor, always returns the same one, and closes
    // it only when dropped, which `AsyncFd` does after it has deregistered it.
    let events =
        unsafe { AsyncFd::register(loaded.events) }.context("can't wait for the ring buffer")?;
    Ok((core, events))
}

/// Whether this kernel has what capture takes; says so when it has not. Enforcement takes less.
fn can_capture() -> Result<bool> {
    let missing = missing_tracepoints(&kernel::Btf::of_running_kernel()?);
    if !missing.is_empty() {
        tracing::warn!(
            "no API call is seen, because this kernel lacks the tracepoints {} (Linux 6.3 and \
             later have them all); blocks are enforced all the same",
            missing.join(", ")
        );
    }
    Ok(missing.is_empty())
}

/// Steers to the decoy, or no longer does.
fn decoy(ebpf: &mut Ebpf, config: &Config) -> Result<Option<Decoy>> {
    let pin_dir = &config.kernel.pin_dir;
    if !config.decoy.enabled {
        if kernel::detach_steering(pin_dir)? {
            tracing::info!("connections are no longer steered to a decoy");
        }
        return Ok(None);
    }
    let steering = kernel::attach_steering(ebpf, pin_dir)?;
    let how = if steering.taken_over { "took over" } else { "started" };
    tracing::info!("{how} the steering of connections to the decoy");
    Decoy::start(&config.decoy, steering).map(Some)
}

/// Not being able to close connections keeps nobody from being blocked.
fn closer(namespaces: &[PathBuf], flows: kernel::Flows) -> Option<Box<dyn CloseSockets>> {
    match Closer::start(namespaces, Box::new(flows)) {
        Ok(closer) => Some(Box::new(closer)),
        Err(error) => {
            tracing::warn!("{error:#}");
            None
        }
    }
}

fn serve(
    socket: ControlSocket,
    metrics: Option<TcpListener>,
    calls: &mpsc::Sender<Call>,
    stopping: &watch::Receiver<bool>,
) -> Result<JoinSet<()>> {
    let mut servers = JoinSet::new();
    let server = Server::new(socket).context("can't serve the control socket")?;
    servers.spawn(server.serve(calls.clone(), stopped(stopping.clone())));
    if let Some(listener) = metrics {
        servers.spawn(http::serve(listener, calls.clone(), stopped(stopping.clone())));
    }
    Ok(servers)
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // An error means that the loop is gone, which is a stop as well.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Returns the signal that ended it.
///
/// # Errors
/// When events can't be had any more.
async fn event_loop(
    core: &mut Core<kernel::KernelPolicy>,
    events: &mut Events,
    calls: &mut mpsc::Receiver<Call>,
    signals: &mut Signals,
) -> Result<&'static str> {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let interfaces = core.interfaces_changed();
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return Ok("SIGTERM"),
            _ = signals.interrupt.recv() => return Ok("SIGINT"),
            _ = signals.hangup.recv() => {
                notify(&[sd_notify::NotifyState::Reloading]);
                // Told by the reload itself.
                let _ = core.reload();
                notify(&[sd_notify::NotifyState::Ready]);
            }
            () = interfaces.notified() => core.tell_interfaces(),
            result = read_events(core, events) => result.context("the ring buffer can't be read")?,
            Some(call) = calls.recv() => {
                let Call { request, peer, reply } = call;
                // Whoever asked may have given up.
                let _ = reply.send(core.answer(request, peer));
            }
            _ = ticks.tick() => {
                core.tick();
                notify(&[sd_notify::NotifyState::Watchdog]);
            }
        }
    }
}

/// Waits for events and handles a batch of them.
async fn read_events(
    core: &mut Core<kernel::KernelPolicy>,
    events: &mut Events,
) -> std::io::Result<()> {
    let mut ready = events.readable_mut().await?;
    for _ in 0..BATCH {
        let Some(record) = ready.get_inner_mut().next() else {
            ready.clear_ready();
            return Ok(());
        };
        core.record(&record);
    }
    Ok(())
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("can't listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }
}

/// Every probe is an open file: about ten for a library, of which a host with many containers has
/// hundreds.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!("the limit of open files stays as it is: {error}");
    }
}

/// Tells the service manager, if there is one.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("can't notify the service manager: {error}");
    }
}
