"""A child per request: bounded, waited for by pid, and leaving other people's children alone."""

import pytest

from helpers.support import python
from socketkit import Forks

PRELUDE = """
import os, signal, socket, subprocess, sys, threading
from socketkit import Forks, Graceful, Server, TCP, UDP, UnixStream
from socketkit.testing.clients import ask, talk
from socketkit.testing.programs import run
from helpers import innards

def serve(handler, transport=TCP("127.0.0.1", 0), **options):
    server = Server(transport, handler, **{"dispatcher": Forks(), "lifecycle": Graceful(drain=10), **options})
    return server.start()

TALK = '''
import socket, sys  # not socketkit, whose import takes longer than all the rest
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10) as client, client.makefile("rb") as received:
    client.sendall(sys.argv[2].encode())
    client.shutdown(socket.SHUT_WR)
    sys.stdout.buffer.write(received.read())
'''

def client(address, data=b""):
    '''Talk from a process that holds no copy of anybody's socket.'''
    return subprocess.Popen([sys.executable, "-c", TALK, str(address[1]), data.decode()], stdout=subprocess.PIPE)

def answer(process):
    output = process.communicate()[0]
    assert process.returncode == 0
    return output
"""


@pytest.mark.parametrize("bound", [0, -1, True, "40", 1.5])
def test_a_bound_that_is_none_is_refused(bound):
    with pytest.raises(ValueError, match="max_children must be a whole number of at least 1"):
        Forks(bound)


def test_each_request_runs_in_a_child_of_its_own_and_is_accounted_for():
    python(
        PRELUDE
        + """
server = serve(lambda request, peer, server: request.sendall(str(os.getpid()).encode()))
pids = {int(answer(client(server.addresses[0]))) for _ in range(5)}
assert len(pids) == 5 and os.getpid() not in pids, pids
server.server_close()
assert server.stats().outcomes == {"finished": 5}, server.stats()
"""
    )


def test_a_child_ends_although_another_thread_reads_the_counts_at_the_fork():
    python(
        PRELUDE
        + """
from helpers.support import gone
def handler(request, peer, server):
    request.sendall(b"%d" % os.getpid())
server = serve(handler)
with innards.ledger(server)._lock:  # as in `Server.stats`
    assert gone(int(answer(client(server.addresses[0]))), within=10)
server.server_close()
assert server.stats().outcomes == {"finished": 1}, server.stats()
"""
    )


def test_datagrams_too():
    python(
        PRELUDE
        + """
def echo(request, peer, server):
    request[1].sendto(request[0] + b" from " + str(os.getpid()).encode(), peer)
server = serve(echo, UDP("127.0.0.1", 0))
said, _, pid = ask(server.addresses[0], b"hello").partition(b" from ")
assert said == b"hello" and int(pid) != os.getpid()
server.server_close()
assert server.stats().outcomes == {"finished": 1}, server.stats()
"""
    )


def test_a_handler_that_fails_or_dies_is_told_from_one_that_finished():
    python(
        PRELUDE
        + """
def handler(request, peer, server):
    how = request.recv(100)
    if how == b"raise": raise ValueError(how)
    if how == b"exit": raise SystemExit(0)
    if how == b"kill": os.kill(os.getpid(), signal.SIGKILL)
server = serve(handler)
for how in (b"raise", b"exit", b"kill", b"finish"):
    client(server.addresses[0], how).communicate()
server.server_close()
assert server.stats().outcomes == {"failed": 2, "died": 1, "finished": 1}, server.stats()
"""
    )


def test_the_bound_is_hard_and_clients_wait_in_the_kernel():
    python(
        PRELUDE
        + """
server = serve(lambda request, peer, server: (request.sendall(b"in"), request.recv(1)), dispatcher=Forks(2))
address = server.addresses[0]
program = '''
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as client:
    print(client.recv(2).decode(), flush=True)
    client.recv(1)
'''
def waiting():
    return subprocess.Popen([sys.executable, "-c", program, str(address[1])], stdout=subprocess.PIPE, text=True)
first, second = waiting(), waiting()
assert first.stdout.readline() == second.stdout.readline() == "in\\n"
while len(innards.live(server).children) < 2: pass  # the children may be faster than their parent
third = waiting()
import select
assert not select.select([third.stdout], [], [], 0.3)[0], "a third child ran"
assert len(innards.live(server).children) == 2
first.kill()
assert third.stdout.readline() == "in\\n"
for each in (second, third):
    each.kill()
server.server_close()
for each in (first, second, third):
    each.communicate()
assert server.stats().outcomes == {"finished": 3}, server.stats()
"""
    )


