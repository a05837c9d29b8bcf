//! Atomic addition to counters in maps. `core::sync::atomic` leaves it out for BPF targets,
//! whose older instruction sets have no compare-and-swap.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

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
