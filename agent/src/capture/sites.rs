//! Where in a library the probes go.
//!
//! A uprobe costs what its instruction costs to emulate: a `push` or a five-byte `nop` a sixth
//! of what a `sub` costs, which the kernel has to single-step. `SSL_read` and its like begin with
//! the slow kind in most builds, but do nothing more than check their arguments and call one
//! internal function, which begins with a `push`, takes the same arguments and serves both the
//! plain and the `_ex` form. It has no symbol, so it is found by structure: the one function of
//! the library that both forms call, and to which the plain form, which returns the length, passes
//! the address of a variable of its own for it. Where that is not so, the probes go to the symbols.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, Register};
use object::{Architecture, Object as _, ObjectSection as _, ReadRef};
use portcullis_common::names::program;

use super::elf::Functions;

/// One probed function: the entry program, and the place of its first instruction. In Go also a
/// place where the function returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    pub program: &'static str,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// For people: the symbol, or the symbols whose internal function it is.
    pub function: &'static str,
    /// The probe is on an instruction that is cheap to emulate.
    pub cheap: bool,
}

/// A function and what probes it.
struct Function {
    symbol: &'static str,
    /// What to call the function behind it.
    internal: &'static str,
    program: &'static str,
    required: bool,
}

const HANDSHAKE: Function = Function {
    symbol: "SSL_do_handshake",
    internal: "",
    program: program::SSL_ENTER_HANDSHAKE,
    required: true,
};

/// Probed at its return only.
const NEW: Function =
    Function { symbol: "SSL_new", internal: "", program: program::SSL_CREATED, required: true };

/// One of them may be absent where a linker left out what nobody calls.
const READ: [Function; 2] = [
    Function {
        symbol: "SSL_read",
        internal: "internal function of SSL_read",
        program: program::SSL_ENTER_READ,
        required: false,
    },
    Function {
        symbol: "SSL_read_ex",
        internal: "internal function of SSL_read",
        program: program::SSL_ENTER_READ_EX,
        required: false,
    },
];

/// The last came with OpenSSL 3.3.
const WRITE: [Function; 3] = [
    Function {
        symbol: "SSL_write",
        internal: "internal function of SSL_write",
        program: program::SSL_ENTER_WRITE,
        required: false,
    },
    Function {
        symbol: "SSL_write_ex",
        internal: "internal function of SSL_write",
        program: program::SSL_ENTER_WRITE_EX,
        required: false,
    },
    Function {
        symbol: "SSL_write_ex2",
        internal: "internal function of SSL_write",
        program: program::SSL_ENTER_WRITE_EX2,
        required: false,
    },
];

/// Probed in processes that carry ciphertext themselves: where it leaves the library,
const CARRY: [Function; 2] = [
    Function {
        symbol: "BIO_write",
        internal: "internal function of BIO_write",
        program: program::BIO_WRITTEN,
        required: false,
    },
    Function {
        symbol: "BIO_write_ex",
        internal: "internal function of BIO_write",
        program: program::BIO_WRITTEN,
        required: false,
    },
];

/// … and where an object begins anew, maybe for another socket. (One whose socket the library uses is known
/// by what it receives there.) Not required, as it may be in another file.
const CLEAR: Function =
    Function { symbol: "SSL_clear", internal: "", program: program::SSL_CLEARED, required: false };

/// Longest function that is looked into, in bytes.
const MAX_FUNCTION: usize = 4_096;

/// The sites of a file with OpenSSL 3 in it; with `symbols_only`, its functions of those names whatever
/// they cost.
///
/// # Errors
/// When `elf` does not have the functions.
pub fn choose<'a>(elf: impl ReadRef<'a>, symbols_only: bool) -> Result<Vec<Site>> {
    let image = Image::of(elf)?;
    let mut sites = image.symbol_sites(&[NEW, HANDSHAKE])?;
    for functions in [&READ[..], &WRITE[..]] {
        let internal = if symbols_only { None } else { image.internal_site(functions) };
        match internal {
            Some(site) => sites.push(site),
            None => {
                let of_names = image.symbol_sites(functions)?;
                let name = functions.first().map_or("", |function| function.symbol);
                ensure!(!of_names.is_empty(), "it has no function like {name}");
                sites.extend(of_names);
            }
        }
    }
    Ok(sites)
}

