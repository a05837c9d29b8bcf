//! Programs on the bridge's port to the server, for what the laboratory's plain interfaces lack.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use anyhow::Result;

use crate::assembled::{Hook, Program, helper, instruction, op};
use crate::netns::{Lab, in_namespace};

/// What begins a tag of IEEE 802.1Q.
const TAG: u16 = 0x8100;
/// Go on as if there were no program (linux/bpf.h, `TCX_NEXT`).
const NEXT: i32 = -1;
/// `XDP_PASS` of linux/bpf.h.
const PASS: i32 = 2;

/// Lets the port take what native XDP on the server's interface sends back, while this lives: a
/// veth interface loses it unless the other end has an XDP program too.
pub struct Echoes {
    _program: OwnedFd,
}

impl Echoes {
    pub fn of_the_server(lab: &Lab) -> Result<Self> {
        let pass = [instruction(op::MOVE_IMM, 0, 0, 0, PASS), instruction(op::EXIT, 0, 0, 0, 0)];
        Ok(Self { _program: attach(lab, &Program::xdp(&pass)?, Hook::Xdp)? })
    }
}

/// Every frame to the server has a priority tag while this lives: one of VLAN 0, which hosts take
/// as they take frames without.
pub struct PriorityTags {
    _program: OwnedFd,
}

impl PriorityTags {
    pub fn on_the_way_to_the_server(lab: &Lab) -> Result<Self> {
        // Else the tag goes beside the frame, where no XDP program sees it.
        lab.set_switch_port(&["tx-vlan-hw-insert", "off"])?;
        let tag = [
            instruction(op::MOVE_IMM, 2, 0, 0, TAG.to_be().into()),
            instruction(op::MOVE_IMM, 3, 0, 0, 0),
            instruction(op::CALL, 0, 0, 0, helper::VLAN_PUSH),
            instruction(op::MOVE_IMM, 0, 0, 0, NEXT),
            instruction(op::EXIT, 0, 0, 0, 0),
        ];
        Ok(Self { _program: attach(lab, &Program::tc(&tag)?, Hook::Egress)? })
    }
}

/// What the network stack sends to the server comes in by one of its queues, while this lives.
pub struct OneQueue {
    _program: OwnedFd,
}

impl OneQueue {
    pub fn on_the_way_to_the_server(lab: &Lab, queue: usize) -> Result<Self> {
        // `queue_mapping` of `__sk_buff`: one more than the queue it was received by, which it is sent
        // by too (net/core/dev.c, `skb_tx_hash`).
        const QUEUE_MAPPING: i16 = 12;
        let choose = [
            instruction(op::MOVE_IMM, 2, 0, 0, i32::try_from(queue)? + 1),
            instruction(op::STORE_WORD, 1, 2, QUEUE_MAPPING, 0),
            instruction(op::MOVE_IMM, 0, 0, 0, NEXT),
            instruction(op::EXIT, 0, 0, 0, 0),
        ];
        Ok(Self { _program: attach(lab, &Program::tc(&choose)?, Hook::Egress)? })
    }
}

fn attach(lab: &Lab, program: &Program, hook: Hook) -> Result<OwnedFd> {
    let port = CString::new(lab.switch_port())?;
    in_namespace(&lab.switch(), || {
        program.attach(nix::net::if_::if_nametoindex(port.as_c_str())?, hook)
    })?
}
