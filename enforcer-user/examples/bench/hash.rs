//! Hashing executables, as for `@sys:sha256`: a file that is in memory but was never hashed, and one that was.

use std::{
    fs::File,
    io::{Seek, SeekFrom, Write},
    time::Instant,
};

use anyhow::ensure;
use enforcer_user::workload::object::{HashCache, sha256};

use crate::Values;

/// Looks for a known hash that are timed together: one alone is shorter than the clock's own cost.
const LOOKS: u32 = 1_000;

pub fn measure(mib: usize, rounds: usize) -> anyhow::Result<Values> {
    let mut file = File::from(anonymous()?);
    let block: Vec<u8> = (0..1 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for _ in 0..mib {
        file.write_all(&block)?;
    }
    let known = HashCache::default();
    let (mut throughput, mut look) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        file.seek(SeekFrom::Start(0))?;
        let begin = Instant::now();
        let hash = sha256(&file)?;
        throughput.push(mib as f64 / begin.elapsed().as_secs_f64());
        file.seek(SeekFrom::Start(0))?;
        ensure!(known.sha256(&file)? == hash, "the file has two hashes");
        let begin = Instant::now();
        for _ in 0..LOOKS {
            ensure!(known.sha256(&file)?.len() == 64, "no hash");
        }
        look.push(begin.elapsed().as_secs_f64() * 1e6 / f64::from(LOOKS));
    }
    Ok(Values::from([("hash_mib_s", throughput), ("hash_known_us", look)]))
}

/// A file without a name, in memory: the disk is not measured.
fn anonymous() -> nix::Result<std::os::fd::OwnedFd> {
    nix::sys::memfd::memfd_create("bench", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
}
