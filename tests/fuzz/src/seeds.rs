//! Well-formed inputs to start from, and words that occur in them.

use std::sync::LazyLock;
use std::time::Duration;

use common::datagram::{COOKIE, Fields, OUT_OF_BAND, Trailer};
use common::wire::{CHALLENGE, CONFIRM, DENY, HELLO, HELLO_REPLY, OptionBytes, RESUME, RETRY};
use enforcer_user::identity::ca::{Authority, IssueOptions};
use enforcer_user::identity::credential::prepare;
use enforcer_user::identity::{EnforcerId, OwnIdentity, PublicPrekey, Tags, TrustProfile};

/// The time all of it is valid at, Unix seconds.
pub const NOW: u64 = 1_800_000_000;
/// The trust domain of all of it.
pub const TRUST_DOMAIN: &str = "acme.example";
const DAY: Duration = Duration::from_secs(86_400);

struct Issued {
    authority: Authority,
    certificate: Vec<u8>,
    profile: Vec<u8>,
    credential: Vec<u8>,
}

static ISSUED: LazyLock<Issued> = LazyLock::new(|| {
    let authority = Authority::generate("authority", NOW - 1000, DAY * 10).expect("an authority").0;
    let id = EnforcerId::new(TRUST_DOMAIN, "host-a").expect("an id");
    let issued = authority.issue(&IssueOptions::for_enforcer(&id, NOW - 500, DAY)).expect("a certificate");
    let own = OwnIdentity::from_pem(&issued.cert_pem, &issued.key_pem).expect("an identity");
    let mut tags = Tags::new();
    for (key, value) in
        [("app", "web"), ("user", "prod"), ("user", "ops"), ("image", "registry.acme.example/web:1.2.3")]
    {
        tags.entry(key.into()).or_default().insert(value.into());
    }
    let profile = TrustProfile {
        enforcer: id,
        pu: "web-1".into(),
        handle: 7,
        namespace: "/acme/prod".into(),
        tags,
        issued: NOW - 10,
        issued_ms: 0,
        expires: NOW + 300,
        prekey: PublicPrekey { key: [9; 32], epoch: NOW as u32 + 4000 },
    };
    let credential = prepare(&own, &profile).expect("a credential");
    Issued {
        certificate: own.certificate().to_vec(),
        profile: profile.to_json().expect("a profile").into_bytes(),
        credential: credential.bytes().to_vec(),
        authority,
    }
});

/// Who issued [`certificate`].
pub fn authority() -> &'static Authority {
    &ISSUED.authority
}

/// A credential that verifies at [`NOW`].
pub fn credential() -> &'static [u8] {
    &ISSUED.credential
}

/// The certificate in it, DER.
pub fn certificate() -> &'static [u8] {
    &ISSUED.certificate
}

/// An IPv4 SYN with these options, a multiple of four bytes and at most forty.
pub fn syn_with(options: &[u8]) -> Vec<u8> {
    segment(false, options, &[])
}

