//! What TCP agrees on and does is the same with and without the enforcer: everything is done twice and compared, on captures and by what the sockets
//! themselves say (TCP_INFO).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tests::segment::{ACK, SYN};
use tests::{Host, Lab, Pair, Place, Proc, Segment, Workload};

const PORT: u16 = 8020;

/// Connects, sends so many bytes, waits until they were heard and sent back (`echo`) or acknowledged (`sink`), tells what the socket knows, and then keeps
/// the connection, with keep-alive probes each second.
const CLIENT: &str = r#"
import fcntl, json, select, socket, struct, sys, termios, time
host, port, count, echo = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "echo"
family = socket.AF_INET6 if ":" in host else socket.AF_INET
s = socket.socket(family, socket.SOCK_STREAM)
s.settimeout(20)
for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 5)):
    s.setsockopt(socket.IPPROTO_TCP, option, value)
s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
s.connect((host, port))
s.setblocking(False)
sent, heard, until = 0, 0, time.time() + 20
while heard < count and time.time() < until:
    if not echo and sent == count:
        heard = count - struct.unpack("i", fcntl.ioctl(s, termios.TIOCOUTQ, b"\0" * 4))[0]
        time.sleep(0.01)
        continue
    readable, writable, _ = select.select([s], [s] if sent < count else [], [], 1)
    if writable:
        sent += s.send(b"x" * min(65536, count - sent))
    if readable:
        heard += len(s.recv(262144))
info = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
options, scales = info[5], info[6]
words = struct.unpack("24I", info[8:104])
names = ((1, "timestamps"), (2, "sack"), (4, "window_scaling"), (8, "ecn"))
print("INFO " + json.dumps({
    "heard": heard, "options": [name for bit, name in names if options & bit], "scales": [scales & 15, scales >> 4],
    "mss": words[2], "path_mtu": words[13], "advertised_mss": words[19]}), flush=True)
time.sleep(60)
"#;

/// What a client's socket says of its connection.
#[derive(Clone, Debug, Deserialize, PartialEq)]
struct Info {
    heard: u64,
    options: Vec<String>,
    /// Ours and the peer's.
    scales: [u8; 2],
    mss: u32,
    path_mtu: u32,
    advertised_mss: u32,
}

/// Two hosts, with an enforcer each or without.
struct Stage {
    client: Workload,
    server: Workload,
    a: Host,
    b: Host,
    _lab: Lab,
}

impl Stage {
    fn new(name: &str, enforced: bool) -> Result<Self> {
        if enforced {
            let Pair { client, server, a, b, lab } = Pair::new(name)?;
            return Ok(Self { client, server, a, b, _lab: lab });
        }
        let lab = Lab::new(&format!("{name}bare"))?;
        let (a, b) = (lab.host("a")?, lab.host("b")?);
        let (client, server) = (a.plain_workload("client")?, b.plain_workload("server")?);
        Ok(Self { client, server, a, b, _lab: lab })
    }

    fn addresses(&self) -> [String; 2] {
        [self.b.v4().to_string(), self.b.v6().to_string()]
    }
}

/// Connects from `from`; the socket's own account, and the process, which holds the connection.
fn connect(from: &Place, to: &str, bytes: u64) -> Result<(Info, Proc)> {
    connect_to(from, to, bytes, "echo")
}

fn connect_to(from: &Place, to: &str, bytes: u64, server: &str) -> Result<(Info, Proc)> {
    let (port, count) = (PORT.to_string(), bytes.to_string());
    let mut process = from.spawn(&["/usr/bin/python3", "-u", "-c", CLIENT, to, &port, &count, server])?;
    let line = process.wait_for_line("INFO ", Duration::from_secs(30))?;
    let info: Info = serde_json::from_str(&line["INFO ".len()..]).with_context(|| line.clone())?;
    ensure!(info.heard == bytes, "{to}: {info:?}");
    Ok((info, process))
}

/// Kinds and contents of TCP options, in order.
type OptionList = Vec<(u8, Vec<u8>)>;

