//! Which socket lies below a TLS object: the one that the object's own thread receives TLS records
//! from while it is inside a call of the TLS library, or the one that sends the object's records
//! (see `ciphertext`).

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_probe_read_kernel, generated::bpf_get_socket_cookie},
    programs::BtfTracePointContext,
};
use aya_log_ebpf::warn;
use portcullis_common::{
    event::Loss,
    net::{Addr, FlowKey, TCP},
    settings::SockOffsets,
};

use crate::{
    atomic, ciphertext,
    maps::{Connection, Owner, PC_CALLS, PC_CONNECTIONS, PC_NEXT_ID, PC_SOCKETS, TlsObject},
    report,
    system_call::{self, Buffer},
};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const IPPROTO_TCP: u16 = 6;
/// The socket that the program has; those of its paths are TCP sockets of the kernel's own. It has
/// the addresses of the first path (net/mptcp/protocol.c, `mptcp_copy_inaddrs`).
const IPPROTO_MPTCP: u16 = 262;
/// `TCP_CLOSE` of include/net/tcp_states.h.
const TCP_CLOSE: i32 = 7;
const EEXIST: i32 = 17;
/// Flags of an insertion (include/uapi/linux/bpf.h).
const ANY: u64 = 0;
const BPF_NOEXIST: u64 = 1;

/// Set by the loader from the running kernel's BTF.
#[unsafe(no_mangle)]
static SOCK_OFFSETS: SockOffsets = SockOffsets {
    family: 0,
    protocol: 0,
    remote_v4: 0,
    local_v4: 0,
    remote_v6: 0,
    local_v6: 0,
    remote_port: 0,
    local_port: 0,
    namespace: 0,
    namespace_number: 0,
};

/// Set by the loader; 0 for all namespaces.
#[unsafe(no_mangle)]
static ONLY_NAMESPACE: u32 = 0;

#[inline(always)]
fn offsets() -> SockOffsets {
    // SAFETY: a static of plain integers; volatile, because the loader changes it after the
    // compiler has seen it.
    unsafe { core::ptr::read_volatile(&raw const SOCK_OFFSETS) }
}

/// `sock_recv_length` (include/trace/events/sock.h): `(struct sock *sk, int ret, int flags)`, on
/// the thread that makes the call.
#[inline(always)]
pub fn received(ctx: &BtfTracePointContext) {
    let Some(object) = note_use() else { return };
    let cookie = cookie_of(ctx);
    // SAFETY: a map value stays readable while the program runs.
    if let Some(known) = unsafe { PC_CONNECTIONS.get(object) }
        && known.cookie == cookie
    {
        return;
    }
    // What a callback of the library receives may be from anybody.
    if system_call::buffer(ctx.arg(1)).is_some_and(|buffer| may_begin_record(&buffer)) {
        bind(ctx, object, cookie, ANY);
    }
}

/// `sock_send_length`, with the same arguments.
#[inline(always)]
pub fn sent(ctx: &BtfTracePointContext) {
    note_use();
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if !ciphertext::is_carrier(tgid) {
        return;
    }
    let cookie = cookie_of(ctx);
    // SAFETY: the value is not looked at.
    if unsafe { PC_SOCKETS.get(cookie) }.is_some() {
        return;
    }
    let Some(buffer) = system_call::buffer(ctx.arg(1)) else { return };
    let Some(object) = ciphertext::maker(buffer, tgid) else { return };
    // SAFETY: the value is not looked at.
    if unsafe { PC_CONNECTIONS.get(object) }.is_none() {
        bind(ctx, object, cookie, ANY);
    }
}

/// Either of the two, in a call of Go's TLS: of an object that is known by its handshake, or was there
/// before the probes, and has one socket in its life. The first that is used in its calls is the
/// one: later ones can be other connections of the program's, which it uses while it is asked for a
/// certificate.
#[inline(always)]
pub fn used_first(ctx: &BtfTracePointContext, object: TlsObject) {
    // SAFETY: the value is not looked at.
    if unsafe { PC_CONNECTIONS.get(object) }.is_none() {
        bind(ctx, object, cookie_of(ctx), BPF_NOEXIST);
    }
}

/// The TLS object that the thread is in a call of, and that it uses a socket there.
#[inline(always)]
fn note_use() -> Option<TlsObject> {
    let call = PC_CALLS.get_ptr_mut(bpf_get_current_pid_tgid())?;
    // SAFETY: a pointer into a map value stays valid while the program runs. Only this thread's
    // own calls write this entry, and it is here.
    unsafe {
        (*call).used_socket = 1;
        Some((*call).object)
    }
}

/// Whether records can begin like this: by type and version (RFC 8446, section 5.1). The client
/// may send a byte at a time.
#[inline(always)]
fn may_begin_record(buffer: &Buffer) -> bool {
    let is_type = |byte: u8| matches!(byte, 20..=23);
    match buffer.first::<[u8; 2]>() {
        Some([record_type, version]) => is_type(record_type) && version == 3,
        None => buffer.first::<[u8; 1]>().is_some_and(|[record_type]| is_type(record_type)),
    }
}

