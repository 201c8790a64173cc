"""Sends datagrams and waits for them to come back: client.py ADDRESS PORT HOW TEXT SIZE COUNT

HOW: connected, unconnected, gso (COUNT datagrams in one call), or hold (says READY, then sends one for each line it reads).
"""
import json, socket, sys

address, port, how, text = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4].encode()
size, count = int(sys.argv[5]), int(sys.argv[6])
data = (text * (size // len(text) + 1))[:size]
s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(4)
if how != "unconnected":
    s.connect((address, port))


def exchange(count):
    back, error = 0, 0
    try:
        if how == "gso":
            SOL_UDP, UDP_SEGMENT = 17, 103
            s.setsockopt(SOL_UDP, UDP_SEGMENT, size)
            s.send(data * count)
        else:
            for _ in range(count):
                s.sendto(data, (address, port)) if how == "unconnected" else s.send(data)
        for _ in range(count):
            answer = s.recv(65535)
            back += answer == data
    except OSError as failed:
        error = failed.errno or 110
    print(json.dumps({"back": back, "errno": error}), flush=True)


if how == "hold":
    exchange(1)
    print("READY", flush=True)
    for _ in sys.stdin:
        exchange(1)
else:
    exchange(count)
