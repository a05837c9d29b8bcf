mod properties;
mod published;
mod quic;
mod seeds;
pub(super) mod spec;
mod table;
mod vectors;
