"""Sends datagrams back (or not), and says of each how long it was: server.py ADDRESS PORT [silent | gro]

gro: lets the kernel hand over several at once, merged by the receiving interface.
"""
import socket, struct, sys

SOL_UDP, UDP_GRO = 17, 104
address, port, how = sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else ""
s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
if how == "gro":
    s.setsockopt(SOL_UDP, UDP_GRO, 1)
s.bind((address, port))
print("READY", flush=True)
while True:
    data, ancillary, _, peer = s.recvmsg(65535, 64)
    sizes = [struct.unpack("i", value)[0] for _, kind, value in ancillary if kind == UDP_GRO]
    step = sizes[0] if sizes else len(data) or 1
    for at in range(0, max(len(data), 1), step):
        piece = data[at:at + step]
        print("HEARD", len(piece), piece[:8].decode("ascii", "replace"), flush=True)
        if how != "silent":
            s.sendto(piece, peer)
