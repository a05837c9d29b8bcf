//! Array maps that the kernel's programs and the agent share as memory (`BPF_F_MMAPABLE`): reading
//! and writing them takes no system call.

use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::os::fd::AsFd as _;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use aya::maps::MapData;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Elements of type `T`, whose size is a multiple of eight bytes.
pub(super) struct Shared<T> {
    words: NonNull<AtomicU64>,
    bytes: NonZeroUsize,
    len: u32,
    elements: PhantomData<T>,
}

// SAFETY: the memory belongs to the mapping, which any thread may use and end; all access to it is
// by atomic words.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T: Pod> Shared<T> {
    const WORDS: usize = size_of::<T>() / 8;

    pub fn new(map: &MapData) -> Result<Self> {
        const { assert!(size_of::<T>() != 0 && size_of::<T>().is_multiple_of(8)) };
        let info = map.info().context("can't ask for the size of a map")?;
        let size = info.value_size() as usize;
        ensure!(size == size_of::<T>(), "a value has {size} bytes, not {}", size_of::<T>());
        let len = info.max_entries();
        let bytes =
            NonZeroUsize::new(len as usize * size_of::<T>()).context("a map without room")?;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start = unsafe {
            mmap(
                None,
                bytes,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map.fd().as_fd(),
                0,
            )
        }
        .context("can't map a map into memory")?;
        Ok(Self { words: start.cast(), bytes, len, elements: PhantomData })
    }

    pub fn len(&self) -> u32 {
        self.len
    }

    fn element(&self, index: u32) -> &[AtomicU64] {
        assert!(index < self.len, "element {index} of {}", self.len);
        // SAFETY: the element lies within the mapping, as just checked, which begins at a page and
        // lives as long as `self`.
        unsafe {
            let first = self.words.as_ptr().add(index as usize * Self::WORDS);
            std::slice::from_raw_parts(first, Self::WORDS)
        }
    }

    pub fn get(&self, index: u32) -> T {
        let mut value = std::mem::MaybeUninit::<T>::uninit();
        let to = value.as_mut_ptr().cast::<u64>();
        for (at, word) in self.element(index).iter().enumerate() {
            // SAFETY: `value` has room for as many words as an element.
            unsafe { to.add(at).write_unaligned(word.load(Ordering::Acquire)) };
        }
        // SAFETY: all of it is written, and any bytes are a value of a `Pod` type.
        unsafe { value.assume_init() }
    }

    /// Writes the words that differ, each in one step, the last word first: what the kernel looks at
    /// first, it finds last.
    pub fn set(&self, index: u32, value: T) {
        let from = (&raw const value).cast::<u64>();
        for (at, word) in self.element(index).iter().enumerate().rev() {
            // SAFETY: `value` has as many words as an element.
            let new = unsafe { from.add(at).read_unaligned() };
            if word.load(Ordering::Relaxed) != new {
                word.store(new, Ordering::Release);
            }
        }
    }

    /// Writes the words that `change` changes, in the order of [`Self::set`]. The others may change
    /// meanwhile: what the kernel counts in them is kept.
    pub fn update(&self, index: u32, change: impl FnOnce(&mut T)) {
        let before = self.get(index);
        let mut after = before;
        change(&mut after);
        let (old, new) = ((&raw const before).cast::<u64>(), (&raw const after).cast::<u64>());
        for (at, word) in self.element(index).iter().enumerate().rev() {
            // SAFETY: both values have as many words as an element.
            let (old, new) =
                unsafe { (old.add(at).read_unaligned(), new.add(at).read_unaligned()) };
            if old != new {
                word.store(new, Ordering::Release);
            }
        }
    }
}

impl Shared<u64> {
    pub fn set_bits(&self, index: u32, bits: u64) {
        for word in self.element(index) {
            if word.load(Ordering::Relaxed) & bits != bits {
                word.fetch_or(bits, Ordering::Release);
            }
        }
    }

    pub fn clear_bits(&self, index: u32, bits: u64) {
        for word in self.element(index) {
            word.fetch_and(!bits, Ordering::Release);
        }
    }
}

impl Shared<[u64; 2]> {
    /// Sets bits of both words.
    pub fn set_bits_of(&self, index: u32, bits: [u64; 2]) {
        for (word, bits) in self.element(index).iter().zip(bits) {
            if word.load(Ordering::Relaxed) & bits != bits {
                word.fetch_or(bits, Ordering::Release);
            }
        }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nobody can use it any more.
        if let Err(error) = unsafe { munmap(self.words.cast(), self.bytes.get()) } {
            tracing::debug!("can't unmap a map: {error}");
        }
    }
}
