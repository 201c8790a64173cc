//! RESUMEs that were taken: each is good for one connection.

use common::shield::{RESUME_WAYS, resume_bucket, resume_mark};

use crate::maps::RESUMES;

/// Whether a RESUME with this MAC was taken before.
#[inline(always)]
pub fn is_taken(mac: u64) -> bool {
    let mark = resume_mark(mac);
    // All of them are looked at: the verifier follows one path then, not one for each place.
    RESUMES
        .get(resume_bucket(mac))
        .is_some_and(|seen| seen.macs.iter().fold(false, |found, mac| found | (*mac == mark)))
}

/// Remembers this MAC, in the place of the oldest of its entry. Of two that come to one entry at the same moment, one may take the
/// other's place.
#[inline(always)]
pub fn take(mac: u64) {
    let Some(seen) = RESUMES.get_ptr_mut(resume_bucket(mac)) else { return };
    // SAFETY: within the map's value, which stays readable for the run of the program.
    unsafe {
        let entered = &raw mut (*seen).entered;
        let place = entered.read_volatile() as u32 & (RESUME_WAYS - 1);
        entered.write_volatile(entered.read_volatile() + 1);
        (&raw mut (*seen).macs).cast::<u32>().add(place as usize).write_volatile(resume_mark(mac));
    }
}