#[inline(always)]
fn cookie_of(ctx: &BtfTracePointContext) -> u64 {
    let sock: *mut core::ffi::c_void = ctx.arg(0);
    // SAFETY: the first argument of these tracepoints is a socket, which the verifier knows.
    unsafe { bpf_get_socket_cookie(sock) }
}

/// Whether the socket is in another network namespace than the only one to follow.
#[inline(always)]
fn is_foreign(sock: *const u8) -> bool {
    // SAFETY: a static of a plain integer; volatile, because the loader changes it after the
    // compiler has seen it.
    let only = unsafe { core::ptr::read_volatile(&raw const ONLY_NAMESPACE) };
    if only == 0 {
        return false;
    }
    let at = offsets();
    let number = read::<u64>(sock, at.namespace)
        .and_then(|net| read::<u32>(net as *const u8, at.namespace_number));
    number != Some(only)
}

/// The two ends of a TCP or Multipath TCP socket; `None` for any other.
#[inline(always)]
fn flow_of(sock: *const u8) -> Option<FlowKey> {
    let at = offsets();
    let protocol = read::<u16>(sock, at.protocol)?;
    if protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP {
        return None;
    }
    let (local, remote) = match read::<u16>(sock, at.family)? {
        AF_INET => {
            (Addr::from_v4(read(sock, at.local_v4)?), Addr::from_v4(read(sock, at.remote_v4)?))
        }
        AF_INET6 => (Addr(read(sock, at.local_v6)?), Addr(read(sock, at.remote_v6)?)),
        _ => return None,
    };
    Some(FlowKey {
        local,
        remote,
        local_port: read(sock, at.local_port)?,
        remote_port: u16::from_be(read(sock, at.remote_port)?),
        protocol: TCP,
    })
}

#[inline(always)]
fn read<T>(sock: *const u8, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address itself; the offset is that of a field of type `T`.
    unsafe { bpf_probe_read_kernel(sock.add(offset as usize).cast::<T>()) }.ok()
}

/// A number that no connection had before.
#[inline(always)]
fn next_id() -> u64 {
    // An array of one has a first element.
    let Some(next) = PC_NEXT_ID.get_ptr_mut(0) else { return Connection::IGNORED };
    // SAFETY: an aligned u64 in a map value that only this line touches.
    let earlier = unsafe { atomic::fetch_add(next, 1) };
    earlier + 1
}

/// A TLS object has a new socket below it: a new connection begins.
#[inline(always)]
fn bind(ctx: &BtfTracePointContext, object: TlsObject, cookie: u64, replacing: u64) {
    let sock: *mut core::ffi::c_void = ctx.arg(0);
    let sock = sock as *const u8;
    let Some(flow) = flow_of(sock) else { return };
    let id = if is_foreign(sock) { Connection::IGNORED } else { next_id() };
    let connection = Connection { id, cookie, moved: [0; 2], flow };
    let owner = Owner { object, id };
    let inserted = PC_CONNECTIONS.insert(object, connection, replacing);
    if inserted == Err(-EEXIST) {
        // Another thread was faster.
        return;
    }
    if inserted.is_err() || PC_SOCKETS.insert(cookie, owner, 0).is_err() {
        report::lost(Loss::TableFull, 0);
        warn!(ctx, "no room for a connection of process {}", object.tgid);
    }
}

/// A TLS object has just been made at `address` of this process, or made anew, so what is known of this address
/// is about an object that is no more. Its socket may be still there: the program can go on
/// without TLS. (`SSL_free` would come sooner, but it only gives back one of the references to
/// an object, which may live on.)
#[inline(always)]
pub fn forget(address: u64) {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let object = TlsObject { address, tgid, reserved: 0 };
    ciphertext::created(object);
    // SAFETY: a map value stays readable while the program runs.
    let Some(earlier) = (unsafe { PC_CONNECTIONS.get(object) }).copied() else { return };
    let _ = PC_CONNECTIONS.remove(object);
    // SAFETY: as above.
    let owner = unsafe { PC_SOCKETS.get(earlier.cookie) };
    // The socket may be below another object already.
    if owner.is_some_and(|owner| owner.id == earlier.id) {
        let _ = PC_SOCKETS.remove(earlier.cookie);
    }
    if earlier.id != Connection::IGNORED {
        report::closed(earlier.id);
    }
}

/// `inet_sock_set_state`: `(const struct sock *sk, const int oldstate, const int newstate)`.
#[inline(always)]
pub fn state_changed(ctx: &BtfTracePointContext) {
    let state: i32 = ctx.arg(2);
    if state != TCP_CLOSE {
        return;
    }
    let cookie = cookie_of(ctx);
    // SAFETY: a map value stays readable while the program runs.
    let Some(owner) = (unsafe { PC_SOCKETS.get(cookie) }).copied() else { return };
    let _ = PC_SOCKETS.remove(cookie);
    // SAFETY: as above.
    let current = unsafe { PC_CONNECTIONS.get(owner.object) };
    // The object may be on its next socket already.
    if current.is_some_and(|connection| connection.id == owner.id) {
        let _ = PC_CONNECTIONS.remove(owner.object);
    }
    if owner.id != Connection::IGNORED {
        report::closed(owner.id);
    }
}
