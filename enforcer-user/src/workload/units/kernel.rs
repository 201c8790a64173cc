//! Patterns as the kernel compares them: how a path begins and ends.

use common::workload::{CgroupPattern, NAME_WORDS, PREFIX_WORDS, SUFFIX_WORDS};

use super::CgroupMatch;

/// The kernel's form of a pattern for paths below `root`, itself a path of the whole hierarchy. What it takes too much, the
/// agent lets go again.
pub fn kernel_pattern(pattern: &CgroupMatch, root: &str) -> CgroupPattern {
    let (prefix, name, suffix) = pattern.ends();
    let prefix = format!("{}{prefix}", root.trim_end_matches('/'));
    let mut compiled = kernel_suffix(&suffix);
    fill(&mut compiled.prefix, &mut compiled.prefix_mask, 0, prefix.as_bytes());
    // The kernel's copy of a longer name ends with a zero there.
    fill(&mut compiled.name[..], &mut compiled.name_mask, 0, &name.as_bytes()[..name.len().min(NAME_WORDS * 8 - 1)]);
    compiled
}

/// The kernel's form of every path that ends so, in at most 64 bytes.
pub fn kernel_suffix(suffix: &str) -> CgroupPattern {
    let mut compiled = CgroupPattern {
        prefix: [0; PREFIX_WORDS],
        prefix_mask: [0; PREFIX_WORDS],
        name: [0; NAME_WORDS],
        name_mask: [0; NAME_WORDS],
        suffix: [0; SUFFIX_WORDS],
        suffix_mask: [0; SUFFIX_WORDS],
    };
    fill(&mut compiled.suffix, &mut compiled.suffix_mask, SUFFIX_WORDS * 8 - suffix.len(), suffix.as_bytes());
    compiled
}

/// Puts bytes into words as they lie in memory, as far as there is room.
fn fill(words: &mut [u64], mask: &mut [u64], from: usize, bytes: &[u8]) {
    for (at, byte) in bytes.iter().enumerate().take(words.len() * 8 - from) {
        let (word, place) = ((from + at) / 8, (from + at) % 8);
        let (mut value, mut counts) = (words[word].to_ne_bytes(), mask[word].to_ne_bytes());
        (value[place], counts[place]) = (*byte, 0xff);
        (words[word], mask[word]) = (u64::from_ne_bytes(value), u64::from_ne_bytes(counts));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel's program does it.
    fn takes(pattern: &CgroupPattern, path: &str) -> bool {
        let mut whole = [0_u8; 64 + 512];
        whole[64..64 + path.len()].copy_from_slice(path.as_bytes());
        let word = |at: usize| u64::from_ne_bytes(whole[at..at + 8].try_into().unwrap());
        let mut name = [0_u8; 64];
        let last = path.rsplit('/').next().unwrap().as_bytes();
        let kept = last.len().min(63);
        name[..kept].copy_from_slice(&last[..kept]);
        let named = |i: usize| u64::from_ne_bytes(name[i * 8..i * 8 + 8].try_into().unwrap());
        (0..NAME_WORDS).all(|i| named(i) & pattern.name_mask[i] == pattern.name[i])
            && (0..PREFIX_WORDS).all(|i| word(64 + i * 8) & pattern.prefix_mask[i] == pattern.prefix[i])
            && (0..SUFFIX_WORDS).all(|i| word(path.len() + i * 8) & pattern.suffix_mask[i] == pattern.suffix[i])
    }

    #[test]
    fn everything_a_pattern_means_is_taken_and_little_else() {
        let unit = |text| CgroupMatch::unit(text).unwrap();
        let path = |text| CgroupMatch::path(text).unwrap();
        for (pattern, root, taken, left) in [
            (
                unit("nginx.service"),
                "/",
                vec!["/system.slice/nginx.service", "/nginx.service"],
                vec!["/a/xnginx.service", "/nginx.service/x"],
            ),
            (
                unit("web-*.service"),
                "/lab/h1",
                vec!["/lab/h1/system.slice/web-1.service"],
                vec!["/lab/h2/web-1.service", "/lab/h1/web-1.scope"],
            ),
            (path("/machines/*/web"), "", vec!["/machines/a/web"], vec!["/machines/a/api", "/other/a/web"]),
            (path("/a/b"), "/r", vec!["/r/a/b"], vec!["/r/a/bc", "/r/a", "/a/b", "/r/x/a/b"]),
            (path("/*"), "/r", vec!["/r/x"], vec!["/r", "/s/x"]),
        ] {
            let compiled = kernel_pattern(&pattern, root);
            for path in taken {
                assert!(takes(&compiled, path), "{pattern:?} below {root} takes {path}");
            }
            for path in left {
                assert!(!takes(&compiled, path), "{pattern:?} below {root} leaves {path}");
            }
        }
    }

    #[test]
    fn long_paths_are_compared_as_far_as_there_is_room() {
        let long = format!("/{}", "x".repeat(200));
        let compiled = kernel_pattern(&CgroupMatch::path(&long).unwrap(), "/");
        assert!(takes(&compiled, &long));
        assert!(!takes(&compiled, &long[..100]));
    }

    proptest::proptest! {
        #[test]
        fn no_path_that_matches_is_missed(pattern in "(/[ab*]{1,4}){1,3}", below in "(/[ab]{1,4}){1,3}", root in "(/[rs]{1,3}){0,2}") {
            let pattern = CgroupMatch::path(&pattern).unwrap();
            if pattern.matches(&below) {
                let compiled = kernel_pattern(&pattern, &root);
                let path = format!("{root}{below}");
                proptest::prop_assert!(takes(&compiled, &path));
            }
        }
    }
}
