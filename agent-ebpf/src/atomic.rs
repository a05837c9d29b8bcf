//! Atomic operations on words in maps. `core::sync::atomic` leaves it out for BPF targets,
//! whose older instruction sets have no compare-and-swap.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_or, atomic_xadd};

/// Adds to the counter.
///
/// # Safety
/// `counter` points to an aligned u64 in a map value.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, amount: u64) {
    // SAFETY: the caller vouches for the pointer; the operation is one BPF instruction.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, amount) };
}

/// Adds to the counter and returns what it was.
///
/// The order is the strongest because LLVM (22, at least) turns a relaxed addition into the
/// instruction that does not fetch even where the result is used, and then uses the addend.
///
/// # Safety
/// `counter` points to an aligned u64 in a map value.
#[inline(always)]
pub unsafe fn fetch_add(counter: *mut u64, amount: u64) -> u64 {
    // SAFETY: the caller vouches for the pointer; the operation is one BPF instruction.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(counter, amount) }
}

/// Sets bits.
///
/// # Safety
/// As for [`add`].
#[inline(always)]
pub unsafe fn or(word: *mut u64, bits: u64) {
    // SAFETY: the caller vouches for the pointer; the operation is one BPF instruction.
    unsafe { atomic_or::<u64, u64, { AtomicOrdering::Relaxed }>(word, bits) };
}

/// Writes `new` if there is still `old`; returns what was there.
///
/// # Safety
/// As for [`add`].
#[inline(always)]
pub unsafe fn exchange_if(word: *mut u64, old: u64, new: u64) -> u64 {
    const ORDER: AtomicOrdering = AtomicOrdering::SeqCst;
    // SAFETY: the caller vouches for the pointer; the operation is one BPF instruction.
    unsafe { atomic_cxchg::<u64, { ORDER }, { ORDER }>(word, old, new).0 }
}
