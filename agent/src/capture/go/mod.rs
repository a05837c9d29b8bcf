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
use self::program::has_table;
use super::sites::Site;

/// Methods of `*tls.Conn` that move plaintext.
const READ: &str = "crypto/tls.(*Conn).Read";
const WRITE: &str = "crypto/tls.(*Conn).Write";
/// Those that come once in the life of a connection, and show its socket before any plaintext
/// moves; the probes rely on that.
const CLIENT: &str = "crypto/tls.(*Conn).clientHandshake";
const SERVER: &str = "crypto/tls.(*Conn).serverHandshake";
/// The function values that `tls.Client` and `tls.Server` make of them, through which they are
/// called. They return in one place each, which is where the handshakes' returns are probed: the
/// kernel takes a tenth of a second to take one probe off.
const BY_CLIENT: &str = "crypto/tls.(*Conn).clientHandshake-fm";
const BY_SERVER: &str = "crypto/tls.(*Conn).serverHandshake-fm";

/// Of a program in Go with `crypto/tls`, why its plaintext can't be seen, if so; `None` for any other
/// file.
pub fn verdict(file: &File) -> Option<Option<String>> {
    if !has_table(file).unwrap_or(false) {
        return None;
    }
    match choose(file) {
        Ok(None) => None,
        Ok(Some(_)) => Some(None),
        Err(error) => Some(Some(format!("Go: {error:#}: its plaintext is not seen"))),
    }
}

/// The sites of a program in Go; `None` when it moves nothing through `crypto/tls`.
///
/// # Errors
/// When something in it is not as the probes need it.
pub fn choose(file: &File) -> Result<Option<Vec<Site>>> {
    let cache = ReadCache::new(file);
    let program = Program::open(&cache)?;
    let [read, write, client, server, by_client, by_server] =
        program.find([READ, WRITE, CLIENT, SERVER, BY_CLIENT, BY_SERVER])?;
    if read.is_none() && write.is_none() {
        return Ok(None);
    }
    ensure!(client.is_some() || server.is_some(), "it has no handshake in crypto/tls");
    let mut sites = Vec::new();
    for (function, range, enter) in
        [(READ, read, name::GO_ENTER_READ), (WRITE, write, name::GO_ENTER_WRITE)]
    {
        let Some(range) = range else { continue };
        let code = program.function(range).context(function)?;
        leave(&program, function, &code, name::GO_LEAVE, &mut sites).context(function)?;
        enter_at(&program, function, &code, enter, &mut sites).context(function)?;
    }
    for (function, range, by) in [(CLIENT, client, by_client), (SERVER, server, by_server)] {
        handshake(&program, function, range, by, &mut sites).context(function)?;
    }
    Ok(Some(sites))
}

/// A compiler that is led by a profile can put a handshake into its caller: then no probe would see
/// it, and a new connection could be taken for an earlier one at its address.
fn handshake(
    program: &Program,
    function: &'static str,
    range: Option<Range<u64>>,
    caller: Option<Range<u64>>,
    sites: &mut Vec<Site>,
) -> Result<()> {
    if range.is_none() && caller.is_none() {
        return Ok(());
    }
    let (Some(range), Some(caller)) = (range, caller) else {
        bail!("it is not a function of its own with one caller");
    };
    let caller = program.function(caller)?;
    ensure!(caller.calls(range.start), "its caller does not call it");
    leave(program, function, &caller, name::GO_LEAVE_SHAKE, sites)?;
    enter_at(program, function, &program.function(range)?, name::GO_ENTER_SHAKE, sites)
}

/// Before the entry: a call seen only at its return is no call at all.
fn leave(
    program: &Program,
    function: &'static str,
    code: &Function,
    by: &'static str,
    sites: &mut Vec<Site>,
) -> Result<()> {
    for at in code.returns()? {
        sites.push(site(program, by, function, at, false)?);
    }
    Ok(())
}

fn enter_at(
    program: &Program,
    function: &'static str,
    code: &Function,
    by: &'static str,
    sites: &mut Vec<Site>,
) -> Result<()> {
    let entry = code.entry()?;
    sites.push(site(program, by, function, entry.at, entry.cheap)?);
    Ok(())
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
