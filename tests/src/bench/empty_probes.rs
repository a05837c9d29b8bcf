//! Probes that do nothing, on the functions of a TLS library: the price of the traps alone.

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use aya_obj::generated::perf_event_attr;
use portcullis::capture::sites;

use crate::assembled::{Program, instruction, op};

/// `PERF_EVENT_IOC_SET_BPF` and `PERF_EVENT_IOC_ENABLE` of linux/perf_event.h.
const IOC_SET_BPF: libc::c_ulong = 0x4004_2408;
const IOC_ENABLE: libc::c_ulong = 0x2400;
/// `PERF_FLAG_FD_CLOEXEC` of linux/perf_event.h.
const FLAG_FD_CLOEXEC: libc::c_ulong = 8;
/// Where the PMU's format puts the return flag (/sys/bus/event_source/devices/uprobe/format).
const RETURN_PROBE: u64 = 1;

/// In place until dropped.
pub struct EmptyProbes {
    _events: Vec<OwnedFd>,
}

impl EmptyProbes {
    /// On the entry and the return of `SSL_read` and the entry of `SSL_write`.
    pub fn attach(library: &Path) -> Result<Self> {
        let program = load_empty_program()?;
        let elf = fs::read(library).with_context(|| library.display().to_string())?;
        let sites = sites::choose(&elf[..], true)?;
        let offset_of = |function: &str| {
            let site = sites.iter().find(|site| site.function == function);
            site.map(|site| site.offset).with_context(|| format!("no {function}"))
        };
        let (read, write) = (offset_of("SSL_read")?, offset_of("SSL_write")?);
        let events = [(read, 0), (read, RETURN_PROBE), (write, 0)]
            .into_iter()
            .map(|(offset, config)| attach(program.fd(), library, offset, config))
            .collect::<Result<_>>()?;
        Ok(Self { _events: events })
    }
}

fn load_empty_program() -> Result<Program> {
    Program::kprobe(&[instruction(op::MOVE_IMM, 0, 0, 0, 0), instruction(op::EXIT, 0, 0, 0, 0)])
        .context("can't load an empty program")
}

fn attach(program: &OwnedFd, library: &Path, offset: u64, config: u64) -> Result<OwnedFd> {
    let kind = fs::read_to_string("/sys/bus/event_source/devices/uprobe/type")
        .context("the kernel has no uprobes")?;
    let path = CString::new(library.as_os_str().as_bytes())?;
    // SAFETY: the attribute is plain integers, for which zero is a value.
    let mut attr: perf_event_attr = unsafe { mem::zeroed() };
    attr.type_ = kind.trim().parse()?;
    attr.size = u32::try_from(size_of::<perf_event_attr>())?;
    attr.config = config;
    attr.__bindgen_anon_3.config1 = path.as_ptr() as u64;
    attr.__bindgen_anon_4.config2 = offset;
    // SAFETY: the attribute is whole, and the path it points to lives until the call returns.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attr, -1, 0, -1, FLAG_FD_CLOEXEC)
    };
    let event = owned(fd).context("can't open a uprobe")?;
    control(&event, IOC_SET_BPF, program.as_raw_fd())?;
    control(&event, IOC_ENABLE, 0)?;
    Ok(event)
}

fn control(event: &OwnedFd, request: libc::c_ulong, argument: RawFd) -> Result<()> {
    // SAFETY: an open perf event, and requests that take an integer.
    let result = unsafe { libc::ioctl(event.as_raw_fd(), request, argument) };
    ensure!(result == 0, "a uprobe: {}", io::Error::last_os_error());
    Ok(())
}

fn owned(result: libc::c_long) -> Result<OwnedFd> {
    ensure!(result >= 0, io::Error::last_os_error());
    // SAFETY: the system call has just returned it, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(result)?) })
}
