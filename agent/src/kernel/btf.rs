//! Where fields lie in the running kernel's structures, from its BTF
//! (Documentation/bpf/btf.rst). Only as much of the format as that takes.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use portcullis_common::settings::{SockOffsets, SystemCalls};

const MAGIC: u16 = 0xeb9f;
/// Deeper nesting of anonymous structs, unions and type aliases than any kernel has.
const MAX_DEPTH: usize = 16;

mod kind {
    pub const INT: u32 = 1;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

pub struct Btf {
    data: Vec<u8>,
    /// Where each type begins in `data`; the index is the type's id.
    types: Vec<usize>,
    strings: usize,
}

struct Member {
    name: u32,
    type_id: u32,
    bit_offset: u32,
}

impl Btf {
    pub fn of_running_kernel() -> Result<Self> {
        let path = Path::new("/sys/kernel/btf/vmlinux");
        let data = std::fs::read(path).with_context(|| {
            format!("can't read {}: the kernel needs CONFIG_DEBUG_INFO_BTF", path.display())
        })?;
        Self::parse(data).with_context(|| format!("in {}", path.display()))
    }

    /// # Errors
    /// When `data` is not BTF in this machine's byte order.
    pub fn parse(data: Vec<u8>) -> Result<Self> {
        let mut btf = Self { data, types: vec![0], strings: 0 };
        ensure!(btf.u16(0)? == MAGIC, "not BTF of this machine's byte order");
        let header_len = btf.word(4)? as usize;
        let start = header_len + btf.word(8)? as usize;
        let end = start + btf.word(12)? as usize;
        btf.strings = header_len + btf.word(16)? as usize;
        let mut at = start;
        while at < end {
            btf.types.push(at);
            at += 12 + btf.extra_len(at)?;
        }
        Ok(btf)
    }

    /// Offset in bytes of `path`, a field and its fields, in `struct name`. Fields of anonymous
    /// members count as the struct's own, as in C.
    pub fn offset_of(&self, name: &str, path: &[&str]) -> Result<u32> {
        let mut type_id = self.find_struct(name)?;
        let mut bits = 0;
        for field in path {
            let (offset, field_type) = self
                .find_member(type_id, field, 0)?
                .with_context(|| format!("struct {name} has no field {}", path.join(".")))?;
            bits += offset;
            type_id = field_type;
        }
        ensure!(bits % 8 == 0, "field {} of struct {name} is a bit field", path.join("."));
        Ok(bits / 8)
    }

    /// Whether the kernel has a type of this name, as it has `btf_trace_…` for a tracepoint.
    pub fn has_type(&self, name: &str) -> bool {
        self.types.iter().skip(1).any(|&at| self.name_is(at, name))
    }

    fn find_struct(&self, name: &str) -> Result<u32> {
        (1..self.types.len())
            .find(|&id| {
                let at = self.types[id];
                self.name_is(at, name) && self.kind(at).is_ok_and(|k| k == kind::STRUCT)
            })
            .map(|id| id as u32)
            .with_context(|| format!("the kernel has no struct {name}"))
    }

    /// Bit offset and type of the member `name`, looked for in anonymous members too.
    fn find_member(&self, type_id: u32, name: &str, depth: usize) -> Result<Option<(u32, u32)>> {
        ensure!(depth < MAX_DEPTH, "types are nested too deeply");
        let at = self.skip_aliases(type_id)?;
        if !matches!(self.kind(at)?, kind::STRUCT | kind::UNION) {
            return Ok(None);
        }
        let members = self.word(at + 4)? & 0xffff;
        for index in 0..members as usize {
            let member = self.member(at, index)?;
            if member.name == 0 {
                let inner = self.find_member(member.type_id, name, depth + 1)?;
                if let Some((offset, found)) = inner {
                    return Ok(Some((member.bit_offset + offset, found)));
                }
            } else if self.string_is(member.name, name) {
                return Ok(Some((member.bit_offset, member.type_id)));
            }
        }
        Ok(None)
    }

    fn member(&self, at: usize, index: usize) -> Result<Member> {
        let member = at + 12 + index * 12;
        let has_bit_fields = self.word(at + 4)? >> 31 == 1;
        let offset = self.word(member + 8)?;
        Ok(Member {
            name: self.word(member)?,
            type_id: self.word(member + 4)?,
            bit_offset: if has_bit_fields { offset & 0x00ff_ffff } else { offset },
        })
    }

    fn skip_aliases(&self, mut type_id: u32) -> Result<usize> {
        for _ in 0..MAX_DEPTH {
            let at = *self.types.get(type_id as usize).context("a type id is out of range")?;
            match self.kind(at)? {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::TYPE_TAG => {
                    type_id = self.word(at + 8)?;
                }
                _ => return Ok(at),
            }
        }
        bail!("types are nested too deeply")
    }

    fn kind(&self, at: usize) -> Result<u32> {
        Ok(self.word(at + 4)? >> 24 & 0x1f)
    }

