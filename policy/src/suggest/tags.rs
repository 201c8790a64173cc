//! Which tags say what a workload is, and which are accidents of one instance of it.

/// How well a tag tells workloads apart for a reader: 0 best, 5 worst; `None` for accidental ones.
pub fn rank(key: &str, value: &str) -> Option<u8> {
    if accidental(key, value) {
        return None;
    }
    const NAMES: &[&str] = &[
        "app",
        "application",
        "app.kubernetes.io/name",
        "k8s-app",
        "com.docker.compose.service",
        "com.docker.swarm.service.name",
        "service",
    ];
    const PARTS: &[&str] =
        &["component", "app.kubernetes.io/component", "role", "tier", "job", "workload", "name", "kind"];
    const ORIGINS: &[&str] = &["@sys:unit", "@container:image", "@k8s:serviceaccount", "image", "unit"];
    const PLACES: &[&str] = &[
        "env",
        "environment",
        "stage",
        "team",
        "owner",
        "version",
        "app.kubernetes.io/version",
        "app.kubernetes.io/part-of",
        "app.kubernetes.io/instance",
        "app.kubernetes.io/managed-by",
        "com.docker.compose.project",
        "@k8s:namespace",
        "@container:name",
    ];
    Some(match key {
        _ if NAMES.contains(&key) => 0,
        _ if PARTS.contains(&key) => 1,
        _ if ORIGINS.contains(&key) => 2,
        _ if PLACES.contains(&key) => 4,
        _ if key.starts_with('@') => 5,
        _ => 3,
    })
}

/// Whether a tag tells nothing more about a workload that is named by one of rank `best`.
pub(super) fn is_detail(key: &str, best: u8) -> bool {
    const VERSIONS: &[&str] = &["@container:image", "image", "version", "app.kubernetes.io/version", "@sys:exe"];
    (best <= 1 && VERSIONS.contains(&key)) || (best <= 2 && key == "@sys:cmd")
}

/// Whether a tag belongs to one instance rather than to what it is: it would be another after a restart.
pub fn accidental(key: &str, value: &str) -> bool {
    const KEYS: &[&str] = &[
        "@container:id",
        "@container:digest",
        "@k8s:pod",
        "@sys:netns",
        "@sys:pid",
        "@sys:listen",
        "@sys:lib",
        "@sys:kernel",
        "@sys:arch",
        "@sys:hostname",
        "@sys:sha256",
        "@host:id",
        "@cloud:instance",
        "@cloud:image",
        "pid",
        "ip",
        "address",
        "hostname",
        "id",
        "uid",
        "uuid",
        "com.docker.compose.container-number",
        "com.docker.compose.oneoff",
        "com.docker.compose.version",
        "com.docker.compose.image",
        "com.docker.compose.project.working_dir",
        "com.docker.compose.project.config_files",
        "com.docker.compose.depends_on",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
    ];
    const ENDINGS: &[&str] = &["-hash", "_hash", ".hash", "/uid", "-uid", "_uid", "-id", "_id", ".id", "-uuid", "/pid"];
    const BEGINNINGS: &[&str] = &["@feed:", "batch.kubernetes.io/", "org.opencontainers.image."];
    // A user's or group's number is what the key says it is.
    if matches!(key, "@sys:uid" | "@sys:gid") {
        return false;
    }
    KEYS.contains(&key)
        || ENDINGS.iter().any(|ending| key.ends_with(ending))
        || BEGINNINGS.iter().any(|beginning| key.starts_with(beginning))
        || looks_accidental(value)
}

/// Addresses, UUIDs, long hexadecimal numbers, times.
fn looks_accidental(value: &str) -> bool {
    let bare = value.strip_prefix("sha256:").unwrap_or(value);
    let hex = bare.len() >= 12
        && bare.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
        && bare.chars().any(|c| c.is_ascii_digit())
        && bare.chars().filter(char::is_ascii_hexdigit).count() >= 12;
    let number = value.len() >= 6 && value.chars().all(|c| c.is_ascii_digit());
    hex || number || value.parse::<std::net::IpAddr>().is_ok() || value.parse::<std::net::SocketAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_are_told_from_accidents() {
        for (key, value) in [
            ("@container:id", "web"),
            ("pod-template-hash", "abc"),
            ("@k8s:pod", "web-7d9f-x2"),
            ("build", "3f2a9c0d11e4"),
            ("x", "550e8400-e29b-41d4-a716-446655440000"),
            ("where", "10.0.0.7"),
            ("where", "[fd00::1]:80"),
            ("started", "1767225600"),
            ("com.docker.compose.config-hash", "x"),
        ] {
            assert_eq!(rank(key, value), None, "{key}={value}");
        }
        for (key, value, expected) in [
            ("app", "web", 0),
            ("tier", "front", 1),
            ("@container:image", "registry.example/web:1.2", 2),
            ("colour", "blue", 3),
            ("env", "prod", 4),
            ("@sys:exe", "/usr/bin/nginx", 5),
            ("@sys:uid", "1000000", 5),
            ("app", "decade-facade", 0),
        ] {
            assert_eq!(rank(key, value), Some(expected), "{key}={value}");
        }
    }
}
