//! See `targets::plugin_answer`.
#![no_main]

use enforcer_fuzz::targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    targets::plugin_answer(bytes);
});
