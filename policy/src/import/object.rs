//! The objects of the files, whatever their kind.

use super::labels::{Labels, is_dns_name, read_labels};
use super::place::{Fields, Place, Read};
use crate::parse::yaml_tree::{Content, Node};

const METADATA: [&str; 15] = [
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
];

/// An object before its kind's fields are read.
pub(super) struct Object<'a> {
    pub api_version: String,
    pub kind: String,
    /// The namespace it says it is in.
    pub namespace: Option<String>,
    pub name: String,
    pub labels: Labels,
    pub place: Place<'a>,
}

impl<'a> Object<'a> {
    /// Reads what all objects have; lists give their items to `each`.
    pub fn read_all(document: &'a Node, each: &mut dyn FnMut(Read<Object<'a>>)) {
        if matches!(&document.content, Content::Scalar(scalar) if scalar.is_null()) {
            return;
        }
        let place = Place::of_object("object", document);
        let items = || -> Read<Option<Vec<Place<'a>>>> {
            let fields = place.any_fields()?;
            let kind = fields.require("kind")?.string()?;
            if !kind.ends_with("List") || fields.get("items").is_none() {
                return Ok(None);
            }
            let fields = place.fields(&["apiVersion", "kind", "metadata", "items"])?;
            Ok(Some(fields.items("items")?))
        };
        match items() {
            Ok(None) => each(Self::read(document)),
            // Lists of lists do not exist, so there is no depth to bound.
            Ok(Some(items)) => items.iter().for_each(|item| each(Self::read(item.node()))),
            Err(error) => each(Err(error)),
        }
    }

    fn read(node: &'a Node) -> Read<Self> {
        let unnamed = Place::of_object("object", node);
        let fields = unnamed.any_fields()?;
        let kind = fields.require("kind")?.string()?;
        let api_version = fields.require("apiVersion")?.string()?;
        let metadata = Place::of_object(kind, node).any_fields()?.require("metadata")?.fields(&METADATA)?;
        let name = text(&metadata, "name")?;
        let namespace = text(&metadata, "namespace")?;
        let Some(name) = name else {
            return Err(metadata.place().error("without `name`: expected that field"));
        };
        let title = match &namespace {
            Some(namespace) => format!("{kind} {namespace}/{name}"),
            None => format!("{kind} {name}"),
        };
        let labels = metadata.get("labels").map_or(Ok(Labels::new()), |labels| read_labels(&labels))?;
        Ok(Self {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            namespace,
            name,
            labels,
            place: Place::of_object(&title, node),
        })
    }

    /// Refuses names that no API server takes: those of policies become names of ours.
    pub fn check_names(&self) -> Read<()> {
        for (what, name) in [("name", Some(&self.name)), ("namespace", self.namespace.as_ref())] {
            let dots = what == "name";
            if let Some(name) = name.filter(|name| !is_dns_name(name) || (!dots && name.contains('.'))) {
                return Err(self.place.error(format!(
                    "metadata.{what}: `{name}` is not a {what}: expected lower-case letters, digits, `-`{}",
                    if dots { " and `.`" } else { "" }
                )));
            }
        }
        Ok(())
    }

    /// The fields of the object, all of which must be known.
    pub fn fields(&self, own: &[&str]) -> Read<Fields<'a>> {
        let known: Vec<&str> = ["apiVersion", "kind", "metadata"].into_iter().chain(own.iter().copied()).collect();
        self.place.fields(&known)
    }
}

fn text(metadata: &Fields, key: &str) -> Read<Option<String>> {
    let Some(place) = metadata.get(key) else {
        return Ok(None);
    };
    place.string().map(|text| Some(text.to_owned()))
}
