//! TCP sockets of this host: closing those that a blocked client has open, finding one that
//! listens.

mod close;
mod closer;
mod diag;
mod filter;
mod listener;
mod wire;

pub use close::{Closing, Fingerprints, Flow, Peers, Spared};
pub use closer::{CloseSockets, Closer, Closure, Counts, FindFingerprints};
pub use listener::{Listener, Listeners, find_listeners};
