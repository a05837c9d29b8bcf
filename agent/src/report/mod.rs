//! What people and other programs see of the agent: the event log, metrics, health, and the
//! control socket. Consumes decisions and snapshots; decides nothing.

pub mod control;
pub mod event_log;
pub mod http;
pub mod metrics;
pub mod snapshot;
