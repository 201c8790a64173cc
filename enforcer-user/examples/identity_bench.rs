//! What the cryptography of a first contact costs: `cargo run --release --example identity_bench`.

use std::{error::Error, hint::black_box, time::Duration};

use enforcer_user::identity::{
    Anchors, EnforcerId, OwnIdentity, Prekeys, Tags, TrustProfile, Verifier,
    ca::{Authority, IssueOptions},
    credential::prepare,
    session_keys::{self, Party},
};

const NOW: u64 = 1_800_000_000;
const ROUNDS: usize = 500;

fn main() -> Result<(), Box<dyn Error>> {
    let (authority, _) = Authority::generate("Bench CA", NOW - 10, Duration::from_secs(86_400))?;
    let id = EnforcerId::new("acme.example", "host-1")?;
    let issued = authority.issue(&IssueOptions::for_enforcer(&id, NOW - 10, Duration::from_secs(80_000)))?;
    let own = OwnIdentity::from_pem(&issued.cert_pem, &issued.key_pem)?;
    let mut prekeys = Prekeys::new(3600, 600, NOW)?;
    let profile = |number: usize| TrustProfile {
        enforcer: id.clone(),
        pu: format!("pu-{number}"),
        handle: 7,
        namespace: "/acme/prod".into(),
        tags: Tags::from([("app".into(), ["web".into()].into()), ("user".into(), ["prod".into()].into())]),
        issued: NOW,
        issued_ms: 0,
        expires: NOW + 300,
        prekey: prekeys.current(),
    };
    let profiles: Vec<_> = (0..ROUNDS).map(profile).collect();
    let mut credentials = Vec::new();
    report("sign", |round| {
        credentials.push(prepare(&own, &profiles[round])?);
        Ok(())
    })?;
    println!("credential {} bytes, of which certificate {}", credentials[0].bytes().len(), own.certificate().len());

    let anchors = || Anchors::from_certificates([authority.certificate().clone()]);
    let mut verifiers = Vec::new();
    for _ in 0..ROUNDS {
        verifiers.push(Verifier::new(anchors()?, "acme.example", 30));
    }
    report("verify, nothing known", |round| Ok(verifiers[round].verify(credentials[round].bytes(), NOW)?))?;
    let mut verifier = Verifier::new(anchors()?, "acme.example", 30);
    verifier.verify(prepare(&own, &profile(ROUNDS))?.bytes(), NOW)?;
    report("verify, chain known", |round| Ok(verifier.verify(credentials[round].bytes(), NOW)?))?;
    report("verify, credential known", |round| Ok(verifier.verify(credentials[round].bytes(), NOW)?))?;

    let mut peers = Vec::new();
    for _ in 0..ROUNDS {
        peers.push(Prekeys::new(3600, 600, NOW)?.current());
    }
    let epoch = prekeys.current().epoch;
    report("X25519, new peer", |round| Ok(prekeys.agree(epoch, &peers[round].key)?))?;
    report("X25519, known peer", |round| Ok(prekeys.agree(epoch, &peers[round].key)?))?;
    let shared = prekeys.agree(epoch, &peers[0].key)?;
    let party = Party { id: &id, prekey: prekeys.current() };
    report("session keys", |round| Ok(session_keys::derive(&shared, party, Party { id: &id, prekey: peers[round] })))
}

fn report<T>(name: &str, mut run: impl FnMut(usize) -> Result<T, Box<dyn Error>>) -> Result<(), Box<dyn Error>> {
    let mut times = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        let start = std::time::Instant::now();
        let result = black_box(run(round)?);
        times.push(start.elapsed());
        drop(result);
    }
    times.sort();
    println!(
        "{name:<26} median {:>8.1?}  p10 {:>8.1?}  p90 {:>8.1?}",
        times[ROUNDS / 2],
        times[ROUNDS / 10],
        times[ROUNDS * 9 / 10]
    );
    Ok(())
}
