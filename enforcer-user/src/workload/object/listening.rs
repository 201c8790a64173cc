//! Ports on which processes listen.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::{self, File},
    io::{BufRead, BufReader},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Ports named, at most.
const PORTS_MAX: usize = 64;
/// How long a table is good for: PUs are looked at by the dozen, and the kernel walks all its connections for each look.
const FRESH: Duration = Duration::from_secs(1);
/// Bytes read at once. The kernel makes as many lines as were asked for, and what follows the listeners may be a million connections.
const READ: usize = 1024;

/// Ports of listening sockets by inode.
type Table = HashMap<u64, u16>;

/// The listening sockets of network namespaces, as they were a moment ago.
#[derive(Debug, Default)]
pub(super) struct Listening {
    tables: Mutex<HashMap<PathBuf, (Instant, Arc<Table>)>>,
}

impl Listening {
    /// The TCP ports on which these processes listen, as `tcp/443`.
    pub(super) fn ports(&self, processes: &[u32]) -> BTreeSet<String> {
        let mut ports = BTreeSet::new();
        let mut namespaces = HashSet::new();
        let sockets: HashSet<u64> = processes.iter().flat_map(|pid| sockets(*pid)).collect();
        if sockets.is_empty() {
            return ports;
        }
        for pid in processes {
            // One look into each network namespace.
            let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/net")) else { continue };
            if namespaces.insert(namespace.clone()) {
                let table = self.table(*pid, namespace);
                ports.extend(sockets.iter().filter_map(|inode| table.get(inode)).map(|port| format!("tcp/{port}")));
            }
        }
        while ports.len() > PORTS_MAX {
            ports.pop_last();
        }
        ports
    }

    fn table(&self, pid: u32, namespace: PathBuf) -> Arc<Table> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.retain(|_, (read, _)| read.elapsed() < FRESH);
        let (_, table) = tables.entry(namespace).or_insert_with(|| (Instant::now(), Arc::new(listeners(pid))));
        table.clone()
    }
}

/// The listening sockets of a process's network namespace. They come first; at what follows reading ends.
fn listeners(pid: u32) -> Table {
    let mut table = Table::new();
    for name in ["tcp", "tcp6"] {
        let Ok(file) = File::open(format!("/proc/{pid}/net/{name}")) else { continue };
        let lines = BufReader::with_capacity(READ, file).lines().skip(1);
        table.extend(lines.map_while(|line| listener(&line.ok()?)).map(|(port, inode)| (inode, port)));
    }
    table
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
        let connected = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let known = Listening::default();
        assert!(known.ports(&[std::process::id()]).contains(&port));
        drop((listener, connected));
        assert!(!known.ports(&[std::process::id()]).contains(&port), "a socket of that inode is the process's no more");
        assert_eq!(known.ports(&[]), BTreeSet::new());
    }

    #[test]
    fn other_states_and_other_things_are_no_listeners() {
        let line =
            "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0";
        assert_eq!(listener(line), Some((8080, 4711)));
        assert_eq!(listener(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(listener("  sl  local_address rem_address   st tx_queue rx_queue"), None);
        assert_eq!(listener(""), None);
    }
}
