//! Where plaintext comes from: the TLS libraries that processes map or have linked in, the probes in
//! them, and the events that the probes send.

mod carriers;
mod elf;
pub mod events;
mod examined;
pub mod go;
mod inventory;
pub mod libraries;
pub mod probes;
pub mod sites;
mod writes;
