//! The policy programs onto interfaces, in the place of an earlier agent's without a gap.

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{
    self, NlOptions, SchedClassifierLink, TcAttachOptions, TcAttachType, TcHandle,
};
use aya::programs::xdp::XdpLink;
use aya::programs::{SchedClassifier, Xdp, XdpMode};
use portcullis_common::names::program;
use serde::Serialize;

use super::driver::why_not_answer;
use super::link_type::ensure_ethernet;
use super::pins::{LinkPin, PinDir, interfaces as all_interfaces, remove_file};
use crate::config::{Attach, Kernel};

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
}

/// A program on an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attachment {
    pub interface: String,
    pub hook: Hook,
    /// It replaced an earlier agent's program in one step.
    pub taken_over: bool,
    /// Why the better hooks were not to be had.
    pub passed_over: Vec<String>,
}

/// A clsact filter has no link to pin, so it is found again by these.
const CLSACT_PRIORITY: u16 = 1;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0x7063);

/// Attaches to every interface of `interfaces` and takes earlier agents' programs off all
/// others. With `answers`, `auto` takes only hooks that are sure to send answers.
pub fn attach(
    ebpf: &mut Ebpf,
    config: &Kernel,
    interfaces: &[String],
    answers: bool,
) -> Result<Vec<Attachment>> {
    let pins = PinDir::make(&config.pin_dir)?;
    let pinned = pins.pinned_links()?;
    let mut attachments = Vec::new();
    for interface in interfaces {
        let old: Vec<_> = pinned.iter().filter(|pin| pin.interface == *interface).collect();
        let (hooks, passed_over) = candidates(interface, config.attach, answers)?;
        let attachment = attach_one(ebpf, &pins, interface, hooks, passed_over, &old)
            .with_context(|| format!("can't attach to interface {interface}"))?;
        for pin in old.iter().filter(|pin| pin.hook != attachment.hook) {
            remove_file(&pin.path)?;
        }
        attachments.push(attachment);
    }
    for pin in pinned.iter().filter(|pin| !interfaces.contains(&pin.interface)) {
        remove_file(&pin.path)?;
        tracing::info!("detached from {}, which is no longer configured", pin.interface);
    }
    remove_other_filters(&attachments)?;
    Ok(attachments)
}

/// Takes off the clsact filters that an earlier agent left where this one has none.
fn remove_other_filters(attachments: &[Attachment]) -> Result<()> {
    let has_filter =
        |name: &str| attachments.iter().any(|at| at.interface == name && at.hook == Hook::Clsact);
    for interface in all_interfaces()?.iter().filter(|name| !has_filter(name)) {
        if remove_filter(interface) {
            tracing::info!("took an earlier clsact filter off {interface}");
        }
    }
    Ok(())
}

/// Whether there was one.
pub(super) fn remove_filter(interface: &str) -> bool {
    // Not finding the program, or a qdisc to look in, is the usual case.
    tc::qdisc_detach_program(interface, TcAttachType::Ingress, program::TC).is_ok()
}

/// The hooks to try, and why not the others.
fn candidates(interface: &str, attach: Attach, answers: bool) -> Result<(Vec<Hook>, Vec<String>)> {
    let (mut hooks, mut passed_over) = (Vec::new(), Vec::new());
    for &hook in Hook::allowed_by(attach) {
        // Whoever names one hook gets it.
        let sure = attach != Attach::Auto || !answers;
        match if sure { None } else { why_not_answer(interface, hook)? } {
            None => hooks.push(hook),
            Some(reason) => passed_over.push(format!("{}: {reason}", hook.name())),
        }
    }
    Ok((hooks, passed_over))
}

fn attach_one(
    ebpf: &mut Ebpf,
    pins: &PinDir,
    interface: &str,
    hooks: Vec<Hook>,
    mut passed_over: Vec<String>,
    old: &[&LinkPin],
) -> Result<Attachment> {
    ensure_ethernet(interface)?;
    for pin in old.iter().filter(|pin| hooks.contains(&pin.hook)) {
        match take_over(ebpf, pin) {
            Ok(()) => {
                return Ok(Attachment {
                    interface: interface.to_owned(),
                    hook: pin.hook,
                    taken_over: true,
                    passed_over,
                });
            }
            Err(error) => {
                // The link of an interface that has gone, for one.
                passed_over.push(format!("earlier {}: {error:#}", pin.hook.name()));
                remove_file(&pin.path)?;
            }
        }
    }
    for hook in hooks {
        match attach_new(ebpf, pins, interface, hook) {
            Ok(taken_over) => {
                return Ok(Attachment {
                    interface: interface.to_owned(),
                    hook,
                    taken_over,
                    passed_over,
                });
            }
            Err(error) => passed_over.push(format!("{}: {error:#}", hook.name())),
        }
    }
    bail!("{}", passed_over.join("; "))
}

fn take_over(ebpf: &mut Ebpf, pin: &LinkPin) -> Result<()> {
    let link = FdLink::from(PinnedLink::from_pin(&pin.path)?);
    // Once updated, the link may be closed here: the pin keeps it.
    match pin.hook {
        Hook::XdpNative | Hook::XdpGeneric => {
            let xdp = xdp(ebpf)?;
            let id = xdp.attach_to_link(XdpLink::try_from(link)?)?;
            FdLink::try_from(xdp.take_link(id)?)?;
        }
        Hook::Tcx => {
            let classifier = classifier(ebpf)?;
            let id = classifier.attach_to_link(SchedClassifierLink::try_from(link)?)?;
            FdLink::try_from(classifier.take_link(id)?)?;
        }
        Hook::Clsact => bail!("a clsact filter is never pinned"),
    }
    Ok(())
}

/// Returns whether it replaced an earlier agent's program, which only a clsact filter does here.
fn attach_new(ebpf: &mut Ebpf, pins: &PinDir, interface: &str, hook: Hook) -> Result<bool> {
    let link = match hook {
        Hook::XdpNative => attach_xdp(xdp(ebpf)?, interface, XdpMode::Driver)?,
        Hook::XdpGeneric => attach_xdp(xdp(ebpf)?, interface, XdpMode::Skb)?,
        Hook::Tcx => attach_tcx(classifier(ebpf)?, interface)?,
        Hook::Clsact => return attach_clsact(classifier(ebpf)?, interface),
    };
    link.pin(pins.link(interface, hook)).context("can't pin the link")?;
    Ok(false)
}

fn attach_xdp(xdp: &mut Xdp, interface: &str, mode: XdpMode) -> Result<FdLink> {
    let id = xdp.attach(interface, mode)?;
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

fn classifier(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier> {
    let classifier: &mut SchedClassifier =
        ebpf.program_mut(program::TC).context("the object has no TC program")?.try_into()?;
    if classifier.fd().is_err() {
        classifier.load().context("the verifier refuses the TC program")?;
    }
    Ok(classifier)
}
