//! `enforcer doctor --bundle`: what a bug report needs is in it, and no secret.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tests::{Host, Pair, enforcer_binary};

use crate::stage::eventually;

/// Put wherever a secret may be.
const SECRET: &str = "Hunter2IsNotASecretAnyMore";
const TOKEN: &str = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJodW50ZXIyIn0.c2lnbmF0dXJlLW9mLWh1bnRlcjI";

fn bundle(host: &Host, name: &str) -> Result<(Value, String)> {
    let (file, config) = (host.directory().join(name), host.enforcer_config());
    let (binary, path) = (enforcer_binary()?.to_string_lossy().into_owned(), file.to_string_lossy().into_owned());
    let line = [&binary, "doctor", "--bundle", &path, "--config", &config.to_string_lossy()];
    host.exec(&line)?.ok()?;
    ensure!(fs::metadata(&file)?.permissions().mode() & 0o777 == 0o600, "others may read it");
    let again = host.exec(&line)?;
    ensure!(again.code() == 1 && again.stderr.contains("exists"), "written over: {}", again.stderr);
    let text = fs::read_to_string(&file)?;
    Ok((serde_json::from_str(&text).context("no JSON")?, text))
}

/// However a secret of bytes may be written.
fn written(bytes: &[u8]) -> [String; 4] {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let spaced: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let numbers: Vec<_> = bytes.iter().map(u8::to_string).collect();
    [hex, spaced.join(" "), numbers.join(","), STANDARD.encode(bytes)]
}

#[test]
fn a_bundle_holds_everything_but_secrets() -> Result<()> {
    let plugin = format!(
        "[[plugin]]\nname = \"p\"\ncommand = [\"/bin/true\", \"--password={SECRET}\", \"{SECRET}\"]\n\
         [feed]\nsources = [\"http://127.0.0.1:1/feed.json?token={SECRET}\"]\n"
    );
    let pair = Pair::with("bundle", &plugin)?;
    let _server = pair.server.serve(&["--listen", "[::]:8020", "--listen", "[::]:9100"])?;
    pair.introduce(8020)?;
    let a = &pair.a;
    let to = &pair.addresses(9100)[0];
    pair.client.connect(to, &[])?;
    // A token that is refused, and one in a tag.
    let refused = a.exec(&a.as_pu("nobody", &[], &["true"]).map(|mut line| {
        line.splice(2..2, ["--as-user".to_owned(), TOKEN.to_owned()]);
        line
    })?)?;
    ensure!(refused.code() == 125, "{}", refused.stderr);
    a.workload_by_cgroup("tagged", &[&format!("password={SECRET}")])?;

    eventually("the refusal is told", Duration::from_secs(5), || {
        Ok(a.records()?.iter().any(|record| record.reason == "no_rule"))
    })?;
    let (document, text) = bundle(a, "bundle.json")?;
    let at = |pointer: &str| document.pointer(pointer).with_context(|| format!("no {pointer}: {text}"));
    assert_eq!(at("/version")?, env!("CARGO_PKG_VERSION"));
    assert_eq!(at("/agent/status/ready")?, true);
    assert_eq!(at("/config/datapath/agent_timeout")?, "1s");
    assert_eq!(at("/agent/policy/rules")?, 1);
    assert_eq!(at("/counters/reasons/no_rule in")?, 1);
    assert!(at("/agent/flows/recent")?.to_string().contains("no_rule"), "{text}");
    assert!(at("/kernel")?.as_str().is_some_and(|kernel| kernel.starts_with("Linux version")));
    assert!(at("/counters/fill/FLOWS/max")?.as_u64() > Some(0));
    for (list, name) in [
        ("links", "sock_ops"),
        ("programs", "tc_ingress"),
        ("maps", "FLOWS"),
        ("interfaces", "eth0"),
        ("probe/checks", "kernel"),
    ] {
        let list = at(&format!("/{list}"))?.as_array().context("a list")?;
        ensure!(list.iter().any(|one| one["name"] == name), "no {name} in {list:?}");
    }
    let program = at("/programs/0")?;
    ensure!(
        program["id"].as_u64() > Some(0) && program["tag"].as_str().is_some_and(|tag| tag.len() == 16),
        "{program}"
    );
    ensure!(at("/log")?.as_array().is_some_and(|log| log.iter().any(|line| line.to_string().contains("enforcing"))));

    let mut secrets = vec![SECRET.to_owned(), TOKEN.to_owned(), TOKEN.split('.').nth(1).unwrap_or_default().to_owned()];
    for key in [a.directory().join("host-a.key"), pair.lab.directory().join("ca/ca.key")] {
        let pem = fs::read_to_string(&key)?;
        secrets.push(key.to_string_lossy().into_owned());
        secrets.extend(pem.lines().filter(|line| !line.starts_with("---")).map(str::to_owned));
    }
    let maps = a.bpffs().join("v1/maps");
    for (map, len) in [("SESSIONS", 16), ("CREDENTIALS", 48)] {
        let pin = maps.join(map).to_string_lossy().into_owned();
        let dumped: Value = a.exec(&["bpftool", "--json", "map", "dump", "pinned", &pin])?.json()?;
        let entries = dumped.as_array().context("entries")?;
        ensure!(!entries.is_empty(), "{map} is empty");
        for entry in entries {
            let bytes: Vec<u8> = entry["value"]
                .as_array()
                .context("bytes")?
                .iter()
                .filter_map(|byte| u8::from_str_radix(byte.as_str()?.trim_start_matches("0x"), 16).ok())
                .collect();
            // Both keys come first; of a credential, what follows its head.
            let starts = if map == "SESSIONS" { [0, 16] } else { [24, 72] };
            secrets.extend(starts.iter().flat_map(|start| written(&bytes[*start..start + len])));
        }
    }
    for secret in &secrets {
        ensure!(secret.len() >= 8 && !text.contains(secret.as_str()), "{secret} is in the bundle");
    }

    // Without an agent, and with a configuration that is broken where a secret stands.
    a.stop_enforcer();
    let config = fs::read_to_string(a.enforcer_config())?;
    fs::write(a.enforcer_config(), config.replace("agent_timeout = \"1s\"", &format!("agent_timeout = \"{SECRET}\"")))?;
    let (document, text) = bundle(a, "broken.json")?;
    ensure!(!text.contains(SECRET), "{text}");
    assert_eq!(document["config"]["error"]["key"], "datapath.agent_timeout", "{text}");
    assert!(document["agent"]["error"].is_string(), "{text}");
    Ok(())
}
