//! What is attached where, brought in line with the interfaces that there are.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::super::attach::{Attacher, Attachment, Made, remove_filter, rename_pin};
use super::super::links::{self, Link, Watch};
use super::super::netns::{Namespace, run_in};
use super::super::pins::{LinkPin, PinnedNamespace, remove_file};
use super::{Change, Scope, Waiting};
use crate::config::{is_pattern, selects};

/// An attachment that failed is tried again after this time, for what no news tells of.
const RETRY: Duration = Duration::from_secs(10);

const GONE: &str = "it has gone";
const NAMESPACE_GONE: &str = "its network namespace has gone";
const NOT_CONFIGURED: &str = "it is no longer configured";
const BY_HAND: &str = "its pin has been removed by hand";

/// The interfaces of one network namespace.
pub(super) struct Place {
    pub scope: Scope,
    open: Option<Open>,
    attached: BTreeMap<u32, Made>,
    refused: BTreeMap<u32, Refused>,
    /// Why the namespace can't be looked into.
    problem: Option<String>,
    reconfigured: bool,
}

/// A namespace that is there.
struct Open {
    /// `None`: the agent's own.
    namespace: Option<PinnedNamespace>,
    watch: Watch,
}

/// An interface that is wanted, is there, and has no program.
pub(super) struct Refused {
    pub interface: String,
    pub problem: String,
    /// `None`: not before it has gone and come again.
    retry: Option<Instant>,
}

impl Place {
    pub fn new(scope: Scope) -> Self {
        Self {
            scope,
            open: None,
            attached: BTreeMap::new(),
            refused: BTreeMap::new(),
            problem: None,
            reconfigured: false,
        }
    }

    /// Other interfaces are wanted from the next look on.
    pub fn reconfigure(&mut self, interfaces: Vec<String>) {
        self.scope.interfaces = interfaces;
        self.reconfigured = true;
        self.refused.clear();
    }

    pub fn watch(&self) -> Option<&Watch> {
        self.open.as_ref().map(|open| &open.watch)
    }

