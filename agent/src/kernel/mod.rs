//! The kernel side as userspace sees it: loading, attaching, pinning, and one typed wrapper
//! per map.

mod addresses;
mod allowed;
mod attach;
mod batch;
mod book;
mod bpffs;
mod btf;
mod clock;
mod conjunctions;
mod counters;
mod driver;
mod fingerprints;
mod interfaces;
mod known;
mod link_type;
mod links;
mod load;
mod netns;
mod occupant;
mod open;
mod pins;
mod policy;
mod prefixes;
mod rules;
mod scopes;
mod shared;
mod slots;
pub mod sockets;
mod steer;
mod subjects;
mod table;

pub use addresses::{flow_addresses, network_of};
pub use attach::{Attachment, Hook, SharedEbpf};
pub use btf::{Btf, sock_offsets};
pub use clock::{coarse_now, monotonic_now, wall_clock_offset};
pub use counters::{AnswerCounters, Count, Counters, HelloCounters, LossCounters, ReasonCounters};
pub use interfaces::{Change, Interfaces, Scope, State as InterfaceState, Waiting};
pub use link_type::{LinkKind, link_kind};
pub use load::{Loaded, OBJECT, load};
pub use netns::Namespace;
pub use occupant::{Occupant, occupant};
pub use pins::{Detached, detach};
pub use policy::KernelPolicy;
pub use steer::{DecoySockets, SteerCounters, Steering, Version, attach_steering, detach_steering};
pub use subjects::flow_of;
