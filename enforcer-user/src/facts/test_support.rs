//! Keys, tokens and servers that tests make for themselves.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair, RsaPublicKeyComponents},
};
use serde_json::{Value, json};

/// Runs openssl, which has nothing in common with what is tested.
pub fn openssl(directory: &Path, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(args)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl runs");
    child.stdin.take().expect("stdin").write_all(input).expect("input is taken");
    let output = child.wait_with_output().expect("openssl ends");
    assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// `NAME.key` and the self-signed `NAME.pem` in a directory.
pub fn self_signed(directory: &Path, name: &str, bits: &str) {
    let (key, pem, subject) = (format!("{name}.key"), format!("{name}.pem"), format!("/CN=ec2.{name}.example"));
    let key_kind = format!("rsa:{bits}");
    openssl(
        directory,
        &[
            "req", "-x509", "-newkey", &key_kind, "-nodes", "-keyout", &key, "-out", &pem, "-days", "30", "-subj",
            &subject,
        ],
        b"",
    );
}

/// An issuer with one key of each kind.
pub struct Signer {
    rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    ed25519: Ed25519KeyPair,
}

impl Signer {
    pub fn new() -> Self {
        let random = SystemRandom::new();
        let key = ["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-outform", "DER"];
        let rsa = RsaKeyPair::from_der(&openssl(Path::new("/"), &key, b"")).expect("an RSA key");
        let algorithm = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let p256 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a P-256 key");
        let p256 = EcdsaKeyPair::from_pkcs8(algorithm, p256.as_ref(), &random).expect("a P-256 key");
        let ed25519 = Ed25519KeyPair::generate_pkcs8(&random).expect("an Ed25519 key");
        let ed25519 = Ed25519KeyPair::from_pkcs8(ed25519.as_ref()).expect("an Ed25519 key");
        Self { rsa, p256, ed25519 }
    }

    /// The public halves, with the ids `rsa`, `p256` and `ed`.
    pub fn jwks(&self) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let rsa = RsaPublicKeyComponents::<Vec<u8>>::from(self.rsa.public());
        let point = self.p256.public_key().as_ref();
        json!({"keys": [
            {"kty": "RSA", "kid": "rsa", "use": "sig", "alg": "RS256", "n": text(&rsa.n), "e": text(&rsa.e)},
            {"kty": "EC", "kid": "p256", "crv": "P-256", "x": text(&point[1..33]), "y": text(&point[33..])},
            {"kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": text(self.ed25519.public_key().as_ref())},
            {"kty": "oct", "kid": "secret", "k": text(b"shared with everybody")},
        ]})
    }

    pub fn rs256(&self, message: &[u8]) -> Vec<u8> {
        let mut signature = vec![0; self.rsa.public().modulus_len()];
        self.rsa
            .sign(&signature::RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
            .expect("a signature");
        signature
    }

    pub fn es256(&self, message: &[u8]) -> Vec<u8> {
        self.p256.sign(&SystemRandom::new(), message).expect("a signature").as_ref().into()
    }

    pub fn eddsa(&self, message: &[u8]) -> Vec<u8> {
        self.ed25519.sign(message).as_ref().into()
    }

    /// An RS256 token.
    pub fn token(&self, claims: &Value) -> String {
        token(&json!({"alg": "RS256", "kid": "rsa", "typ": "JWT"}), claims, |message| self.rs256(message))
    }
}

/// A token with whatever header and signature.
pub fn token(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(header), part(claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// A request as [`Server`] got it: its first line, and its header lines in lower case.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    pub line: String,
    pub headers: Vec<String>,
}

/// An HTTP server on loopback; it lives as long as the test's process.
pub struct Server {
    pub address: SocketAddr,
    pub count: Arc<AtomicUsize>,
    pub asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    /// `answer` gives status line, extra header lines and body.
    pub fn start(answer: impl Fn(&Asked) -> (String, String, Vec<u8>) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let server =
            Self { address: listener.local_addr().expect("an address"), count: Arc::default(), asked: Arc::default() };
        let (count, log) = (server.count.clone(), server.asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
                let mut lines = reader.by_ref_lines();
                let asked =
                    Asked { line: lines.remove(0), headers: lines.iter().map(|line| line.to_lowercase()).collect() };
                count.fetch_add(1, Ordering::SeqCst);
                log.lock().expect("a lock").push(asked.clone());
                let (status, headers, body) = answer(&asked);
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
                let mut stream = stream;
                let _ = stream.write_all(&[head.as_bytes(), &body].concat());
            }
        });
        server
    }

    /// Answers everything with this.
    pub fn fixed(body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self::start(move |_| ("200 OK".into(), String::new(), body.clone()))
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn requests(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

trait Lines {
    /// The lines up to the empty one; at least one.
    fn by_ref_lines(&mut self) -> Vec<String>;
}

impl<R: BufRead> Lines for R {
    fn by_ref_lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            let read = self.read_line(&mut line).unwrap_or(0);
            let line = line.trim_end().to_owned();
            if read == 0 || line.is_empty() {
                lines.extend(lines.is_empty().then(String::new));
                return lines;
            }
            lines.push(line);
        }
    }
}
