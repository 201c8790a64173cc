use std::collections::HashMap;

use super::*;
use crate::workload::cri::proto::{
    ContainerMetadata, ImageSpec, LinuxPodSandboxStatus, NamespaceOption, Namespaces, PodSandboxMetadata,
    PodSandboxStatus,
};

fn pod() -> PodSandbox {
    let labels = [("app", "web"), ("io.kubernetes.pod.name", "web-7"), ("@k8s:namespace", "kube-system")];
    PodSandbox {
        id: "a".repeat(64),
        metadata: Some(PodSandboxMetadata {
            name: "web-7".into(),
            uid: "1234-abcd".into(),
            namespace: "shop".into(),
            attempt: 0,
        }),
        state: SANDBOX_READY,
        labels: labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
    }
}

fn container(digit: &str, name: &str, image: &str, image_ref: &str) -> Container {
    Container {
        id: digit.repeat(64),
        pod_sandbox_id: "a".repeat(64),
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(ImageSpec { image: image.into() }),
        image_ref: image_ref.into(),
        state: CONTAINER_RUNNING,
    }
}

fn flat(tags: &Tags) -> Vec<String> {
    tags.iter().flat_map(|(key, values)| values.iter().map(move |value| format!("{key}={value}"))).collect()
}

#[test]
fn a_pod_is_one_unit_with_the_tags_of_all_its_containers() {
    let pod = pod();
    let all = [
        container("1", "web", "shop/web:3", "r.example/web@sha256:aa"),
        container("2", "proxy", "proxy:1", "sha256:bb"),
        Container { pod_sandbox_id: "b".repeat(64), ..container("3", "other", "x", "y") },
        Container { state: 2, ..container("4", "ended", "x", "y") },
    ];
    let inside: Vec<_> = containers_of(&pod, &all).collect();
    assert_eq!(inside.len(), 2);
    let unit = unit(&pod, &inside, &Status::default(), "containerd", Some("seller"), Some("/c/{namespace}"));
    assert_eq!((unit.name.as_str(), unit.namespace.as_deref()), ("shop/web-7", Some("/c/shop")));
    let [(TagSource::Pod, of_pod), (TagSource::Container, inside)] = unit.tags.as_slice() else { panic!("{unit:?}") };
    let expected = ["@k8s:namespace=shop", "@k8s:pod=web-7", "@k8s:serviceaccount=seller", "app=web"];
    assert_eq!(flat(of_pod), expected);
    assert_eq!(unit.refused.len(), 1, "a label poses as the namespace: {:?}", unit.refused);
    let expected = [
        "@container:digest=sha256:aa".to_owned(),
        "@container:digest=sha256:bb".into(),
        format!("@container:id={}", pod.id),
        "@container:image=proxy:1".into(),
        "@container:image=shop/web:3".into(),
        "@container:name=proxy".into(),
        "@container:name=web".into(),
        "@container:network=pod".into(),
        "@container:runtime=containerd".into(),
    ];
    assert_eq!(flat(inside), expected);
}

#[test]
fn a_namespace_that_is_none_does_not_leave_its_place() {
    for odd in ["", "../prod", "a/b", "Ä", "x y"] {
        assert_eq!(segment(odd), "invalid", "{odd}");
    }
    assert_eq!(segment("kube-system"), "kube-system");
}

#[test]
fn host_network_and_process_come_from_the_status() {
    let options = |network| NamespaceOption { network, pid: 0, ipc: 0 };
    let response = |network, info: &str| PodSandboxStatusResponse {
        status: Some(PodSandboxStatus {
            id: String::new(),
            linux: Some(LinuxPodSandboxStatus { namespaces: Some(Namespaces { options: Some(options(network)) }) }),
        }),
        info: HashMap::from([("info".to_owned(), info.to_owned())]),
    };
    let host = status(&response(NAMESPACE_NODE, r#"{"pid":77,"image":"pause"}"#));
    assert_eq!(host, Status { host_network: true, pid: Some(77) });
    for info in ["", "[]", "{}", r#"{"pid":0}"#, r#"{"pid":-5}"#, r#"{"pid":"x"}"#] {
        assert_eq!(status(&response(0, info)), Status::default(), "{info}");
    }
    assert_eq!(status(&PodSandboxStatusResponse::default()), Status::default());
}

#[test]
fn only_ready_sandboxes_with_sound_ids_count() {
    assert!(is_live(&pod()));
    assert!(!is_live(&PodSandbox { state: 1, ..pod() }));
    assert!(!is_live(&PodSandbox { id: "../x".into(), ..pod() }));
}

#[test]
fn tokens_are_found_where_kubelet_puts_them() {
    let kubelet = tempfile::tempdir().unwrap();
    let volume = |name: &str, file: &str| {
        let path = kubelet.path().join("pods/1234-abcd/volumes/kubernetes.io~projected").join(name);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join(file), name).unwrap();
    };
    assert_eq!(tokens(kubelet.path(), &pod()), [""; 0]);
    volume("kube-api-access-x", "token");
    volume("certificates", "ca.crt");
    assert_eq!(tokens(kubelet.path(), &pod()), ["kube-api-access-x"]);
    let mut other = pod();
    other.metadata.as_mut().unwrap().uid = "../1234-abcd".into();
    assert_eq!(tokens(kubelet.path(), &other), [""; 0]);
    volume("vault", "token");
    assert_eq!(tokens(kubelet.path(), &pod()).len(), 2);
}
