//! The policy programs onto one interface, in the place of an earlier agent's without a gap.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use aya::Ebpf;
use aya::programs::links::{FdLink, LinkOrder};
use aya::programs::tc::{
    self, NlOptions, SchedClassifierLink, TcAttachOptions, TcAttachType, TcHandle,
};
use aya::programs::xdp::XdpLink;
use aya::programs::{SchedClassifier, Xdp, XdpMode};
use portcullis_common::names::program;
use serde::Serialize;

use super::driver::why_not_answer;
use super::link_type::{LinkKind, link_kind};
use super::links::Link;
use super::occupant::occupant;
use super::pins::{LinkPin, PinDir, PinnedNamespace, remove_file};
use crate::config::Attach;

/// The programs, shared by all that attach some of them while the agent runs.
#[derive(Clone)]
pub struct SharedEbpf(Arc<Mutex<Ebpf>>);

impl SharedEbpf {
    pub fn new(ebpf: Ebpf) -> Self {
        Self(Arc::new(Mutex::new(ebpf)))
    }

    /// To be held for one program's loading or attaching, not for many: others wait.
    pub fn lock(&self) -> MutexGuard<'_, Ebpf> {
        // aya's calls leave the programs whole, whatever becomes of the caller.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where on an interface a program sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    XdpNative,
    XdpGeneric,
    Tcx,
    Clsact,
}

impl Hook {
    pub const ALL: [Self; 4] = [Self::XdpNative, Self::XdpGeneric, Self::Tcx, Self::Clsact];

    pub const fn name(self) -> &'static str {
        match self {
            Self::XdpNative => "xdp-native",
            Self::XdpGeneric => "xdp-generic",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }

    /// In the order in which they are tried.
    const fn allowed_by(attach: Attach) -> &'static [Self] {
        match attach {
            Attach::Auto => &Self::ALL,
            Attach::XdpNative => &[Self::XdpNative],
            Attach::XdpGeneric => &[Self::XdpGeneric],
            Attach::Tc => &[Self::Tcx, Self::Clsact],
            Attach::Clsact => &[Self::Clsact],
        }
    }

    const fn is_xdp(self) -> bool {
        match self {
            Self::XdpNative | Self::XdpGeneric => true,
            Self::Tcx | Self::Clsact => false,
        }
    }
}

/// A program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub interface: String,
    /// Path of the network namespace; `None` for the agent's own.
    pub namespace: Option<PathBuf>,
    pub hook: Hook,
    /// It replaced an earlier agent's program in one step.
    pub taken_over: bool,
    /// Why the better hooks were not to be had.
    pub passed_over: Vec<String>,
}

/// A clsact filter has no link to pin, so it is found again by these.
const CLSACT_PRIORITY: u16 = 1;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0x7063);

/// Takes a clsact filter of Portcullis off an interface of this thread's network namespace.
/// Whether there was one.
pub(super) fn remove_filter(interface: &str) -> bool {
    // Not finding the program, or a qdisc to look in, is the usual case.
    [program::TC, program::TC_L3]
        .map(|name| tc::qdisc_detach_program(interface, TcAttachType::Ingress, name).is_ok())
        .contains(&true)
}

/// Attaches to one interface after the other.
pub(super) struct Attacher {
    pub ebpf: SharedEbpf,
    pub pins: PinDir,
    pub attach: Attach,
    /// Whether `auto` takes only hooks that are sure to send answers.
    pub answers: bool,
}

/// What [`Attacher::attach`] made.
pub(super) struct Made {
    pub attachment: Attachment,
    /// `None` for a clsact filter.
    pub pin: Option<LinkPin>,
}

/// An interface to attach to, in this thread's network namespace.
struct Target<'a> {
    link: &'a Link,
    kind: LinkKind,
    namespace: Option<&'a PinnedNamespace>,
}

/// A program in place.
struct Placed {
    hook: Hook,
    pin: Option<LinkPin>,
    taken_over: bool,
}

