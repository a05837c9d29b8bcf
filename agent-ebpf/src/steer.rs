//! New connections of steered clients to the decoy's listening socket, whatever address and port
//! of this host they are for. The client cannot tell: the decoy answers from there.
//!
//! Whose they are is decided where the packet comes in, by the rules; here only the answer is looked up.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sk_lookup, sk_action},
    programs::SkLookupContext,
};
use portcullis_common::{
    net::{Addr, FlowKey, TCP},
    steer::{Steered, slot},
};

use crate::{
    headers::{Address, IPPROTO_TCP, Packet},
    maps::{PC_DECOY, PC_STEERED, PC_STEERED_FL},
};

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
/// Also where another program has chosen a socket (`BPF_SK_LOOKUP_F_REPLACE`).
const REPLACE: u64 = 1;

/// What the packet asks for, every field that is needed. All are read in one place, whatever the
/// packet is: where branches read different fields, the compiler computes which address to read
/// from, and the verifier wants each to be a constant distance into the context.
struct Asked {
    family: u32,
    protocol: u32,
    /// In host byte order.
    local_port: u32,
    remote_port: u16,
    /// Addresses as the packet has them; one of the two is zero.
    remote_v4: u32,
    remote_v6: [u32; 4],
    local_v4: u32,
    local_v6: [u32; 4],
}

impl Asked {
    #[inline(always)]
    fn of(ctx: &SkLookupContext) -> Self {
        let lookup = ctx.as_ptr().cast::<bpf_sk_lookup>();
        // SAFETY: the context is the one the program was called with, whose fields the verifier
        // lets it read one by one.
        unsafe {
            let words = addr_of!((*lookup).remote_ip6).cast::<u32>();
            let local = addr_of!((*lookup).local_ip6).cast::<u32>();
            Self {
                family: read_volatile(addr_of!((*lookup).family)),
                protocol: read_volatile(addr_of!((*lookup).protocol)),
                local_port: read_volatile(addr_of!((*lookup).local_port)),
                remote_port: u16::from_be(read_volatile(addr_of!((*lookup).remote_port))),
                remote_v4: read_volatile(addr_of!((*lookup).remote_ip4)),
                remote_v6: [
                    read_volatile(words),
                    read_volatile(words.add(1)),
                    read_volatile(words.add(2)),
                    read_volatile(words.add(3)),
                ],
                local_v4: read_volatile(addr_of!((*lookup).local_ip4)),
                local_v6: [
                    read_volatile(local),
                    read_volatile(local.add(1)),
                    read_volatile(local.add(2)),
                    read_volatile(local.add(3)),
                ],
            }
        }
    }
}

/// Runs for a packet that no connection takes, before the host looks for who listens. What is for
/// a decoy that is not there is refused: the client was not to reach the service.
#[inline(always)]
pub fn steer(ctx: &SkLookupContext) -> u32 {
    let asked = Asked::of(ctx);
    if asked.protocol != u32::from(IPPROTO_TCP) {
        return sk_action::SK_PASS;
    }
    let (remote, local, decoy) = match asked.family {
        AF_INET => (v4(asked.remote_v4), v4(asked.local_v4), slot::V4),
        AF_INET6 => (v6(asked.remote_v6), v6(asked.local_v6), slot::V6),
        _ => return sk_action::SK_PASS,
    };
    let flow = FlowKey {
        local,
        remote,
        // Ports have 16 bits.
        local_port: asked.local_port as u16,
        remote_port: asked.remote_port,
        protocol: TCP,
    };
    // SAFETY: only whether there is a value is asked.
    if unsafe { PC_STEERED_FL.get(flow) }.is_none() {
        return sk_action::SK_PASS;
    }
    match PC_DECOY.redirect_sk_lookup(ctx, decoy, REPLACE) {
        Ok(()) => {
            count(Steered::ToDecoy);
            sk_action::SK_PASS
        }
        Err(_) => {
            count(Steered::Refused);
            sk_action::SK_DROP
        }
    }
}

/// Lets the decoy have the connection that the packet asks for.
#[inline(always)]
pub fn remember(packet: &Packet) {
    // The table forgets the flow used longest ago, so there is room.
    let _ = PC_STEERED_FL.insert(packet.flow(), 1, 0);
}

#[inline(always)]
fn v4(address: u32) -> Addr {
    Address::from_v4(address.to_ne_bytes()).addr()
}

#[inline(always)]
fn v6(words: [u32; 4]) -> Addr {
    Address::from_words(words).addr()
}

#[inline(always)]
fn count(what: Steered) {
    if let Some(counter) = PC_STEERED.get_ptr_mut(what as u32) {
        // SAFETY: an aligned u64 in a map value.
        unsafe { crate::atomic::add(counter, 1) };
    }
}