def test_other_peoples_children_keep_their_exit_codes():
    python(
        PRELUDE
        + """
server = serve(lambda request, peer, server: request.sendall(b"x"), dispatcher=Forks(3))
address, codes = server.addresses[0], []
clients = []
for number in range(20):
    clients.append(client(address))
    codes.append(subprocess.call([sys.executable, "-c", f"import os; os._exit({number})"]))
assert all(answer(each) == b"x" for each in clients)
server.server_close()
assert codes == list(range(20)), codes
"""
    )


def test_the_child_has_neither_the_listener_nor_the_loops_descriptors():
    python(
        PRELUDE
        + """
def tell(request, peer, server):
    links = []
    for each in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{each}"))
        except OSError:
            pass
    request.sendall("\\n".join(link for link in links if link.startswith(("socket", "anon"))).encode())
with open(os.devnull) as _:
    server = serve(tell)
    own = answer(client(server.addresses[0])).decode().split()
assert len(own) == 1 and own[0].startswith("socket:"), own
server.server_close()
"""
    )


def test_what_a_handler_printed_is_not_lost():
    result = python(
        PRELUDE
        + """
server = serve(lambda request, peer, server: print("printed in a child"))
answer(client(server.addresses[0]))
server.server_close()
"""
    )
    assert result.stdout == "printed in a child\n"


def test_at_the_deadline_children_are_ended():
    python(
        PRELUDE
        + """
import time
server = serve(lambda request, peer, server: (request.sendall(b"in"), signal.pause()), lifecycle=Graceful(drain=0.05))
process = client(server.addresses[0])
while not server.stats().active: time.sleep(0.001)
report = server.stop()
process.communicate()
assert (report.forced, report.stuck) == (1, ()), report
assert server.stats().outcomes == {"died": 1}
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    pass
else:
    raise AssertionError("a child is left")
"""
    )


def test_handle_request_forks_too_and_respects_the_bound():
    python(
        PRELUDE
        + """
server = Server(TCP("127.0.0.1", 0), lambda request, peer, server: request.sendall(str(os.getpid()).encode()), dispatcher=Forks(1))
with server:
    for _ in range(3):
        process = client(server.addresses[0])
        server.handle_request()
        assert int(answer(process)) != os.getpid()
assert server.stats().outcomes == {"finished": 3}
"""
    )


def test_a_system_without_processes_to_give_refuses_the_request():
    python(
        PRELUDE
        + """
import errno, logging
logging.disable(logging.CRITICAL)
real, failures = os.fork, [OSError(errno.EAGAIN, "no more processes")]
def fork():
    if failures: raise failures.pop()
    return real()
from unittest.mock import patch
server = serve(lambda request, peer, server: request.sendall(b"served"))
program = "import socket, sys; c = socket.create_connection(('127.0.0.1', int(sys.argv[1])));\\ntry: print(c.recv(9))\\nexcept OSError: print(b'')"
ask_ = lambda: subprocess.run([sys.executable, "-c", program, str(server.addresses[0][1])], stdout=subprocess.PIPE, text=True).stdout
import socketkit._system.children as processes
class FakeOS:
    fork = staticmethod(fork)
    def __getattr__(self, name): return getattr(os, name)
processes.os = FakeOS()
assert ask_() == "b''\\n"
assert ask_() == "b'served'\\n"
server.server_close()
assert server.stats().outcomes == {"refused": 1, "finished": 1}, server.stats()
"""
    )


def test_the_child_of_one_server_does_not_keep_the_ports_of_another():
    python(
        PRELUDE
        + """
import errno
other = serve(print, dispatcher=Forks())
server = serve(lambda request, peer, server: (request.sendall(b"in"), request.recv(1)))
with socket.socket() as holding:  # its copy in the child does not matter: the child is ended by the drain
    holding.connect(server.addresses[0])
    assert holding.recv(2) == b"in"
    address = other.addresses[0]
    other.server_close()
    try:
        socket.create_connection(address).close()
    except ConnectionRefusedError:
        pass
    else:
        raise AssertionError("somebody still listens")
    server.stop(drain=0)
server.server_close()
"""
    )


def test_the_children_of_a_run_without_a_drain_count_in_the_next_run_too():
    python(
        PRELUDE
        + """
from helpers.support import wait_until
from socketkit import Classic

def wait(request, peer, server):
    request.sendall(b"hello")
    request.recv(1)

server = serve(wait, dispatcher=Forks(1), lifecycle=Classic())
with socket.create_connection(server.addresses[0]) as before:
    assert before.recv(5) == b"hello"
    server.stop()
    server.start()
    after = client(server.addresses[0])
    assert server.stats().accepted == 1  # the only child that it may have is the one of the run before
    before.sendall(b"x")
    assert answer(after) == b"hello"
wait_until(lambda: server.stats().outcomes == {"finished": 2})
server.server_close()
"""
    )