/// The TCP options, but for what differs from one connection to the next, and whether identity came last.
fn options(segment: &Segment) -> Result<(OptionList, bool)> {
    const TIMESTAMPS: u8 = 8;
    let mut plain = segment.clone();
    let identity = plain.take_identity();
    let (mut rest, mut found) = (plain.options.as_slice(), Vec::new());
    while let Some((&kind, after)) = rest.split_first() {
        if kind < 2 {
            found.push((kind, Vec::new()));
            rest = after;
            continue;
        }
        let length = usize::from(*after.first().context("an option without length")?);
        let content = rest.get(2..length).context("an option too long")?;
        found.push((kind, if kind == TIMESTAMPS { Vec::new() } else { content.to_vec() }));
        rest = &rest[length..];
    }
    Ok((found, identity))
}

/// SYN and SYN-ACK of each connection in a capture, in order; of those that were sent again, the first.
fn handshakes(frames: &[Vec<u8>]) -> Vec<Segment> {
    let mut found: Vec<Segment> = Vec::new();
    for segment in frames.iter().filter_map(|frame| Segment::parse(frame)).filter(|s| s.flags() & SYN != 0) {
        if !found.iter().any(|other| (other.source(), other.seq()) == (segment.source(), segment.seq())) {
            found.push(segment);
        }
    }
    found
}

/// What two ends agree on: of each SYN and SYN-ACK its options, flags and window, and what the client's socket says.
type Agreed = (Vec<(OptionList, u8, u16)>, Vec<Info>);

fn agreed(enforced: bool, ecn: &str) -> Result<Agreed> {
    let stage = Stage::new("agree", enforced)?;
    let _server = stage.server.serve(&["--listen", &format!("[::]:{PORT}")])?;
    for host in [&stage.a, &stage.b] {
        host.sysctl("net/ipv4/tcp_ecn", ecn)?;
    }
    let capture = stage.a.capture("eth0", &format!("port {PORT}"))?;
    let mut infos = Vec::new();
    for to in stage.addresses() {
        // A first contact, and one that resumes.
        for _ in 0..2 {
            infos.push(connect(&stage.client, &to, 100_000)?.0);
        }
    }
    let (frames, _) = capture.finish()?;
    let mut segments = Vec::new();
    for segment in handshakes(&frames) {
        let (options, identity) = options(&segment)?;
        ensure!(identity == enforced, "identity: {segment:?}");
        segments.push((options, segment.flags(), segment.window()));
    }
    ensure!(segments.len() == 8, "{segments:?}");
    if ecn == "1" {
        ensure!(infos.iter().all(|info| info.options.contains(&"ecn".to_owned())), "{infos:?}");
        let capable =
            |frame: &Vec<u8>| Segment::parse(frame).is_some_and(|s| !s.payload.is_empty() && s.congestion() == 2);
        ensure!(frames.iter().any(capable), "no segment is marked as capable of ECN");
    }
    Ok((segments, infos))
}

#[test]
fn ends_agree_on_the_same() -> Result<()> {
    // Asked to by others only, and asking itself.
    for ecn in ["2", "1"] {
        let (bare, enforced) = (agreed(false, ecn)?, agreed(true, ecn)?);
        assert_eq!(enforced.0, bare.0, "ecn {ecn}: options, flags and windows of SYN and SYN-ACK");
        assert_eq!(enforced.1, bare.1, "ecn {ecn}: what the sockets say");
        let info = &bare.1[0];
        let all = ["timestamps", "sack", "window_scaling"];
        assert!(all.iter().all(|option| info.options.iter().any(|found| found == option)), "{info:?}");
        assert!(info.scales[0] > 0 && info.mss == 1448 && info.path_mtu == 1500, "{info:?}");
    }
    Ok(())
}

