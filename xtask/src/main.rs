//! Set-up, build, test, demo and bench.

fn main() {}
