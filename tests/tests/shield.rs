//! The XDP shield drops what TC would drop, for the same reasons, before TC sees it; without it TC does the same.

use anyhow::{Context, Result};
use serde_json::Value;
use tests::{Host, Outcome, Pair};

/// RESUME of a session that exists, by its index, with a MAC that is nothing but zeroes.
fn forged_resume(index: u32) -> String {
    format!("020405b4fe145a54130000{:02x}{index:08x}{:016x}", 1, 0)
}

/// The index `host` chose for a session, as its peers must name it.
fn session_index(host: &Host) -> Result<u32> {
    let peers: Value = host.enforcer_json(&["peers"])?;
    let index = peers["peers"][0]["sessions"][0]["index"].as_u64();
    u32::try_from(index.with_context(|| format!("no session: {peers}"))?).context("an index of 32 bits")
}

/// What `enforcer status` says of XDP at `eth0`.
fn xdp_at_eth0(host: &Host) -> Result<(String, String)> {
    let status: Value = host.enforcer_json(&["status"])?;
    let interfaces = status["interfaces"].as_array().context("no interfaces")?;
    let eth0 = interfaces.iter().find(|interface| interface["name"] == "eth0").context("no eth0")?;
    let text = |key: &str| eth0[key].as_str().unwrap_or_default().to_owned();
    Ok((text("xdp"), text("xdp_reason")))
}

#[test]
fn the_same_verdicts_with_and_without_the_shield() -> Result<()> {
    for mode in ["native", "generic", "off"] {
        let pair = Pair::with_each("shield", "", &format!("datapath.xdp = \"{mode}\""))?;
        assert_eq!(xdp_at_eth0(&pair.b)?.0, mode);
        let server = pair.server.serve(&["--listen", "[::]:8020"])?;
        pair.introduce(8020)?;
        let option = forged_resume(session_index(&pair.b)?);
        // A host whose own enforcer does not look: its frames leave behind it.
        let attacker = pair.lab.host("mallory")?;
        for to in pair.addresses(8020) {
            for (options, reason) in [(option.as_str(), "resume_mac"), ("020405b4", "no_identity")] {
                let what = format!("{reason} at {to}, xdp {mode}");
                let before = pair.b.counters()?;
                // A packet socket sees what comes past XDP, before TC's programs do.
                let past_xdp = pair.b.capture("eth0", "tcp dst port 8020")?;
                let report: Value =
                    attacker.tool(&["raw", "--to", &to, "--options", options, "--count", "10", "--wait", "100"])?;
                assert_eq!(report["sent"], 10, "{what}: {report}");
                assert_eq!(report["answers"].as_array().map(Vec::len), Some(0), "{what}: silence: {report}");
                let counted = &pair.b.counters()? - &before;
                assert_eq!(counted.verdicts_in(reason), 10, "{what}: {:?}", counted.refusals());
                assert_eq!(counted.refusals().len(), 1, "{what}: {:?}", counted.refusals());
                let (past_xdp, _) = past_xdp.finish()?;
                assert_eq!(past_xdp.len(), if mode == "off" { 10 } else { 0 }, "{what}: came past XDP");
            }
        }
        // And whoever is genuine passes as ever.
        for to in pair.addresses(8020) {
            let attempt = pair.client.connect(&to, &["--payload", "ping"])?;
            assert_eq!(attempt.outcome, Outcome::Ok, "{mode}: {attempt:?}");
        }
        assert_eq!(server.accepted()?, 6, "only the introductions and these two");
    }
    Ok(())
}

#[test]
fn auto_stays_off_a_veth_and_says_why() -> Result<()> {
    let pair = Pair::new("auto")?;
    let (mode, reason) = xdp_at_eth0(&pair.a)?;
    assert_eq!(mode, "off");
    assert!(reason.contains("veth"), "{reason}");
    Ok(())
}
