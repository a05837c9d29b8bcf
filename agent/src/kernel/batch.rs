//! Many elements of a hash map in one system call (bpf(2), `BPF_MAP_*_BATCH`), which aya has no
//! calls for.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::MapData;
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_map_type};

/// Elements of one call.
const CHUNK: usize = 16_384;

/// Writes all of `keys` and `values`, which are as many.
///
/// # Errors
/// When the kernel refuses one; those before it are written. `E2BIG` and `ENOMEM` mean that the map
/// is full.
pub(super) fn update<K: Pod, V: Pod>(map: &MapData, keys: &[K], values: &[V]) -> io::Result<()> {
    for (keys, values) in keys.chunks(CHUNK).zip(values.chunks(CHUNK)) {
        let mut attr = attr_of(map);
        // SAFETY: the member that this command reads, all zero so far.
        let batch = unsafe { &mut attr.batch };
        batch.keys = keys.as_ptr() as u64;
        batch.values = values.as_ptr() as u64;
        batch.count = keys.len().min(values.len()) as u32;
        call(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr)?;
    }
    Ok(())
}

/// All elements. Those that are added or removed meanwhile may be among them or not.
pub(super) fn entries<K: Pod + Default, V: Pod + Default>(map: &MapData) -> Result<Vec<(K, V)>> {
    let mut entries = Vec::new();
    let mut position = 0_u32;
    let mut next = 0_u32;
    let mut chunk = CHUNK;
    let mut is_first = true;
    loop {
        let mut keys = vec![K::default(); chunk];
        let mut values = vec![V::default(); chunk];
        let mut attr = attr_of(map);
        // SAFETY: the member that this command reads, all zero so far.
        let batch = unsafe { &mut attr.batch };
        batch.in_batch = if is_first { 0 } else { &raw mut position as u64 };
        batch.out_batch = &raw mut next as u64;
        batch.keys = keys.as_mut_ptr() as u64;
        batch.values = values.as_mut_ptr() as u64;
        batch.count = chunk as u32;
        let result = call(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr);
        let code = result.as_ref().err().and_then(io::Error::raw_os_error);
        if code == Some(libc::ENOSPC) {
            // One bucket alone has more.
            chunk *= 2;
            continue;
        }
        let is_last = code == Some(libc::ENOENT);
        if !is_last {
            result.context("can't read a map")?;
        }
        // SAFETY: the kernel has written how many it found.
        let found = unsafe { attr.batch.count } as usize;
        entries.extend(keys.into_iter().zip(values).take(found));
        if is_last {
            return Ok(entries);
        }
        position = next;
        is_first = false;
    }
}

/// Makes an array of `len` maps like `inner` ([`bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS`]), all missing.
///
/// aya makes one from the object, with an inner map that has BTF; before 6.2 the kernel refuses to put one
/// without BTF in its place (kernel/bpf/map_in_map.c, `bpf_map_meta_equal`).
pub(super) fn array_of_maps(name: &str, inner: &MapData, len: u32) -> io::Result<OwnedFd> {
    // SAFETY: a union of integers and addresses, of which all zeros are a value.
    let mut attr = unsafe { std::mem::zeroed::<bpf_attr>() };
    // SAFETY: the member that this command reads, all zero so far.
    let create = unsafe { &mut attr.__bindgen_anon_1 };
    create.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS as u32;
    (create.key_size, create.value_size) = (4, 4);
    create.max_entries = len;
    for (to, from) in create.map_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    create.inner_map_fd = inner.fd().as_fd().as_raw_fd() as u32;
    let fd = call(bpf_cmd::BPF_MAP_CREATE, &mut attr)?;
    // SAFETY: a file descriptor that the kernel has just made for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attr_of(map: &MapData) -> bpf_attr {
    // SAFETY: a union of integers and addresses, of which all zeros are a value.
    let mut attr = unsafe { std::mem::zeroed::<bpf_attr>() };
    attr.batch.map_fd = map.fd().as_fd().as_raw_fd() as u32;
    attr
}

fn call(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<RawFd> {
    // SAFETY: the attributes are of the size that is given, and what they point to lives longer than
    // the call and is as long as they say.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, &raw mut *attr, size_of::<bpf_attr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}
