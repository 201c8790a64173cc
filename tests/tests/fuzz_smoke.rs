//! Every parser of foreign bytes against mutated inputs, the same at every run.
//!
//! `FUZZ_RUNS` sets how many inputs each target gets. tests/fuzz gives the same targets to libFuzzer.

#[path = "../fuzz/src/seeds.rs"]
#[allow(dead_code, reason = "the fuzzer's own crate uses the rest")]
mod seeds;
#[path = "../fuzz/src/targets.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use tests::Dice;

/// Inputs for each target without `FUZZ_RUNS`, for parsers that do no cryptography.
const RUNS: u64 = 200_000;

/// Inputs that were accepted and are kept to mutate further.
const KEPT: usize = 200;

/// Longest input, bytes.
const LONGEST: usize = 4096;

/// Drives `target` with mutations of `seeds`; of every `share`th of the usual number of inputs. Some must be accepted
/// beside the seeds themselves, unless `exact`, when none may be.
fn drive(name: &str, seeds: Vec<Vec<u8>>, target: fn(&[u8]) -> bool, share: u64, exact: bool) {
    let runs = std::env::var("FUZZ_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(RUNS) / share;
    let mut dice =
        Dice(name.bytes().fold(0x9e37_79b9_7f4a_7c15, |seed, byte| (seed ^ u64::from(byte)) << 5 | seed >> 59));
    let accepted = seeds.iter().filter(|seed| target(seed)).count();
    assert!(accepted > 0, "{name}: no seed is accepted");
    let mut corpus = seeds;
    let (first, mut accepted, mut rejected) = (corpus.len(), 0_u64, 0_u64);
    for run in 0..runs {
        let input = mutate(&mut dice, &corpus);
        let result = catch_unwind(AssertUnwindSafe(|| target(&input)));
        match result {
            Ok(true) => {
                accepted += 1;
                if !corpus.contains(&input) {
                    if corpus.len() < first + KEPT {
                        corpus.push(input);
                    } else {
                        let at = first + dice.below(KEPT);
                        corpus[at] = input;
                    }
                }
            }
            Ok(false) => rejected += 1,
            Err(panic) => {
                eprintln!("{name}, input {run}: {:?}\n{input:02x?}", String::from_utf8_lossy(&input));
                resume_unwind(panic);
            }
        }
    }
    eprintln!("{name}: {accepted} accepted, {rejected} rejected");
    assert!(rejected > runs / 50, "{name}: nearly nothing is rejected");
    let kept = corpus.len() > first;
    assert_eq!(kept, !exact, "{name}: {accepted} accepted");
}

#[test]
fn frames() {
    drive("frame", seeds::frames(), targets::frame, 1, false);
}

#[test]
fn datagrams() {
    drive("datagram", seeds::datagrams(), targets::datagram, 1, false);
}

#[test]
fn options() {
    drive("option", seeds::options(), targets::option, 1, false);
}

#[test]
fn credentials() {
    drive("credential", seeds::credentials(), targets::credential, 10, true);
}

#[test]
fn certificates() {
    drive("certificate", seeds::certificates(), targets::certificate, 10, true);
}

#[test]
fn profiles() {
    drive("profile", seeds::profiles(), targets::profile, 2, false);
}

#[test]
fn rules() {
    drive("rule", seeds::rules(), targets::rule, 4, false);
}

#[test]
fn policy_files() {
    drive("policy_file", seeds::policy_files(), targets::policy_file, 1, false);
}

#[test]
fn manifests() {
    drive("manifests", seeds::manifests(), targets::manifests, 16, false);
}

#[test]
fn dns() {
    drive("dns", seeds::dns(), targets::dns, 2, false);
}

#[test]
fn records() {
    drive("record", seeds::records(), targets::record, 2, false);
}

#[test]
fn configs() {
    drive("config", seeds::configs(), targets::config, 2, false);
}

#[test]
fn admin_requests() {
    drive("admin_request", seeds::admin_requests(), targets::admin_request, 1, false);
}

#[test]
fn tokens() {
    drive("token", seeds::tokens(), targets::token, 4, true);
}

#[test]
fn cloud_documents() {
    drive("cloud_document", seeds::cloud_documents(), targets::cloud_document, 20, false);
}

#[test]
fn plugin_answers() {
    drive("plugin_answer", seeds::plugin_answers(), targets::plugin_answer, 1, false);
}

#[test]
fn feeds() {
    drive("feed", seeds::feeds(), targets::feed, 1, false);
}

#[test]
fn docker() {
    drive("docker", seeds::docker(), targets::docker, 1, false);
}

#[test]
fn cri() {
    drive("cri", seeds::cri(), targets::cri, 1, false);
}

/// Nesting that would exhaust a recursive parser's stack; no mutation comes that far.
#[test]
fn depth_is_bounded() {
    let deep = |open: &str, close: &str| [open.repeat(30_000), close.repeat(30_000)].concat().into_bytes();
    for (open, close) in
        [("[", "]"), ("{\"a\":", "}"), ("(", ")"), ("- ", ""), ("a: ", ""), ("{a: ", "}"), ("? ", ""), ("!", "")]
    {
        for before in ["", "rules: ", "a = ", "{\"op\":\"status\",\"x\":", "allow a in "] {
            let input = [before.as_bytes(), &deep(open, close)].concat();
            for target in [
                targets::rule,
                targets::policy_file,
                targets::manifests,
                targets::config,
                targets::admin_request,
                targets::profile,
                targets::plugin_answer,
                targets::feed,
                targets::dns,
            ] {
                assert!(!target(&input), "{before}{open}");
            }
        }
    }
    let blocks: String = (0..2000).map(|depth| format!("{}- \n", " ".repeat(depth))).collect();
    assert!(!targets::policy_file(blocks.as_bytes()));
    assert!(!targets::manifests(blocks.as_bytes()));
}

/// One of `corpus`, changed in one to four places.
fn mutate(dice: &mut Dice, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = corpus[dice.below(corpus.len())].clone();
    for _ in 0..=dice.below(4) {
        change(dice, &mut input, corpus);
    }
    input.truncate(LONGEST);
    input
}

fn change(dice: &mut Dice, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let at = dice.below(input.len() + 1);
    let end = (at + 1 + dice.below(16)).min(input.len());
    match dice.below(10) {
        0 | 1 if at < input.len() => input[at] ^= 1 << dice.below(8),
        2 if at < input.len() => input[at] = [0, 1, 0x7f, 0x80, 0xff, b' ', b'0', b'\n'][dice.below(8)],
        3 if at < input.len() => input[at] = dice.roll() as u8,
        4 => input.truncate(at),
        5 if at < end => drop(input.drain(at..end)),
        6 if at < end => {
            let copy = input[at..end].to_vec();
            input.splice(at..at, copy);
        }
        7 if at + 2 <= input.len() => {
            let number = [0_u16, 1, 20, 64, 0x7fff, 0x8000, 0xffff, input.len() as u16][dice.below(8)];
            input[at..at + 2].copy_from_slice(&number.to_be_bytes());
        }
        8 => {
            let word = seeds::WORDS[dice.below(seeds::WORDS.len())];
            input.splice(at..at, word.bytes());
        }
        _ => {
            let other = &corpus[dice.below(corpus.len())];
            let from = dice.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
    }
}
