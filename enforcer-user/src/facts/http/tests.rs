use std::{io::Write, net::TcpListener, sync::Arc, time::Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::*;
use crate::facts::{Fault, test_support::Server};

fn client() -> Client {
    Client { timeout: Duration::from_millis(500), limit: 1000, ca: "/nonexistent/ca.pem".into() }
}

#[test]
fn an_answer_arrives_with_its_validators() {
    let server = Server::start(|asked| {
        assert!(asked.headers.contains(&"x-mine: yes".to_owned()), "{:?}", asked.headers);
        ("200 OK".into(), "etag: \"1\"\r\nlast-modified: now\r\n".into(), b"body".to_vec())
    });
    let answer = client().get(&server.url("/a?b=c"), &[("x-mine", "yes")]).expect("an answer");
    let expected =
        Answer { status: 200, body: b"body".to_vec(), etag: Some("\"1\"".into()), last_modified: Some("now".into()) };
    assert_eq!(answer, expected);
    assert_eq!(server.asked.lock().expect("a lock")[0].line, "GET /a?b=c HTTP/1.1");
}

#[test]
fn redirects_errors_and_long_answers_are_refused() {
    let elsewhere = Server::fixed("elsewhere");
    let to = elsewhere.url("/");
    for (status, headers, length, fault, words) in [
        ("302 Found", format!("location: {to}\r\n"), 0, Fault::Unreachable, "redirects are not followed"),
        ("404 Not Found", String::new(), 3, Fault::Unreachable, "404"),
        ("200 OK", String::new(), 1001, Fault::Malformed, "longer than 1000 bytes"),
    ] {
        let server = Server::start(move |_| (status.into(), headers.clone(), vec![b'x'; length]));
        let error = client().get(&server.url("/"), &[]).expect_err(words);
        assert_eq!(error.fault, fault);
        assert!(error.to_string().contains(words), "{error}");
    }
    assert_eq!(elsewhere.requests(), 0);
}

#[test]
fn whoever_answers_slowly_or_never_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // A byte now and then must not keep it waiting.
            while stream.write_all(b"H").is_ok() {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    });
    let before = Instant::now();
    let error = client().get(&url, &[]).expect_err("no answer");
    assert!(before.elapsed() < Duration::from_secs(3), "{:?}", before.elapsed());
    assert_eq!(error.fault, Fault::Unreachable);
}

#[test]
fn addresses_are_judged_before_anybody_is_asked() {
    for wrong in ["", "keys.json", "ftp://host/", "http://", "http://user:secret@host/", "https:///path"] {
        let error = check_url(wrong).expect_err(wrong);
        assert_eq!(error.fault, Fault::Configuration);
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    for (url, protected) in [
        ("https://host.example/", true),
        ("http://localhost/", true),
        ("http://127.0.0.9:80/", true),
        ("http://[::1]:80/", true),
        ("http://host.example/", false),
        ("http://169.254.169.254/", false),
        ("http://localhost.evil.example/", false),
        ("http://127.0.0.1.evil.example/", false),
    ] {
        check_url(url).expect(url);
        assert_eq!(is_protected(url), protected, "{url}");
    }
}

#[test]
fn https_is_believed_only_if_its_authority_is() {
    let directory = tempfile::tempdir().expect("directory");
    let authority = |name: &str| {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let path = directory.path().join(name);
        std::fs::write(&path, params.self_signed(&key).expect("a certificate").pem()).expect("written");
        (path, Issuer::new(params, key))
    };
    let (trusted, issuer) = authority("trusted.pem");
    let (other, _) = authority("other.pem");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("a configuration");
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut tls = rustls::ServerConnection::new(config.clone()).expect("a connection");
            let mut tls = rustls::Stream::new(&mut tls, &mut stream);
            let _ = std::io::Read::read(&mut tls, &mut [0; 1024]);
            let _ = tls.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nkeys");
        }
    });
    let get = |ca: PathBuf, host: &str| Client { ca, ..client() }.get(&format!("https://{host}:{port}/"), &[]);
    assert_eq!(get(trusted.clone(), "localhost").expect("an answer").body, b"keys");
    assert_eq!(get(other, "localhost").expect_err("another authority").fault, Fault::Untrusted);
    assert_eq!(get(trusted, "127.0.0.1").expect_err("another name").fault, Fault::Untrusted);
    let error = get("/nonexistent/ca.pem".into(), "localhost").expect_err("no authorities");
    assert_eq!(error.fault, Fault::Configuration);
}
