//! Where plaintext comes from: the TLS libraries that processes map or have linked in, the probes in
//! them, and the events that the probes send.

pub mod events;
pub mod go;
mod inventory;
pub mod libraries;
pub mod probes;
mod programs;
pub mod sites;
mod writes;
