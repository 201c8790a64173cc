//! A map of a former layout is carried over; one of an unknown layout is refused by its name. Live flows notice neither.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use aya::maps::{HashMap, Map, MapData, MapInfo};
use tests::{Outcome, enforcer_binary};

use crate::stage::{Stage, assert_refused, counted};

/// Key of `PEER_PUS`, its value before changed tags were told (`until_ns`, identity), and now (with `issued_ms` between).
type Key = [u8; 8];
type Former = [u8; 16];
type Present = [u8; 24];

#[test]
fn peers_of_a_former_layout_are_still_known() -> Result<()> {
    let stage = Stage::new("layouts")?;
    let [newcomer] = stage.newcomers(["newcomer"])?;
    let b = &stage.pair.b;
    let pin = b.bpffs().join("v1/maps/PEER_PUS");
    let read = || -> Result<Vec<(Key, Present)>> {
        let map = HashMap::<_, Key, Present>::try_from(Map::HashMap(MapData::from_pin(&pin)?))?;
        let mut entries = map.iter().collect::<Result<Vec<_>, _>>()?;
        entries.sort_unstable();
        Ok(entries)
    };
    b.kill9_enforcer()?;
    let peers = read()?;
    ensure!(!peers.is_empty(), "nobody was met");

    // Of an unknown layout: refused, by name, and nothing else happens.
    let aside = b.bpffs().join("v1/maps/aside");
    fs::rename(&pin, &aside)?;
    HashMap::<MapData, Key, [u8; 20]>::create(262_144, 1)?.pin(&pin)?;
    let binary = enforcer_binary()?.to_string_lossy().into_owned();
    let config = b.enforcer_config().to_string_lossy().into_owned();
    let output = b.exec_within(&[&binary, "run", "--config", &config], Duration::from_secs(60))?;
    ensure!(output.code() == 1, "{}", output.stderr);
    ensure!(
        output.stderr.contains("PEER_PUS is pinned with a value size of 20, this version has 24"),
        "{}",
        output.stderr
    );
    stage.assert_known("refused")?;
    fs::remove_file(&pin)?;

    // As a former version made it.
    let mut former = HashMap::<MapData, Key, Former>::create(262_144, 1)?;
    for (key, value) in &peers {
        let mut made = [0; 16];
        made[..8].copy_from_slice(&value[..8]);
        made[8..].copy_from_slice(&value[16..]);
        former.insert(key, made, 0)?;
    }
    former.pin(&pin)?;
    fs::remove_file(&aside)?;
    b.restart_enforcer()?;
    ensure!(MapInfo::from_pin(&pin)?.value_size() == 24);
    let expected: Vec<(Key, Present)> = peers
        .into_iter()
        .map(|(key, mut value)| {
            value[8..16].fill(0);
            (key, value)
        })
        .collect();
    assert_eq!(read()?, expected);
    // Known without a word: nobody introduces itself again.
    let counts = counted(b, || stage.assert_known("carried over"))?;
    assert_eq!((counts.packets_in("resume"), counts.packets_in("hello")), (2, 0));
    assert_refused(&counts, &[("no_rule", 2)]);
    stage.assert_first_contact(&newcomer, Outcome::Ok, "carried over")?;
    stage.assert_all_live()
}
