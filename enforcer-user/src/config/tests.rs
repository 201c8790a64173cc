use super::*;

fn parse(source: &str) -> Result<Config, String> {
    Config::parse(source, Path::new("/etc/e.toml")).map_err(|error| error.to_string())
}

fn refused(source: &str) -> String {
    parse(source).expect_err("must be refused")
}

#[test]
fn empty_file_is_all_defaults() {
    assert_eq!(parse(""), Ok(Config::default()));
    assert_eq!(Config::default().identity.networks.len(), 9);
}

#[test]
fn defaults_pass_their_own_check_and_survive_a_round_trip() {
    let text = toml::to_string(&Config::default()).expect("serialises");
    assert_eq!(parse(&text), Ok(Config::default()));
}

#[test]
fn values_arrive() {
    let config = parse(
        "name = 'h1'\n[identity]\nclock_skew = '2m'\nnetworks = ['10.0.0.0/8']\n[datapath]\nxdp = 'native'\nmax_flows = 1024\n[log]\nformat = 'json'\n",
    )
    .expect("parses");
    assert_eq!(config.name.as_deref(), Some("h1"));
    assert_eq!(config.identity.clock_skew, Duration::from_secs(120));
    assert_eq!(config.identity.networks, ["10.0.0.0/8".parse::<IpNet>().expect("network")]);
    assert_eq!((config.datapath.xdp, config.datapath.max_flows), (Xdp::Native, 1024));
    assert_eq!(config.log.format, LogFormat::Json);
}

#[test]
fn errors_name_file_line_column_and_key() {
    assert_eq!(
        refused("name = 'x'\n\n[datapath]\n  max_flow = 1\n"),
        "/etc/e.toml:4:3: `datapath.max_flow`: unknown field `max_flow`, expected one of `interfaces`, `xdp`, `unmanaged`, \
         `strangers`, `max_flows`, `max_pairs`, `max_intervals`, `handshake_ring_bytes`, `telemetry_ring_bytes`, \
         `hello_budget`, `hello_burst`, `hello_load`, `fallback`, \
         `fallback_port`, `agent_timeout`, `tap`"
    );
    assert_eq!(
        refused("[identity]\nclock_skew = '30 parsecs'\n"),
        "/etc/e.toml:2:14: `identity.clock_skew`: invalid value: string \"30 parsecs\", expected a duration"
    );
    assert_eq!(
        refused("[datapath]\nmax_flows = 'many'\n"),
        "/etc/e.toml:2:13: `datapath.max_flows`: invalid type: string \"many\", expected u32"
    );
    assert_eq!(
        refused("[datapath]\nxdp = 'on'\n"),
        "/etc/e.toml:2:7: `datapath.xdp`: unknown variant `on`, expected one of `auto`, `native`, `generic`, `off`"
    );
}

#[test]
fn truncated_file_is_named_with_its_last_line() {
    let error = refused("name = 'x'\n[identity\n");
    assert!(error.starts_with("/etc/e.toml:2:"), "{error}");
    let error = refused("name = 'x'\n[log]\nlevel = \"inf");
    assert!(error.starts_with("/etc/e.toml:3:"), "{error}");
}

#[test]
fn senseless_values_are_refused_at_their_place() {
    let ring = "`datapath.handshake_ring_bytes`: must be a power of two, a multiple of the page size (4096), and between 65536 and 1073741824";
    for (source, expected) in [
        ("[datapath]\nhandshake_ring_bytes = 100000\n", format!("2:24: {ring}")),
        ("[datapath]\nhandshake_ring_bytes = 4096\n", format!("2:24: {ring}")),
        ("[datapath]\ninterfaces = ['eth0', 'eth0']\n", "2:14: `datapath.interfaces`: \"eth0\" is listed twice".into()),
        (
            "[datapath]\ninterfaces = ['auto', 'eth0']\n",
            "2:14: `datapath.interfaces`: \"auto\" stands alone; drop it or the other names".into(),
        ),
        (
            "[datapath]\ninterfaces = []\n",
            "2:14: `datapath.interfaces`: must name at least one interface; write [\"auto\"] for all".into(),
        ),
        (
            "[datapath]\ntap = 'sixteen_letters_'\n",
            "2:7: `datapath.tap`: must be an interface name (1 to 15 characters, no slash, no space)".into(),
        ),
        (
            "[identity]\nprekey_rotation = '0s'\n",
            "2:19: `identity.prekey_rotation`: must be between 10s and 30days".into(),
        ),
        (
            "[identity]\nnetworks = ['10.1.2.3/8']\n",
            "2:12: `identity.networks`: 10.1.2.3/8 has host bits set; write 10.0.0.0/8".into(),
        ),
        ("[datapath]\nmax_intervals = 2000000\n", "2:17: `datapath.max_intervals`: must be between 16 and 1048576".into()),
        (
            "[metrics]\nlisten = 'localhost'\n",
            "2:10: `metrics.listen`: \"localhost\" is no address:port; write for example \"127.0.0.1:9464\", or \"\" for none"
                .into(),
        ),
        ("namespace = 'acme'\n", "1:13: `namespace`: must be an absolute path such as \"/acme/prod\", without empty segments".into()),
        (
            "name = 'a b'\n",
            "1:8: `name`: must be 1 to 253 letters, digits, dots, hyphens or underscores".into(),
        ),
    ] {
        assert_eq!(refused(source), format!("/etc/e.toml:{expected}"));
    }
}

#[test]
fn relative_paths_start_at_the_files_directory() {
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("e.toml");
    std::fs::write(&file, "[identity]\nca = 'ca.crt'\nkey = '/k'\n[policy]\npaths = ['policy']\n").expect("written");
    let config = Config::load(&file).expect("loads");
    assert_eq!(config.identity.ca, dir.path().join("ca.crt"));
    assert_eq!(config.identity.key, Path::new("/k"));
    assert_eq!(config.policy.paths, [dir.path().join("policy")]);
}

#[test]
fn missing_file_says_what_to_do() {
    let error = Config::load(Path::new("/nonexistent/e.toml")).expect_err("fails");
    assert_eq!(
        error.to_string(),
        "/nonexistent/e.toml: cannot read it: no such file or directory; name the file with `--config FILE`"
    );
}

/// Every key with its default as TOML has it, `None` where there is none.
fn keys() -> Vec<(String, Option<String>)> {
    fn walk(prefix: &str, value: &serde_json::Value, keys: &mut Vec<(String, Option<String>)>) {
        let serde_json::Value::Object(table) = value else {
            let toml = toml::Value::try_from(value).ok();
            keys.push((prefix.to_owned(), toml.map(|value| value.to_string())));
            return;
        };
        for (key, value) in table {
            walk(&if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") }, value, keys);
        }
    }
    let mut keys = Vec::new();
    walk("", &serde_json::to_value(Config::default()).expect("serialises"), &mut keys);
    keys
}

#[test]
fn every_key_is_documented_with_its_default_and_no_other() {
    let docs = include_str!("../../../docs/configuration.md");
    let rows: Vec<_> = docs.lines().filter(|line| line.starts_with("| `")).collect();
    let keys = keys();
    assert!(keys.len() > 20);
    for (key, default) in &keys {
        let row = match default {
            Some(default) => format!("| `{key}` | `{default}` | "),
            None => format!("| `{key}` | – | "),
        };
        assert!(rows.iter().any(|line| line.starts_with(&row)), "docs/configuration.md lacks a row {row:?}");
    }
    assert_eq!(rows.len(), keys.len(), "docs/configuration.md has rows for keys that do not exist");
}
