mod properties;
mod quic;
mod seeds;
pub(super) mod spec;
mod table;
mod vectors;
