//! Entry points: each only maps what its module found out to what its hook expects.
#![no_std]
#![no_main]
// Only for `atomic`; see there.
#![feature(core_intrinsics)]
#![allow(internal_features)]

mod answer;
mod atomic;
mod ciphertext;
mod client_hello;
mod flows;
mod go;
mod headers;
mod limit;
mod maps;
mod packet;
mod policy;
mod prefixes;
mod quic;
mod report;
mod rules;
mod search;
mod socket;
mod steer;
mod steps;
mod system_call;
mod uprobe;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    macros::{btf_tracepoint, classifier, sk_lookup, uprobe, uretprobe, xdp},
    programs::{
        BtfTracePointContext, ProbeContext, RetProbeContext, SkLookupContext, TcContext, XdpContext,
    },
};
use portcullis_common::event::direction;

#[xdp(frags)]
pub fn portcullis_xdp(ctx: XdpContext) -> u32 {
    match policy::verdict(packet::XdpFrame::of(&ctx)) {
        policy::Verdict::Pass => xdp_action::XDP_PASS,
        policy::Verdict::Drop if answer::answer(&packet::XdpFrame::of(&ctx)) => xdp_action::XDP_TX,
        policy::Verdict::Drop => xdp_action::XDP_DROP,
    }
}

/// On pass the next program of the hook goes on, should there be one.
#[classifier]
pub fn portcullis_tc(ctx: TcContext) -> i32 {
    match policy::verdict(packet::TcFrame::of(&ctx)) {
        policy::Verdict::Pass => TC_ACT_UNSPEC,
        policy::Verdict::Drop if answer::answer(&packet::TcFrame::of(&ctx)) => {
            packet::send_back(&ctx)
        }
        policy::Verdict::Drop => TC_ACT_SHOT,
    }
}

/// For interfaces whose packets begin with an IP header. Drops without an answer, which would
/// need an Ethernet header.
#[classifier]
pub fn portcullis_tc_l3(ctx: TcContext) -> i32 {
    match policy::verdict(packet::L3Frame::of(&ctx)) {
        policy::Verdict::Pass => TC_ACT_UNSPEC,
        policy::Verdict::Drop => TC_ACT_SHOT,
    }
}

#[sk_lookup]
pub fn portcullis_steer(ctx: SkLookupContext) -> u32 {
    steer::steer(&ctx)
}

/// `int SSL_read(SSL *ssl, void *buf, int num)`
#[uprobe]
pub fn ssl_enter_read(ctx: ProbeContext) -> u32 {
    uprobe::enter(&ctx, direction::READ, uprobe::Signature::Length, 0);
    0
}

/// `int SSL_read_ex(SSL *ssl, void *buf, size_t num, size_t *readbytes)`
#[uprobe]
pub fn ssl_enter_read_ex(ctx: ProbeContext) -> u32 {
    uprobe::enter(&ctx, direction::READ, uprobe::Signature::LengthByPointer, 3);
    0
}

/// `int SSL_write(SSL *ssl, const void *buf, int num)`
#[uprobe]
pub fn ssl_enter_write(ctx: ProbeContext) -> u32 {
    uprobe::enter(&ctx, direction::WRITE, uprobe::Signature::Length, 0);
    0
}

/// `int SSL_write_ex(SSL *s, const void *buf, size_t num, size_t *written)`
#[uprobe]
pub fn ssl_enter_write_ex(ctx: ProbeContext) -> u32 {
    uprobe::enter(&ctx, direction::WRITE, uprobe::Signature::LengthByPointer, 3);
    0
}

/// `int SSL_write_ex2(SSL *s, const void *buf, size_t num, uint64_t flags, size_t *written)`
#[uprobe]
pub fn ssl_enter_write_ex2(ctx: ProbeContext) -> u32 {
    uprobe::enter(&ctx, direction::WRITE, uprobe::Signature::LengthByPointer, 4);
    0
}

/// `int SSL_do_handshake(SSL *ssl)`: moves no plaintext, but shows the socket before any moves.
#[uprobe]
pub fn ssl_enter_handshake(ctx: ProbeContext) -> u32 {
    uprobe::enter(&ctx, direction::READ, uprobe::Signature::NoData, 0);
    0
}

#[uretprobe]
pub fn ssl_return(ctx: RetProbeContext) -> u32 {
    uprobe::leave(&ctx);
    0
}

/// `int BIO_write(BIO *b, const void *data, int dlen)`, or `BIO_write_ex`, or what both call
#[uprobe]
pub fn bio_written(ctx: ProbeContext) -> u32 {
    ciphertext::sealed(&ctx);
    0
}

/// `int SSL_clear(SSL *s)`
#[uprobe]
pub fn ssl_cleared(ctx: ProbeContext) -> u32 {
    socket::forget(ctx.arg(0).unwrap_or(0));
    0
}

/// `SSL *SSL_new(SSL_CTX *ctx)`
#[uretprobe]
pub fn ssl_created(ctx: RetProbeContext) -> u32 {
    socket::forget(ctx.ret());
    0
}

/// `func (c *Conn) Read(b []byte) (int, error)` of Go's `crypto/tls`
#[uprobe]
pub fn go_enter_read(ctx: ProbeContext) -> u32 {
    go::enter(&ctx, direction::READ);
    0
}

/// `func (c *Conn) Write(b []byte) (int, error)`
#[uprobe]
pub fn go_enter_write(ctx: ProbeContext) -> u32 {
    go::enter(&ctx, direction::WRITE);
    0
}

/// `func (c *Conn) clientHandshake(ctx context.Context) error`, and `serverHandshake`
#[uprobe]
pub fn go_enter_shake(ctx: ProbeContext) -> u32 {
    go::enter_handshake(&ctx);
    0
}

/// A `ret` of `Read` or `Write`.
#[uprobe]
pub fn go_leave(ctx: ProbeContext) -> u32 {
    go::leave(&ctx);
    0
}

/// A `ret` of what has called a handshake.
#[uprobe]
pub fn go_leave_shake(ctx: ProbeContext) -> u32 {
    go::leave_handshake(&ctx);
    0
}

#[btf_tracepoint(function = "sock_send_length")]
pub fn go_sock_send(ctx: BtfTracePointContext) -> i32 {
    go::used(&ctx);
    0
}

#[btf_tracepoint(function = "sock_recv_length")]
pub fn go_sock_recv(ctx: BtfTracePointContext) -> i32 {
    go::used(&ctx);
    0
}

#[btf_tracepoint(function = "sock_send_length")]
pub fn sock_send_length(ctx: BtfTracePointContext) -> i32 {
    socket::sent(&ctx);
    0
}

#[btf_tracepoint(function = "sock_recv_length")]
pub fn sock_recv_length(ctx: BtfTracePointContext) -> i32 {
    socket::received(&ctx);
    0
}

#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    socket::state_changed(&ctx);
    0
}

#[btf_tracepoint(function = "sched_process_exec")]
pub fn sched_process_exec(_ctx: BtfTracePointContext) -> i32 {
    report::exec();
    0
}

/// The helpers that the programs use are available to GPL-compatible programs only.
// SAFETY: the section is read by the loader, never linked against anything.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that can come here, because it would never end.
    loop {}
}