    /// Length in bytes of what follows a type's common part.
    fn extra_len(&self, at: usize) -> Result<usize> {
        let vlen = (self.word(at + 4)? & 0xffff) as usize;
        Ok(match self.kind(at)? {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => vlen * 12,
            kind::ENUM | kind::FUNC_PROTO => vlen * 8,
            _ => 0,
        })
    }

    fn name_is(&self, at: usize, name: &str) -> bool {
        self.word(at).is_ok_and(|offset| self.string_is(offset, name))
    }

    fn string_is(&self, offset: u32, expected: &str) -> bool {
        self.data
            .get(self.strings + offset as usize..)
            .and_then(|rest| rest.strip_prefix(expected.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    fn word(&self, at: usize) -> Result<u32> {
        let bytes = self.data.get(at..).and_then(<[u8]>::first_chunk);
        Ok(u32::from_ne_bytes(*bytes.context("the data ends early")?))
    }

    fn u16(&self, at: usize) -> Result<u16> {
        let bytes = self.data.get(at..).and_then(<[u8]>::first_chunk);
        Ok(u16::from_ne_bytes(*bytes.context("the data ends early")?))
    }
}

/// The fields of `struct sock` (include/net/sock.h) that name the two ends of a connection.
pub fn sock_offsets(btf: &Btf) -> Result<SockOffsets> {
    let common = |field| btf.offset_of("sock", &["__sk_common", field]);
    Ok(SockOffsets {
        family: common("skc_family")?,
        protocol: btf.offset_of("sock", &["sk_protocol"])?,
        remote_v4: common("skc_daddr")?,
        local_v4: common("skc_rcv_saddr")?,
        remote_v6: common("skc_v6_daddr")?,
        local_v6: common("skc_v6_rcv_saddr")?,
        remote_port: common("skc_dport")?,
        local_port: common("skc_num")?,
        namespace: btf.offset_of("sock", &["__sk_common", "skc_net", "net"])?,
        namespace_number: btf.offset_of("net", &["ns", "inum"])?,
    })
}

/// Where a system call's number and arguments are (arch/x86/include/asm/ptrace.h,
/// arch/arm64/include/asm/ptrace.h), and the numbers of those that move data.
pub fn system_calls(btf: &Btf) -> Result<SystemCalls> {
    let register = |name| btf.offset_of("pt_regs", &[name]);
    let (number, second_argument) = if cfg!(target_arch = "x86_64") {
        (register("orig_ax")?, register("si")?)
    } else {
        (register("syscallno")?, register("regs")? + 8)
    };
    let call = |number: libc::c_long| u32::try_from(number).context("a negative number");
    Ok(SystemCalls {
        number,
        second_argument,
        read: call(libc::SYS_read)?,
        recvfrom: call(libc::SYS_recvfrom)?,
        write: call(libc::SYS_write)?,
        sendto: call(libc::SYS_sendto)?,
        readv: call(libc::SYS_readv)?,
        writev: call(libc::SYS_writev)?,
        recvmsg: call(libc::SYS_recvmsg)?,
        sendmsg: call(libc::SYS_sendmsg)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct sock_common` has begun with the two addresses, then the hash, then the ports,
    /// since Linux 3.8; the established-socket look-up depends on it.
    #[test]
    fn finds_the_fields_of_a_socket() {
        let offsets = sock_offsets(&Btf::of_running_kernel().unwrap()).unwrap();
        assert_eq!((offsets.remote_v4, offsets.local_v4), (0, 4));
        assert_eq!((offsets.remote_port, offsets.local_port), (12, 14));
        assert_eq!(offsets.family, 16);
        assert_eq!(offsets.local_v6, offsets.remote_v6 + 16);
        assert!(offsets.protocol > offsets.local_v6);
    }

    /// `struct pt_regs` is what ptrace(2) shows, so it stays as it is.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn finds_the_registers_of_a_system_call() {
        let calls = system_calls(&Btf::of_running_kernel().unwrap()).unwrap();
        let user = |field: usize| u32::try_from(field).unwrap();
        assert_eq!(calls.number, user(std::mem::offset_of!(libc::user_regs_struct, orig_rax)));
        assert_eq!(calls.second_argument, user(std::mem::offset_of!(libc::user_regs_struct, rsi)));
    }

    #[test]
    fn refuses_what_is_not_btf() {
        assert!(Btf::parse(b"not BTF at all, but long enough to be".to_vec()).is_err());
        assert!(Btf::parse(Vec::new()).is_err());
    }

    #[test]
    fn names_the_missing_field() {
        let btf = Btf::of_running_kernel().unwrap();
        let error = btf.offset_of("sock", &["no_such_field"]).unwrap_err().to_string();
        assert_eq!(error, "struct sock has no field no_such_field");
        assert!(btf.has_type("btf_trace_sched_process_exec"));
        assert!(!btf.has_type("btf_trace_no_such_tracepoint"));
    }
}
