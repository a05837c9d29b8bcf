//! Where plaintext comes from: the TLS libraries that processes map, the probes in them, and
//! the events that the probes send.

mod carriers;
mod elf;
pub mod events;
mod examined;
mod inventory;
pub mod libraries;
pub mod probes;
pub mod sites;
