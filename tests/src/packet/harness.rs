//! The real programs and policy maps in the kernel, run on frames of a test's own making by
//! BPF_PROG_TEST_RUN. Nothing is attached to any interface.

use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, Map, MapData};
use aya::programs::{Program, SchedClassifier, Xdp};
use aya::{Ebpf, TestRun as _, TestRunOptions};
use aya_obj::generated::{bpf_attr, bpf_cmd};
use ipnet::IpNet;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use portcullis::config::Config;
use portcullis::decision::Origin;
use portcullis::enforce::{Block, Effect, Flow, NewBlock, PolicyMaps as _, Target};
use portcullis::kernel::{self, Loaded};
use portcullis_common::ABI_VERSION;
use portcullis_common::event::{FirstDrop, kind};
use portcullis_common::names::{pinned, program};
use portcullis_common::net::{Addr, FlowInfo, FlowKey, TCP, UDP};
use portcullis_common::policy::{COST_SHIFT, Limit, Reason, unit};

use super::frame::Frame;
use super::reference::Policy;

/// The programs that share the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Xdp,
    Tc,
    /// For packets without Ethernet header. A test run has one, untagged, for the kernel, and the
    /// program sees what is behind it.
    TcL3,
}

impl Hook {
    /// Those that look at Ethernet headers.
    pub const ALL: [Self; 2] = [Self::Xdp, Self::Tc];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Drop,
}

impl Verdict {
    pub fn of(reason: Reason) -> Self {
        if reason.drops() { Self::Drop } else { Self::Pass }
    }
}

/// A frame for BPF_PROG_TEST_RUN.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    pub bytes: &'a [u8],
    /// How many of the bytes a program can read in place. The others lie in fragments of the
    /// buffer. `None`: as many as the kernel likes.
    pub linear: Option<usize>,
    pub repeat: u32,
}

impl<'a> From<&'a [u8]> for Input<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self { bytes, linear: None, repeat: 1 }
    }
}

impl<'a> From<&'a Vec<u8>> for Input<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        bytes.as_slice().into()
    }
}

/// The pin directory of one test; removed with all that is in it.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = kernel::detach(&self.0, &[]) {
            eprintln!("{} is left behind: {error:#}", self.0.display());
        }
    }
}

/// The eBPF object in the kernel.
pub struct Kernel {
    pub loaded: Loaded,
    pub config: Config,
    pins: Arc<Pins>,
}

impl Kernel {
    /// Loads with small maps.
    ///
    /// # Errors
    /// Without root, or when the kernel refuses something.
    pub fn new() -> Result<Self> {
        Self::with(|_| ())
    }

