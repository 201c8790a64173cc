//! Former layouts of values, and how to make present ones of them.
//!
//! A version that changes the value of a pinned map within one version of the ABI enters here what it was before: an agent
//! that takes over then carries the entries. What is not entered is refused by name. Nothing is guessed: a value whose
//! missing part were taken for zero could be a session with a key of zeroes.

use std::mem::size_of;

use common::{identity::PeerPu, workload::Watch};

/// How the values of a map became what they are.
#[derive(Debug)]
pub(super) struct Layout {
    /// The map.
    pub(super) map: &'static str,
    /// Size of a value before, in bytes.
    pub(super) former: usize,
    /// Size now.
    present: usize,
    /// Which bytes of the former value are which of the present one: from, to, how many. All others are zero.
    parts: &'static [(usize, usize, usize)],
}

/// All that are known.
const LAYOUTS: &[Layout] = &[
    // Before changed tags were told: no `issued_ms`. Zero there is older than whatever the peer tells.
    Layout { map: "PEER_PUS", former: 16, present: size_of::<PeerPu>(), parts: &[(0, 0, 8), (8, 16, 8)] },
    // Before containers' cgroups were stopped: no `cgroup_root`, `root_hierarchy`. The agent writes all of it anew when it starts.
    Layout { map: "WATCH", former: 64, present: size_of::<Watch>(), parts: &[(0, 0, 64)] },
];

/// The layout that makes values of `present` bytes of those of `former` bytes.
pub(super) fn find(map: &str, former: u32, present: u32) -> Option<&'static Layout> {
    LAYOUTS
        .iter()
        .find(|layout| layout.map == map && layout.former == former as usize && layout.present == present as usize)
}

impl Layout {
    /// The present value of a former one, or the other way round; told by its length.
    pub(super) fn convert(&self, value: &[u8]) -> Vec<u8> {
        let back = value.len() == self.present;
        let mut made = vec![0; if back { self.former } else { self.present }];
        for (former, present, len) in self.parts {
            let (from, to) = if back { (present, former) } else { (former, present) };
            if let (Some(from), Some(to)) = (value.get(*from..from + len), made.get_mut(*to..to + len)) {
                to.copy_from_slice(from);
            }
        }
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_fits_what_it_makes_and_comes_back() {
        for layout in LAYOUTS {
            assert_ne!(layout.former, layout.present, "{}: told apart by size", layout.map);
            for (former, present, len) in layout.parts {
                assert!(former + len <= layout.former && present + len <= layout.present, "{}", layout.map);
            }
            let former: Vec<u8> = (1..=layout.former).map(|byte| byte as u8).collect();
            let present = layout.convert(&former);
            assert_eq!(present.len(), layout.present);
            assert_eq!(layout.convert(&present), former, "{}: something is lost", layout.map);
        }
    }

    #[test]
    fn a_former_peer_is_the_present_one_that_has_told_nothing() {
        let former = [7_u64.to_ne_bytes(), [9, 0, 0, 0, 0, 0, 0, 0]].concat();
        let layout = find("PEER_PUS", 16, 24).expect("known");
        let expected = [7_u64.to_ne_bytes(), [0; 8], [9, 0, 0, 0, 0, 0, 0, 0]].concat();
        assert_eq!(layout.convert(&former), expected);
        assert!(find("PEER_PUS", 20, 24).is_none() && find("SESSIONS", 16, 24).is_none());
    }
}