fn segment(v6: bool, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let tcp_len = 20 + options.len() + payload.len();
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((tcp_len as u16).to_be_bytes());
        frame.extend([6, 64]);
        frame.extend([0xfd; 32]);
    } else {
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((20 + tcp_len as u16).to_be_bytes());
        frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    }
    frame.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0]);
    frame.extend([((20 + options.len()) << 2) as u8, 2, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend(options);
    frame.extend(payload);
    frame
}

fn ours(packet_type: u8) -> [u8; 20] {
    let option = OptionBytes::new(packet_type, 3, 0x1234, 0x89ab_cdef, 0x0123_4567_89ab_cdef);
    let mut bytes = vec![option.kind, option.len];
    bytes.extend(option.exid);
    bytes.extend([option.version_type, option.flags]);
    bytes.extend(option.handle);
    bytes.extend(option.index);
    bytes.extend(option.mac);
    bytes.try_into().expect("twenty bytes")
}

/// Options of ordinary SYNs, with and without ours.
pub fn options() -> Vec<Vec<u8>> {
    let ordinary = [2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
    let types = [HELLO, HELLO_REPLY, RESUME, CONFIRM, RETRY, DENY];
    let mut options: Vec<Vec<u8>> = types.map(|kind| [&ordinary[..], &ours(kind)].concat()).into();
    options.push(ordinary.to_vec());
    options.push(ours(HELLO).to_vec());
    options
}

/// Frames of both families.
pub fn frames() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for v6 in [false, true] {
        frames.push(segment(v6, &[], b"GET / HTTP/1.0\r\n\r\n"));
        frames.extend(options().iter().map(|options| segment(v6, options, &ISSUED.credential)));
    }
    frames
}

/// Datagrams of both families, with and without trailer.
pub fn datagrams() -> Vec<Vec<u8>> {
    let mut datagrams = Vec::new();
    for v6 in [false, true] {
        for proto in [17, if v6 { 58 } else { 1 }] {
            for kind in [0, HELLO, HELLO_REPLY, RESUME, RETRY, DENY] {
                let before: &[u8] = if kind == HELLO { &ISSUED.credential } else { b"GET / HTTP/1.0" };
                let fields = Fields { packet_type: kind, len: before.len() as u16, index: 7, ..Fields::default() };
                let trailer = if kind == 0 { Vec::new() } else { Trailer::new(&fields, 9).bytes().to_vec() };
                datagrams.push(datagram(v6, proto, &[before, &trailer].concat()));
            }
        }
        let wanted = [&443_u16.to_be_bytes()[..], &ISSUED.credential].concat();
        for (packet_type, flags, before) in
            [(HELLO, 0, &wanted[..]), (HELLO, COOKIE, &wanted), (CONFIRM, 0, &wanted[..2]), (CHALLENGE, 0, &[])]
        {
            let flags = if packet_type == CHALLENGE { 0 } else { OUT_OF_BAND | flags };
            let fields = Fields { packet_type, flags, len: before.len() as u16, ..Fields::default() };
            datagrams.push(datagram(v6, 17, &[before, &Trailer::new(&fields, 9).bytes()].concat()));
        }
    }
    datagrams
}

fn datagram(v6: bool, proto: u8, payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    let mut frame = segment(v6, &[], &[]);
    frame.truncate(if v6 { 54 } else { 34 });
    if v6 {
        frame[18..20].copy_from_slice(&len.to_be_bytes());
        frame[20] = proto;
    } else {
        frame[16..18].copy_from_slice(&(20 + len).to_be_bytes());
        frame[23] = proto;
    }
    match proto {
        17 => frame.extend([0x9c, 0x40, 0, 53]),
        58 => frame.extend([128, 0, 0, 0]),
        _ => frame.extend([8, 0, 0, 0]),
    }
    frame.extend(len.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

/// Credentials.
pub fn credentials() -> Vec<Vec<u8>> {
    vec![ISSUED.credential.clone()]
}

/// Certificates: an enforcer's and an authority's.
pub fn certificates() -> Vec<Vec<u8>> {
    vec![ISSUED.certificate.clone(), ISSUED.authority.certificate().to_vec()]
}

/// Trust Profiles.
pub fn profiles() -> Vec<Vec<u8>> {
    vec![ISSUED.profile.clone()]
}

/// Rules, a line each.
pub fn rules() -> Vec<Vec<u8>> {
    [
        "allow app=myapp user=prod -> app=hadoop user=prod tcp/8020,9000-9010 encrypt log",
        "deny any -> any",
        "allow group in (admins, \"ops team\") user!=guest or root -> app not in (a,b) !quarantine udp/53 icmp/8",
        "allow image=registry.acme.example/* -> net 10.0.0.0/8, fd00::/8 except 10.1.0.0/16 tcp/443 observe",
        "pass app=a -> net intranet.",
        "pass app=a -> net example.org,*.example.net except 10.0.0.0/8 tcp/443 egress until 2026-12-31T23:59:59Z log",
        "allow net 0.0.0.0/0 -> 'odd key'=\"a\\\"b\" tcp icmp6",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

/// DNS messages: a question, and an answer with another name, an address and a service record.
pub fn dns() -> Vec<Vec<u8>> {
    const NAME: &[u8] = b"\x01a\x03org\x00";
    let question = [b"\x00\x05\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00", NAME, b"\x00\x01\x00\x01"].concat();
    let answer = [
        b"\x00\x05\x81\x80\x00\x01\x00\x03\x00\x00\x00\x00",
        NAME,
        b"\x00\x41\x00\x01",
        b"\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x3c\x00\x04\x01b\xc0\x0e",
        b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x01",
        b"\xc0\x0c\x00\x41\x00\x01\x00\x00\x00\x3c\x00\x0b\x00\x01\x00\x00\x04\x00\x04\xc0\x00\x02\x02",
    ]
    .concat();
    vec![question, answer]
}

/// Policy files.
pub fn policy_files() -> Vec<Vec<u8>> {
    [
        "name: decree\nrules:\n  # why\n  - hadoop: allow app=hadoop user=prod -> app=hadoop user=prod tcp/8020,9000-9010\n  - deny any -> app=db tcp/5432\n",
        "name: p\nnamespace: /acme/prod\nrules:\n  - \"allow a=b -> c=d\"\n  - x: 'allow net 10.0.0.0/8 except 10.1.0.0/16 -> any tcp/443 log'\n",
        "name: long\nrules:\n  - r: >\n      allow app=web\n      -> app=db tcp/5432\n  - |\n      allow any -> any\n",
        "name: cluster\nnamespace: /k8s\ntier: admin\npriority: 10\nrules:\n  - pass any -> app=db ingress\n  - {action: deny, from: any, to: any, ends: egress, until: 2026-12-31T23:59:59Z}\n",
        "name: p\nrules: []\n---\nname: q\nrules: [allow any -> any]\n",
        "name: &a p\nrules: [*a, {b: allow any -> any}]\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

/// Kubernetes manifests.
pub fn manifests() -> Vec<Vec<u8>> {
    [
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: db, namespace: shop}\nspec:\n  podSelector: {matchLabels: {app: db}}\n  policyTypes: [Ingress, Egress]\n  ingress:\n  - from:\n    - podSelector: {matchExpressions: [{key: app, operator: In, values: [web, api]}]}\n    - ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}\n    ports: [{port: 5432, endPort: 5440}, {protocol: UDP, port: 53}]\n",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: any, namespace: shop}\nspec: {podSelector: {}, egress: [{to: [{namespaceSelector: {matchLabels: {team: a}}}], ports: [{port: http}]}]}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: a}}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: w, namespace: shop, labels: {app: w}}\nspec: {containers: [{ports: [{name: http, containerPort: 80}]}]}\n",
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: c}\nspec:\n  tier: Admin\n  priority: 5\n  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: db}}}}\n  ingress: [{name: a, action: Pass, from: [{namespaces: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [x]}]}}]}]\n  egress: [{action: Accept, to: [{networks: [203.0.113.0/24]}, {domainNames: ['*.example.org']}], protocols: [{tcp: {destinationPort: {range: {start: 1, end: 9}}}}]}]\n",
        "{\"kind\":\"List\",\"apiVersion\":\"v1\",\"items\":[{\"apiVersion\":\"networking.k8s.io/v1\",\"kind\":\"NetworkPolicy\",\"metadata\":{\"name\":\"p\"},\"spec\":{\"ingress\":[{}]}}]}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

