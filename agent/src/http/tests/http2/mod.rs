//! HTTP/2: frames in, transactions out.

mod gaps;
mod midway;
mod properties;
mod rules;

use super::{Counter, Host, Settings};
use crate::flow::Side;
use crate::http::http2::hpack::tests::{indexed, literal, named};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const END_STREAM: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;
const BOTH: u8 = END_STREAM | END_HEADERS;

/// Indices of the static table (RFC 7541, appendix A).
const AUTHORITY: usize = 1;
const GET: usize = 2;
const POST: usize = 3;
const PATH: usize = 4;
const HTTPS: usize = 7;
pub const STATUS: usize = 8;
/// The latest entry of the dynamic table.
pub const LATEST: usize = 62;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, l0, l1, l2] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let [s0, s1, s2, s3] = stream.to_be_bytes();
    [&[l0, l1, l2, kind, flags, s0, s1, s2, s3], payload].concat()
}

pub fn data(stream: u32, flags: u8, content: &str) -> Vec<u8> {
    frame(0, flags, stream, content.as_bytes())
}

pub fn headers(stream: u32, flags: u8, fields: &[Vec<u8>]) -> Vec<u8> {
    frame(1, flags, stream, &fields.concat())
}

fn reset(stream: u32) -> Vec<u8> {
    frame(3, 0, stream, &[0, 0, 0, 8])
}

pub fn settings() -> Vec<u8> {
    frame(4, 0, 0, &[0, 3, 0, 0, 0, 100])
}

fn window() -> Vec<u8> {
    frame(8, 0, 0, &[0, 0, 1, 0])
}

fn get(stream: u32, path: &str) -> Vec<u8> {
    let authority = named(AUTHORITY, "shop.example:443", false);
    headers(stream, BOTH, &[indexed(GET), indexed(HTTPS), named(PATH, path, false), authority])
}

pub fn post(stream: u32, path: &str, more: &[Vec<u8>]) -> Vec<u8> {
    let fields = [indexed(POST), indexed(HTTPS), named(PATH, path, false)];
    headers(stream, END_HEADERS, &[&fields, more].concat())
}

/// A head whose body follows.
fn status(stream: u32, status: &str, more: &[Vec<u8>]) -> Vec<u8> {
    headers(stream, END_HEADERS, &[&[named(STATUS, status, false)], more].concat())
}

/// A whole response.
fn ok(stream: u32, body: &str) -> Vec<u8> {
    [status(stream, "200", &[]), data(stream, END_STREAM, body)].concat()
}

/// A host with a connection that both sides have begun.
fn host() -> Host {
    begun(Host::new())
}

fn begun(mut host: Host) -> Host {
    host.read([PREFACE, &settings()].concat()).write(settings());
    host
}

fn type_of(content: &str) -> Vec<u8> {
    literal("content-type", content, false)
}

/// How a loss is told: as the end of a call that was cut off, or as calls that went unseen.
fn lose(host: &mut Host, side: Side, seen: &[u8], lost: usize, as_cut: bool) {
    let lost = lost as u64;
    if as_cut {
        host.chunk(side, seen, lost);
    } else {
        host.chunk(side, seen, 0).lose(side, lost);
    }
}
