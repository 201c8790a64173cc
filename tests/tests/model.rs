//! The models of the handshake in docs/model, checked by `spin`: what holds, and what no longer holds once a check is taken out.
//!
//! docs/model.md says what they are about. Nothing here touches the network.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::{env, fs, iter, thread};

/// The attacker's network, and the worlds in which every property of it holds.
const ATTACKED: &str = "handshake.pml";
const WORLDS: [&str; 9] = [
    "RUNS_A=2",
    "WARM=1 RUNS_A=1 SYNS=3",
    "INSIDER=1 RUNS_A=1",
    "WARM=1 INSIDER=1 RUNS_A=1 SYNS=1",
    "RUNS_A=1 RUNS_B=1 SYNS=1",
    "ROTATES_A=1 RUNS_A=1",
    "ROTATES_B=1 RUNS_A=1",
    "WARM=1 FORGETS_B=1 RUNS_A=1",
    "WARM=1 CUTS=1 RUNS_A=1",
];
/// The network that means no harm.
const LOSSY: &str = "progress.pml";
const LOSSES: [&str; 3] = ["LOSSES=2", "LOSSES=3 DOUBLES=2 EARLY=2 OVERTAKEN=1", "LOSSES=2 LOAD=1"];
/// Searches at once.
const WORKERS: usize = 2;

/// What came of a search.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// Every state was seen, and no assertion failed.
    Holds,
    /// The assertion of this name fails.
    Fails(String),
}

/// Searches all states of `model` with these definitions.
fn search(model: &str, definitions: &str) -> Verdict {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/model");
    let name = format!("{model}-{}", definitions.replace([' ', '='], "-"));
    let place = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("model").join(name);
    let _ = fs::remove_dir_all(&place);
    fs::create_dir_all(&place).expect("a directory for the verifier");
    fs::copy(sources.join(model), place.join(model)).expect("the model");
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(&place).env("LC_ALL", "C").output();
        let output =
            output.unwrap_or_else(|error| panic!("{program}: {error}; `cargo xtask setup --tests` installs it"));
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    let defined: Vec<String> = definitions.split_whitespace().map(|definition| format!("-D{definition}")).collect();
    let generate: Vec<&str> = defined.iter().map(String::as_str).chain(["-a", model]).collect();
    let said = run("spin", &generate);
    let built =
        run("cc", &["-O1", "-w", "-DSAFETY", "-DCOLLAPSE", "-DNOREDUCE", "-DMEMLIM=4096", "-o", "pan", "pan.c"]);
    assert!(place.join("pan").exists(), "{model} {definitions}: {said}{built}");
    let found = run(place.join("pan").to_str().expect("a path"), &["-m100000", "-n"]);
    if let Some((_, after)) = found.split_once("assertion violated ") {
        let name = after.split([' ', '(', ')']).find(|word| !word.is_empty());
        return Verdict::Fails(name.unwrap_or_default().into());
    }
    // A search that was cut short says nothing.
    let whole = found.contains("errors: 0") && !found.contains("not completed") && !found.contains("depth too small");
    assert!(whole, "{model} {definitions}: {found}");
    let states = found.lines().find(|line| line.contains("states, stored")).unwrap_or_default().trim();
    println!("{model} {definitions}: {states}");
    Verdict::Holds
}

/// The verdict on every model that the tests ask for, all searched when the first one asks.
fn verdict(model: &str, definitions: &str) -> &'static Verdict {
    static FOUND: OnceLock<Vec<(&str, &str, Verdict)>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let worlds = WORLDS.iter().map(|world| (ATTACKED, *world)).chain(LOSSES.iter().map(|world| (LOSSY, *world)));
        let jobs =
            Mutex::new(worlds.chain(fails::SEARCHES.iter().copied()).chain(comes_about::SEARCHES.iter().copied()));
        let next = || jobs.lock().expect("no search panics with the list").next();
        let work =
            || iter::from_fn(next).map(|(model, world)| (model, world, search(model, world))).collect::<Vec<_>>();
        thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
            workers.into_iter().flat_map(|worker| worker.join().expect("a search")).collect()
        })
    });
    let found = found.iter().find(|(of, world, _)| (*of, *world) == (model, definitions));
    &found.unwrap_or_else(|| panic!("nobody searched {model} {definitions}")).2
}

