"""``nginx FOLDER CERTIFICATE``: nginx with TLS and one worker process, which sends the files of the folder.

nginx takes over the listener that this module opens, so that its port is known. Source: nginx.c, ngx_add_inherited_sockets.
That needs a master process, which would make its workers another user, to whom the folder is closed.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

SETTINGS = """
daemon off; worker_processes 1; user root; pid {own}/nginx.pid; error_log stderr error;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_requests 1000000000;
    client_body_temp_path {own}; proxy_temp_path {own}; fastcgi_temp_path {own}; uwsgi_temp_path {own}; scgi_temp_path {own};
    ssl_certificate {certificate}; ssl_certificate_key {certificate}; ssl_protocols TLSv1.2 TLSv1.3;
    server {{ listen 127.0.0.1:{port} ssl; root {folder}; }}
}}
"""

folder, certificate = sys.argv[1:]
listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
listener.set_inheritable(True)
file = Path(certificate).with_name("nginx.conf")
file.write_text(SETTINGS.format(own=file.parent, certificate=certificate, port=listener.getsockname()[1], folder=folder))
print("port", listener.getsockname()[1])
path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin"))  # which is only in root's PATH
os.execvpe("nginx", ["nginx", "-e", "stderr", "-c", str(file)], {**os.environ, "PATH": path, "NGINX": f"{listener.fileno()};"})
