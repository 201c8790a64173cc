//! What the enforcer says of its host: `@host:…`.

use crate::{
    config::{Config, workload},
    identity::Tags,
    workload::{Extractor, KnownPu, TagSource},
};

/// The tags that every PU of this host has from the enforcer: its id, and `[host.tags]`.
pub fn tags(config: &Config, enforcer: &str) -> Tags {
    let of_host = workload::tags(&config.host.tags).into_iter();
    let mut tags: Tags = of_host.map(|(key, values)| (format!("@host:{key}"), values)).collect();
    tags.insert("@host:id".into(), [enforcer.to_owned()].into());
    tags
}

/// The key of the host PU.
pub const HOST_PU: &str = "host";

/// As [`tags`], of the PU with this key: the host PU also says whose it is, as `@host:pu`.
pub fn tags_of(key: &str, mut tags: Tags, enforcer: &str) -> Tags {
    if key == HOST_PU {
        tags.insert("@host:pu".into(), [enforcer.to_owned()].into());
    }
    tags
}

/// Gives them to PUs that had others from a former configuration.
#[derive(Clone, Debug)]
pub struct HostTags {
    /// Those of every PU.
    pub tags: Tags,
    /// The enforcer's name.
    pub enforcer: String,
}

impl Extractor for HostTags {
    fn source(&self) -> TagSource {
        TagSource::Enforcer
    }

    fn extract(&self, pu: &KnownPu) -> anyhow::Result<Tags> {
        Ok(tags_of(&pu.key, self.tags.clone(), &self.enforcer))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::workload::TagSet;

    #[test]
    fn the_configuration_speaks_for_the_host_but_not_for_its_id() {
        let text = "[host.tags]\nrack = 'r7'\nrole = ['db', 'cache']\nid = 'another'\n";
        let config = Config::parse(text, Path::new("e.toml")).unwrap();
        let tags = tags(&config, "spiffe://acme/enforcer/h1");
        assert_eq!(tags["@host:rack"], ["r7".to_owned()].into());
        assert_eq!(tags["@host:role"], ["cache".to_owned(), "db".to_owned()].into());
        assert_eq!(tags["@host:id"], ["spiffe://acme/enforcer/h1".to_owned()].into());
        let set: TagSet = [(TagSource::Enforcer, tags.clone())].into_iter().collect();
        assert_eq!(set.merged(), tags, "all of them may be set by the enforcer");
    }
}
