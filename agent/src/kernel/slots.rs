//! The array of rules and that of limits: which slots are taken.

use std::collections::VecDeque;

use aya::Pod;

use super::shared::Shared;

/// Slots of a shared array. The first is never given out: its index means none.
pub(super) struct Slots<T> {
    array: Shared<T>,
    /// The slot freed longest ago is taken first, so that no packet still looks at what it held.
    free: VecDeque<u32>,
    /// Slots from this one on have never been taken.
    fresh: u32,
}

impl<T: Pod + Default> Slots<T> {
    /// `is_taken` says of each slot of the array whether it holds something.
    pub fn new(array: Shared<T>, is_taken: impl Fn(u32) -> bool) -> Self {
        let last = (1..array.len()).rev().find(|&index| is_taken(index));
        let fresh = last.map_or(1, |last| last + 1);
        let free = (1..fresh).filter(|&index| !is_taken(index)).collect();
        Self { array, free, fresh }
    }

    /// The index of `value`'s new place; `None` when all are taken.
    pub fn insert(&mut self, value: T) -> Option<u32> {
        let index = if self.fresh < self.array.len() {
            self.fresh += 1;
            self.fresh - 1
        } else {
            self.free.pop_front()?
        };
        self.array.set(index, value);
        Some(index)
    }

    /// Nothing must point to it any more.
    pub fn remove(&mut self, index: u32) {
        self.array.set(index, T::default());
        self.free.push_back(index);
    }

    pub fn get(&self, index: u32) -> T {
        self.array.get(index)
    }

    pub fn update(&self, index: u32, change: impl FnOnce(&mut T)) {
        self.array.update(index, change);
    }
}
