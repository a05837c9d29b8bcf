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
mod known;
mod link_type;
mod load;
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
pub use attach::{Attachment, Hook, attach};
pub use btf::{Btf, sock_offsets};
pub use clock::{coarse_now, monotonic_now, wall_clock_offset};
pub use counters::{AnswerCounters, Count, Counters, LossCounters, ReasonCounters};
pub use link_type::ensure_ethernet;
pub use load::{Loaded, OBJECT, load};
pub use pins::{Detached, detach};
pub use policy::KernelPolicy;
pub use steer::{DecoySockets, SteerCounters, Steering, Version, attach_steering, detach_steering};
pub use subjects::flow_of;