impl Attacher {
    /// Attaches to an interface of this thread's network namespace, by the best hook that it
    /// has. Programs of an earlier agent on it are replaced, or taken off once another is there.
    ///
    /// # Errors
    /// When no hook is to be had; why not, for each.
    pub fn attach(&self, link: &Link, namespace: Option<&PinnedNamespace>) -> Result<Made> {
        let target = Target { link, kind: link_kind(&link.name)?, namespace };
        let mut passed_over = Vec::new();
        let hooks = self.hooks(&target, &mut passed_over)?;
        let old = self.pins_on(&target)?;
        let placed = self
            .take_over_any(&target, &hooks, &old, &mut passed_over)
            .or_else(|| self.place_by_any(&target, &hooks, &mut passed_over));
        let Some(Placed { hook, pin, taken_over }) = placed else {
            bail!("{}", passed_over.join("; "))
        };
        let is_kept = |old: &LinkPin| pin.as_ref().is_some_and(|pin| pin.path == old.path);
        for old in old.iter().filter(|old| !is_kept(old) && old.path.exists()) {
            remove_file(&old.path)?;
        }
        if hook != Hook::Clsact && remove_filter(&link.name) {
            tracing::info!("took an earlier clsact filter off {}", link.name);
        }
        let attachment = Attachment {
            interface: link.name.clone(),
            namespace: namespace.map(|namespace| namespace.path.clone()),
            hook,
            taken_over,
            passed_over,
        };
        Ok(Made { attachment, pin })
    }

    /// The hooks to try; why not the others, where it depends on the interface.
    fn hooks(&self, target: &Target<'_>, passed_over: &mut Vec<String>) -> Result<Vec<Hook>> {
        let mut hooks = Hook::allowed_by(self.attach).to_vec();
        match target.kind {
            LinkKind::Ethernet => {}
            // Drivers differ in what they show an XDP program there.
            LinkKind::Layer3 => hooks.retain(|hook| !hook.is_xdp()),
        }
        ensure!(
            !hooks.is_empty(),
            "its packets have no Ethernet header, so that only TC is to be had, which \
             kernel.attach rules out"
        );
        // Whoever names one hook gets it.
        if self.attach != Attach::Auto || !self.answers {
            return Ok(hooks);
        }
        let mut sure = Vec::new();
        for hook in hooks {
            match why_not_answer(&target.link.name, hook)? {
                None => sure.push(hook),
                Some(reason) => passed_over.push(format!("{}: {reason}", hook.name())),
            }
        }
        Ok(sure)
    }

    /// The links of an earlier agent that are attached to the interface, whatever its name was
    /// when they were made.
    fn pins_on(&self, target: &Target<'_>) -> Result<Vec<LinkPin>> {
        let mut pins = self.pins.pinned_links()?;
        pins.retain(|pin| {
            pin.namespace.as_ref() == target.namespace
                && pin.interface_index().is_ok_and(|index| index == target.link.index)
        });
        Ok(pins)
    }

    fn pin_for(&self, target: &Target<'_>, hook: Hook) -> LinkPin {
        LinkPin {
            interface: target.link.name.clone(),
            hook,
            namespace: target.namespace.cloned(),
            path: self.pins.link(&target.link.name, hook, target.namespace),
        }
    }

    fn take_over_any(
        &self,
        target: &Target<'_>,
        hooks: &[Hook],
        old: &[LinkPin],
        passed_over: &mut Vec<String>,
    ) -> Option<Placed> {
        for pin in old.iter().filter(|pin| hooks.contains(&pin.hook)) {
            match self.take_over(pin, target) {
                Ok(pin) => {
                    return Some(Placed { hook: pin.hook, pin: Some(pin), taken_over: true });
                }
                Err(error) => passed_over.push(format!("earlier {}: {error:#}", pin.hook.name())),
            }
        }
        None
    }

    fn take_over(&self, pin: &LinkPin, target: &Target<'_>) -> Result<LinkPin> {
        let link = pin.open()?;
        let mut ebpf = self.ebpf.lock();
        // Once updated, the link may be closed here: the pin keeps it.
        match pin.hook {
            Hook::XdpNative | Hook::XdpGeneric => {
                let xdp = xdp(&mut ebpf)?;
                let id = xdp.attach_to_link(XdpLink::try_from(link)?)?;
                FdLink::try_from(xdp.take_link(id)?)?;
            }
            Hook::Tcx => {
                let classifier = classifier(&mut ebpf, target.kind)?;
                let id = classifier.attach_to_link(SchedClassifierLink::try_from(link)?)?;
                FdLink::try_from(classifier.take_link(id)?)?;
            }
            Hook::Clsact => bail!("a clsact filter is never pinned"),
        }
        drop(ebpf);
        let new = self.pin_for(target, pin.hook);
        if new.path != pin.path {
            rename_pin(pin, &new)?;
        }
        Ok(new)
    }

    fn place_by_any(
        &self,
        target: &Target<'_>,
        hooks: &[Hook],
        passed_over: &mut Vec<String>,
    ) -> Option<Placed> {
        for &hook in hooks {
            match self.place(target, hook) {
                Ok(placed) => return Some(placed),
                Err(error) => passed_over.push(explain(target, hook, &error)),
            }
        }
        None
    }

