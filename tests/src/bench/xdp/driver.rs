//! A source address that changes with every packet, where BPF_PROG_TEST_RUN repeats one frame: a
//! program that writes a random one into the frame and goes on in the program to be measured.
//!
//! What that itself takes is measured by going on in a program that passes everything.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, lpm_trie};
use aya_obj::generated::{bpf_insn, bpf_map_type};
use ipnet::{IpNet, Ipv4Net};

use super::networks::{FIRST_BYTES, V6_BEGIN, V6_RANDOM};
use crate::assembled::{self, Program, helper, instruction, load_map, op};

const XDP_PASS: i32 = 2;
/// Where the source address is in a frame without tags, and how long the frame is at least.
const V4_SOURCE: i16 = 26;
const V6_SOURCE: i16 = 22;
const LENGTH: i32 = 54;

pub struct Driver {
    to_measured: Program,
    to_nothing: Program,
    // What the programs go on in.
    _targets: MapData,
    _nothing: Program,
}

impl Driver {
    pub fn new(is_v4: bool, measured: BorrowedFd<'_>) -> Result<Self> {
        let nothing = Program::xdp(&[
            instruction(op::MOVE_IMM, 0, 0, 0, XDP_PASS),
            instruction(op::EXIT, 0, 0, 0, 0),
        ])?;
        let kind = bpf_map_type::BPF_MAP_TYPE_PROG_ARRAY as u32;
        let definition = aya_obj::Map::new_from_params(kind, 4, 4, 2, 0);
        let targets = MapData::create(definition, "pc_bench_targets", None)?;
        let map = targets.fd().as_fd();
        for (index, program) in [(0_u32, measured), (1, nothing.fd().as_fd())] {
            // SAFETY: the sizes are those that the map has been made with.
            unsafe { assembled::put(map, &index, &(program.as_raw_fd() as u32)) }
                .context("programs of different sorts")?;
        }
        let to = |index| {
            let mut code = with_random_source(is_v4);
            code.push(instruction(op::MOVE, 1, 6, 0, 0));
            code.extend(load_map(2, map));
            code.push(instruction(op::MOVE_IMM, 3, 0, 0, index));
            code.push(instruction(op::CALL, 0, 0, 0, helper::TAIL_CALL));
            end(code, 0)
        };
        let (to_measured, to_nothing) = (to(0)?, to(1)?);
        Ok(Self { to_measured, to_nothing, _targets: targets, _nothing: nothing })
    }

    /// The program that goes on in the one to be measured.
    pub fn measured(&self) -> &Program {
        &self.to_measured
    }

    /// The one that goes on in nothing.
    pub fn nothing(&self) -> &Program {
        &self.to_nothing
    }
}

/// The kernel's own longest-prefix match, asked for a random IPv4 source.
pub struct Trie {
    look_up: Program,
    _map: Map,
}

impl Trie {
    pub fn new(networks: &[IpNet]) -> Result<Self> {
        let kind = bpf_map_type::BPF_MAP_TYPE_LPM_TRIE as u32;
        /// `BPF_F_NO_PREALLOC`, which tries have to have.
        const FLAGS: u32 = 1;
        let room = u32::try_from(networks.len())?;
        let definition = aya_obj::Map::new_from_params(kind, 8, 4, room, FLAGS);
        let mut map = Map::from_map_data(MapData::create(definition, "pc_bench_lpm", None)?)?;
        let mut trie = lpm_trie::LpmTrie::<_, [u8; 4], u32>::try_from(&mut map)?;
        for net in networks {
            let IpNet::V4(net) = net else { continue };
            let net: &Ipv4Net = net;
            let key = lpm_trie::Key::new(u32::from(net.prefix_len()), net.network().octets());
            trie.insert(&key, 1, 0)?;
        }
        let fd = data_of(&map)?;
        let mut code = with_random_source(true);
        // The key on the stack: a length of 32, and the address that is in register 7 but for its first
        // byte, which is in register 8.
        code.push(instruction(op::STORE_WORD_IMM, 10, 0, -8, 32));
        code.push(instruction(op::STORE_WORD, 10, 7, -4, 0));
        code.push(instruction(op::STORE_BYTE, 10, 8, -4, 0));
        code.extend(load_map(1, fd));
        code.push(instruction(op::MOVE, 2, 10, 0, 0));
        code.push(instruction(op::ADD_IMM, 2, 0, 0, -8));
        code.push(instruction(op::CALL, 0, 0, 0, helper::MAP_LOOKUP));
        let look_up = end(code, XDP_PASS)?;
        Ok(Self { look_up, _map: map })
    }