    pub fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        self.attached.values().map(|made| &made.attachment)
    }

    /// Those that are there and could not be attached to.
    pub fn refused(&self) -> impl Iterator<Item = &Refused> {
        self.refused.values()
    }

    pub fn pins(&self) -> impl Iterator<Item = &LinkPin> {
        self.attached.values().filter_map(|made| made.pin.as_ref())
    }

    /// What is configured and has no program.
    pub fn waiting(&self) -> Vec<Waiting> {
        let waiting = |interface: &str, problem: &str| Waiting {
            interface: interface.to_owned(),
            namespace: self.scope.namespace.clone(),
            problem: problem.to_owned(),
        };
        let absent = match (&self.problem, &self.open) {
            (Some(problem), _) => problem.as_str(),
            (None, None) => "its network namespace is not there",
            (None, Some(_)) => "it is not there",
        };
        let is_known = |name: &str| {
            self.attachments().any(|at| at.interface == name)
                || self.refused.values().any(|refused| refused.interface == name)
        };
        let names = self.scope.interfaces.iter().filter(|name| !is_pattern(name));
        let missing = names.filter(|name| !is_known(name)).map(|name| waiting(name, absent));
        let refused = self.refused.values().map(|one| waiting(&one.interface, &one.problem));
        missing.chain(refused).collect()
    }

    /// Throws away what the watch has received; whether there was something.
    fn has_news(&self) -> bool {
        self.watch().is_some_and(|watch| {
            watch.drain().unwrap_or_else(|error| {
                tracing::warn!("{error:#}");
                true
            })
        })
    }

    fn retry_is_due(&self, now: Instant) -> bool {
        self.refused.values().any(|refused| refused.retry.is_some_and(|retry| retry <= now))
    }

    /// Looks, if there is a reason to: what has come, what has gone, and what is at the path of
    /// the namespace now.
    pub fn look(&mut self, attacher: &Attacher, now: Instant, changes: &mut Vec<Change>) {
        let result = match &self.scope.namespace {
            None => Ok(None),
            Some(path) => Namespace::open(path).map(Some),
        };
        let namespace = match result {
            Ok(None) => None,
            Ok(Some(Some(namespace))) => Some(namespace),
            Ok(Some(None)) => return self.close(changes),
            Err(error) => return self.trouble(&error),
        };
        let pinned = namespace.as_ref().zip(self.scope.namespace.as_ref());
        let pinned = pinned.map(|(namespace, path)| PinnedNamespace {
            inode: namespace.inode(),
            path: path.clone(),
        });
        if self.open.as_ref().is_some_and(|open| open.namespace != pinned) {
            self.close(changes);
        }
        let is_due = self.has_news() || self.retry_is_due(now) || self.reconfigured;
        if self.open.is_some() && !is_due {
            return;
        }
        self.reconfigured = false;
        let looked = run_in(namespace.as_ref(), || {
            let is_first = self.open.is_none();
            if is_first {
                self.open = Some(Open { namespace: pinned, watch: Watch::subscribe()? });
            }
            let links = links::list()?;
            self.align(attacher, &links, now, changes);
            if is_first {
                remove_stray_filters(&self.attached, &links);
            }
            Ok(())
        });
        match looked {
            Ok(()) => self.problem = None,
            Err(error) => self.trouble(&error),
        }
    }

    fn trouble(&mut self, error: &anyhow::Error) {
        let problem = format!("{error:#}");
        if self.problem.as_ref() != Some(&problem) {
            tracing::warn!("{problem}");
            self.problem = Some(problem);
        }
    }

    /// Makes what is attached match `links`, those of this thread's network namespace.
    fn align(
        &mut self,
        attacher: &Attacher,
        links: &[Link],
        now: Instant,
        changes: &mut Vec<Change>,
    ) {
        let known: Vec<u32> = self.attached.keys().copied().collect();
        for index in known {
            match links.iter().find(|link| link.index == index) {
                None => self.forget(index, GONE, changes),
                Some(link) => self.check(attacher, link, changes),
            }
        }
        self.refused.retain(|index, refused| {
            links.iter().any(|link| link.index == *index && link.name == refused.interface)
        });
        for link in links {
            if !selects(&self.scope.interfaces, &link.name) {
                continue;
            }
            let waits = self
                .refused
                .get(&link.index)
                .is_some_and(|refused| refused.retry.is_none_or(|retry| retry > now));
            if !waits && !self.attached.contains_key(&link.index) {
                self.attach(attacher, link, now, changes);
            }
        }
    }

    fn attach(
        &mut self,
        attacher: &Attacher,
        link: &Link,
        now: Instant,
        changes: &mut Vec<Change>,
    ) {
        let namespace = self.open.as_ref().and_then(|open| open.namespace.as_ref());
        match attacher.attach(link, namespace) {
            Ok(made) => {
                self.refused.remove(&link.index);
                changes.push(Change::Attached(made.attachment.clone()));
                self.attached.insert(link.index, made);
            }
            // It has gone again, of which there will be news, or has gone and come.
            Err(_) if !links::list().is_ok_and(|links| links.contains(link)) => {}
            Err(error) => self.refuse(link, format!("{error:#}"), Some(now + RETRY), changes),
        }
    }

    fn refuse(
        &mut self,
        link: &Link,
        problem: String,
        retry: Option<Instant>,
        changes: &mut Vec<Change>,
    ) {
        let interface = link.name.clone();
        let refused = Refused { interface: interface.clone(), problem: problem.clone(), retry };
        let earlier = self.refused.insert(link.index, refused);
        if earlier.is_none_or(|earlier| earlier.problem != problem) {
            let namespace = self.scope.namespace.clone();
            changes.push(Change::Refused { interface, namespace, problem });
        }
    }

    /// Looks whether the program is still where it was, and the interface still one to have it.
    fn check(&mut self, attacher: &Attacher, link: &Link, changes: &mut Vec<Change>) {
        let Some(made) = self.attached.get(&link.index) else { return };
        if let Some(pin) = &made.pin {
            if !pin.path.exists() {
                self.forget(link.index, BY_HAND, changes);
                return self.refuse(link, BY_HAND.to_owned(), None, changes);
            }
            // One that can't be looked at is not known to be wrong.
            if pin.interface_index().is_ok_and(|index| index != link.index) {
                return self.forget(link.index, GONE, changes);
            }
        }
        if made.attachment.interface != link.name {
            self.rename(attacher, link, changes);
        } else if !selects(&self.scope.interfaces, &link.name) {
            self.detach(link, NOT_CONFIGURED, changes);
        }
    }

    fn rename(&mut self, attacher: &Attacher, link: &Link, changes: &mut Vec<Change>) {
        let reason = format!("it is called {} now", link.name);
        if !selects(&self.scope.interfaces, &link.name) {
            return self.detach(link, &reason, changes);
        }
        let Some(mut made) = self.attached.remove(&link.index) else { return };
        changes.push(detached(&made.attachment, &reason));
        made.attachment.interface.clone_from(&link.name);
        made.attachment.taken_over = true;
        if let Some(pin) = &mut made.pin {
            let renamed = LinkPin {
                interface: link.name.clone(),
                path: attacher.pins.link(&link.name, pin.hook, pin.namespace.as_ref()),
                ..pin.clone()
            };
            match rename_pin(pin, &renamed) {
                Ok(()) => *pin = renamed,
                // It stays where it is, and works there.
                Err(error) => tracing::warn!("{error:#}"),
            }
        }
        changes.push(Change::Attached(made.attachment.clone()));
        self.attached.insert(link.index, made);
    }

    /// Takes the program off an interface that is there, in this thread's network namespace.
    fn detach(&mut self, link: &Link, reason: &str, changes: &mut Vec<Change>) {
        if self.attached.get(&link.index).is_some_and(|made| made.pin.is_none()) {
            remove_filter(&link.name);
        }
        self.forget(link.index, reason, changes);
    }

    /// Removes what is left of a program; without its pin, a link goes.
    fn forget(&mut self, index: u32, reason: &str, changes: &mut Vec<Change>) {
        let Some(made) = self.attached.remove(&index) else { return };
        if let Some(pin) = made.pin.filter(|pin| pin.path.exists())
            && let Err(error) = remove_file(&pin.path)
        {
            tracing::warn!("{error:#}");
        }
        changes.push(detached(&made.attachment, reason));
    }

    /// The namespace has gone, and its interfaces with it.
    fn close(&mut self, changes: &mut Vec<Change>) {
        let known: Vec<u32> = self.attached.keys().copied().collect();
        for index in known {
            self.forget(index, NAMESPACE_GONE, changes);
        }
        self.refused.clear();
        self.problem = None;
        self.open = None;
    }
}

/// Takes off the clsact filters that an earlier agent left where this one has none, in this
/// thread's network namespace.
fn remove_stray_filters(attached: &BTreeMap<u32, Made>, links: &[Link]) {
    for link in links {
        let has_filter = attached.get(&link.index).is_some_and(|made| made.pin.is_none());
        if !has_filter && remove_filter(&link.name) {
            tracing::info!("took an earlier clsact filter off {}", link.name);
        }
    }
}

fn detached(attachment: &Attachment, reason: &str) -> Change {
    Change::Detached {
        interface: attachment.interface.clone(),
        namespace: attachment.namespace.clone(),
        reason: reason.to_owned(),
    }
}
