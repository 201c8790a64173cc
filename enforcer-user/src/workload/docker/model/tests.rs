use super::*;
use crate::workload::tags::TagError;

const ID: &str = "595e1e531f5918a94cb8feb157f67916e9520b1435013ecb2f2ba32b8834a21a";

fn listed(more: &str) -> Listed {
    let text = format!(
        r#"{{"Id":"{ID}","Names":["/other/alias","/web"],"Image":"shop/web:3","ImageID":"sha256:42e7","Labels":{{"app":"web","tier":"front"}},
            "State":"running","HostConfig":{{"NetworkMode":"shop"}},"NetworkSettings":{{"Networks":{{"shop":{{}},"extra":{{}}}}}},"Mounts":[]{more}}}"#
    );
    serde_json::from_str(&text).expect("a listed container")
}

fn tags(unit: &Unit) -> Vec<String> {
    let [(TagSource::Container, tags)] = unit.tags.as_slice() else { panic!("{unit:?}") };
    tags.iter().flat_map(|(key, values)| values.iter().map(move |value| format!("{key}={value}"))).collect()
}

#[test]
fn a_container_has_its_attributes_and_labels_as_tags() {
    let unit = listed("").unit(None, Some("/shop"));
    assert_eq!((unit.name.as_str(), unit.namespace.as_deref(), unit.network), ("web", Some("/shop"), Network::Own));
    let expected = [
        "@container:digest=sha256:42e7",
        &format!("@container:id={ID}"),
        "@container:image=shop/web:3",
        "@container:name=web",
        "@container:network=extra",
        "@container:network=shop",
        "@container:runtime=docker",
        "app=web",
        "tier=front",
    ];
    assert_eq!(tags(&unit), expected);
    assert!(unit.refused.is_empty());
}

#[test]
fn the_digest_is_the_registrys_if_there_is_one() {
    let image: Image =
        serde_json::from_str(r#"{"RepoDigests":["a.example/web@sha256:aa","b.example/web@sha256:bb","odd"]}"#).unwrap();
    let tags = tags(&listed("").unit(Some(&image), None));
    let digests: Vec<_> = tags.iter().filter(|tag| tag.starts_with("@container:digest=")).collect();
    assert_eq!(digests, ["@container:digest=sha256:aa", "@container:digest=sha256:bb"]);
}

#[test]
fn a_label_cannot_pose_as_the_enforcers_own_tag() {
    let labels = r#","Labels":{"@container:image":"bank:1","@k8s:namespace":"kube-system","app":"web","":"x"}"#;
    // The later of two fields would be an error: build the text anew.
    let text = format!(r#"{{"Id":"{ID}"{labels}}}"#);
    let unit = serde_json::from_str::<Listed>(&text).unwrap().unit(None, None);
    assert_eq!(unit.refused.len(), 3, "{:?}", unit.refused);
    assert!(unit.refused.contains(&TagError::Reserved("@k8s:namespace".into())));
    assert!(!tags(&unit).iter().any(|tag| tag.contains("bank") || tag.contains("kube-system")), "{unit:?}");
    assert!(tags(&unit).contains(&"app=web".to_owned()));
}

#[test]
fn network_modes() {
    for (mode, network, named) in [
        ("host", Network::Host, "host"),
        ("none", Network::Own, "none"),
        ("container:0123", Network::Shared, "container"),
        ("bridge", Network::Own, "bridge"),
    ] {
        let text = format!(r#"{{"Id":"{ID}","HostConfig":{{"NetworkMode":"{mode}"}}}}"#);
        let unit = serde_json::from_str::<Listed>(&text).unwrap().unit(None, None);
        assert_eq!(unit.network, network, "{mode}");
        assert!(tags(&unit).contains(&format!("@container:network={named}")), "{mode}: {unit:?}");
        assert_eq!(unit.name, "595e1e531f59", "without a name, the short id");
    }
}

#[test]
fn null_and_missing_are_empty() {
    let text = format!(
        r#"{{"Id":"{ID}","Names":null,"Labels":null,"HostConfig":null,"NetworkSettings":{{"Networks":null}},"State":null}}"#
    );
    let listed: Listed = serde_json::from_str(&text).unwrap();
    assert!(listed.is_sound() && !listed.is_alive());
    assert!(!Listed::default().is_sound());
    assert_eq!(Inspected::default().pid(), None);
    let pid = |text| serde_json::from_str::<Inspected>(text).unwrap().pid();
    assert_eq!((pid(r#"{"State":{"Pid":7}}"#), pid(r#"{"State":{"Pid":0}}"#)), (Some(7), None));
    assert_eq!((pid(r#"{"State":{"Pid":-1}}"#), pid(r#"{"State":{"Pid":99999999999}}"#)), (None, None));
}

#[test]
fn events() {
    let event = |kind: &str, action: &str, actor: &str| {
        Event::parse(format!(r#"{{"Type":"{kind}","Action":"{action}","Actor":{actor},"time":1}}"#).as_bytes())
    };
    let actor = format!(r#"{{"ID":"{ID}","Attributes":{{"image":"bb:1","name":"c1"}}}}"#);
    let id = || ID.to_owned();
    assert_eq!(event("container", "create", &actor), Ok(Event::Changed(id())));
    assert_eq!(event("container", "rename", &actor), Ok(Event::Changed(id())));
    assert_eq!(event("container", "start", &actor), Ok(Event::Started(id())));
    assert_eq!(event("container", "die", &actor), Ok(Event::Ended(id())));
    assert_eq!(event("container", "exec_start: sh -c true", &actor), Ok(Event::Other));
    let joined = format!(r#"{{"ID":"6cf8","Attributes":{{"container":"{ID}","name":"t1"}}}}"#);
    assert_eq!(event("network", "connect", &joined), Ok(Event::Changed(id())));
    assert_eq!(event("network", "disconnect", &joined), Ok(Event::Other));
    assert_eq!(event("network", "create", "null"), Ok(Event::Networks));
    assert_eq!(event("plugin", "enable", "null"), Ok(Event::Other));
    assert!(event("container", "start", r#"{"ID":"../../etc"}"#).is_err());
    assert!(event("network", "connect", "{}").is_err());
    assert!(Event::parse(b"").is_err() && Event::parse(b"{\"Type\":1}").is_err());
}

#[test]
fn bridges() {
    let bridge = |text: &str| serde_json::from_str::<NetworkListed>(text).unwrap().bridge();
    let id = "6cf8d762a3c96f3a7d95d29b1652cb91dd0b61805c1038418724e01fe5d15922";
    let named = r#"{"Id":"6cf8","Driver":"bridge","Options":{"com.docker.network.bridge.name":"docker0"}}"#;
    assert_eq!(bridge(named).as_deref(), Some("docker0"));
    let unnamed = format!(r#"{{"Id":"{id}","Driver":"bridge","Options":null}}"#);
    assert_eq!(bridge(&unnamed).as_deref(), Some("br-6cf8d762a3c9"));
    assert_eq!(bridge(r#"{"Id":"é","Driver":"bridge"}"#), None);
    assert_eq!(bridge(r#"{"Id":"6cf8","Driver":"host"}"#), None);
}