    fn place(&self, target: &Target<'_>, hook: Hook) -> Result<Placed> {
        let name = target.link.name.as_str();
        let mut ebpf = self.ebpf.lock();
        let link = match hook {
            Hook::XdpNative => attach_xdp(xdp(&mut ebpf)?, target.link, XdpMode::Driver)?,
            Hook::XdpGeneric => attach_xdp(xdp(&mut ebpf)?, target.link, XdpMode::Skb)?,
            Hook::Tcx => attach_tcx(classifier(&mut ebpf, target.kind)?, name)?,
            Hook::Clsact => {
                let taken_over = attach_clsact(classifier(&mut ebpf, target.kind)?, name)?;
                return Ok(Placed { hook, pin: None, taken_over });
            }
        };
        drop(ebpf);
        let pin = self.pin_for(target, hook);
        // That of an interface which has gone, or has another name now.
        if pin.path.exists() {
            remove_file(&pin.path)?;
        }
        link.pin(&pin.path).context("can't pin the link")?;
        if pin.interface_index()? != target.link.index {
            remove_file(&pin.path)?;
            bail!("another interface has got its name in the meantime");
        }
        Ok(Placed { hook, pin: Some(pin), taken_over: false })
    }
}

/// The error of an attachment, or, when it is another program's presence, which one.
fn explain(target: &Target<'_>, hook: Hook, error: &anyhow::Error) -> String {
    let name = hook.name();
    if hook.is_xdp()
        && let Ok(Some(other)) = occupant(&target.link.name)
    {
        return format!("{name}: another XDP program has the interface: {other}");
    }
    format!("{name}: {error:#}")
}

pub(super) fn rename_pin(from: &LinkPin, to: &LinkPin) -> Result<()> {
    let (from, to) = (&from.path, &to.path);
    std::fs::rename(from, to)
        .with_context(|| format!("can't rename {} to {}", from.display(), to.display()))
}

fn attach_xdp(xdp: &mut Xdp, link: &Link, mode: XdpMode) -> Result<FdLink> {
    let id = xdp.attach_to_if_index(link.index, mode)?;
    FdLink::try_from(xdp.take_link(id)?).context("the kernel has no links for XDP")
}

fn attach_tcx(classifier: &mut SchedClassifier, interface: &str) -> Result<FdLink> {
    // Before every other program of the hook: one that ends the chain must not hide traffic.
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = classifier.attach_with_options(interface, TcAttachType::Ingress, order)?;
    FdLink::try_from(classifier.take_link(id)?).context("the kernel has no links for TC")
}

/// Replaces the filter of an earlier agent, and returns whether there was one.
fn attach_clsact(classifier: &mut SchedClassifier, interface: &str) -> Result<bool> {
    // An error means that the qdisc is there already; if not, attaching will say so.
    let _ = tc::qdisc_add_clsact(interface);
    let earlier = SchedClassifierLink::attached(
        interface,
        TcAttachType::Ingress,
        CLSACT_PRIORITY,
        CLSACT_HANDLE,
        None,
    )?;
    let (id, taken_over) = match classifier.attach_to_link(earlier) {
        Ok(id) => (id, true),
        Err(_) => {
            let options =
                NlOptions { priority: CLSACT_PRIORITY, handle: CLSACT_HANDLE, classid: None };
            let options = TcAttachOptions::Netlink(options);
            (classifier.attach_with_options(interface, TcAttachType::Ingress, options)?, false)
        }
    };
    // Dropping the link would take the filter off.
    std::mem::forget(classifier.take_link(id)?);
    Ok(taken_over)
}

fn xdp(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    let xdp: &mut Xdp =
        ebpf.program_mut(program::XDP).context("the object has no XDP program")?.try_into()?;
    if xdp.fd().is_err() {
        xdp.load().context("the verifier refuses the XDP program")?;
    }
    Ok(xdp)
}

fn classifier(ebpf: &mut Ebpf, kind: LinkKind) -> Result<&mut SchedClassifier> {
    let name = match kind {
        LinkKind::Ethernet => program::TC,
        LinkKind::Layer3 => program::TC_L3,
    };
    let classifier: &mut SchedClassifier =
        ebpf.program_mut(name).context("the object has no TC program")?.try_into()?;
    if classifier.fd().is_err() {
        classifier.load().context("the verifier refuses the TC program")?;
    }
    Ok(classifier)
}