/// What is probed beside that in a process that carries ciphertext itself; either part may be in another
/// file.
///
/// # Errors
/// When `elf` is no ELF file.
pub fn choose_carry<'a>(elf: impl ReadRef<'a>, symbols_only: bool) -> Result<Vec<Site>> {
    let image = Image::of(elf)?;
    let internal = if symbols_only { None } else { image.internal_site(&CARRY) };
    let mut sites = image.symbol_sites(&[CLEAR])?;
    match internal {
        Some(site) => sites.push(site),
        None => sites.extend(image.symbol_sites(&CARRY)?),
    }
    Ok(sites)
}

struct Image<'a, R: ReadRef<'a>> {
    data: R,
    file: object::File<'a, R>,
    functions: Functions<'a>,
}

impl<'a, R: ReadRef<'a>> Image<'a, R> {
    fn of(data: R) -> Result<Self> {
        let file = object::File::parse(data).context("not an ELF file")?;
        let functions = Functions::of(&file, data);
        Ok(Self { data, file, functions })
    }

    fn symbol_sites(&self, functions: &[Function]) -> Result<Vec<Site>> {
        let mut sites = Vec::new();
        for function in functions {
            let Some((address, _)) = self.functions.get(function.symbol) else {
                ensure!(!function.required, "it does not have {}", function.symbol);
                continue;
            };
            sites.push(Site {
                program: function.program,
                offset: self.file_offset(address).context("a function without code")?,
                function: function.symbol,
                cheap: self.is_cheap(address),
            });
        }
        Ok(sites)
    }

    /// The internal function that all of `functions` call, if there is just one and it is worth
    /// it. It takes two forms of the call to tell. The last of `functions` has the same arguments: what it has more than the others, it
    /// hands on.
    fn internal_site(&self, functions: &[Function]) -> Option<Site> {
        let present = functions.iter().filter(|f| self.functions.get(f.symbol).is_some());
        let mut shared: Option<BTreeSet<u64>> = None;
        let mut last = None;
        let mut forms = 0;
        for function in present {
            forms += 1;
            let callees = self.callees(function.symbol);
            shared = Some(match shared {
                None => callees,
                Some(others) => others.intersection(&callees).copied().collect(),
            });
            last = Some(function);
        }
        let shared: Vec<u64> = shared?.into_iter().collect();
        if forms < 2 {
            return None;
        }
        let ([address], function) = (shared.as_slice(), last?) else { return None };
        // An exported one has arguments of its own.
        let is_exported = self.functions.is_exported(*address);
        let plain = functions.first()?.symbol;
        let passes_length = self.passes_own_variable(plain, *address, length_register(function));
        if is_exported || !passes_length || !self.is_cheap(*address) {
            return None;
        }
        Some(Site {
            program: function.program,
            offset: self.file_offset(*address)?,
            function: function.internal,
            cheap: true,
        })
    }

    /// Whether every call of `callee` in `symbol` has the address of something on the stack in
    /// `register`, and there is one. Goes through the instructions in their order, whatever jumps.
    fn passes_own_variable(&self, symbol: &str, callee: u64, register: Register) -> bool {
        let Some((code, address)) = self.body(symbol) else { return false };
        // Registers that hold a stack address.
        let mut holding = BTreeSet::from([Register::RSP]);
        let mut calls = 0;
        for instruction in self.decode(code, address) {
            if instruction.flow_control() == FlowControl::Call {
                if instruction.near_branch_target() == callee {
                    calls += 1;
                    if !holding.contains(&register) {
                        return false;
                    }
                }
                holding.retain(|register| matches!(register, Register::RSP | Register::RBP));
                continue;
            }
            let target = instruction.op0_register().full_register();
            let source = match instruction.code() {
                Code::Mov_r64_rm64 | Code::Mov_rm64_r64 => instruction.op1_register(),
                Code::Lea_r64_m if instruction.memory_index() == Register::None => {
                    instruction.memory_base()
                }
                _ => Register::None,
            };
            if holding.contains(&source) {
                holding.insert(target);
            } else if target != Register::RSP {
                holding.remove(&target);
            }
        }
        calls > 0
    }

    /// The code of a function, and its address.
    fn body(&self, symbol: &str) -> Option<(&'a [u8], u64)> {
        let (address, size) = self.functions.get(symbol)?;
        let size = usize::try_from(size).unwrap_or(MAX_FUNCTION).min(MAX_FUNCTION);
        Some((self.code(address)?.get(..size)?, address))
    }

    /// Functions in the library's own code that `symbol` calls or ends in a jump to.
    fn callees(&self, symbol: &str) -> BTreeSet<u64> {
        let Some((code, address)) = self.body(symbol) else { return BTreeSet::new() };
        let own = address..address.saturating_add(code.len() as u64);
        self.decode(code, address)
            .filter(|instruction| {
                matches!(
                    instruction.flow_control(),
                    FlowControl::Call | FlowControl::UnconditionalBranch
                )
            })
            .map(|instruction| instruction.near_branch_target())
            .filter(|target| !own.contains(target) && self.is_in_text(*target))
            .collect()
    }

    /// Whether the kernel emulates the instruction at `address` (arch/x86/kernel/uprobes.c,
    /// `push_setup_xol_ops` and `branch_setup_xol_ops`) rather than single-stepping it.
    fn is_cheap(&self, address: u64) -> bool {
        let Some(code) = self.code(address) else { return false };
        let code = code.get(..15).unwrap_or(code);
        self.decode(code, address).next().is_some_and(|instruction| {
            matches!(instruction.mnemonic(), Mnemonic::Push)
                && instruction.op0_register().is_gpr64()
                || instruction.code() == Code::Nop_rm32 && instruction.len() == 5
        })
    }

    fn decode(&self, code: &'a [u8], address: u64) -> impl Iterator<Item = Instruction> + 'a {
        let is_x86 = self.file.architecture() == Architecture::X86_64;
        let code = if is_x86 { code } else { &[] };
        Decoder::with_ip(64, code, address, DecoderOptions::NONE).into_iter()
    }

    /// The code from `address` on, as far as a function may be long and its section is.
    fn code(&self, address: u64) -> Option<&'a [u8]> {
        let section = self.file.sections().find(|section| contains(section, address))?;
        let rest = section.size() - (address - section.address());
        self.data.read_bytes_at(self.file_offset(address)?, rest.min(MAX_FUNCTION as u64)).ok()
    }

    /// Not in the PLT, which leads out of the library.
    fn is_in_text(&self, address: u64) -> bool {
        let mut sections = self.file.sections();
        sections.any(|section| section.name() == Ok(".text") && contains(&section, address))
    }

    fn file_offset(&self, address: u64) -> Option<u64> {
        let section = self.file.sections().find(|section| contains(section, address))?;
        let (start, _) = section.file_range()?;
        start.checked_add(address - section.address())
    }
}