#[test]
fn what_is_lost_is_acknowledged_selectively() -> Result<()> {
    const SACK: u8 = 5;
    for enforced in [false, true] {
        let stage = Stage::new("sack", enforced)?;
        let _server = stage.server.serve(&["--listen", &format!("[::]:{PORT}")])?;
        // They meet before anything is lost: what is to be seen is the transfer.
        for to in stage.addresses() {
            connect(&stage.client, &to, 10)?;
        }
        for host in [&stage.a, &stage.b] {
            // Each segment by itself, so that enough of them are lost.
            host.exec(&["ethtool", "-K", "eth0", "tso", "off", "gso", "off", "gro", "off"])?.ok()?;
        }
        stage.b.set_loss(3.0)?;
        for to in stage.addresses() {
            let capture = stage.a.capture("eth0", &format!("port {PORT}"))?;
            connect(&stage.client, &to, 1_000_000)?;
            let (frames, _) = capture.finish()?;
            let segments: Vec<Segment> = frames.iter().filter_map(|frame| Segment::parse(frame)).collect();
            let mut selective = 0;
            for segment in segments.iter().filter(|segment| segment.source().port() == PORT) {
                selective += usize::from(options(segment)?.0.iter().any(|(kind, _)| *kind == SACK));
            }
            assert!(selective > 0, "enforced: {enforced}, {to}: none of {} segments has SACK blocks", segments.len());
        }
        stage.b.set_loss(0.0)?;
    }
    Ok(())
}

#[test]
fn keep_alive_probes_pass_and_are_answered() -> Result<()> {
    for enforced in [false, true] {
        let stage = Stage::new("alive", enforced)?;
        let _server = stage.server.serve(&["--listen", &format!("[::]:{PORT}")])?;
        let capture = stage.b.capture("eth0", &format!("port {PORT}"))?;
        let mut held = Vec::new();
        for to in stage.addresses() {
            held.push(connect(&stage.client, &to, 10)?.1);
        }
        std::thread::sleep(Duration::from_millis(2600));
        let (frames, _) = capture.finish()?;
        let segments: Vec<Segment> = frames.iter().filter_map(|frame| Segment::parse(frame)).collect();
        for v6 in [false, true] {
            let of = |to_server: bool| {
                let segments = segments.iter().filter(move |segment| segment.is_v6() == v6);
                segments.filter(move |segment| (segment.destination().port() == PORT) == to_server)
            };
            // The data of a SYN, identity, is not in sequence.
            let sent = of(true).filter(|s| s.flags() & SYN == 0).map(|s| s.seq().wrapping_add(s.payload.len() as u32));
            let next = sent.max().context("nothing was sent")?;
            // A probe is one byte behind what was sent last (RFC 9293 section 3.8.4).
            let probes =
                of(true).filter(|s| s.payload.is_empty() && s.flags() == ACK && s.seq() == next.wrapping_sub(1));
            let probes = probes.count();
            let answers = of(false).filter(|s| s.payload.is_empty() && s.flags() == ACK && s.ack() == next).count();
            assert!(
                probes >= 1 && answers >= probes,
                "enforced: {enforced}, v6: {v6}: {probes} probes, {answers} answers"
            );
        }
        for process in &mut held {
            ensure!(process.wait(Duration::ZERO)?.is_none(), "the connection ended: {}", process.stderr());
        }
    }
    Ok(())
}

/// Behind a router whose link to the server is narrower than what the two ends think: the router's errors are heeded.
#[test]
fn the_path_mtu_is_discovered() -> Result<()> {
    let mut told = Vec::new();
    for enforced in [false, true] {
        let stage = Stage::new("pmtu", enforced)?;
        let guest = stage.b.guest("far", &[&stage.a])?;
        stage.b.exec(&["ip", "link", "set", guest.interface(), "mtu", "1300"])?.ok()?;
        if enforced {
            stage
                .b
                .enforcer(&["pu", "add", "--interface", guest.interface(), "--name", "far", "--tag", "app=server"])?
                .ok()?;
        }
        let _server = guest.serve(&["--listen", &format!("[::]:{PORT}"), "--reply", "sink"])?;
        let mut infos = Vec::new();
        for to in guest.addresses(PORT) {
            let address = to.rsplit_once(':').context("a port")?.0.trim_matches(['[', ']']).to_owned();
            infos.push(connect_to(&stage.client, &address, 300_000, "sink")?.0);
        }
        told.push(infos);
    }
    assert_eq!(told[1], told[0], "with and without");
    let mtus: Vec<u32> = told[0].iter().map(|info| info.path_mtu).collect();
    assert_eq!(mtus, [1300, 1300]);
    Ok(())
}
