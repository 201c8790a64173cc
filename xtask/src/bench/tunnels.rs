//! Encrypting overlays beside the enforcer: what others take for identity between hosts, from Debian's packages.
//!
//! Both are user-space programs with a TUN device at either end, so that every packet crosses into a process and back.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tests::{Host, Place, Proc};

/// Addresses within the overlay.
const INSIDE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 78, 0, 1), Ipv4Addr::new(10, 78, 0, 2)];
const PORT: u16 = 4242;
/// How long both ends may take until they have met.
const PATIENCE: Duration = Duration::from_secs(15);

/// Joins both hosts by Nebula with AES-256-GCM; the second one's address there, and the programs.
///
/// # Errors
/// A program is missing or does not start, or the hosts do not meet.
pub fn nebula(a: &Host, b: &Host) -> Result<(Ipv4Addr, Vec<Proc>)> {
    let keys = a.directory().join("nebula");
    fs::create_dir_all(&keys).with_context(|| format!("cannot make {}", keys.display()))?;
    let file = |name: &str| keys.join(name).to_string_lossy().into_owned();
    let (ca, ca_key) = (file("ca.crt"), file("ca.key"));
    run(a, &["nebula-cert", "ca", "-name", "bench", "-out-crt", &ca, "-out-key", &ca_key])?;
    let mut programs = Vec::new();
    for (at, host) in [a, b].into_iter().enumerate() {
        let (name, address) = (format!("h{at}"), format!("{}/24", INSIDE[at]));
        let (cert, key) = (file(&format!("{name}.crt")), file(&format!("{name}.key")));
        let sign = ["nebula-cert", "sign", "-ca-crt", &ca, "-ca-key", &ca_key, "-name", &name, "-ip", &address];
        run(a, &[&sign[..], &["-out-crt", &cert, "-out-key", &key]].concat())?;
        let peer = if at == 0 { b } else { a };
        let config = format!(
            "pki: {{ca: {ca}, cert: {cert}, key: {key}}}\n\
             static_host_map: {{\"{}\": [\"{}:{PORT}\"]}}\n\
             lighthouse: {{am_lighthouse: false}}\n\
             listen: {{host: 0.0.0.0, port: {PORT}}}\n\
             cipher: aes\n\
             tun: {{dev: nebula1}}\n\
             firewall:\n  outbound: [{{port: any, proto: any, host: any}}]\n  inbound: [{{port: any, proto: any, host: any}}]\n",
            INSIDE[1 - at],
            peer.v4(),
        );
        let path = keys.join(format!("{name}.yml"));
        fs::write(&path, config).with_context(|| format!("cannot write {}", path.display()))?;
        programs.push(host.spawn(&["nebula", "-config", &path.to_string_lossy()])?);
    }
    until_met(a)?;
    Ok((INSIDE[1], programs))
}

/// Joins both hosts by wireguard-go; the second one's address there, and the programs.
///
/// # Errors
/// A program is missing or does not start, or the hosts do not meet.
pub fn wireguard(a: &Host, b: &Host) -> Result<(Ipv4Addr, Vec<Proc>)> {
    // Its sockets lie in one directory for all network namespaces, so the name must be ours alone.
    let device = format!("wg{}", std::process::id());
    let device_of = |at: usize| format!("{device}{}", ["a", "b"][at]);
    let secret = |at: usize| a.directory().join(format!("wireguard-{at}.key"));
    let mut public = Vec::new();
    for at in 0..2 {
        let private = run(a, &["wg", "genkey"])?;
        fs::write(secret(at), &private).with_context(|| format!("cannot write {}", secret(at).display()))?;
        let line = format!("wg pubkey < '{}'", secret(at).display());
        public.push(run(a, &["sh", "-c", &line])?.trim().to_owned());
    }
    let mut programs = Vec::new();
    for (at, host) in [a, b].into_iter().enumerate() {
        let device = device_of(at);
        programs.push(host.spawn(&[
            "env",
            "WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD=1",
            "wireguard-go",
            "-f",
            &device,
        ])?);
        appear(Path::new(&format!("/var/run/wireguard/{device}.sock")))?;
        let peer = if at == 0 { b } else { a };
        let (endpoint, port) = (format!("{}:{PORT}", peer.v4()), PORT.to_string());
        let allowed = format!("{}/32", INSIDE[1 - at]);
        let key = secret(at).to_string_lossy().into_owned();
        let set = ["wg", "set", &device, "listen-port", &port, "private-key", &key, "peer", &public[1 - at]];
        run(host, &[&set[..], &["endpoint", &endpoint, "allowed-ips", &allowed]].concat())?;
        run(host, &["ip", "addr", "add", &format!("{}/24", INSIDE[at]), "dev", &device])?;
        run(host, &["ip", "link", "set", &device, "up"])?;
    }
    until_met(a)?;
    Ok((INSIDE[1], programs))
}

fn run(host: &Place, line: &[&str]) -> Result<String> {
    Ok(host.exec(line)?.ok()?.to_owned())
}

fn appear(path: &Path) -> Result<()> {
    let began = Instant::now();
    while !path.exists() {
        if began.elapsed() > PATIENCE {
            bail!("{} does not appear", path.display());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn until_met(a: &Host) -> Result<()> {
    let (began, peer) = (Instant::now(), INSIDE[1].to_string());
    loop {
        if a.exec(&["ping", "-c", "1", "-W", "1", &peer])?.ok().is_ok() {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            bail!("{peer} is not reached through the tunnel");
        }
    }
}
