//! See `targets::feed`.
#![no_main]

use enforcer_fuzz::targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    targets::feed(bytes);
});
