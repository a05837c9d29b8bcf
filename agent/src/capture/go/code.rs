//! One function of a program in Go, by its instructions.

use anyhow::{Result, bail, ensure};
use iced_x86::{
    Code, ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind,
    Register,
};

/// Where `struct g` has the bound of the stack that a prologue compares with
/// (src/runtime/runtime2.go of Go's source, `stackguard0`).
const STACK_GUARD: u64 = 0x10;
/// Instructions of the longest prologue.
const PROLOGUE: usize = 6;

pub struct Function {
    address: u64,
    length: u64,
    instructions: Vec<Instruction>,
}

/// Where a function is probed when it is called.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    pub at: u64,
    /// The kernel emulates the instruction rather than single-stepping it.
    pub cheap: bool,
}

impl Function {
    /// # Errors
    /// When some of `code` is not instructions. (Go puts no data between them.)
    pub fn decode(code: &[u8], address: u64) -> Result<Self> {
        let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
        let instructions: Vec<Instruction> = decoder.iter().collect();
        ensure!(!instructions.iter().any(Instruction::is_invalid), "unknown instructions");
        Ok(Self { address, length: code.len() as u64, instructions })
    }

    /// The conditional jump of the prologue where nothing before it changes an argument, else the
    /// first instruction.
    ///
    /// # Errors
    /// When the prologue does not take the goroutine from R14: then arguments are not in registers
    /// either. Go has both since 1.17.
    pub fn entry(&self) -> Result<Entry> {
        let prologue = &self.instructions[..self.instructions.len().min(PROLOGUE)];
        let Some(compares) = prologue.iter().position(compares_with_guard) else {
            bail!(
                "its arguments are not in registers, as they are in programs by Go 1.17 or later"
            );
        };
        let untouched = match &prologue[..compares] {
            [] => true,
            [lea] => lea.code() == Code::Lea_r64_m && lea.op0_register() == Register::R12,
            _ => false,
        };
        let jump = prologue.get(compares + 1);
        match jump.filter(|jump| untouched && jump.condition_code() == ConditionCode::be) {
            Some(jump) => Ok(Entry { at: jump.ip(), cheap: true }),
            None => Ok(Entry { at: self.address, cheap: false }),
        }
    }

    /// Its `ret` instructions.
    ///
    /// # Errors
    /// When there is none, or another way out.
    pub fn returns(&self) -> Result<Vec<u64>> {
        let leaves = |instruction: &Instruction| {
            let jumps = matches!(
                instruction.flow_control(),
                FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
            );
            let to = instruction.near_branch_target();
            jumps && to.checked_sub(self.address).is_none_or(|offset| offset >= self.length)
        };
        ensure!(!self.instructions.iter().any(leaves), "it ends in another function");
        let returns: Vec<u64> = self
            .instructions
            .iter()
            .filter(|instruction| instruction.mnemonic() == Mnemonic::Ret)
            .map(Instruction::ip)
            .collect();
        ensure!(!returns.is_empty(), "it does not return");
        Ok(returns)
    }

    pub fn calls(&self, address: u64) -> bool {
        let is_call = |instruction: &&Instruction| {
            matches!(
                instruction.flow_control(),
                FlowControl::Call | FlowControl::UnconditionalBranch
            )
        };
        let mut calls = self.instructions.iter().filter(is_call);
        calls.any(|instruction| instruction.near_branch_target() == address)
    }
}

/// `cmp rsp, [r14+16]`, or R12 for RSP.
fn compares_with_guard(instruction: &Instruction) -> bool {
    instruction.code() == Code::Cmp_r64_rm64
        && matches!(instruction.op0_register(), Register::RSP | Register::R12)
        && instruction.op1_kind() == OpKind::Memory
        && instruction.memory_base() == Register::R14
        && instruction.memory_index() == Register::None
        && instruction.memory_displacement64() == STACK_GUARD
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `cmp rsp,[r14+16]; jbe +2; ret; int3; jmp start`
    const PLAIN: [u8; 10] = [0x49, 0x3b, 0x66, 0x10, 0x76, 0x02, 0xc3, 0xcc, 0xeb, 0xf6];

    fn decode(code: &[u8]) -> Function {
        Function::decode(code, 0x1000).expect("instructions")
    }

    #[test]
    fn the_jump_of_a_prologue_is_probed() {
        let function = decode(&PLAIN);
        assert_eq!(function.entry().unwrap(), Entry { at: 0x1004, cheap: true });
        assert_eq!(function.returns().unwrap(), [0x1006]);
        // `lea r12,[rsp-72]; cmp r12,[r14+16]; jbe`
        let big = [0x4c, 0x8d, 0x64, 0x24, 0xb8, 0x4d, 0x3b, 0x66, 0x10, 0x76, 0x00, 0xc3];
        assert_eq!(decode(&big).entry().unwrap(), Entry { at: 0x1009, cheap: true });
        // `mov rax,rbx` before: an argument is lost by then.
        let changed = [&[0x48, 0x89, 0xd8], &PLAIN[..]].concat();
        assert_eq!(decode(&changed).entry().unwrap(), Entry { at: 0x1000, cheap: false });
    }

    #[test]
    fn a_function_with_arguments_on_the_stack_is_refused() {
        // `mov rcx,fs:[-8]; cmp rsp,[rcx+16]; jbe; ret`
        let stack =
            [0x64, 0x48, 0x8b, 0x0c, 0x25, 0xf8, 0xff, 0xff, 0xff, 0x48, 0x3b, 0x61, 0x10, 0xc3];
        let error = decode(&stack).entry().unwrap_err().to_string();
        assert!(error.contains("Go 1.17"), "{error}");
        assert!(decode(&[]).entry().is_err());
    }

    #[test]
    fn every_way_out_is_known_or_the_function_refused() {
        // `ret; ret`, and no other byte of this value: `mov eax,0xc3`
        assert_eq!(decode(&[0xb8, 0xc3, 0, 0, 0, 0xc3, 0xc3]).returns().unwrap(), [0x1005, 0x1006]);
        // `jmp` to elsewhere, before and behind
        assert!(decode(&[0xc3, 0xeb, 0x7f]).returns().is_err());
        assert!(decode(&[0xc3, 0xeb, 0x80]).returns().is_err());
        assert!(decode(&[0xcc]).returns().is_err());
        // Half an instruction.
        assert!(Function::decode(&PLAIN[..5], 0x1000).is_err());
    }
}
