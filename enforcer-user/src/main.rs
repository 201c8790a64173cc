//! Entry point of the `enforcer` binary.

fn main() {}