    /// Loads with small maps and what `change` makes of the configuration.
    pub fn with(change: impl FnOnce(&mut Config)) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        ensure!(
            nix::unistd::Uid::effective().is_root(),
            "loading eBPF programs takes root: run the packet tests as root, for example by `sudo -E cargo xtask test`"
        );
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("/sys/fs/bpf/portcullis-test-{}-{number}", std::process::id());
        Self::load(Arc::new(Pins(name.into())), change)
    }

    /// Loads once more on the same pins, as the next start of an agent does.
    pub fn successor(&self, change: impl FnOnce(&mut Config)) -> Result<Self> {
        Self::load(Arc::clone(&self.pins), change)
    }

    fn load(pins: Arc<Pins>, change: impl FnOnce(&mut Config)) -> Result<Self> {
        /// Two loads at once could both mount the BPF file system, one over the other.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);

        let mut config = Config::default();
        config.kernel.pin_dir = pins.0.clone();
        config.kernel.max_blocks = 1_024;
        config.kernel.operator_reserve = 16;
        config.kernel.max_allowed = 1_024;
        config.capture.ring_bytes = 64 * 1024;
        config.capture.max_connections = 1_024;
        change(&mut config);
        let mut loaded = kernel::load(&config)?;
        let xdp: &mut Xdp = loaded.ebpf.program_mut(program::XDP).context("no XDP")?.try_into()?;
        xdp.load()?;
        for name in [program::TC, program::TC_L3] {
            let tc: &mut SchedClassifier =
                loaded.ebpf.program_mut(name).with_context(|| format!("no {name}"))?.try_into()?;
            tc.load().with_context(|| format!("the verifier refuses {name}"))?;
        }
        Ok(Self { loaded, config, pins })
    }

    pub fn pin_dir(&self) -> &Path {
        &self.pins.0
    }

    /// Runs a program on a frame: its verdict, and the mean duration of a run.
    pub fn run<'a>(&self, hook: Hook, input: impl Into<Input<'a>>) -> Result<(Verdict, Duration)> {
        hook.program(&self.loaded.ebpf)?.run(input)
    }

    /// Runs a program on a frame, once; returns its verdict and the reason it was counted
    /// under.
    ///
    /// # Errors
    /// When it was not counted under exactly one reason, once, with its length.
    pub fn judge<'a>(&self, hook: Hook, input: impl Into<Input<'a>>) -> Result<(Verdict, Reason)> {
        let input = Input { repeat: 1, ..input.into() };
        let before = self.loaded.reasons.all()?;
        let (verdict, _) = self.run(hook, input)?;
        let after = self.loaded.reasons.all()?;
        let mut found = Vec::new();
        for (reason, (before, after)) in Reason::ALL.into_iter().zip(before.iter().zip(&after)) {
            let packets = after.packets - before.packets;
            let bytes = after.bytes - before.bytes;
            if packets != 0 || bytes != 0 {
                found.push((reason, packets, bytes));
            }
        }
        match found[..] {
            [(reason, 1, bytes)] if bytes == input.bytes.len() as u64 => Ok((verdict, reason)),
            _ => bail!("a frame of {} bytes was counted as {found:?}", input.bytes.len()),
        }
    }

    /// Blocks until it is lifted.
    pub fn block(&mut self, target: &str) -> Result<()> {
        self.block_as(target, BLOCK)
    }

    pub fn block_as(&mut self, target: &str, block: NewBlock) -> Result<()> {
        Ok(self.loaded.policy.block(net(target), block)?)
    }

    pub fn allow(&mut self, nets: &[&str]) -> Result<()> {
        let nets: Vec<_> = nets.iter().map(|text| net(text)).collect();
        Ok(self.loaded.policy.set_allowed(&nets)?)
    }

    /// Has the kernel believe that a flow has shown a fingerprint.
    pub fn show_fingerprint(&self, flow: &Flow, fingerprint: u64) -> Result<()> {
        let map = Map::LruHashMap(self.pinned(pinned::FLOWS)?);
        let mut flows = aya::maps::HashMap::<_, FlowKey, FlowInfo>::try_from(map)?;
        let info = FlowInfo { fingerprint, seen_ns: kernel::monotonic_now() };
        Ok(flows.insert(flow_key(flow), info, 0)?)
    }

    /// Makes every limit regain so little that a test sees nothing of it: its burst is all that
    /// there is.
    pub fn stop_limits(&self) -> Result<()> {
        let map = Map::Array(self.pinned(pinned::LIMITS)?);
        let mut limits = Array::<_, Limit>::try_from(map)?;
        for at in 0..limits.len() {
            let limit = limits.get(&at, 0)?;
            if limit.cost == 0 {
                continue;
            }
            // In 1/1024 ns: days for a packet, minutes for a byte, so that a long frame's fit into
            // the word.
            let cost = if limit.unit == unit::BYTES { 1 << 48 } else { 1 << 60_u64 };
            let burst =
                (u128::from(limit.tolerance_ns) << COST_SHIFT).div_ceil(u128::from(limit.cost));
            let tolerance = (u128::from(cost) * burst) >> COST_SHIFT;
            limits.set(at, Limit { cost, tolerance_ns: tolerance.try_into()?, ..limit }, 0)?;
        }
        Ok(())
    }

    /// One of the policy's maps.
    pub fn pinned(&self, name: &str) -> Result<MapData> {
        let path = self.pin_dir().join(format!("maps-v{ABI_VERSION}")).join(name);
        MapData::from_pin(&path).with_context(|| format!("can't open {}", path.display()))
    }

    /// Puts a whole policy in place of none.
    pub fn enforce(&mut self, policy: &Policy) -> Result<()> {
        for (flow, fingerprint) in &policy.seen {
            self.show_fingerprint(flow, *fingerprint)?;
        }
        let maps = &mut self.loaded.policy;
        maps.set_scopes(&policy.scopes)?;
        maps.set_lists(&policy.lists)?;
        // Rules may come before or after what they are about is known.
        let (before, after) = policy.known.split_at(policy.known.len() / 2);
        for (fingerprint, ja4) in before {
            maps.learn(*fingerprint, ja4)?;
        }
        for (target, block) in &policy.blocks {
            maps.block(target.clone(), block.clone())?;
        }
        for (fingerprint, ja4) in after {
            maps.learn(*fingerprint, ja4)?;
        }
        maps.set_allowed(&policy.allowed)?;
        maps.set_failsafe(&policy.failsafe_tcp, &policy.failsafe_udp)?;
        maps.set_tunnels(policy.tunnels)?;
        self.stop_limits()
    }

    /// The block of `target`, which must be in force.
    pub fn entry(&self, target: &str) -> Result<Block> {
        let target = Target::from(net(target));
        let blocks = self.loaded.policy.blocks()?;
        blocks
            .into_iter()
            .find(|block| block.target == target)
            .with_context(|| format!("{target} is not blocked"))
    }

    /// The first drops reported since the last call.
    pub fn first_drops(&mut self) -> Vec<FirstDrop> {
        let mut drops = Vec::new();
        while let Some(record) = self.loaded.events.next() {
            drops.push(first_drop(&record).expect("a record of another kind than FIRST_DROP"));
        }
        drops
    }
}

