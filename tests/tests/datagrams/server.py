"""Sends datagrams back (or not), and says of each how long it was: server.py ADDRESS PORT [silent]"""
import socket, sys

address, port = sys.argv[1], int(sys.argv[2])
s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
s.bind((address, port))
print("READY", flush=True)
while True:
    data, peer = s.recvfrom(65535)
    print("HEARD", len(data), data[:8].decode("ascii", "replace"), flush=True)
    if len(sys.argv) < 4:
        s.sendto(data, peer)
