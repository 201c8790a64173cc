use std::{
    path::PathBuf,
    sync::{Arc, LazyLock, Mutex},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;

use super::*;
use crate::facts::{
    Fault,
    jwks::KeySet,
    test_support::{Asked, Server, Signer, openssl, self_signed},
    unix_now,
};

const NOW: u64 = 1_800_000_000;

static SIGNER: LazyLock<Signer> = LazyLock::new(Signer::new);

fn flat(tags: &Tags) -> Vec<String> {
    tags.iter().flat_map(|(key, values)| values.iter().map(move |value| format!("{key}={value}"))).collect()
}

/// A directory with the certificates of two regions, and their keys outside of it.
struct Regions {
    directory: tempfile::TempDir,
}

impl Regions {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        std::fs::create_dir(directory.path().join("certificates")).expect("directory");
        for region in ["eu-test-1", "eu-test-2"] {
            self_signed(directory.path(), region, "2048");
            let pem = format!("{region}.pem");
            std::fs::copy(directory.path().join(&pem), directory.path().join("certificates").join(&pem))
                .expect("copied");
        }
        Self { directory }
    }

    fn certificates(&self) -> PathBuf {
        self.directory.path().join("certificates")
    }

    /// As the metadata server sends it: base64 in lines, without PEM's header.
    fn document(&self, signer: &str, region: &str) -> Vec<u8> {
        let document = json!({
            "accountId": "123456789012", "architecture": "x86_64", "availabilityZone": format!("{region}b"),
            "billingProducts": null, "marketplaceProductCodes": ["1abc2defghijklm3nopqrs4tu"], "imageId": "ami-5fb8c835",
            "instanceId": "i-1234567890abcdef0", "instanceType": "t2.micro", "pendingTime": "2016-11-19T16:32:11Z",
            "privateIp": "10.158.112.84", "region": region, "version": "2017-09-30",
        });
        self.sign(signer, document.to_string().as_bytes())
    }

    fn sign(&self, signer: &str, content: &[u8]) -> Vec<u8> {
        let (pem, key) = (format!("{signer}.pem"), format!("{signer}.key"));
        let args = ["cms", "-sign", "-binary", "-nodetach", "-stream", "-nocerts", "-md", "sha256", "-outform", "PEM"];
        let signed = openssl(self.directory.path(), &[&args[..], &["-signer", &pem, "-inkey", &key]].concat(), content);
        let text = String::from_utf8(signed).expect("PEM");
        text.lines().filter(|line| !line.starts_with("-----")).collect::<Vec<_>>().join("\n").into_bytes()
    }
}

#[test]
fn the_regions_signature_makes_tags() {
    let regions = Regions::new();
    let certificates = read_certificates(&regions.certificates()).expect("certificates");
    let statement = aws::verify(&regions.document("eu-test-1", "eu-test-1"), &certificates).expect("verified");
    assert_eq!(
        flat(&statement.tags),
        [
            "@cloud:account=123456789012",
            "@cloud:arch=x86_64",
            "@cloud:image=ami-5fb8c835",
            "@cloud:instance=i-1234567890abcdef0",
            "@cloud:product=1abc2defghijklm3nopqrs4tu",
            "@cloud:provider=aws",
            "@cloud:region=eu-test-1",
            "@cloud:type=t2.micro",
            "@cloud:zone=eu-test-1b",
        ]
    );
}

