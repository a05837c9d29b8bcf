//! The kernel side as userspace sees it: loading, attaching, pinning, and one typed wrapper
//! per map.

mod addresses;
mod attach;
mod bpffs;
mod btf;
mod clock;
mod counters;
mod deny;
mod driver;
mod link_type;
mod load;
mod pins;
mod policy;
pub mod sockets;
mod steer;

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
