//! The laboratory: real network namespaces with a real server, the real agent and real clients.
//!
//! The end-to-end tests, the demo and the benchmarks share it. Everything in it needs root. A
//! [`netns::Lab`] is the ground; [`shop`], [`nginx`] and [`agent`] run on its server host,
//! [`client`] and [`curl`] on its client hosts:
//!
//! ```no_run
//! use portcullis_tests::{client::{Client, Request}, netns::Lab, nginx, shop::Shop};
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::new("pcx", 2)?;
//! let _shop = Shop::start(&lab)?;
//! let nginx = nginx::Nginx::start(&lab, &nginx::Options::default())?;
//! let client = Client::trusting(&nginx.certs().ca)?;
//! let server = nginx.address_v4();
//! let answer = lab.client(0).run(|| client.connect(server)?.request(&Request::get("/tiny")))?;
//! assert_eq!(answer.status, 200);
//! # Ok(())
//! # }
//! ```
//!
//! Uprobes and tracepoints see the whole host, not one namespace: an agent sees the traffic of
//! every laboratory that runs at the same time. Laboratories have different addresses, so that
//! they can be told apart, and `cargo xtask test` runs one after the other.

pub mod agent;
mod assembled;
pub mod bench;
pub mod capture;
pub mod certs;
pub mod client;
pub mod curl;
pub mod demo;
pub mod flood;
pub mod ja4;
pub mod netns;
pub mod nginx;
pub mod packet;
pub mod process;
pub mod programs;
pub mod python;
pub mod quic;
pub mod scenario;
pub mod script;
pub mod shop;
pub mod slot;
pub mod switch_port;
pub mod tun;
pub mod wait;
pub mod wire;
