//! Addresses as the shortest list of prefixes, wider than recorded where that would be too long.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Prefixes of one family beyond which a list is made shorter by covering more.
pub(super) const MAX_PREFIXES: usize = 16;

/// The prefixes that cover the addresses.
pub(super) fn prefixes(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpNet> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for address in addresses {
        match address {
            IpAddr::V4(address) => v4.push(Ipv4Net::from(address)),
            IpAddr::V6(address) => v6.push(Ipv6Net::from(address)),
        }
    }
    let mut v4 = Ipv4Net::aggregate(&v4);
    for length in (0..32).rev() {
        if v4.len() <= MAX_PREFIXES {
            break;
        }
        let wider = |net: &Ipv4Net| Ipv4Net::new(net.addr(), net.prefix_len().min(length)).map(|net| net.trunc());
        v4 = Ipv4Net::aggregate(&v4.iter().map(|net| wider(net).unwrap_or(*net)).collect());
    }
    let mut v6 = Ipv6Net::aggregate(&v6);
    for length in (0..128).rev() {
        if v6.len() <= MAX_PREFIXES {
            break;
        }
        let wider = |net: &Ipv6Net| Ipv6Net::new(net.addr(), net.prefix_len().min(length)).map(|net| net.trunc());
        v6 = Ipv6Net::aggregate(&v6.iter().map(|net| wider(net).unwrap_or(*net)).collect());
    }
    v4.sort_unstable();
    v6.sort_unstable();
    v4.into_iter().map(IpNet::V4).chain(v6.into_iter().map(IpNet::V6)).collect()
}

/// How many addresses prefixes hold that do not overlap; saturates.
pub(super) fn size(prefixes: &[IpNet]) -> u64 {
    prefixes.iter().fold(0, |sum: u64, net| {
        let bits = u32::from(net.max_prefix_len() - net.prefix_len());
        sum.saturating_add(1u64.checked_shl(bits).unwrap_or(u64::MAX))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(addresses: impl Iterator<Item = String>) -> Vec<String> {
        prefixes(addresses.map(|text| text.parse().expect("address"))).iter().map(IpNet::to_string).collect()
    }

    #[test]
    fn few_addresses_stay_exact_and_many_are_covered() {
        let few = ["192.0.2.1", "192.0.2.0", "2001:db8::1", "192.0.2.9"];
        assert_eq!(listed(few.map(str::to_owned).into_iter()), ["192.0.2.0/31", "192.0.2.9/32", "2001:db8::1/128"]);
        let block = listed((0..=255).map(|last| format!("198.51.100.{last}")));
        assert_eq!(block, ["198.51.100.0/24"]);
        let spread = prefixes((0..1000u32).map(|n| IpAddr::from((n * 4_000_000).to_be_bytes())));
        assert!(spread.len() <= MAX_PREFIXES, "{spread:?}");
        assert!(
            (0..1000u32).all(|n| spread.iter().any(|net| net.contains(&IpAddr::from((n * 4_000_000).to_be_bytes()))))
        );
        assert_eq!(size(&["10.0.0.0/8".parse().expect("net"), "::/0".parse().expect("net")]), u64::MAX);
        assert_eq!(size(&["10.0.0.0/30".parse().expect("net"), "::1/128".parse().expect("net")]), 5);
    }
}
