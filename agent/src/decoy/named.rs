//! A decoy of somebody else's: looks for who listens on its address and port, and looks again,
//! since servers end and come back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::State;
use crate::kernel::sockets::{Listener, find_listeners};
use crate::kernel::{DecoySockets, Version};

/// Looks at the few sockets on one port.
const INTERVAL: Duration = Duration::from_millis(500);

/// The thread that looks; it ends with this.
pub(super) struct Named {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Named {
    pub fn start(at: SocketAddr, sockets: DecoySockets, state: Arc<State>) -> Result<Self> {
        let mut watch = Watch { at, sockets, steered_to: [None; 2] };
        state.set_problem(watch.look().err().map(|error| format!("{error:#}")));
        let (stop, stopped) = sync_channel::<()>(0);
        let thread = std::thread::Builder::new()
            .name("decoy".into())
            .spawn(move || {
                while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    state.set_problem(watch.look().err().map(|error| format!("{error:#}")));
                }
            })
            .context("can't start a thread")?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the thread that looks for the decoy died");
        }
    }
}

struct Watch {
    at: SocketAddr,
    sockets: DecoySockets,
    /// Cookies of the sockets in the kernel's map, by version.
    steered_to: [Option<u64>; 2],
}

impl Watch {
    /// # Errors
    /// Why there is no decoy, for people.
    fn look(&mut self) -> Result<()> {
        let found = find_listeners(self.at)?;
        for ((version, listener), steered_to) in
            Version::ALL.into_iter().zip([found.v4, found.v6]).zip(&mut self.steered_to)
        {
            let wanted = listener.as_ref().map(Listener::cookie);
            if wanted == *steered_to {
                continue;
            }
            *steered_to = None;
            match listener {
                Some(listener) => self.sockets.set(version, &listener.descriptor()?)?,
                None => self.sockets.clear(version)?,
            }
            *steered_to = wanted;
        }
        anyhow::ensure!(
            self.steered_to.iter().any(Option::is_some),
            "nothing listens on {} (decoy.listener); clients that are to be deceived are refused",
            self.at
        );
        Ok(())
    }
}
