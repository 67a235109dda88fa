"""A server without privilege: all that it does works with no capability and no way to a new one."""

import shutil

import pytest

from helpers.support import python

SERVED = """
import os, signal, socket, subprocess, sys, threading
from socketkit import Server, StreamRequestHandler
from socketkit.testing.clients import talk

if len(sys.argv) == 3:  # once more, with nothing
    nothing = ["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    os.execvp(nothing[0], [*nothing, sys.executable, "-c", sys.argv[2], sys.argv[1]])
facts = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
assert (facts["NoNewPrivs"].strip(), int(facts["CapEff"], 16), int(facts["CapBnd"], 16)) == ("1", 0, 0), facts

class Upper(StreamRequestHandler):
    def handle(self): self.wfile.write(self.rfile.readline().upper())

server = Server("tcp://127.0.0.1:0", Upper, dispatcher=sys.argv[1], lifecycle="graceful:10")
def use():
    while not server.ready: pass
    for _ in range(10): assert talk(server.addresses[0], b"hello\\n") == b"HELLO\\n"
    os.kill(os.getpid(), signal.SIGTERM)
thread = threading.Thread(target=use)
with server:
    thread.start()
    server.serve_forever()
thread.join()
assert server.stats().outcomes == {"finished": 10}, server.stats()
"""


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
@pytest.mark.parametrize("dispatcher", ["sync", "thread", "fork", "pool:2", "adaptive", "prefork:2", "asyncio", "executor"])
def test_it_serves_without_capabilities_and_new_privileges(dispatcher):
    python(SERVED, dispatcher, SERVED)
