//! `NETWORKS`: what a destination address means.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use aya::maps::lpm_trie::Key;
use common::identity::{NETWORK_IDENTITY, Network};
use common::{Addr, addr_v4};
use ipnet::{IpNet, Ipv4Net};
use policy::IdentityId;

use super::{MapWriteError, Table};

/// A network over mapped addresses (`common::Addr`), host bits zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    /// Address.
    pub addr: Addr,
    /// Length in bits, 0 to 128; an IPv4 network's own length plus 96.
    pub len: u32,
}

impl Prefix {
    /// The network of `addr` and as many leading bits as `len` says; host bits are cleared. `None` if `len` is too long.
    pub fn new(addr: IpAddr, len: u8) -> Option<Self> {
        let (addr, len, longest) = match addr {
            IpAddr::V4(v4) => (addr_v4(u32::from_ne_bytes(v4.octets())), u32::from(len) + 96, 128),
            IpAddr::V6(v6) => (words(v6.octets()), u32::from(len), 128),
        };
        if len > longest {
            return None;
        }
        let mut network = Self { addr, len };
        for (index, word) in network.addr.iter_mut().enumerate() {
            let bits = len.saturating_sub(32 * index as u32).min(32);
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            *word &= mask.to_be();
        }
        Some(network)
    }
}

/// The writer of `NETWORKS`.
#[derive(Debug)]
pub struct Networks {
    table: Table<Key<Addr>, Network>,
    current: HashMap<Prefix, Network>,
}

impl Networks {
    /// Takes over what is in the map.
    ///
    /// # Errors
    /// As `Maps::open`.
    pub fn open(maps: &Path) -> Result<Self, MapWriteError> {
        let table: Table<Key<Addr>, Network> = Table::open(maps, "NETWORKS")?;
        let mut current = HashMap::new();
        table.for_each(|key, network| {
            current.insert(Prefix { addr: key.data(), len: key.prefix_len() }, *network);
        })?;
        Ok(Self { table, current })
    }

    /// Makes `wanted` the whole content, touching only what differs; new and changed networks first, so that an address
    /// that stays covered never is uncovered meanwhile. How many entries were touched.
    ///
    /// # Errors
    /// [`MapWriteError::Full`], or what the kernel reports; then a part of the change has been made and a repeated call
    /// makes the rest.
    pub fn replace(&mut self, wanted: &HashMap<Prefix, Network>) -> Result<usize, MapWriteError> {
        let mut touched = 0;
        for (prefix, network) in wanted {
            if self.current.get(prefix) != Some(network) {
                self.table.insert(&Key::new(prefix.len, prefix.addr), network)?;
                self.current.insert(*prefix, *network);
                touched += 1;
            }
        }
        let gone: Vec<Prefix> = self.current.keys().filter(|prefix| !wanted.contains_key(prefix)).copied().collect();
        for prefix in gone {
            self.table.remove(&Key::new(prefix.len, prefix.addr))?;
            self.current.remove(&prefix);
            touched += 1;
        }
        Ok(touched)
    }

    /// What an address means, as the kernel sees it.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn find(&self, addr: &Addr) -> Result<Network, MapWriteError> {
        Ok(self.table.get(&Key::new(128, *addr))?.unwrap_or_default())
    }

    /// What is in force.
    pub fn current(&self) -> &HashMap<Prefix, Network> {
        &self.current
    }
}

/// The first mapped IPv4 address.
const MAPPED: IpAddr = IpAddr::V6(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped());
const ALL_IPV4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);

/// External networks and identity networks as the one table the kernel looks in. Where one lies within the other, the
/// narrower prefix carries both meanings, as a longest-prefix match finds only one entry. IPv4 lies within IPv6 there, as
/// mapped addresses; an entry for all of it keeps an IPv6 network as wide as `::/0` from meaning IPv4 too.
pub fn network_table(
    externals: impl IntoIterator<Item = (IpNet, IdentityId)>,
    identity: &[IpNet],
) -> HashMap<Prefix, Network> {
    let externals: HashMap<IpNet, IdentityId> = externals.into_iter().collect();
    let mut prefixes: BTreeSet<IpNet> = externals.keys().copied().chain(identity.iter().map(IpNet::trunc)).collect();
    if prefixes.iter().any(|net| net.contains(&MAPPED)) {
        prefixes.insert(IpNet::from(ALL_IPV4));
    }
    let entry = |net: IpNet| {
        let within = identity.iter().any(|network| network.contains(&net));
        let network =
            Network { external: narrowest(&externals, net), flags: if within { NETWORK_IDENTITY } else { 0 } };
        Some((Prefix::new(net.network(), net.prefix_len())?, network))
    };
    prefixes.into_iter().filter_map(entry).collect()
}

/// The external identity of the narrowest named prefix that holds all of `net`, 0 if there is none.
fn narrowest(externals: &HashMap<IpNet, IdentityId>, net: IpNet) -> u32 {
    std::iter::successors(Some(net), IpNet::supernet).find_map(|net| externals.get(&net)).map_or(0, |id| id.0)
}

fn words(octets: [u8; 16]) -> Addr {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(octets.chunks_exact(4)) {
        *word = bytes.try_into().map_or(0, u32::from_ne_bytes);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str, len: u8) -> Option<Prefix> {
        Prefix::new(text.parse().unwrap(), len)
    }

    #[test]
    fn host_bits_are_cleared() {
        assert_eq!(prefix("10.1.2.3", 8), prefix("10.0.0.0", 8));
        assert_eq!(prefix("10.1.2.3", 8).unwrap(), Prefix { addr: addr_v4(10_u32), len: 104 });
        assert_eq!(prefix("0.0.0.0", 0).unwrap(), Prefix { addr: addr_v4(0), len: 96 });
        assert_eq!(prefix("ff::1", 0).unwrap(), Prefix { addr: [0; 4], len: 0 });
        assert_eq!(prefix("fd00::1", 127), prefix("fd00::", 127));
        assert_ne!(prefix("fd00::1", 128), prefix("fd00::", 128));
        assert_eq!(prefix("fd00:0:0:1::", 48), prefix("fd00::", 48));
    }

    #[test]
    fn a_wide_ipv6_network_means_no_ipv4() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let external = |text: &str, number| (net(text), IdentityId(number));
        let table = network_table([external("::/0", 1), external("10.0.0.0/8", 2)], &[net("fd00::/8")]);
        let entry = |text: &str| {
            let net = net(text);
            let network = table[&Prefix::new(net.addr(), net.prefix_len()).unwrap()];
            (network.external, network.flags)
        };
        assert_eq!(entry("::/0"), (1, 0));
        assert_eq!(entry("0.0.0.0/0"), (0, 0));
        assert_eq!(entry("10.0.0.0/8"), (2, 0));
        assert_eq!(entry("fd00::/8"), (1, NETWORK_IDENTITY));
        assert_eq!(table.len(), 4);
        assert_eq!(network_table([external("2001:db8::/32", 1)], &[]).len(), 1);
        assert_eq!(
            network_table([external("0.0.0.0/0", 7)], &[net("::/0")])[&Prefix { addr: addr_v4(0), len: 96 }].external,
            7
        );
    }

    #[test]
    fn impossible_lengths_are_refused() {
        assert_eq!(prefix("10.0.0.0", 33), None);
        assert_eq!(prefix("fd00::", 129), None);
    }
}