/// `property` holds in every world of `model`. Where another fails it is left undecided, which is a failure too.
fn holds(model: &str, property: &str) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/model").join(model);
    let source = fs::read_to_string(source).expect("the model");
    assert!(source.contains(&format!("assert({property})")), "{model} asserts no {property}");
    let worlds: &[&str] = if model == ATTACKED { &WORLDS } else { &LOSSES };
    for world in worlds {
        assert_eq!(*verdict(model, world), Verdict::Holds, "{property} in the world {world:?}");
    }
}

/// One of these properties no longer holds.
fn fails(model: &str, definitions: &str, properties: &[&str]) {
    let verdict = verdict(model, definitions);
    let expected = |property: &&str| *verdict == Verdict::Fails((*property).into());
    assert!(properties.iter().any(expected), "{definitions}: {verdict:?}");
}

macro_rules! properties {
    ($($model:ident: $($property:ident)*;)*) => { mod holds { $($(
        #[test]
        fn $property() {
            super::holds(super::$model, stringify!($property));
        }
    )*)* } };
}

properties! {
    ATTACKED: responder_agrees responder_is_injective initiator_agrees initiator_is_injective no_early_data_at_the_server
        no_early_data_at_the_client syn_is_genuine cut_is_genuine;
    LOSSY: client_is_live server_is_live;
}

macro_rules! failures {
    ($(#[$about:meta])* $module:ident, $prefix:literal: $($name:ident: $model:ident $world:literal $switch:literal $($property:ident)|+;)*) => {
        $(#[$about])*
        mod $module {
            pub(super) const SEARCHES: &[(&str, &str)] = &[$((super::$model, concat!($world, " ", $prefix, $switch))),*];

            $(
                #[test]
                fn $name() {
                    super::fails(super::$model, concat!($world, " ", $prefix, $switch), &[$(stringify!($property)),+]);
                }
            )*
        }
    };
}

failures! {
    /// Each check is needed: without it something is lost, and the model tells.
    fails, "NO_":
    without_the_mac_of_resume: ATTACKED "" "RESUME_MAC" syn_is_genuine;
    without_the_mac_of_resume_reply: ATTACKED "" "RESUME_REPLY_MAC" initiator_agrees | no_early_data_at_the_client;
    without_the_mac_of_hello_reply: ATTACKED "" "HELLO_REPLY_MAC" initiator_agrees | no_early_data_at_the_client;
    without_the_mac_of_confirm: ATTACKED "" "CONFIRM_MAC" responder_agrees | no_early_data_at_the_server;
    without_the_mac_of_deny: ATTACKED "WARM=1 CUTS=1 RUNS_A=1" "DENY_MAC" cut_is_genuine;
    without_the_credentials_signature: ATTACKED "" "SIGNATURE" initiator_agrees | responder_agrees;
    without_the_receivers_isn_in_the_mac: ATTACKED "" "PEER_ISN" initiator_agrees | responder_agrees;
    without_the_receivers_handle_in_the_mac: ATTACKED "" "PEER_HANDLE" initiator_agrees | responder_agrees;
    without_ids_in_the_key: ATTACKED "INSIDER=1 RUNS_A=1" "IDS_IN_KEY" responder_agrees | initiator_agrees;
    if_an_answer_may_follow_another: ATTACKED "WARM=1 RUNS_A=1" "SAME_ANSWER" responder_is_injective;
    if_the_agent_does_not_look_again: ATTACKED "RUNS_A=1" "SECOND_LOOK" responder_is_injective | initiator_is_injective;
    without_the_gate_at_the_client: ATTACKED "" "GATE_AT_CLIENT" no_early_data_at_the_client;
    without_the_gate_at_the_server: ATTACKED "" "GATE_AT_SERVER" no_early_data_at_the_server;
    if_retry_is_not_heeded: LOSSY "" "RETRY" client_is_live;
    if_challenge_is_not_heeded: LOSSY "LOAD=1" "CHALLENGE" client_is_live;
    if_confirm_is_sent_once: LOSSY "" "SECOND_CONFIRM" client_is_live;
}

failures! {
    /// What ought to happen does: no property holds because nothing comes about.
    comes_about, "WITNESS_":
    first_contact: ATTACKED "RUNS_A=1" "HELLO" no_first_contact_succeeds;
    further_contact: ATTACKED "RUNS_A=1 WARM=1" "RESUME" no_further_contact_succeeds;
    contact_after_rotation: ATTACKED "RUNS_A=1 ROTATES_A=1" "ROTATION" no_contact_in_the_second_epoch_succeeds;
    contact_with_the_intruder: ATTACKED "RUNS_A=1 INSIDER=1" "INSIDER" no_contact_with_the_intruder_succeeds;
}
