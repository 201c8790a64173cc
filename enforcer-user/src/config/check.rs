//! What a well-formed configuration may still get wrong.

use std::{collections::BTreeSet, net::SocketAddr, path::Path, time::Duration};

use super::{AUTO, Config};

/// The key and what is wrong with its value.
pub(super) type Problem = (String, String);

pub(super) fn check(config: &Config) -> Result<(), Problem> {
    names(config)?;
    identity(config)?;
    config.tags.check()?;
    super::workload::check(&config.workload)?;
    config.host.check(config.datapath.unmanaged == super::Unmanaged::Deny)?;
    config.docker.check()?;
    config.containerd.check()?;
    config.cloud.check()?;
    config.oidc.check()?;
    super::plugin::check(&config.plugin)?;
    config.feed.check()?;
    config.names.check()?;
    datapath(config)?;
    records(config)?;
    endpoints(config)
}

fn names(config: &Config) -> Result<(), Problem> {
    if let Some(name) = &config.name {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        ensure(!name.is_empty() && name.len() <= 253 && name.chars().all(fits), "name", || {
            "must be 1 to 253 letters, digits, dots, hyphens or underscores".into()
        })?;
    }
    ensure(is_namespace(&config.namespace), "namespace", || {
        "must be an absolute path such as \"/acme/prod\", without empty segments".into()
    })
}

/// Whether this is an absolute path of namespaces.
pub(super) fn is_namespace(namespace: &str) -> bool {
    let segments_fit = namespace.strip_prefix('/').is_some_and(|rest| {
        rest.is_empty()
            || rest.split('/').all(|segment| {
                !segment.is_empty() && segment.chars().all(|c| c.is_ascii_graphic() && !"*,\"'".contains(c))
            })
    });
    segments_fit && namespace.len() <= 255
}

fn identity(config: &Config) -> Result<(), Problem> {
    let identity = &config.identity;
    for (key, path) in [("ca", &identity.ca), ("certificate", &identity.certificate), ("key", &identity.key)] {
        not_empty(&format!("identity.{key}"), path)?;
    }
    between("identity.clock_skew", identity.clock_skew, Duration::ZERO, Duration::from_secs(24 * 3600))?;
    let month = Duration::from_secs(30 * 24 * 3600);
    between("identity.profile_lifetime", identity.profile_lifetime, Duration::from_secs(10), month)?;
    between("identity.prekey_rotation", identity.prekey_rotation, Duration::from_secs(10), month)?;
    let mut seen = BTreeSet::new();
    for network in &identity.networks {
        ensure(*network == network.trunc(), "identity.networks", || {
            format!("{network} has host bits set; write {}", network.trunc())
        })?;
        ensure(seen.insert(*network), "identity.networks", || format!("{network} is listed twice"))?;
    }
    Ok(())
}

fn datapath(config: &Config) -> Result<(), Problem> {
    let datapath = &config.datapath;
    let key = "datapath.interfaces";
    ensure(!datapath.interfaces.is_empty(), key, || {
        "must name at least one interface; write [\"auto\"] for all".into()
    })?;
    let mut seen = BTreeSet::new();
    for name in &datapath.interfaces {
        ensure(name == AUTO || is_interface_name(name), key, || {
            format!("{name:?} is no interface name (1 to 15 characters, no slash, no space)")
        })?;
        ensure(name != &datapath.tap, key, || format!("{name:?} is the enforcer's own TAP device (`datapath.tap`)"))?;
        ensure(seen.insert(name), key, || format!("{name:?} is listed twice"))?;
    }
    ensure(datapath.interfaces.len() == 1 || !seen.contains(&AUTO.to_owned()), key, || {
        "\"auto\" stands alone; drop it or the other names".into()
    })?;
    ensure(datapath.tap != AUTO && is_interface_name(&datapath.tap), "datapath.tap", || {
        "must be an interface name (1 to 15 characters, no slash, no space)".into()
    })?;
    for (key, value, max) in [
        ("datapath.max_flows", datapath.max_flows, 1 << 26),
        ("datapath.max_pairs", datapath.max_pairs, 1 << 26),
        ("datapath.max_intervals", datapath.max_intervals, common::abi::MAX_INTERVALS),
    ] {
        ensure((16..=max).contains(&value), key, || format!("must be between 16 and {max}"))?;
    }
    for (key, value) in [("datapath.hello_budget", datapath.hello_budget), ("datapath.hello_load", datapath.hello_load)]
    {
        ensure(value <= HELLOS_MAX, key, || format!("must be at most {HELLOS_MAX}; 0 for no bound"))?;
    }
    ensure((1..=HELLOS_MAX).contains(&datapath.hello_burst), "datapath.hello_burst", || {
        format!("must be between 1 and {HELLOS_MAX}")
    })?;
    ensure(datapath.fallback_port != 0, "datapath.fallback_port", || "must be between 1 and 65535".into())?;
    for (key, bytes) in [
        ("datapath.handshake_ring_bytes", datapath.handshake_ring_bytes),
        ("datapath.telemetry_ring_bytes", datapath.telemetry_ring_bytes),
    ] {
        let page = page_size();
        let fits = bytes.is_power_of_two() && u64::from(bytes) % page == 0 && (RING_MIN..=RING_MAX).contains(&bytes);
        ensure(fits, key, || {
            format!(
                "must be a power of two, a multiple of the page size ({page}), and between {RING_MIN} and {RING_MAX}"
            )
        })?;
    }
    between("datapath.agent_timeout", datapath.agent_timeout, Duration::from_millis(100), Duration::from_secs(3600))
}