/// A program of a kernel's, for when its policy changes at the same time.
#[derive(Clone, Copy)]
pub struct Judge<'a> {
    hook: Hook,
    program: &'a Program,
}

impl Judge<'_> {
    /// As [`Kernel::run`].
    pub fn run<'a>(self, input: impl Into<Input<'a>>) -> Result<(Verdict, Duration)> {
        let input = input.into();
        let context = input.linear.map(|linear| self.hook.context(linear));
        let mut options = TestRunOptions::new();
        options.data_in = Some(input.bytes);
        options.ctx_in = context.as_deref();
        options.repeat = input.repeat;
        let result = match self.hook {
            Hook::Xdp => <&Xdp>::try_from(self.program)?.test_run(options)?,
            Hook::Tc | Hook::TcL3 => {
                <&SchedClassifier>::try_from(self.program)?.test_run(options)?
            }
        };
        Ok((self.hook.verdict(result.return_value)?, result.duration))
    }

    /// The same with nothing but the frame, in as little time as it takes: for millions of frames.
    pub fn run_once(self, frame: &[u8]) -> Result<Verdict> {
        // SAFETY: a union of integers and addresses, of which all zeros are a value.
        let mut attr = unsafe { std::mem::zeroed::<bpf_attr>() };
        // SAFETY: the member that this command reads, all zero so far.
        let test = unsafe { &mut attr.test };
        test.prog_fd = match self.hook {
            Hook::Xdp => <&Xdp>::try_from(self.program)?.fd()?.as_fd().as_raw_fd() as u32,
            Hook::Tc | Hook::TcL3 => {
                <&SchedClassifier>::try_from(self.program)?.fd()?.as_fd().as_raw_fd() as u32
            }
        };
        test.data_in = frame.as_ptr() as u64;
        test.data_size_in = frame.len().try_into()?;
        test.repeat = 1;
        // SAFETY: the attributes are of the size that is given, and the frame lives longer than the call and
        // is as long as they say; the kernel writes nothing but the attributes.
        let result = unsafe {
            let command = bpf_cmd::BPF_PROG_TEST_RUN as libc::c_long;
            libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<bpf_attr>())
        };
        ensure!(result == 0, "BPF_PROG_TEST_RUN: {}", std::io::Error::last_os_error());
        // SAFETY: the member that the command has written.
        self.hook.verdict(unsafe { attr.test.retval })
    }
}