/// Configurations.
pub fn configs() -> Vec<Vec<u8>> {
    [
        "",
        "name = 'h1'\nnamespace = '/acme'\n[identity]\nclock_skew = '2m'\nnetworks = ['10.0.0.0/8', 'fd00::/8']\n[datapath]\nxdp = 'native'\nmax_flows = 1024\ninterfaces = ['eth0']\nunmanaged = \"deny\"\n[log]\nformat = 'json'\n",
        "[paths]\nbpffs = \"/sys/fs/bpf/enforcer\"\nsocket = '/run/e.sock'\n[metrics]\nlisten = \"127.0.0.1:9464\"\n[policy]\npaths = [\"/etc/enforcer/policy.d\"]\n",
        "[datapath]\nagent_timeout = \"3s\"\nhandshake_ring_bytes = 4_194_304\ntap = 'enf0'\nstrangers = 'reject'\n[identity]\nca = ['a.crt']\nprekey_rotation = '1h'\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

/// Requests on the admin socket.
pub fn admin_requests() -> Vec<Vec<u8>> {
    [
        r#"{"op":"status"}"#,
        r#"{"op":"flows","limit":10}"#,
        r#"{"op":"forget","peer":"spiffe://acme.example/enforcer/a"}"#,
        r#"{"op":"pu_add","target":{"cgroup":"/sys/fs/cgroup/a"},"name":"web","namespace":null,"tags":[["app","web"],["user","prod"]]}"#,
        r#"{"op":"pu_add","target":"command","name":null,"namespace":"/a/b","tags":[]}"#,
        r#"{"op":"pu_remove","pu":"7"}"#,
        r#"{"op":"explain","subject":{"pu":{"namespace":"/a","tags":{"app":["web"]}}},"object":{"external":{"networks":["10.0.0.0/8"]}},"protocol":6,"port":443}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

/// A user's token that is valid at [`NOW`]; its key is thrown away.
pub const TOKEN: &str = include_str!("../data/user-token.jwt");
/// The public key of its issuer.
pub const ISSUER_KEYS: &[u8] = include_bytes!("../data/issuer.jwks.json");
/// An EC2 instance identity document, signed by the key of [`REGION_CERTIFICATE`], which is thrown away. BER of indefinite length.
pub const IDENTITY_DOCUMENT: &[u8] = include_bytes!("../data/identity-document.p7");
/// The certificate of the region `eu-test-1`, DER.
pub const REGION_CERTIFICATE: &[u8] = include_bytes!("../data/eu-test-1.der");

/// User tokens.
pub fn tokens() -> Vec<Vec<u8>> {
    vec![TOKEN.as_bytes().to_vec()]
}

/// Signed statements of clouds.
pub fn cloud_documents() -> Vec<Vec<u8>> {
    vec![IDENTITY_DOCUMENT.to_vec()]
}

/// Answers of plugins.
pub fn plugin_answers() -> Vec<Vec<u8>> {
    [r#"{"tags":{}}"#, r#"{"tags":{"owner":"ops","tier":["1","gold"],"@user:sub":"root"}}"#]
        .map(|text| text.as_bytes().to_vec())
        .into()
}

/// Documents of a feed.
pub fn feeds() -> Vec<Vec<u8>> {
    let digest = "0123456789abcdef".repeat(4);
    [
        r#"{"version":1,"entries":[]}"#.to_owned(),
        format!(r#"{{"version":1,"entries":[{{"image":"sha256:{digest}","cve":["CVE-2024-1"],"severity":"high","score":7.5}}]}}"#),
        format!(r#"{{"version":1,"entries":[{{"binary":"sha256:{digest}","threat":["miner"]}},{{"binary":"sha256:{digest}"}}]}}"#),
    ]
    .map(String::into_bytes)
    .into()
}

/// Lines of flow records.
pub fn records() -> Vec<Vec<u8>> {
    [
        r#"{"v":1,"role":"server","from":{"pu":"h1/web","namespace":"/shop","tags":{"app":["web"]}},"to":{"pu":"h2/db","namespace":"/shop","tags":{"app":["db"],"id":["0123456789abcdef"]}},"proto":"tcp","port":5432,"verdict":"allow","path":"resume","flows":12,"rtt_us":181}"#,
        r#"{"v":1,"role":"client","from":{"namespace":"/","tags":{"a":["b","c"]}},"to":{"address":"192.0.2.7","fqdn":["api.example"]},"proto":"udp","port":53,"verdict":"deny","observed":{"by":"rule","verdict":"allow","reason":"allowed"}}"#,
        r#"{"v":1,"role":"server","from":{"address":"2001:db8::1"},"to":{"namespace":"/","tags":{}},"proto":"47","port":0,"verdict":"allow"}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

/// Answers and events of a Docker engine.
pub fn docker() -> Vec<Vec<u8>> {
    let id = "595e1e531f5918a94cb8feb157f67916e9520b1435013ecb2f2ba32b8834a21a";
    let container = format!(
        r#"[{{"Id":"{id}","Names":["/web"],"Image":"shop/web:3","ImageID":"sha256:{id}","Labels":{{"app":"web","@k8s:pod":"x"}},"State":"running","HostConfig":{{"NetworkMode":"shop"}},"NetworkSettings":{{"Networks":{{"shop":{{}}}}}}}}]"#
    );
    let event = |kind: &str, action: &str, actor: &str, container: &str| {
        format!(
            r#"{{"Type":"{kind}","Action":"{action}","Actor":{{"ID":"{actor}","Attributes":{{"container":"{container}","image":"bb:1","name":"c1"}}}},"time":1}}"#
        )
    };
    let events = [
        event("container", "create", id, ""),
        event("network", "connect", "6cf8", id),
        event("container", "start", id, ""),
        event("container", "die", id, ""),
        event("network", "create", "6cf8", ""),
    ];
    let networks = format!(
        r#"[{{"Id":"{id}","Driver":"bridge","Options":{{"com.docker.network.bridge.name":"docker0"}}}},{{"Id":"{id}","Driver":"bridge","Options":null}}]"#
    );
    let single = format!(r#"{{"Id":"{id}","State":{{"Running":true,"Pid":77}},"RepoDigests":["a/b@sha256:{id}"]}}"#);
    [container, events.join("\n") + "\n", networks, single].map(String::into_bytes).into()
}

/// Answers of a container runtime.
pub fn cri() -> Vec<Vec<u8>> {
    use enforcer_user::workload::cri::proto;
    use prost::Message;
    let id = "595e1e531f5918a94cb8feb157f67916e9520b1435013ecb2f2ba32b8834a21a".to_owned();
    let labels = [("app", "web"), ("@k8s:namespace", "kube-system"), ("io.kubernetes.pod.name", "web-7")];
    let metadata = proto::PodSandboxMetadata {
        name: "web-7".into(),
        uid: "12345678-1234-4234-8234-123456789abc".into(),
        namespace: "shop".into(),
        attempt: 1,
    };
    let pod = proto::PodSandbox {
        id: id.clone(),
        metadata: Some(metadata),
        state: proto::SANDBOX_READY,
        labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
    };
    let container = proto::Container {
        id: id.clone(),
        pod_sandbox_id: id.clone(),
        metadata: Some(proto::ContainerMetadata { name: "web".into(), attempt: 0 }),
        image: Some(proto::ImageSpec { image: "shop/web:3".into() }),
        image_ref: format!("shop/web@sha256:{id}"),
        state: proto::CONTAINER_RUNNING,
    };
    let options = proto::NamespaceOption { network: proto::NAMESPACE_NODE, pid: 1, ipc: 0 };
    let linux = proto::LinuxPodSandboxStatus { namespaces: Some(proto::Namespaces { options: Some(options) }) };
    let status = proto::PodSandboxStatusResponse {
        status: Some(proto::PodSandboxStatus { id, linux: Some(linux) }),
        info: [("info".to_owned(), r#"{"pid":77}"#.to_owned())].into(),
    };
    vec![
        proto::ListPodSandboxResponse { items: vec![pod] }.encode_to_vec(),
        proto::ListContainersResponse { containers: vec![container] }.encode_to_vec(),
        status.encode_to_vec(),
        b"e30.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQ6c2hvcDpzZWxsZXIifQ.c2ln".to_vec(),
    ]
}

/// Words that mean something to one parser or another.
pub const WORDS: &[&str] = &[
    "allow",
    "deny",
    " -> ",
    "any",
    "net ",
    "except ",
    " in (",
    " not in (",
    "observe",
    "log",
    "encrypt",
    "tcp/",
    "udp/",
    "icmp/",
    "!=",
    "=",
    "*",
    "\"",
    "'",
    "\\",
    "(",
    ")",
    ",",
    "\n",
    "\r\n",
    "\t",
    "  - ",
    "- ",
    ": ",
    "#",
    "&a ",
    "*a",
    "!!str ",
    "|",
    ">",
    "---\n",
    "...\n",
    "? ",
    "{",
    "}",
    "[",
    "]",
    "[[",
    "]]",
    "null",
    "true",
    "-1",
    "0x7f",
    "1e999",
    "18446744073709551616",
    "65536",
    "::/0",
    "0.0.0.0/0",
    "/129",
    "\u{0}",
    "\u{feff}",
    "\u{85}",
    "\u{2028}",
    "é",
    "\u{10ffff}",
    "name",
    "rules",
    "namespace",
    "[identity]",
    "[datapath]",
    "\"op\":",
    "\"tags\":",
    "\\u0000",
    "\\ud800",
];
