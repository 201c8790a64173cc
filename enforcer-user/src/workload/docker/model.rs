//! What the Engine API says, and what it means here: pure. Unknown fields are skipped, missing ones are empty, `null` too.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de::IgnoredAny};

use super::super::TagSource;
use super::super::container_common::{Network, Unit, is_container_id, join, value};
use super::super::tags::sift;
use crate::identity::Tags;

/// One of `GET /containers/json`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Listed {
    /// Container id.
    #[serde(deserialize_with = "nullable")]
    pub id: String,
    #[serde(deserialize_with = "nullable")]
    names: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    image: String,
    /// Id of the image.
    #[serde(rename = "ImageID", deserialize_with = "nullable")]
    pub image_id: String,
    #[serde(deserialize_with = "nullable")]
    labels: BTreeMap<String, Option<String>>,
    #[serde(deserialize_with = "nullable")]
    state: String,
    #[serde(deserialize_with = "nullable")]
    host_config: ListedHostConfig,
    #[serde(deserialize_with = "nullable")]
    network_settings: ListedNetworks,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ListedHostConfig {
    #[serde(deserialize_with = "nullable")]
    network_mode: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ListedNetworks {
    #[serde(deserialize_with = "nullable")]
    networks: BTreeMap<String, IgnoredAny>,
}

/// `GET /images/ID/json`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Image {
    #[serde(deserialize_with = "nullable")]
    repo_digests: Vec<String>,
}

/// `GET /containers/ID/json`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Inspected {
    #[serde(deserialize_with = "nullable")]
    state: InspectedState,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct InspectedState {
    #[serde(deserialize_with = "nullable")]
    pid: i64,
}

impl Image {
    /// Whether this is the id of an image: it becomes part of a path.
    pub fn is_id(id: &str) -> bool {
        id.strip_prefix("sha256:").is_some_and(is_container_id)
    }
}

impl Inspected {
    /// The container's first process, if it runs.
    pub fn pid(&self) -> Option<u32> {
        u32::try_from(self.state.pid).ok().filter(|pid| *pid != 0)
    }
}

/// One of `GET /networks`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkListed {
    #[serde(deserialize_with = "nullable")]
    id: String,
    #[serde(deserialize_with = "nullable")]
    driver: String,
    #[serde(deserialize_with = "nullable")]
    options: BTreeMap<String, Option<String>>,
}

impl NetworkListed {
    /// The bridge of this network on this host, if it has one.
    pub fn bridge(&self) -> Option<String> {
        if self.driver != "bridge" {
            return None;
        }
        match self.options.get("com.docker.network.bridge.name") {
            Some(Some(name)) if !name.is_empty() => Some(name.clone()),
            // How the bridge driver names it (libnetwork, `drivers/bridge`).
            _ => Some(format!("br-{}", self.id.get(..12)?)),
        }
    }
}

/// One line of `GET /events`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct EventLine {
    #[serde(rename = "Type", deserialize_with = "nullable")]
    kind: String,
    #[serde(deserialize_with = "nullable")]
    action: String,
    #[serde(deserialize_with = "nullable")]
    actor: Actor,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Actor {
    #[serde(rename = "ID", default, deserialize_with = "nullable")]
    id: String,
    #[serde(rename = "Attributes", default, deserialize_with = "nullable")]
    attributes: BTreeMap<String, Option<String>>,
}

/// What happened, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A container was made, renamed or changed, or joins a network; it may be about to start.
    Changed(String),
    /// Its first process runs.
    Started(String),
    /// Its first process ended.
    Ended(String),
    /// There is a network more, or one less.
    Networks,
    /// Anything else.
    Other,
}

impl Event {
    /// Reads a line of the stream of events.
    ///
    /// # Errors
    /// If it is not JSON of the form expected, or names no container where there must be one.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        let EventLine { kind, action, actor } = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        let id = |id: String| match is_container_id(&id) {
            true => Ok(id),
            false => Err(format!("`{action}` of {id:?}, which is no container id")),
        };
        match (kind.as_str(), action.as_str()) {
            ("container", "create" | "rename" | "update") => id(actor.id).map(Self::Changed),
            ("container", "start") => id(actor.id).map(Self::Started),
            ("container", "die" | "destroy") => id(actor.id).map(Self::Ended),
            // Interfaces tell when it leaves one.
            ("network", "connect") => {
                let container = actor.attributes.get("container").cloned().flatten();
                id(container.unwrap_or_default()).map(Self::Changed)
            }
            ("network", "create" | "destroy" | "remove") => Ok(Self::Networks),
            _ => Ok(Self::Other),
        }
    }
}

impl Listed {
    /// Whether its processes run, or are about to.
    pub fn is_alive(&self) -> bool {
        matches!(self.state.as_str(), "running" | "paused" | "restarting")
    }

    /// Whether it was made and never started.
    pub fn is_new(&self) -> bool {
        self.state == "created"
    }

    /// Whether the id is one: what follows puts it into paths.
    pub fn is_sound(&self) -> bool {
        is_container_id(&self.id)
    }

    /// What the container is. `image` is what the engine says of its image, if it does.
    pub fn unit(&self, image: Option<&Image>, namespace: Option<&str>) -> Unit {
        let networks: Vec<&str> = self.network_settings.networks.keys().map(String::as_str).collect();
        let (network, modes) = match self.host_config.network_mode.as_str() {
            "host" => (Network::Host, vec!["host"]),
            "none" => (Network::Own, vec!["none"]),
            mode if mode.starts_with("container:") => (Network::Shared, vec!["container"]),
            mode if networks.is_empty() => (Network::Own, vec![mode]),
            _ => (Network::Own, networks),
        };
        let name = self.names.iter().filter_map(|name| name.strip_prefix('/')).find(|name| !name.contains('/'));
        let name = name.unwrap_or_default();
        let mut own = Tags::new();
        value(&mut own, "@container:id", &self.id);
        value(&mut own, "@container:name", name);
        value(&mut own, "@container:image", &self.image);
        for digest in self.digests(image) {
            value(&mut own, "@container:digest", digest);
        }
        for mode in modes {
            value(&mut own, "@container:network", mode);
        }
        value(&mut own, "@container:runtime", "docker");
        let sifted = sift(self.labels.iter().map(|(key, value)| (key, value.as_deref().unwrap_or_default())));
        Unit {
            name: if name.is_empty() { self.id.chars().take(12).collect() } else { name.to_owned() },
            namespace: namespace.map(str::to_owned),
            tags: vec![(TagSource::Container, join(own, sifted.tags))],
            refused: sifted.refused,
            network,
        }
    }

    /// The image's digests in the registries it was pulled from; one that was never in any is known by its id.
    fn digests<'a>(&'a self, image: Option<&'a Image>) -> Vec<&'a str> {
        let pulled = image.map(|image| image.repo_digests.as_slice()).unwrap_or_default();
        let digests: Vec<&str> =
            pulled.iter().filter_map(|digest| digest.rsplit_once('@').map(|(_, digest)| digest)).collect();
        if digests.is_empty() { vec![&self.image_id] } else { digests }
    }
}

/// Go writes `null` for an empty map or list.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests;
