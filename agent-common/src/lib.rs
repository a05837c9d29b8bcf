//! What the kernel and the userspace side of Portcullis agree on, and nothing else.
//!
//! Every type here crosses the boundary through a BPF map or the ring buffer, so all are
//! `repr(C)`, have no padding (see [`layout`]) and hold only integers and byte arrays.
#![no_std]

pub mod answer;
pub mod event;
pub mod fingerprint;
pub mod gate;
pub mod layout;
pub mod names;
pub mod net;
pub mod policy;
pub mod prefix_table;
pub mod settings;
pub mod steer;

/// Version of everything in this crate. The agent writes it next to its pinned maps and
/// replaces maps that another version left behind.
pub const ABI_VERSION: u32 = 3;
