//! Where plaintext comes from: processes, their TLS libraries, and the ring buffer.

pub mod libraries;
