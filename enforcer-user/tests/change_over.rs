//! One agent's programs and maps after another's, in a place of their own: what is carried, and what is put back.
//!
//! Needs root.

mod place;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use aya::maps::{HashMap, MapData, MapInfo};
use enforcer_user::load::{Kernel, LoadError, roll_back, unload};
use place::{Place, isolated};

/// The key of `PEER_PUS`, and its value before and after changed tags were told.
type Key = [u8; 8];
type Former = [u8; 16];
type Present = [u8; 24];

fn entries<V: aya::Pod>(pin: &Path) -> BTreeMap<Key, V> {
    open(pin).iter().map(Result::unwrap).collect()
}

fn open<V: aya::Pod>(pin: &Path) -> HashMap<MapData, Key, V> {
    HashMap::try_from(aya::maps::Map::HashMap(MapData::from_pin(pin).unwrap())).unwrap()
}

fn former(until: u8, identity: u8) -> Former {
    let mut value = [0; 16];
    (value[0], value[8]) = (until, identity);
    value
}

fn present(until: u8, identity: u8) -> Present {
    let mut value = [0; 24];
    (value[0], value[16]) = (until, identity);
    value
}

fn key(number: u8) -> Key {
    [number, 0, 0, 0, number, 0, 0, 0]
}

/// A map as a former version made it, with these entries, in the place of the present one.
fn made_before(place: &Place, numbers: &[u8]) {
    let pin = place.maps().join("PEER_PUS");
    drop(fs::remove_file(&pin));
    let mut map = HashMap::<MapData, Key, Former>::create(262_144, 1).unwrap();
    numbers.iter().for_each(|number| map.insert(key(*number), former(*number, 7), 0).unwrap());
    map.pin(&pin).unwrap();
}

fn link_programs(place: &Place) -> BTreeMap<String, u32> {
    let links = place.links().into_iter();
    links.map(|(name, link)| (name, link.program)).collect()
}

fn unfinished(place: &Place) -> Vec<String> {
    let directories = [place.maps(), place.bpffs.join("v1/progs")];
    let entries = directories.iter().flat_map(|directory| fs::read_dir(directory).unwrap().flatten());
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name.ends_with("_former") || name.ends_with("_next")).collect()
}

#[test]
fn entries_of_a_former_layout_are_carried_and_nothing_else_is_touched() {
    isolated(|place| {
        drop(Kernel::open(&place.options()).unwrap());
        let (programs, ids) = (link_programs(place), place.map_ids());
        made_before(place, &[1, 2, 3]);

        let fit = Kernel::check(&place.options()).unwrap();
        assert_eq!((fit.carried, fit.made), (vec!["PEER_PUS".to_owned()], vec![]));
        assert_eq!(link_programs(place), programs, "a check changes nothing");
        assert!(unfinished(place).is_empty());

        drop(Kernel::open(&place.options()).unwrap());
        let pin = place.maps().join("PEER_PUS");
        assert_eq!(MapInfo::from_pin(&pin).unwrap().max_entries(), 262_144);
        let expected: BTreeMap<Key, Present> = [1, 2, 3].map(|number| (key(number), present(number, 7))).into();
        assert_eq!(entries::<Present>(&pin), expected);
        assert!(unfinished(place).is_empty());
        let mut now = place.map_ids();
        assert!(now.remove("PEER_PUS") != ids.get("PEER_PUS").copied());
        assert!(now.iter().all(|(name, id)| ids.get(name) == Some(id)), "other maps");
        unload(&place.unload()).unwrap();
    });
}

#[test]
fn until_it_is_settled_everything_can_be_put_back() {
    isolated(|place| {
        drop(Kernel::open(&place.options()).unwrap());
        made_before(place, &[1, 2]);
        let programs = link_programs(place);
        let pin = place.maps().join("PEER_PUS");

        let kernel = Kernel::begin(&place.options(), None).unwrap();
        assert!(matches!(roll_back(&place.bpffs), Err(LoadError::Busy { .. })), "under an agent");
        assert!(link_programs(place).iter().all(|(name, program)| programs.get(name) != Some(program)));
        // What happened meanwhile is not lost either.
        let mut map = open::<Present>(&pin);
        map.insert(key(3), present(3, 9), 0).unwrap();
        map.insert(key(2), present(22, 7), 0).unwrap();
        map.remove(&key(1)).unwrap();
        drop(kernel);
        assert!(roll_back(&place.bpffs).unwrap());
        let expected: BTreeMap<Key, Former> = [(key(2), former(22, 7)), (key(3), former(3, 9))].into();
        assert_eq!(entries::<Former>(&pin), expected);
        let now = link_programs(place);
        // Links at tracepoints are made anew, for the same programs.
        assert_eq!(now, programs);
        assert!(unfinished(place).is_empty());
        assert!(!roll_back(&place.bpffs).unwrap(), "there is nothing left to put back");

        // An agent that died before it was ready: the next one begins where that one did.
        drop(Kernel::begin(&place.options(), None).unwrap());
        assert!(!unfinished(place).is_empty());
        drop(Kernel::open(&place.options()).unwrap());
        assert!(unfinished(place).is_empty());
        assert_eq!(entries::<Present>(&pin).len(), 2);
        unload(&place.unload()).unwrap();
    });
}

#[test]
fn a_start_that_fails_leaves_the_former_programs_and_maps() {
    isolated(|place| {
        drop(Kernel::open(&place.options()).unwrap());
        made_before(place, &[5]);
        let programs = link_programs(place);
        let mut options = place.options();
        options.interfaces = enforcer_user::load::Interfaces::Named(vec!["none7".into()]);
        let error = Kernel::open(&options).unwrap_err();
        assert!(error.to_string().contains("none7"), "{error}");
        assert_eq!(link_programs(place), programs);
        assert_eq!(entries::<Former>(&place.maps().join("PEER_PUS")).len(), 1);
        assert!(unfinished(place).is_empty());
        unload(&place.unload()).unwrap();
    });
}
