//! See `targets::datagram`.
#![no_main]

use enforcer_fuzz::targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    targets::datagram(bytes);
});
