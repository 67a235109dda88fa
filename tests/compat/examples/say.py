"""say.py (tcp | udp) PORT WORDS...: says the words to the server at that port and shows what it answers."""

import socket
import sys

kind, port, *words = sys.argv[1:]
message = " ".join(words)

with socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as sock:
    sock.settimeout(10)
    if kind == "tcp":
        sock.connect(("localhost", int(port)))
        sock.sendall(f"{message}\n".encode())
    else:
        sock.sendto(f"{message}\n".encode(), ("localhost", int(port)))
    answer = sock.recv(1024).decode()

print(f"Sent:     {message}")
print(f"Received: {answer}")
