//! The steps that few packets go, each a function that the verifier walks through once, whoever calls it
//! and with whatever it has found out so far (Documentation/bpf/libbpf/program_types.rst, "global
//! functions"). What one step leaves for the next lies in [`crate::policy::Work`].

use aya_ebpf::bindings::{__sk_buff, xdp_md};

use crate::{
    client_hello,
    packet::{Frame, L3Frame, TcFrame, XdpFrame},
    policy,
};

/// A frame with its steps.
pub trait Steps: Frame {
    /// [`policy::walk`].
    fn walk(self) -> u32;
    /// [`policy::walk_anywhere`].
    fn walk_anywhere(self) -> u32;
    /// [`policy::judge`].
    fn judge(self) -> u32;
    /// [`policy::enter_tunnel`].
    fn enter_tunnel(self) -> u32;
    /// [`client_hello::take_in`].
    fn take_hello_in(self) -> u32;
}

macro_rules! steps {
    ($frame:ident of $context:ty: $walk:ident, $walk_anywhere:ident, $judge:ident, $enter_tunnel:ident,
     $take_hello_in:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $walk(context: *mut $context) -> u32 {
            policy::walk($frame(context))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $walk_anywhere(context: *mut $context) -> u32 {
            policy::walk_anywhere($frame(context))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $judge(context: *mut $context) -> u32 {
            policy::judge($frame(context))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $enter_tunnel(context: *mut $context) -> u32 {
            policy::enter_tunnel($frame(context))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $take_hello_in(context: *mut $context) -> u32 {
            client_hello::take_in($frame(context))
        }

        impl Steps for $frame {
            #[inline(always)]
            fn walk(self) -> u32 {
                $walk(self.0)
            }

            #[inline(always)]
            fn walk_anywhere(self) -> u32 {
                $walk_anywhere(self.0)
            }

            #[inline(always)]
            fn judge(self) -> u32 {
                $judge(self.0)
            }

            #[inline(always)]
            fn enter_tunnel(self) -> u32 {
                $enter_tunnel(self.0)
            }

            #[inline(always)]
            fn take_hello_in(self) -> u32 {
                $take_hello_in(self.0)
            }
        }
    };
}

steps!(XdpFrame of xdp_md: xdp_walk, xdp_walk_anywhere, xdp_judge, xdp_enter_tunnel, xdp_take_hello_in);
steps!(TcFrame of __sk_buff: tc_walk, tc_walk_anywhere, tc_judge, tc_enter_tunnel, tc_take_hello_in);
steps!(L3Frame of __sk_buff: tc_l3_walk, tc_l3_walk_anywhere, tc_l3_judge, tc_l3_enter_tunnel, tc_l3_take_hello_in);
