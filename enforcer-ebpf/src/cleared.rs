//! Values of nothing but zeros, made word by word: here an ordinary initialisation may become a call that clears byte by
//! byte, and on the hot path those add up.

use core::mem::MaybeUninit;

use common::flow::{Flow, FlowKey};

use crate::emit::Parties;

/// Types for which all zeros are a valid value and that are made of whole words.
///
/// # Safety
/// Both must be true.
pub unsafe trait Clear: Sized {}

// SAFETY: integers and arrays of integers only, aligned to eight bytes, of a size that is a multiple of eight.
unsafe impl Clear for Flow {}
// SAFETY: as above.
unsafe impl Clear for FlowKey {}
// SAFETY: as above.
unsafe impl Clear for Parties {}

/// Makes a value zeros where it stands.
#[inline(always)]
pub fn clear<T: Clear>(value: &mut MaybeUninit<T>) -> &mut T {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8) };
    let words = value.as_mut_ptr().cast::<u64>();
    for word in 0..size_of::<T>() / 8 {
        // SAFETY: within the value; volatile keeps the words from being made one call again.
        unsafe { words.add(word).write_volatile(0) };
    }
    // SAFETY: every byte was written, and zeros are valid.
    unsafe { value.assume_init_mut() }
}

/// `cleared!(name: Type)` makes `name` a mutable reference to a local value of zeros. Never moved, because a move of
/// zeros is a call again.
macro_rules! cleared {
    ($name:ident: $type:ty) => {
        let mut storage = core::mem::MaybeUninit::<$type>::uninit();
        let $name: &mut $type = $crate::cleared::clear(&mut storage);
    };
}

pub(crate) use cleared;
