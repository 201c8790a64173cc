"""Errors of ICMP: what a PU's sockets are told of them, and forged ones.

errors.py hear ADDRESS PORT     exchanges a datagram there, prints the ports of that socket and of one that never sent anything; then, for each line it
                                reads, what the error queues of both hold, and of how many errors a raw socket has heard
errors.py forge TO TYPE CODE WORD SOURCE PORT TARGET PORT [PROTOCOL]     sends an error that quotes a datagram from SOURCE to TARGET
"""
import json, socket, struct, sys, time

SOL_IP, IP_MTU_DISCOVER, IP_RECVERR = 0, 10, 11
SOL_IPV6, IPV6_MTU_DISCOVER, IPV6_RECVERR = 41, 23, 25
DO, MSG_ERRQUEUE = 2, 0x2000


def total(data):
    words = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while words >> 16:
        words = (words & 0xFFFF) + (words >> 16)
    return words


def forge(to, kind, code, word, source, sport, target, dport, proto=17):
    six = ":" in to
    part = struct.pack("!HHHH", sport, dport, 108, 0)
    if six:
        quote = struct.pack("!IHBB", 6 << 28, 108, proto, 60) + b"".join(socket.inet_pton(socket.AF_INET6, end) for end in (source, target)) + part
    else:
        quote = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 128, 7, 0x4000, 60, proto, 0, socket.inet_aton(source), socket.inet_aton(target)) + part
    error = struct.pack("!BBHI", kind, code, 0, word) + quote
    if not six:
        error = error[:2] + struct.pack("!H", 0xFFFF ^ total(error)) + error[4:]
    s = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, 58 if six else 1)
    s.sendto(error, (to, 0))


def errors(s):
    found = []
    while True:
        try:
            _, ancillary, _, _ = s.recvmsg(2048, 512, MSG_ERRQUEUE | socket.MSG_DONTWAIT)
        except OSError:
            return found
        found += [struct.unpack_from("=I", data)[0] for _, _, data in ancillary]


def hear(address, port):
    six = ":" in address
    family = socket.AF_INET6 if six else socket.AF_INET

    def make():
        s = socket.socket(family, socket.SOCK_DGRAM)
        s.setsockopt(SOL_IPV6 if six else SOL_IP, IPV6_RECVERR if six else IP_RECVERR, 1)
        s.setsockopt(SOL_IPV6 if six else SOL_IP, IPV6_MTU_DISCOVER if six else IP_MTU_DISCOVER, DO)
        s.settimeout(4)
        return s
    flow, lone = make(), make()
    lone.bind(("", 0))
    raw = socket.socket(family, socket.SOCK_RAW, 58 if six else 1)
    flow.connect((address, port))
    flow.send(b"question")
    assert flow.recv(100) == b"question"
    flow.setblocking(False)
    lone.setblocking(False)
    print("PORTS", flow.getsockname()[1], lone.getsockname()[1], flush=True)
    for _ in sys.stdin:
        time.sleep(0.3)
        heard = 0
        while True:
            try:
                packet = raw.recv(2048, socket.MSG_DONTWAIT)
            except OSError:
                break
            kind = packet[0] if six else packet[20]
            heard += kind < 5 if six else kind in (3, 11, 12)
        print(json.dumps({"flow": errors(flow), "lone": errors(lone), "raw": heard}), flush=True)


if sys.argv[1] == "hear":
    hear(sys.argv[2], int(sys.argv[3]))
else:
    to, kind, code, word, source, sport, target, dport = sys.argv[2:10]
    proto = int(sys.argv[10]) if len(sys.argv) > 10 else 17
    forge(to, int(kind), int(code), int(word), source, int(sport), target, int(dport), proto)
