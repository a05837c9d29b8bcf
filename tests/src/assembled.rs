//! eBPF programs of a few instructions that only benchmarks and tests need, assembled by hand, and
//! the calls to load, run and attach them.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use anyhow::{Context as _, Result, ensure};
use aya_obj::generated::{
    BPF_F_TEST_XDP_LIVE_FRAMES, BPF_F_XDP_HAS_FRAGS, bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn,
    bpf_prog_type,
};

/// Operation codes (linux/bpf_common.h, linux/bpf.h), as far as anything here uses them.
pub mod op {
    /// 64 bits: `dst OP= imm` and `dst OP= src`.
    pub const ADD_IMM: u8 = 0x07;
    pub const MUL_IMM: u8 = 0x27;
    pub const SHIFT_RIGHT_IMM: u8 = 0x77;
    pub const AND_IMM: u8 = 0x57;
    pub const MOVE_IMM: u8 = 0xb7;
    pub const MOVE: u8 = 0xbf;
    /// 32 bits.
    pub const OR_IMM_32: u8 = 0x44;
    pub const AND_IMM_32: u8 = 0x54;
    /// `dst = *(u32 *)(src + offset)`.
    pub const LOAD_WORD: u8 = 0x61;
    /// `*(u32 *)(dst + offset) = src`, `*(u8 *)(dst + offset) = src`, `*(u32 *)(dst + offset) = imm`.
    pub const STORE_WORD: u8 = 0x63;
    pub const STORE_BYTE: u8 = 0x73;
    pub const STORE_WORD_IMM: u8 = 0x62;
    /// Two instructions long.
    pub const LOAD_IMM: u8 = 0x18;
    pub const JUMP_IF_NOT_GREATER: u8 = 0xbd;
    pub const CALL: u8 = 0x85;
    pub const EXIT: u8 = 0x95;
}

/// Helper functions by their numbers (`enum bpf_func_id`).
pub mod helper {
    pub const MAP_LOOKUP: i32 = 1;
    pub const RANDOM: i32 = 7;
    pub const TAIL_CALL: i32 = 12;
    pub const VLAN_PUSH: i32 = 18;
    pub const REDIRECT: i32 = 23;
}

/// `BPF_PSEUDO_MAP_FD`, in the place of [`op::LOAD_IMM`]'s source register.
const MAP_FD: u8 = 1;

pub fn instruction(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> bpf_insn {
    // SAFETY: an instruction is plain integers, for which zero is a value.
    let mut instruction: bpf_insn = unsafe { mem::zeroed() };
    instruction.code = code;
    instruction.set_dst_reg(dst);
    instruction.set_src_reg(src);
    (instruction.off, instruction.imm) = (off, imm);
    instruction
}

/// `dst = the map`.
pub fn load_map(dst: u8, map: BorrowedFd<'_>) -> [bpf_insn; 2] {
    let first = instruction(op::LOAD_IMM, dst, MAP_FD, 0, map.as_raw_fd());
    [first, instruction(0, 0, 0, 0, 0)]
}

/// Where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// On every frame that comes.
    Xdp,
    /// On every packet that leaves, for programs of TC.
    Egress,
}

/// A loaded program.
pub struct Program(OwnedFd);

impl Program {
    pub fn kprobe(instructions: &[bpf_insn]) -> Result<Self> {
        load(bpf_prog_type::BPF_PROG_TYPE_KPROBE, instructions, 0, 0)
    }

    /// Of the same sort as Portcullis' own, so that one may call the other.
    pub fn xdp(instructions: &[bpf_insn]) -> Result<Self> {
        let attach = bpf_attach_type::BPF_XDP as u32;
        load(bpf_prog_type::BPF_PROG_TYPE_XDP, instructions, attach, BPF_F_XDP_HAS_FRAGS)
    }

