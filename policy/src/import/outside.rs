//! Addresses: which of them are outside, and whether pods are among them.
//!
//! Where peers have an identity, no rule may speak of addresses: connections to those would be judged by address and
//! carry no identity. So identity networks are cut out of every block, and pods that a block holds are named as pods.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::peer::Block;
use super::place::{Place, Read};
use super::{IDENTITY_NETWORKS, Options};

/// Ranges nobody gives to pods: of one machine, or of one link.
const NO_PODS: [&str; 4] = ["169.254.0.0/16", "127.0.0.0/8", "fe80::/10", "::1/128"];

/// The parts of the address space.
pub(super) struct Outside {
    identity: Vec<IpNet>,
    /// Where pods may be; each holds some, if `known`.
    pods: Vec<IpNet>,
    known: bool,
}

/// What a rule's blocks hold.
#[derive(Default)]
pub(super) struct Held {
    /// External networks, each `net …` of a rule line.
    pub networks: Vec<String>,
    /// Every pod.
    pub pods: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Share {
    None,
    All,
    Part,
}

impl Outside {
    pub fn new(options: &Options) -> Self {
        let known = !options.identity_networks.is_empty();
        let identity: Vec<IpNet> = match known {
            true => IpNet::aggregate(&options.identity_networks.iter().map(IpNet::trunc).collect()),
            false => IDENTITY_NETWORKS.iter().filter_map(|text| text.parse().ok()).collect(),
        };
        let no_pods: Vec<IpNet> = NO_PODS.iter().filter_map(|text| text.parse().ok()).collect();
        let pods = identity.iter().filter(|net| !no_pods.iter().any(|range| range.contains(*net))).copied().collect();
        Self { identity, pods, known }
    }

    /// Every address without an identity.
    pub fn everywhere(&self) -> Vec<String> {
        let all: [IpNet; 2] = [ipnet::Ipv4Net::default().into(), ipnet::Ipv6Net::default().into()];
        all.iter().filter_map(|net| self.network(*net, &[])).collect()
    }

    /// What the blocks of one rule hold.
    ///
    /// # Errors
    /// If some block holds a part of the pods: which, their tags do not say.
    pub fn held(&self, blocks: &[Block]) -> Read<Held> {
        let mut held = Held::default();
        let mut families: BTreeSet<bool> = BTreeSet::new();
        for block in blocks {
            match self.share(block) {
                Share::None => {}
                Share::All => {
                    families.insert(is_v4(&block.net));
                }
                Share::Part => return Err(self.part(&block.place)),
            }
            let network = self.network(block.net, &block.except);
            held.networks.extend(network.filter(|network| !held.networks.contains(network)));
        }
        if families.is_empty() {
            return Ok(held);
        }
        held.pods = true;
        // Without being told, pods are taken to have addresses of one family.
        let missing = |net: &IpNet| !families.contains(&is_v4(net));
        match blocks.first() {
            Some(block) if self.known && self.pods.iter().any(missing) => Err(block.place.error(
                "holds the pods' addresses of one family only, and connections of pods are judged alike whatever their family: expected a block of the other family beside it",
            )),
            _ => Ok(held),
        }
    }

    fn share(&self, block: &Block) -> Share {
        let except = IpNet::aggregate(&block.except);
        let one = |pods: &IpNet| {
            if !overlap(&block.net, pods) || except.iter().any(|net| net.contains(pods)) {
                Share::None
            } else if block.net.contains(pods) && !except.iter().any(|net| overlap(net, pods)) {
                Share::All
            } else if except.iter().any(|net| net.contains(&block.net)) {
                Share::None
            } else {
                Share::Part
            }
        };
        let same_family = self.pods.iter().filter(|pods| is_v4(pods) == is_v4(&block.net));
        let shares: BTreeSet<Share> = same_family.map(one).collect();
        match shares.len() {
            0 => Share::None,
            1 => shares.first().copied().unwrap_or(Share::None),
            _ => Share::Part,
        }
    }

    fn part(&self, place: &Place) -> crate::parse::PolicyError {
        let list = |nets: &[IpNet]| nets.iter().map(IpNet::to_string).collect::<Vec<_>>().join(", ");
        place.error(match self.known {
            true => format!(
                "holds a part of where peers have an identity ({}), and pods are judged by their labels, not their addresses: expected a block that holds all of it or nothing of it",
                list(&self.identity)
            ),
            false => "may hold addresses of pods, or not: say where pods' addresses are, with `--identity-network CIDR`"
                .to_owned(),
        })
    }

    /// `net …` without what has an identity; `None` if nothing is left.
    fn network(&self, net: IpNet, except: &[IpNet]) -> Option<String> {
        if self.identity.iter().chain(except).any(|cut| cut.contains(&net)) {
            return None;
        }
        let inside = self.identity.iter().filter(|identity| net.contains(*identity)).copied();
        let mut cut = IpNet::aggregate(&except.iter().copied().chain(inside).collect());
        cut.sort();
        let cut: Vec<String> = cut.iter().map(IpNet::to_string).collect();
        let except = if cut.is_empty() { String::new() } else { format!(" except {}", cut.join(",")) };
        Some(format!("net {net}{except}"))
    }
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

fn is_v4(net: &IpNet) -> bool {
    matches!(net, IpNet::V4(_))
}