    pub fn program(&self) -> &Program {
        &self.look_up
    }
}

fn data_of(map: &Map) -> Result<BorrowedFd<'_>> {
    match map {
        Map::LpmTrie(data) => Ok(data.fd().as_fd()),
        _ => anyhow::bail!("no trie"),
    }
}

/// Sends frames out of an interface of the network namespace of the thread that runs it.
pub fn sender(interface: u32) -> Result<Program> {
    Program::xdp(&[
        instruction(op::MOVE_IMM, 1, 0, 0, i32::try_from(interface)?),
        instruction(op::MOVE_IMM, 2, 0, 0, 0),
        instruction(op::CALL, 0, 0, 0, helper::REDIRECT),
        instruction(op::EXIT, 0, 0, 0, 0),
    ])
}

/// The end of a program, which returns `value` when it gets there.
fn end(mut code: Vec<bpf_insn>, value: i32) -> Result<Program> {
    code.push(instruction(op::MOVE_IMM, 0, 0, 0, value));
    code.push(instruction(op::EXIT, 0, 0, 0, 0));
    Program::xdp(&code)
}

/// Writes a random source address into the frame, as [`super::networks`] makes them, and leaves the
/// context in register 6. A frame that is too short ends the program.
fn with_random_source(is_v4: bool) -> Vec<bpf_insn> {
    let random = || instruction(op::CALL, 0, 0, 0, helper::RANDOM);
    let mut code = vec![instruction(op::MOVE, 6, 1, 0, 0)];
    if is_v4 {
        code.extend([
            random(),
            instruction(op::MOVE, 7, 0, 0, 0),
            instruction(op::MOVE, 8, 7, 0, 0),
            instruction(op::AND_IMM, 8, 0, 0, 0xff),
            instruction(op::MUL_IMM, 8, 0, 0, FIRST_BYTES as i32),
            instruction(op::SHIFT_RIGHT_IMM, 8, 0, 0, 8),
            instruction(op::ADD_IMM, 8, 0, 0, 1),
        ]);
    } else {
        // In network byte order in the lowest bytes, which come first in memory.
        let (keep, begin) = (u32::from(V6_RANDOM.swap_bytes()), u32::from(V6_BEGIN.swap_bytes()));
        code.extend([
            random(),
            instruction(op::AND_IMM_32, 0, 0, 0, (0xffff_0000 | keep) as i32),
            instruction(op::OR_IMM_32, 0, 0, 0, begin as i32),
            instruction(op::STORE_WORD, 10, 0, -4, 0),
            random(),
            instruction(op::MOVE, 7, 0, 0, 0),
            random(),
            instruction(op::MOVE, 8, 0, 0, 0),
            random(),
            instruction(op::MOVE, 9, 0, 0, 0),
        ]);
    }
    code.extend([
        instruction(op::LOAD_WORD, 2, 6, 0, 0),
        instruction(op::LOAD_WORD, 3, 6, 4, 0),
        instruction(op::MOVE, 4, 2, 0, 0),
        instruction(op::ADD_IMM, 4, 0, 0, LENGTH),
        // Over the two next, if the frame is long enough.
        instruction(op::JUMP_IF_NOT_GREATER, 4, 3, 2, 0),
        instruction(op::MOVE_IMM, 0, 0, 0, 0),
        instruction(op::EXIT, 0, 0, 0, 0),
    ]);
    if is_v4 {
        code.push(instruction(op::STORE_WORD, 2, 7, V4_SOURCE, 0));
        code.push(instruction(op::STORE_BYTE, 2, 8, V4_SOURCE, 0));
    } else {
        code.push(instruction(op::LOAD_WORD, 5, 10, -4, 0));
        for (register, at) in [(5, 0), (7, 4), (8, 8), (9, 12)] {
            code.push(instruction(op::STORE_WORD, 2, register, V6_SOURCE + at, 0));
        }
    }
    code
}