#[test]
fn another_regions_signature_and_anybody_elses_are_refused() {
    let regions = Regions::new();
    let certificates = read_certificates(&regions.certificates()).expect("certificates");
    let refused = |answer: &[u8], words: &str| {
        let error = aws::verify(answer, &certificates).expect_err(words);
        assert_eq!(error.fault, Fault::Untrusted, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(&regions.document("eu-test-2", "eu-test-1"), "names the region `eu-test-1`");
    // The same names and other keys.
    let other = Regions::new();
    refused(&other.document("eu-test-1", "eu-test-1"), "none of the configured certificates");
    let mut tampered = STANDARD
        .decode(regions.document("eu-test-1", "eu-test-1").split(|b| *b == b'\n').collect::<Vec<_>>().concat())
        .expect("base64");
    let at = tampered.windows(12).position(|window| window == b"123456789012").expect("the account");
    tampered[at] = b'9';
    refused(STANDARD.encode(tampered).as_bytes(), "");
    for content in [&b"{}"[..], b"[]", b"no JSON", b"{\"region\":\"\"}", b"{\"region\":[\"eu-test-1\"]}"] {
        let error = aws::verify(&regions.sign("eu-test-1", content), &certificates).expect_err("no document");
        assert_eq!(error.fault, Fault::Malformed, "{error}");
    }
}

fn config(provider: Provider, server: &Server, certificates: PathBuf) -> Cloud {
    Cloud {
        provider,
        endpoint: Some(server.url("")),
        certificates,
        timeout: Duration::from_millis(500),
        ..Cloud::default()
    }
}

#[test]
fn imds_is_asked_in_its_second_version() {
    let regions = Regions::new();
    let document = regions.document("eu-test-1", "eu-test-1");
    let server = Server::start(move |asked: &Asked| {
        let ok = |body: &[u8]| ("200 OK".to_owned(), String::new(), body.to_vec());
        let has = |header: &str| asked.headers.iter().any(|line| line == header);
        match asked.line.as_str() {
            "PUT /latest/api/token HTTP/1.1" if has("x-aws-ec2-metadata-token-ttl-seconds: 60") => ok(b"TOKEN==\n"),
            "GET /latest/dynamic/instance-identity/rsa2048 HTTP/1.1" if has("x-aws-ec2-metadata-token: token==") => {
                ok(&document)
            }
            _ => ("401 Unauthorized".into(), String::new(), Vec::new()),
        }
    });
    let source = Source::new(&config(Provider::Aws, &server, regions.certificates())).expect("a source");
    let statement = source.fetch(NOW).expect("fetched");
    assert!(statement.tags.contains_key("@cloud:instance"));
    assert_eq!(server.requests(), 2);
}

#[test]
fn a_silent_metadata_server_costs_one_timeout_and_the_error_knows_of_hop_limits() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let config = Cloud {
        provider: Provider::Aws,
        endpoint: Some(format!("http://{}", listener.local_addr().expect("an address"))),
        timeout: Duration::from_millis(200),
        ..Cloud::default()
    };
    let before = std::time::Instant::now();
    let error = Source::new(&config).expect("a source").fetch(NOW).expect_err("nobody answers");
    assert!(before.elapsed() < Duration::from_secs(2));
    assert_eq!(error.fault, Fault::Unreachable);
    for words in ["no answer within 200ms", "hop limit"] {
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn certificates_must_be_there() {
    for (files, words) in [(&[][..], "holds no certificate"), (&[("a.pem", "garbage")], "holds no certificate")] {
        let directory = tempfile::tempdir().expect("directory");
        files.iter().for_each(|(name, text)| std::fs::write(directory.path().join(name), text).expect("written"));
        let error = read_certificates(directory.path()).expect_err(words);
        assert_eq!(error.fault, Fault::Configuration);
        assert!(error.to_string().contains(words), "{error}");
    }
    let error = read_certificates(std::path::Path::new("/nonexistent")).expect_err("no directory");
    assert!(error.to_string().contains("cloud.certificates"), "{error}");
}

fn gcp_claims() -> serde_json::Value {
    json!({
        "iss": "https://accounts.google.com", "aud": "enforcer", "exp": NOW + 3600, "iat": NOW, "sub": "1104",
        "email": "web@acme.iam.gserviceaccount.com",
        "google": {"compute_engine": {
            "project_id": "acme-prod", "project_number": 739419398126_u64, "zone": "europe-west1-b",
            "instance_id": "152986662232938449", "instance_name": "web-1", "instance_creation_timestamp": 1_700_000_000,
        }},
    })
}

#[test]
fn googles_token_makes_tags() {
    let keys = KeySet::parse("keys", SIGNER.jwks().to_string().as_bytes()).expect("keys");
    let statement = gcp::verify(&SIGNER.token(&gcp_claims()), "enforcer", &keys, NOW).expect("verified");
    assert_eq!(
        flat(&statement.tags),
        [
            "@cloud:account=acme-prod",
            "@cloud:instance=152986662232938449",
            "@cloud:name=web-1",
            "@cloud:provider=gcp",
            "@cloud:region=europe-west1",
            "@cloud:serviceaccount=web@acme.iam.gserviceaccount.com",
            "@cloud:zone=europe-west1-b",
        ]
    );
    assert_eq!(statement.expires, Some(NOW + 3600));
    for (change, fault) in [
        (json!({"iss": "https://evil.example"}), Fault::Untrusted),
        (json!({"aud": "other"}), Fault::Untrusted),
        (json!({"exp": NOW - 61}), Fault::Expired),
        (json!({"google": null}), Fault::Malformed),
        (json!({"google": {"compute_engine": {"project_id": 1}}}), Fault::Malformed),
    ] {
        let mut claims = gcp_claims();
        let (name, value) = change.as_object().and_then(|change| change.iter().next()).expect("a change");
        claims[name] = value.clone();
        let error = gcp::verify(&SIGNER.token(&claims), "enforcer", &keys, NOW).expect_err(name);
        assert_eq!(error.fault, fault, "{change}: {error}");
    }
    let error = gcp::verify(&Signer::new().token(&gcp_claims()), "enforcer", &keys, NOW).expect_err("another key");
    assert_eq!(error.fault, Fault::Untrusted);
}

#[test]
fn googles_metadata_server_is_asked_for_everything() {
    let token = SIGNER.token(&gcp_claims());
    let server = Server::start(move |asked: &Asked| {
        let path = "/computeMetadata/v1/instance/service-accounts/default/identity?audience=enforcer&format=full";
        assert_eq!(asked.line, format!("GET {path} HTTP/1.1"));
        assert!(asked.headers.contains(&"metadata-flavor: google".to_owned()), "{:?}", asked.headers);
        ("200 OK".into(), String::new(), token.clone().into())
    });
    let keys = Server::fixed(SIGNER.jwks().to_string());
    let config = Cloud { jwks: keys.url("/certs"), ..config(Provider::Gcp, &server, "/nonexistent".into()) };
    assert!(Source::new(&config).expect("a source").fetch(NOW).is_ok());
}

/// Azure's: a root, an intermediate below it, and certificates of the metadata service and of somebody else.
struct Azure {
    directory: tempfile::TempDir,
}

const EXTENSIONS: &str = "[ca]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign\n\
    [metadata]\nsubjectAltName=DNS:eu.metadata.azure.com\nextendedKeyUsage=serverAuth\n\
    [evil]\nsubjectAltName=DNS:evilmetadata.azure.com\nextendedKeyUsage=serverAuth\n";

impl Azure {
    fn new() -> Self {
        let azure = Self { directory: tempfile::tempdir().expect("directory") };
        let directory = azure.directory.path();
        std::fs::write(directory.join("extensions"), EXTENSIONS).expect("written");
        std::fs::create_dir(azure.certificates()).expect("directory");
        let run = |args: &str| openssl(directory, &args.split(' ').collect::<Vec<_>>(), b"");
        run("req -x509 -newkey rsa:2048 -nodes -keyout root.key -out certificates/root.pem -days 30 -subj /CN=root");
        let issue = |name: &str, section: &str, ca: &str, ca_key: &str, out: &str| {
            run(&format!("req -new -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"));
            run(&format!(
                "x509 -req -in {name}.csr -CA {ca} -CAkey {ca_key} -CAcreateserial -days 30 -extfile extensions \
                 -extensions {section} -out {out}"
            ));
        };
        issue("between", "ca", "certificates/root.pem", "root.key", "certificates/between.pem");
        issue("metadata", "metadata", "certificates/between.pem", "between.key", "metadata.pem");
        issue("evil", "evil", "certificates/between.pem", "between.key", "evil.pem");
        self_signed(directory, "self", "2048");
        azure
    }

    fn certificates(&self) -> PathBuf {
        self.directory.path().join("certificates")
    }

    fn answer(&self, signer: &str, content: &serde_json::Value) -> Vec<u8> {
        let (pem, key) = (format!("{signer}.pem"), format!("{signer}.key"));
        let args = ["cms", "-sign", "-binary", "-nodetach", "-md", "sha256", "-outform", "DER"];
        let content = content.to_string();
        let signed = openssl(
            self.directory.path(),
            &[&args[..], &["-signer", &pem, "-inkey", &key]].concat(),
            content.as_bytes(),
        );
        json!({"encoding": "pkcs7", "signature": STANDARD.encode(signed)}).to_string().into()
    }
}

/// As the service writes times.
fn stamp(unix: u64) -> String {
    let text = humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + Duration::from_secs(unix)).to_string();
    format!("{}/{}/{} {} -0000", &text[5..7], &text[8..10], &text[2..4], &text[11..19])
}

fn attested(nonce: &str, now: u64) -> serde_json::Value {
    json!({
        "licenseType": "", "nonce": nonce, "plan": {"name": "", "product": "", "publisher": ""}, "sku": "22_04-lts",
        "subscriptionId": "8d10da13-8125-4ba9-a717-bf7490507b3d", "vmId": "960a4b4a-dab2-44ef-9b73-7753043b4f16",
        "timeStamp": {"createdOn": stamp(now - 5), "expiresOn": stamp(now + 3600)},
    })
}

#[test]
fn azures_attested_data_makes_tags_if_everything_is_right() {
    let azure = Azure::new();
    let now = unix_now();
    let certificates = read_certificates(&azure.certificates()).expect("certificates");
    let judge = |signer: &str, content: &serde_json::Value| {
        azure::verify(&azure.answer(signer, content), "0123456789", &certificates, now)
    };
    let statement = judge("metadata", &attested("0123456789", now)).expect("verified");
    assert_eq!(
        flat(&statement.tags),
        [
            "@cloud:account=8d10da13-8125-4ba9-a717-bf7490507b3d",
            "@cloud:instance=960a4b4a-dab2-44ef-9b73-7753043b4f16",
            "@cloud:provider=azure",
            "@cloud:sku=22_04-lts",
        ]
    );
    assert_eq!(statement.expires, Some(now + 3600));
    let refused = |signer: &str, content: serde_json::Value, fault: Fault, words: &str| {
        let error = judge(signer, &content).expect_err(words);
        assert_eq!(error.fault, fault, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    refused("evil", attested("0123456789", now), Fault::Untrusted, "is not signed by metadata.azure.com");
    refused("self", attested("0123456789", now), Fault::Untrusted, "without a trusted chain");
    refused("metadata", attested("9876543210", now), Fault::Untrusted, "nonce");
    refused("metadata", attested("0123456789", now - 4000), Fault::Expired, "expired");
    refused("metadata", attested("0123456789", now + 4000), Fault::Expired, "check the clock");
    let mut timeless = attested("0123456789", now);
    timeless["timeStamp"]["expiresOn"] = json!("tomorrow");
    refused("metadata", timeless, Fault::Malformed, "expiresOn");
    // Without the intermediate there is no chain.
    let root: Vec<_> = certificates.iter().filter(|found| found.name == "root").cloned().collect();
    let answer = azure.answer("metadata", &attested("0123456789", now));
    let error = azure::verify(&answer, "0123456789", &root, now).expect_err("no chain");
    assert!(error.to_string().contains("cloud.certificates"), "{error}");
}

#[test]
fn azure_is_asked_with_a_fresh_nonce_each_time() {
    let azure = Arc::new(Azure::new());
    let (signer, nonces) = (azure.clone(), Arc::new(Mutex::new(Vec::new())));
    let seen = nonces.clone();
    let server = Server::start(move |asked: &Asked| {
        let path = "GET /metadata/attested/document?api-version=2020-09-01&nonce=";
        let nonce = asked.line.strip_prefix(path).and_then(|rest| rest.strip_suffix(" HTTP/1.1")).expect("a nonce");
        assert!(asked.headers.contains(&"metadata: true".to_owned()));
        seen.lock().expect("a lock").push(nonce.to_owned());
        ("200 OK".into(), String::new(), signer.answer("metadata", &attested(nonce, unix_now())))
    });
    let source = Source::new(&config(Provider::Azure, &server, azure.certificates())).expect("a source");
    for _ in 0..2 {
        source.fetch(unix_now()).expect("verified");
    }
    let nonces = nonces.lock().expect("a lock").clone();
    assert!(nonces.iter().all(|nonce| nonce.len() == 10 && nonce.bytes().all(|byte| byte.is_ascii_digit())));
    assert_ne!(nonces[0], nonces[1]);
}