fn records(config: &Config) -> Result<(), Problem> {
    let records = &config.records;
    between("records.interval", records.interval, Duration::ZERO, Duration::from_secs(24 * 3600))?;
    ensure(records.interval.is_zero() || records.interval >= Duration::from_secs(1), "records.interval", || {
        "must be 0s (no aggregation) or at least 1s".into()
    })?;
    ensure(records.max_bytes >= 64 << 10, "records.max_bytes", || "must be at least 65536".into())?;
    ensure(records.keep <= 1000, "records.keep", || "must be at most 1000".into())?;
    ensure((16..=1 << 20).contains(&records.max_groups), "records.max_groups", || {
        format!("must be between 16 and {}", 1 << 20)
    })?;
    not_empty("observe.state", &config.observe.state)
}

fn endpoints(config: &Config) -> Result<(), Problem> {
    not_empty("paths.bpffs", &config.paths.bpffs)?;
    not_empty("paths.socket", &config.paths.socket)?;
    // sockaddr_un.sun_path holds 108 bytes with its terminating zero (unix(7)).
    ensure(config.paths.socket.as_os_str().len() < 108, "paths.socket", || {
        "is longer than the 107 bytes a unix socket's path may have".into()
    })?;
    let listen = &config.metrics.listen;
    ensure(listen.is_empty() || listen.parse::<SocketAddr>().is_ok(), "metrics.listen", || {
        format!("{listen:?} is no address:port; write for example \"127.0.0.1:9464\", or \"\" for none")
    })?;
    ensure(config.metrics.rule_series <= 100_000, "metrics.rule_series", || "must be at most 100000".into())?;
    ensure(!config.log.level.is_empty(), "log.level", || "must not be empty".into())?;
    if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(&config.log.level) {
        return Err(("log.level".into(), format!("{:?}: {error}", config.log.level)));
    }
    ensure(config.admin.group.as_deref() != Some(""), "admin.group", || {
        "must not be empty; leave it out for none".into()
    })
}

/// More first contacts a second than any agent decides.
const HELLOS_MAX: u32 = 1_000_000;
/// Smallest ring: some dozens of held frames.
const RING_MIN: u32 = 64 << 10;
/// Largest ring the kernel could still be asked for without starving the host.
const RING_MAX: u32 = 1 << 30;

/// A name the kernel takes (`dev_valid_name`): shorter than IFNAMSIZ, no slash, colon or space.
fn is_interface_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() < libc::IFNAMSIZ
        && !name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
}

fn page_size() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| u64::try_from(size).ok())
        .unwrap_or(4096)
}

pub(super) fn not_empty(key: &str, path: &Path) -> Result<(), Problem> {
    ensure(!path.as_os_str().is_empty(), key, || "must not be empty".into())
}

pub(super) fn between(key: &str, value: Duration, min: Duration, max: Duration) -> Result<(), Problem> {
    ensure((min..=max).contains(&value), key, || {
        format!("must be between {} and {}", humantime::format_duration(min), humantime::format_duration(max))
    })
}

pub(super) fn ensure(holds: bool, key: &str, problem: impl FnOnce() -> String) -> Result<(), Problem> {
    if holds { Ok(()) } else { Err((key.into(), problem())) }
}
