//! Any other protocol, and what hides behind headers: judged as what is on the wire, by address alone.

use super::*;

/// Sends packets of protocols that no rule names, with a datagram within them that is allowed by itself; at last one of VXLAN.
const SEND: &str = r#"
import socket, struct, sys, time
source, target = sys.argv[1:3]
six = ":" in target
family = socket.AF_INET6 if six else socket.AF_INET
udp = struct.pack("!HHHH", 5000, 5000, 8, 0)
inner4 = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 1, 0, 64, 17, 0, socket.inet_aton("10.77.0.1"), socket.inet_aton("10.77.0.2")) + udp
inner6 = struct.pack("!IHBB", 6 << 28, 8, 17, 64) + bytes(15) + b"\1" + bytes(15) + b"\2" + udp
gre = struct.pack("!HH", 0, 0x0800) + inner4
options = bytes([17, 0, 1, 4, 0, 0, 0, 0])
payloads = {4: inner4, 41: inner6, 47: gre, 132: struct.pack("!HHII", 5000, 5000, 1, 0) + bytes(16), 253: inner4}
if six:
    many = b"".join(bytes([60, 0, 1, 4, 0, 0, 0, 0]) for _ in range(8)) + options
    payloads |= {60: options + udp, 43: bytes([17, 0, 253, 0, 0, 0, 0, 0]) + udp, 0: options + udp, 139: options + udp, "many": many + udp}
for protocol in sys.argv[3:]:
    payload = payloads[int(protocol) if protocol.isdigit() else protocol]
    s = socket.socket(family, socket.SOCK_RAW, 60 if protocol == "many" else int(protocol) or 255)
    if protocol == "0":
        # Only with its own header.
        s.setsockopt(socket.IPPROTO_IPV6, 36, 1)
        payload = struct.pack("!IHBB", 6 << 28, len(payload), 0, 64) + socket.inet_pton(family, source) + socket.inet_pton(family, target) + payload
    try:
        s.sendto(payload, (target, 0))
    except OSError:
        # Over IPv6 the sender hears that it was dropped.
        pass
vxlan = socket.socket(family, socket.SOCK_DGRAM)
vxlan.settimeout(0.2)
vxlan.connect((target, 4789))
try:
    vxlan.send(bytes([8, 0, 0, 0, 0, 0, 7, 0]) + bytes(12) + b"\x08\0" + inner4)
    vxlan.recv(1)
except OSError:
    pass
time.sleep(0.3)
"#;

/// How many of these carry VXLAN.
fn vxlan(frames: &[Vec<u8>]) -> usize {
    frames.iter().filter(|frame| frame.windows(8).any(|part| part == [8, 0, 0, 0, 0, 0, 7, 0])).count()
}

/// How many packets there are, by the protocol in their network header.
fn seen(frames: &[Vec<u8>]) -> BTreeMap<u8, usize> {
    let mut seen = BTreeMap::new();
    for frame in frames {
        let proto = if frame[12] == 0x86 { frame[20] } else { frame[23] };
        *seen.entry(proto).or_default() += 1;
    }
    seen
}

#[test]
fn other_protocols_leave_by_address_only() -> Result<()> {
    let stage = Stage::new("dgothers")?;
    let c = stage.lab.host("c")?;
    let plain: Vec<(String, String)> = addresses(&stage.a).into_iter().zip(addresses(&c)).collect();
    let headers: [&[&str]; 2] = [&[], &["60", "43", "0", "139"]];
    let send = |family: usize, protocols: &[&str]| {
        let (source, target) = &plain[family];
        stage.client.exec(&[&["/usr/bin/python3", "-c", SEND, source, target], protocols].concat())?.ok().map(drop)
    };
    let capture = || {
        c.capture(
            "eth0",
            &format!("(ip or ip6) and (src host {} or src host {}) and not icmp6 and not tcp", plain[0].0, plain[1].0),
        )
    };
    let tunnels = ["4", "41", "47", "132", "253"];
    for family in [0, 1] {
        let before = stage.a.counters()?;
        let watched = capture()?;
        send(family, &tunnels)?;
        send(family, headers[family])?;
        if family == 1 {
            send(family, &["many"])?;
        }
        let (frames, _) = watched.finish()?;
        // HELLO leaves for who might be at VXLAN's port; nothing of the PU's.
        let left = seen(&frames);
        assert!(left.keys().all(|proto| *proto == 17), "{left:?}");
        assert_eq!(vxlan(&frames), 0, "UDP to a peer without identity");
        let counted = &stage.a.counters()? - &before;
        assert_eq!(counted.verdicts_out("protocol_denied"), 5, "{:?}", counted.refusals());
        assert_eq!(counted.verdicts_out("extension_header") as usize, headers[family].len());
        assert_eq!(counted.verdicts_out("malformed"), family as i64, "nine headers");
    }
    // A rule by address lets the outer packet pass, whatever is in it; IPv6's extension headers none.
    let rule = format!("{POLICY}  - tunnel: allow app=client -> net {}/32, {}/128\n", c.v4(), c.v6());
    stage.lab.write_policy("datagrams.yaml", &rule)?;
    for family in [0, 1] {
        let deadline = Instant::now() + Duration::from_secs(10);
        let frames = loop {
            let watched = capture()?;
            send(family, &tunnels)?;
            let (frames, _) = watched.finish()?;
            if seen(&frames).contains_key(&47) {
                break frames;
            }
            ensure!(Instant::now() < deadline, "{:?}\n{}", seen(&frames), stage.a.enforcer_log());
        };
        let mut left = seen(&frames);
        // HELLOs of before may still be among them.
        left.remove(&17);
        assert_eq!(left, BTreeMap::from([(4, 1), (41, 1), (47, 1), (132, 1), (253, 1)]));
        assert_eq!(vxlan(&frames), 1);
        let before = stage.a.counters()?;
        let watched = capture()?;
        send(family, headers[family])?;
        let (frames, _) = watched.finish()?;
        assert_eq!((seen(&frames).len(), vxlan(&frames)), (1, 1), "VXLAN alone");
        let counted = &stage.a.counters()? - &before;
        assert_eq!(counted.verdicts_out("extension_header") as usize, headers[family].len());
    }
    Ok(())
}
