//! Go's `crypto/tls`, which is part of the program: where the probes go.
//!
//! The methods of `*tls.Conn` are found by their names in `.gopclntab`. Each is probed in its
//! prologue and at all of its `ret` instructions, never by a uretprobe, whose return address Go
//! would find on its stack. What the agent counts on in the code is looked for there; a program in
//! which it is not so is refused.

mod code;
pub mod fuzz;
mod pclntab;
mod program;

use std::fs::File;
use std::ops::Range;

use anyhow::{Context as _, Result, bail, ensure};
use object::read::ReadCache;
use portcullis_common::names::program as name;

use self::code::Function;
use self::program::Program;
pub use self::program::has_table;
use super::sites::Site;

/// A method of `*tls.Conn` and what probes it.
struct Method {
    symbol: &'static str,
    enter: &'static str,
    leave: &'static str,
}

const fn method(symbol: &'static str, enter: &'static str, leave: &'static str) -> Method {
    Method { symbol, enter, leave }
}

/// The first two move plaintext. The others come once in the life of a connection, and show its
/// socket before any moves; the probes rely on that.
const METHODS: [Method; 4] = [
    method("crypto/tls.(*Conn).Read", name::GO_ENTER_READ, name::GO_LEAVE),
    method("crypto/tls.(*Conn).Write", name::GO_ENTER_WRITE, name::GO_LEAVE),
    method("crypto/tls.(*Conn).clientHandshake", name::GO_ENTER_SHAKE, name::GO_LEAVE_SHAKE),
    method("crypto/tls.(*Conn).serverHandshake", name::GO_ENTER_SHAKE, name::GO_LEAVE_SHAKE),
];

/// What calls the handshakes, of which `tls.Client` and `tls.Server` make function values.
const CALLERS: [&str; 2] =
    ["crypto/tls.(*Conn).clientHandshake-fm", "crypto/tls.(*Conn).serverHandshake-fm"];

/// The sites of a program in Go; `None` when it moves nothing through `crypto/tls`.
///
/// # Errors
/// When something in it is not as the probes need it.
pub fn choose(file: &File) -> Result<Option<Vec<Site>>> {
    let cache = ReadCache::new(file);
    let program = Program::open(&cache)?;
    let [read, write, client, server, of_client, of_server] = program.find([
        METHODS[0].symbol,
        METHODS[1].symbol,
        METHODS[2].symbol,
        METHODS[3].symbol,
        CALLERS[0],
        CALLERS[1],
    ])?;
    if read.is_none() && write.is_none() {
        return Ok(None);
    }
    ensure!(client.is_some() || server.is_some(), "it has no handshake in crypto/tls");
    must_call(&program, of_client, client.as_ref())?;
    must_call(&program, of_server, server.as_ref())?;
    let mut sites = Vec::new();
    for (method, range) in METHODS.iter().zip([read, write, client, server]) {
        if let Some(range) = range {
            sites.extend(method_sites(&program, method, range).context(method.symbol)?);
        }
    }
    Ok(Some(sites))
}

/// A compiler that is led by a profile can put a handshake into its caller: then no probe would see
/// it, and a new connection could be taken for an earlier one at its address.
fn must_call(
    program: &Program,
    caller: Option<Range<u64>>,
    handshake: Option<&Range<u64>>,
) -> Result<()> {
    let Some(caller) = caller else { return Ok(()) };
    let calls = match handshake {
        Some(handshake) => program.function(caller)?.calls(handshake.start),
        None => false,
    };
    ensure!(calls, "a handshake of crypto/tls is not a function of its own");
    Ok(())
}

/// The returns first: a call seen only at its return is no call at all.
fn method_sites(program: &Program, method: &Method, range: Range<u64>) -> Result<Vec<Site>> {
    let function: Function = program.function(range)?;
    let entry = function.entry()?;
    let mut sites = Vec::new();
    for at in function.returns()? {
        sites.push(site(program, method.leave, method.symbol, at, false)?);
    }
    sites.push(site(program, method.enter, method.symbol, entry.at, entry.cheap)?);
    Ok(sites)
}

fn site(
    program: &Program,
    name: &'static str,
    function: &'static str,
    at: u64,
    cheap: bool,
) -> Result<Site> {
    let Some(offset) = program.file_offset(at) else { bail!("it is not in the file") };
    Ok(Site { program: name, offset, function, cheap })
}