    /// For the TC hooks.
    pub fn tc(instructions: &[bpf_insn]) -> Result<Self> {
        load(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, instructions, 0, 0)
    }

    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// Runs at the interface of this number, in the namespace of this thread, until what is
    /// returned is dropped.
    pub fn attach(&self, interface: u32, hook: Hook) -> Result<OwnedFd> {
        // SAFETY: the attribute is a union of plain integers, for which zero is a value.
        let mut attr: bpf_attr = unsafe { mem::zeroed() };
        // SAFETY: BPF_LINK_CREATE reads this member of the union, and no other has been written.
        let link = unsafe { &mut attr.link_create };
        link.__bindgen_anon_1.prog_fd = self.0.as_raw_fd() as u32;
        link.__bindgen_anon_2.target_ifindex = interface;
        link.attach_type = match hook {
            Hook::Xdp => bpf_attach_type::BPF_XDP as u32,
            Hook::Egress => bpf_attach_type::BPF_TCX_EGRESS as u32,
        };
        let fd = call(bpf_cmd::BPF_LINK_CREATE, &mut attr).context("can't attach a program")?;
        // SAFETY: the system call has just returned it, so nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Runs on a frame, `repeat` times: what the last run returned and how many nanoseconds one
    /// took on average, in whole ones.
    pub fn run(&self, frame: &[u8], repeat: u32) -> Result<(u32, u32)> {
        self.test(frame, repeat, 0)
    }

    /// Lets the kernel do as the program says with `count` packets like the frame.
    pub fn send(&self, frame: &[u8], count: u32) -> Result<()> {
        self.test(frame, count, BPF_F_TEST_XDP_LIVE_FRAMES).map(drop)
    }

    fn test(&self, frame: &[u8], repeat: u32, flags: u32) -> Result<(u32, u32)> {
        // SAFETY: the attribute is a union of plain integers, for which zero is a value.
        let mut attr: bpf_attr = unsafe { mem::zeroed() };
        // SAFETY: BPF_PROG_TEST_RUN uses this member of the union, and no other has been written.
        let test = unsafe { &mut attr.test };
        test.prog_fd = self.0.as_raw_fd() as u32;
        test.data_in = frame.as_ptr() as u64;
        test.data_size_in = u32::try_from(frame.len())?;
        (test.repeat, test.flags) = (repeat, flags);
        call(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr).context("can't run a program")?;
        // SAFETY: as above; the kernel has written the results.
        let test = unsafe { attr.test };
        Ok((test.retval, test.duration))
    }
}

fn load(kind: bpf_prog_type, code: &[bpf_insn], attach: u32, flags: u32) -> Result<Program> {
    let license = c"GPL";
    // SAFETY: the attribute is a union of plain integers, for which zero is a value.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: BPF_PROG_LOAD reads this member of the union, and no other has been written.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = kind as u32;
    load.insn_cnt = u32::try_from(code.len())?;
    load.insns = code.as_ptr() as u64;
    load.license = license.as_ptr() as u64;
    (load.expected_attach_type, load.prog_flags) = (attach, flags);
    let fd = call(bpf_cmd::BPF_PROG_LOAD, &mut attr).context("can't load a program")?;
    // SAFETY: the system call has just returned it, so nothing else owns it.
    Ok(Program(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Puts one element into a map whose keys are of type `K` and values of type `V`.
///
/// # Safety
/// They are.
pub unsafe fn put<K, V>(map: BorrowedFd<'_>, key: &K, value: &V) -> Result<()> {
    // SAFETY: the attribute is a union of plain integers, for which zero is a value.
    let mut attr: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: BPF_MAP_UPDATE_ELEM reads this member of the union, and no other has been written.
    let element = unsafe { &mut attr.__bindgen_anon_2 };
    element.map_fd = map.as_raw_fd() as u32;
    element.key = &raw const *key as u64;
    element.__bindgen_anon_1.value = &raw const *value as u64;
    call(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).context("can't write to a map").map(drop)
}

fn call(command: bpf_cmd, attr: &mut bpf_attr) -> Result<RawFd> {
    // SAFETY: the attribute is whole, and what it points to lives until the call returns.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<bpf_attr>()) };
    ensure!(result >= 0, io::Error::last_os_error());
    Ok(RawFd::try_from(result)?)
}
