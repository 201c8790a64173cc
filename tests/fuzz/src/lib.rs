//! Everything that reads bytes from elsewhere, as functions that libFuzzer or a test can drive.

pub mod seeds;
pub mod targets;