impl Hook {
    /// Its program in `ebpf`.
    pub fn program(self, ebpf: &Ebpf) -> Result<Judge<'_>> {
        let name = match self {
            Self::Xdp => program::XDP,
            Self::Tc => program::TC,
            Self::TcL3 => program::TC_L3,
        };
        let program = ebpf.program(name).with_context(|| format!("no {name}"))?;
        Ok(Judge { hook: self, program })
    }

    fn verdict(self, returned: u32) -> Result<Verdict> {
        /// `TC_ACT_UNSPEC`: the next program decides.
        const UNSPEC: u32 = -1_i32 as u32;
        match (self, returned) {
            // XDP_DROP and XDP_PASS; TC_ACT_SHOT and TC_ACT_UNSPEC.
            (Self::Xdp, 1) | (Self::Tc | Self::TcL3, 2) => Ok(Verdict::Drop),
            (Self::Xdp, 2) | (Self::Tc | Self::TcL3, UNSPEC) => Ok(Verdict::Pass),
            _ => bail!("{self:?} returned {returned}"),
        }
    }

    /// A context whose linear part is `linear` bytes: `struct xdp_md` or `struct __sk_buff`,
    /// of which `data_end` is the second and the twenty-first word.
    fn context(self, linear: usize) -> Vec<u8> {
        let (words, data_end) = match self {
            Self::Xdp => (6, 1),
            Self::Tc | Self::TcL3 => (48, 20),
        };
        let mut context = vec![0_u32; words];
        context[data_end] = linear as u32;
        context.into_iter().flat_map(u32::to_ne_bytes).collect()
    }
}

pub const BLOCK: NewBlock = NewBlock {
    ttl: None,
    rule_id: 7,
    origin: Origin::Operator,
    effect: Effect::Drop,
    count_only: false,
    service: None,
};

/// An address or a network.
///
/// # Panics
/// When it is neither.
pub fn net(text: &str) -> IpNet {
    text.parse()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .unwrap_or_else(|_| panic!("{text} is no address and no network"))
}

/// A frame from an address; see [`Frame::from`].
///
/// # Panics
/// When `source` is no address.
pub fn from(source: &str) -> Frame {
    Frame::from(net(source).addr())
}

/// Asserts what both programs say of the frame.
#[track_caller]
pub fn assert_judged(kernel: &Kernel, frame: &Frame, expected: Reason) {
    for hook in Hook::ALL {
        let judged = kernel.judge(hook, &frame.bytes()).expect("the program runs");
        assert_eq!(judged, (Verdict::of(expected), expected), "{hook:?} {frame:?}");
    }
}

/// Has the calling thread run on one CPU, by its number.
pub fn on_cpu(number: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(number)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("can't choose the CPU")
}

fn flow_key(flow: &Flow) -> FlowKey {
    let addr = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => Addr::from_v4(v4.octets()),
        IpAddr::V6(v6) => Addr(v6.octets()),
    };
    FlowKey {
        local: addr(flow.server.ip()),
        remote: addr(flow.client.ip()),
        local_port: flow.server.port(),
        remote_port: flow.client.port(),
        protocol: if flow.is_udp { UDP } else { TCP },
    }
}

/// The event's fields, in their order and without padding.
fn first_drop(record: &[u8]) -> Option<FirstDrop> {
    let word = |at: usize| Some(u32::from_ne_bytes(record.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_ne_bytes(record.get(at..at + 8)?.try_into().ok()?));
    let event = FirstDrop {
        kind: word(0)?,
        reserved: word(4)?,
        time_ns: long(8)?,
        rule_id: long(16)?,
        addr: Addr(record.get(24..40)?.try_into().ok()?),
    };
    (event.kind == kind::FIRST_DROP && record.len() == size_of::<FirstDrop>()).then_some(event)
}