/// Where the function gets the address for the length (System V ABI, AMD64 supplement, 3.2.3).
fn length_register(function: &Function) -> Register {
    match function.program {
        program::SSL_ENTER_WRITE_EX2 => Register::R8,
        _ => Register::RCX,
    }
}

fn contains<'a>(section: &impl object::ObjectSection<'a>, address: u64) -> bool {
    address.checked_sub(section.address()).is_some_and(|offset| offset < section.size())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debians() -> Vec<u8> {
        std::fs::read("/usr/lib/x86_64-linux-gnu/libssl.so.3").expect("Debian's libssl3")
    }

    #[test]
    fn one_internal_function_serves_both_forms() {
        let sites = choose(&debians()[..], false).unwrap();
        let programs: Vec<_> = sites.iter().map(|site| site.program).collect();
        let expected = [
            program::SSL_CREATED,
            program::SSL_ENTER_HANDSHAKE,
            program::SSL_ENTER_READ_EX,
            program::SSL_ENTER_WRITE_EX,
        ];
        assert_eq!(programs, expected);
        assert!(sites[2..].iter().all(|site| site.cheap), "{sites:?}");
        assert_ne!(sites[2].offset, sites[3].offset);
    }

    #[test]
    fn records_leave_by_one_internal_function() {
        let elf = std::fs::read("/usr/lib/x86_64-linux-gnu/libcrypto.so.3").expect("libssl3");
        let [site] = &choose_carry(&elf[..], false).unwrap()[..] else {
            panic!("more than one site")
        };
        assert!(site.cheap && site.function == "internal function of BIO_write", "{site:?}");
        let functions: Vec<_> =
            choose_carry(&elf[..], true).unwrap().iter().map(|site| site.function).collect();
        assert_eq!(functions, ["BIO_write", "BIO_write_ex"]);
        let [site] = &choose_carry(&debians()[..], false).unwrap()[..] else { panic!("one site") };
        assert_eq!((site.function, site.program), ("SSL_clear", program::SSL_CLEARED));
    }

    #[test]
    fn symbols_are_probed_where_that_is_asked_for() {
        let sites = choose(&debians()[..], true).unwrap();
        let functions: Vec<_> = sites.iter().map(|site| site.function).collect();
        let expected =
            ["SSL_new", "SSL_do_handshake", "SSL_read", "SSL_read_ex", "SSL_write", "SSL_write_ex"];
        assert_eq!(functions, expected);
    }

    /// A file in which `SSL_read` has `change` in the place of the first `code`.
    fn changed(code: &[u8], change: impl Fn(&mut [u8])) -> Vec<u8> {
        let mut elf = debians();
        let site = choose(&elf[..], true).unwrap().into_iter().find(|s| s.function == "SSL_read");
        let start = usize::try_from(site.unwrap().offset).unwrap();
        let function = &mut elf[start..start + 64];
        let at = function.windows(code.len()).position(|found| found == code);
        change(&mut function[at.expect("the code")..]);
        elf
    }

    fn functions(elf: &[u8]) -> Vec<&'static str> {
        choose(elf, false).unwrap().iter().map(|site| site.function).collect()
    }

    const READ_UNKNOWN: [&str; 5] = [
        "SSL_new",
        "SSL_do_handshake",
        "SSL_read",
        "SSL_read_ex",
        "internal function of SSL_write",
    ];

    /// A build in which `SSL_read` calls something else than `SSL_read_ex` does.
    #[test]
    fn an_unknown_structure_is_not_guessed_at() {
        let elf = changed(&[0xe8], |call| call[1] = call[1].wrapping_add(16));
        assert_eq!(functions(&elf), READ_UNKNOWN);
    }

    /// A build in which both call the same, but `SSL_read` not with the address of a variable.
    #[test]
    fn a_shared_function_that_gets_no_place_for_the_length_is_not_the_one() {
        let mov_rcx_rsp = [0x48, 0x89, 0xe1];
        let mov_rcx_rax = [0x48, 0x89, 0xc1];
        let elf = changed(&mov_rcx_rsp, |code| code[..3].copy_from_slice(&mov_rcx_rax));
        assert_eq!(functions(&elf), READ_UNKNOWN);
        // `push %rsp; pop %rcx` would do as well, but is not understood.
        let elf = changed(&mov_rcx_rsp, |code| code[..3].copy_from_slice(&[0x54, 0x59, 0x90]));
        assert_eq!(functions(&elf), READ_UNKNOWN);
    }

    /// What a program has that is linked statically, when nobody has stripped it.
    /// A program whose linker left out what it does not call.
    #[test]
    fn a_form_that_is_absent_is_not_needed() {
        let mut elf = debians();
        for name in [&b"\0SSL_read_ex\0"[..], b"\0SSL_write_ex\0"] {
            let at = elf.windows(name.len()).position(|found| found == name).expect("a name");
            elf[at + 1] = b'_';
        }
        assert_eq!(functions(&elf), ["SSL_new", "SSL_do_handshake", "SSL_read", "SSL_write"]);
        let at = elf.windows(10).position(|found| found == b"\0SSL_read\0").expect("a name");
        elf[at + 1] = b'_';
        let error = choose(&elf[..], false).unwrap_err().to_string();
        assert_eq!(error, "it has no function like SSL_read");
    }

    #[test]
    fn symbols_that_only_debuggers_read_will_do() {
        let mut elf = debians();
        for (from, to) in [(b".dynsym", b".symtab"), (b".dynstr", b".strtab")] {
            while let Some(at) = elf.windows(from.len()).rposition(|found| found == from) {
                elf[at..at + from.len()].copy_from_slice(to);
            }
        }
        assert_eq!(choose(&elf[..], false).unwrap(), choose(&debians()[..], false).unwrap());
    }

    #[test]
    fn damaged_files_are_errors() {
        let elf = debians();
        assert!(choose(&b"no ELF"[..], false).is_err());
        for len in (0..elf.len()).step_by(9_973) {
            // Whatever comes of it, it comes back.
            let _ = choose(&elf[..len], false);
        }
    }
}
