//! See `targets::admin_request`.
#![no_main]

use enforcer_fuzz::targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    targets::admin_request(bytes);
});
