//! Floods: what each kind is made of, for the tests that look at counters and the measurements that look at rates.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::datagram::{Fields, Trailer};
use common::wire::{CONFIRM, HELLO, OptionBytes, RESUME};
use serde::Deserialize;

use crate::host::Host;
use crate::process::{Place, Proc};
use crate::segment::{Segment, option_bytes};

/// One kind of flood against one server.
#[derive(Clone, Debug)]
pub struct Flood {
    /// In one word.
    pub name: &'static str,
    args: Vec<String>,
}

/// A flood that is on, or has been.
#[derive(Debug)]
pub struct Flooding(Proc);

#[derive(Deserialize)]
struct Report {
    sent: u64,
}

/// What passes a network that somebody listens to: the SYN of a first contact and of a further one.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// With the client's credential.
    pub hello: Segment,
    /// Good for one connection, which was.
    pub resume: Segment,
}

impl Recorded {
    /// Listens at a server's host to `contacts`, which makes one connection of each kind over IPv4 at least.
    pub fn at(host: &Host, port: u16, contacts: impl FnOnce() -> Result<()>) -> Result<Self> {
        let capture = host.capture("eth0", &format!("tcp dst port {port}"))?;
        contacts()?;
        let (frames, _) = capture.finish()?;
        let segments: Vec<Segment> = frames.iter().filter_map(|frame| Segment::parse(frame)).collect();
        let of = |packet_type| {
            let mut syns = segments.iter().filter(|segment| segment.is_syn() && !segment.is_v6());
            let found = syns.find(|syn| syn.identity().is_some_and(|option| option.packet_type() == packet_type));
            found.cloned().with_context(|| format!("no SYN of type {packet_type} among {}", segments.len()))
        };
        Ok(Self { hello: of(HELLO)?, resume: of(RESUME)? })
    }

    /// The recorded credential with its signature damaged, and the first twelve bytes of a hash to be shown with it.
    pub fn with_wrong_signature(&self, hash: impl FnOnce(&[u8]) -> Result<[u8; 12]>) -> Result<Segment> {
        let mut forged = self.hello.clone();
        *forged.payload.last_mut().context("no credential")? ^= 1;
        let shown = forged.identity().context("no HELLO")?;
        let hash = hash(&forged.payload)?;
        let index = u32::from_be_bytes(std::array::from_fn(|at| hash[at]));
        let mac = u64::from_be_bytes(std::array::from_fn(|at| hash[4 + at]));
        forged.set_identity(&OptionBytes::new(HELLO, 0, shown.handle(), index, mac));
        Ok(forged)
    }
}

