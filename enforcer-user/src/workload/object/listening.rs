//! Ports on which processes listen.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
};

/// Ports named, at most.
const PORTS_MAX: usize = 64;

/// The TCP ports on which these processes listen, as `tcp/443`.
pub(super) fn ports(processes: &[u32]) -> BTreeSet<String> {
    let mut ports = BTreeSet::new();
    let mut namespaces = HashSet::new();
    let sockets: HashSet<u64> = processes.iter().flat_map(|pid| sockets(*pid)).collect();
    if sockets.is_empty() {
        return ports;
    }
    for pid in processes {
        // One look into each network namespace.
        if !fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|namespace| namespaces.insert(namespace)) {
            continue;
        }
        for table in ["tcp", "tcp6"] {
            let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
            let listening = text.lines().filter_map(listener).filter(|(_, inode)| sockets.contains(inode));
            ports.extend(listening.map(|(port, _)| format!("tcp/{port}")));
        }
    }
    while ports.len() > PORTS_MAX {
        ports.pop_last();
    }
    ports
}

fn sockets(pid: u32) -> Vec<u64> {
    let inode = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(inode).collect()
}

/// Port and inode of a listening socket of `/proc/net/tcp` (proc(5)).
fn listener(line: &str) -> Option<(u16, u64)> {
    let mut fields = line.split_whitespace();
    let (_, local, _, state) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    if state != "0A" {
        return None;
    }
    let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
    Some((port, fields.nth(5)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_listeners_are_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = format!("tcp/{}", listener.local_addr().unwrap().port());
        assert!(ports(&[std::process::id()]).contains(&port));
        drop(listener);
        assert!(!ports(&[std::process::id()]).contains(&port));
        assert_eq!(ports(&[]), BTreeSet::new());
    }

    #[test]
    fn lines_of_other_states_and_other_things_are_passed_over() {
        let line =
            "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0";
        assert_eq!(listener(line), Some((8080, 4711)));
        assert_eq!(listener(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(listener("  sl  local_address rem_address   st tx_queue rx_queue"), None);
        assert_eq!(listener(""), None);
    }
}
