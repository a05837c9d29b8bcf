#![no_std]
#![no_main]
use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
#[xdp(frags)]
pub fn portcullis_xdp(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}
#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