impl Flood {
    /// Every kind against the server that was listened to. `own` is the address of who floods, where he is content with one;
    /// `forged` what [`Recorded::with_wrong_signature`] made.
    pub fn all(recorded: &Recorded, forged: &Segment, own: Ipv4Addr) -> Vec<Self> {
        let to = recorded.hello.destination().to_string();
        let link = &recorded.hello.to_frame()[..6];
        // All that come from everywhere come from here: a network of nobody's.
        let spoofed = Ipv4Addr::new(10, 99, 0, 1);
        let of = |name, flags: &str, from: Ipv4Addr, options: &[u8], payload: &[u8], vary: &str| {
            let from = SocketAddrV4::new(from, 40_000).to_string();
            let (mac, options, payload) = (hex(link), hex(options), hex(payload));
            let args =
                ["--to", &to, "--mac", &mac, "--flags", flags, "--from", &from, "--options", &options, "--payload"];
            let args = args.into_iter().chain([payload.as_str(), "--vary", vary]).map(str::to_owned).collect();
            Self { name, args }
        };
        let mss = [2, 4, 5, 0xb4];
        let with = |option: OptionBytes| [&mss[..], &option_bytes(&option)].concat();
        let known = recorded.resume.identity().unwrap_or_default();
        let session = |packet_type, index| OptionBytes::new(packet_type, 0, known.handle(), index, 2);
        let random = OptionBytes { version_type: 0xf3, ..session(RESUME, 3) };
        let garbage = vec![0x5a; recorded.hello.payload.len()];
        let hello = with(OptionBytes::new(HELLO, 0, 1, 2, 3));
        // HELLO in a datagram: as well made as one can be without a credential.
        let fields =
            Fields { packet_type: HELLO, handle: 1, len: garbage.len() as u16, index: 2, time: 3, ..Fields::default() };
        let introduction = [&garbage[..], &Trailer::new(&fields, 4).bytes()].concat();
        let datagram = |name, from, vary: &str| {
            let mut flood = of(name, "S", from, &[], &introduction, vary);
            flood.args.push("--udp".into());
            flood
        };
        let mut replayed = of("replayed_resume", "S", own, &recorded.resume.options, &[], "port");
        replayed.args.extend(["--seq".into(), recorded.resume.seq().to_string()]);
        vec![
            of("syn", "S", spoofed, &mss, &[], "source,port,seq"),
            of("syn_option", "S", spoofed, &with(random), &[], "source,port,option"),
            replayed,
            of("forged_resume", "S", spoofed, &with(session(RESUME, known.index())), &[], "source,port,option"),
            of("unknown_resume", "S", own, &with(session(RESUME, known.index() ^ 1)), &[], "port,option"),
            of("hello", "S", own, &hello, &garbage, "port,option"),
            of("hello_spoofed", "S", spoofed, &hello, &garbage, "source,port,option"),
            of("hello_signature", "S", own, &forged.options, &forged.payload, "port,seq"),
            of("confirm", "A", spoofed, &with(session(CONFIRM, known.index())), &[], "source,port,option"),
            datagram("datagram_hello", own, "port"),
            datagram("datagram_hello_spoofed", spoofed, "source,port"),
            Self { name: "fragments", args: vec!["--frame".into(), hex(&fragment(&recorded.hello, own))] },
        ]
    }

    /// Begins, at `rate` frames a second, with so many frames, and for so long at most.
    pub fn begin(&self, host: &Place, frames: u64, rate: u64, limit: Duration, before: &[&str]) -> Result<Flooding> {
        let tool = crate::lab_tool()?.to_string_lossy().into_owned();
        let (frames, rate, seconds) = (frames.to_string(), rate.to_string(), limit.as_secs_f64().to_string());
        let how = ["flood", "--interface", "eth0", "--count", &frames, "--rate", &rate, "--seconds", &seconds];
        let line = before.iter().copied().chain([tool.as_str()]).chain(how).chain(self.args.iter().map(String::as_str));
        let mut process = host.spawn(&line.collect::<Vec<_>>())?;
        process.wait_for_line("READY", Duration::from_secs(10))?;
        Ok(Flooding(process))
    }
}

impl Flooding {
    /// Whether it is over, after waiting for so long at most.
    pub fn is_over(&mut self, limit: Duration) -> Result<bool> {
        Ok(self.0.wait(limit)?.is_some())
    }

    /// Frames that were sent, once it is over.
    pub fn sent(&self) -> Result<u64> {
        let said = self.0.stdout();
        let line = said.lines().find(|line| line.starts_with('{')).with_context(|| self.0.stderr())?;
        let Report { sent } = serde_json::from_str(line)?;
        ensure!(sent > 0, "nothing was sent");
        Ok(sent)
    }
}

/// The first fragment of a SYN to where `syn` goes; the others never come.
fn fragment(syn: &Segment, from: Ipv4Addr) -> Vec<u8> {
    let mut frame = syn.to_frame();
    // Not the client's own: the switch would send the client's frames elsewhere.
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 0xf1]);
    frame[26..30].copy_from_slice(&from.octets());
    // So long as the header and the ports, and more to come.
    frame.truncate(14 + 20 + 40);
    frame[16..18].copy_from_slice(&60_u16.to_be_bytes());
    frame[20..22].copy_from_slice(&0x2000_u16.to_be_bytes());
    frame[24..26].fill(0);
    let sum = crate::segment::checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
