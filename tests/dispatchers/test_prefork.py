"""Worker processes under supervision: they share the listeners, are replaced when they die, and leave when their parent does."""

import collections
import contextlib
import os
import re
import select
import signal
import socket
import threading
import time

import pytest

from helpers.support import ROOT, TESTS, gone, python
from socketkit import UDP, Prefork, Server, Sync
from socketkit.composition import config
from socketkit.dispatchers import _supervised
from socketkit.dispatchers._supervision.process_worker import memory_in_use
from socketkit.dispatchers._supervision.supervisor import SHORTEST_PAUSE
from socketkit.errors import ConfigError, IncompatibleError
from socketkit.handlers.coroutines import AsyncStreamRequestHandler
from socketkit.testing.clients import ask, talk
from socketkit.testing.programs import Program, with_path

SERVER = """
import faulthandler, logging, multiprocessing, os, signal, socket, sys, threading, time
from socketkit import *
from socketkit.dispatchers.aio import Asyncio
def print(*words):  # in one piece, because the log goes there too
    sys.stdout.write(" ".join(map(str, words)) + "\\n")

logging.basicConfig(level=logging.INFO, format="log: %(levelname)s %(message)s", stream=sys.stdout)
print("parent", os.getpid())

class Watcher:
    def worker_started(self, server, worker): print("started", worker, os.getpid())
    def worker_died(self, server, worker, reason): print("died", worker, reason)

def who(request, peer, server):
    data = request.recv(100)
    request.sendall(b"%s %d" % (data, os.getpid()))

def held(request, peer, server):
    request.sendall(b"%d\\n" % os.getpid())
    request.sendall(b"got " + request.recv(100))

def serve(dispatcher, handler=who, transport=TCP("127.0.0.1", 0), lifecycle=Graceful(10)):
    with Server(transport, handler, dispatcher=dispatcher, lifecycle=lifecycle, observers=[Watcher()]) as server:
        print("port", server.addresses[0][1])
        try:
            server.serve_forever()
        finally:
            print("report", server.stop())
            stats = server.stats()
            print("stats", stats.active, stats.accepted, *(f"{each}={count}" for each, count in sorted(stats.outcomes.items())))
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                print("no children")
"""


@contextlib.contextmanager
def serving(body):
    """Run the program and give it with the address it serves; it is up to the test to end it."""
    own_forks = "ignore::DeprecationWarning:multiprocessing.popen_fork"  # Python 3.15 raises it after the fork, if it is an error
    with Program.python("-W", "error", "-W", own_forks, "-c", SERVER + body, env=with_path(TESTS)) as program:
        yield program, ("127.0.0.1", int(program.line(r"^port (\d+)")[0][1]))


def started(program, count=1):
    """Return the pids of the first so many workers."""
    return [int(match[1]) for match in program.line(r"^started (\d+)", count)]


def ended(program, number=signal.SIGTERM):
    """Stop the server; return its counts by outcome, once all of its promises about the end are seen to be kept."""
    assert program.stop(number) == 0, program.output
    program.line("^no children")
    counts = program.line(r"^stats (\d+) (\d+)(.*)")[0]
    outcomes = {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", counts[3])}
    assert int(counts[1]) == 0
    assert int(counts[2]) == sum(outcomes.values())
    return outcomes


def hear(address):
    """Connect, say nothing, and return all that comes."""
    with socket.create_connection(address, timeout=10) as client, client.makefile("rb") as file:
        return file.read()


class Held:
    """A request that is being handled: its worker's pid is known, and it waits for `go`."""

    def __init__(self, address):
        self.client = socket.create_connection(address, timeout=10)
        self.file = self.client.makefile("rb")
        self.pid = int(self.file.readline())

    def go(self, data=b"go"):
        self.client.sendall(data)
        return self.read()

    def read(self):
        with self.client, self.file:
            return self.file.read()


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"workers": -1}, "workers must be a whole number of at least 0"),
        ({"inner": Sync}, "inner must be a dispatcher, such as Sync()"),
        ({"inner": Prefork()}, "inner must be a dispatcher that does not fork workers itself"),
        ({"max_requests": 0}, "max_requests must be a whole number of at least 1"),
        ({"max_rss": 0}, "max_rss must be a whole number of at least 1"),
        ({"max_age": 0}, "max_age must be more than 0 seconds"),
        ({"jitter": 1}, "jitter must be a number from 0 to less than 1"),
        ({"drain": -1}, "drain must be 0 or more seconds"),
        ({"boot_timeout": None}, "boot_timeout must be 0 or more seconds"),
        ({"boots": 0}, "boots must be a whole number of at least 1"),
        ({"hang_timeout": 0}, "hang_timeout must be more than 0 seconds"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        Prefork(**options)


def test_it_can_be_written_as_text():
    assert config.dispatcher("prefork:3,max_age=5m/sync") == Prefork(3, Sync(), max_age=300.0)
    with pytest.raises(ConfigError, match="does not fork workers itself"):
        config.dispatcher("prefork:2/prefork:2/sync")


def test_it_needs_what_its_inner_dispatcher_needs_and_runs_what_that_runs():
    class Streams:
        kinds = ("stream",)
        requires = frozenset({"wings"})

        def start(self, work):
            raise NotImplementedError

    assert Prefork(inner=Sync()).requires == {"fork"}
    assert Prefork().requires == {"fork", "threads"}
    assert Prefork(inner=Streams()).requires == {"fork", "wings"}
    Streams.requires = frozenset()
    with pytest.raises(IncompatibleError, match="Prefork accepts only stream requests, but udp://"):
        Server(UDP("127.0.0.1", 0), print, dispatcher=Prefork(inner=Streams()))


def test_it_takes_the_handlers_that_its_inner_dispatcher_takes():
    class Choosy(Sync):
        runs_async = True

        def check(self, handler):
            raise IncompatibleError("Choosy", f"does not like {handler.__name__}", "choose another")

    class Awaited(AsyncStreamRequestHandler):
        pass

    with pytest.raises(IncompatibleError, match="which Prefork cannot run; use dispatcher='asyncio'"):
        Server("tcp://127.0.0.1:0", Awaited, dispatcher=Prefork(inner=Sync()))
    with pytest.raises(IncompatibleError, match="Choosy does not like Awaited"):
        Server("tcp://127.0.0.1:0", Awaited, dispatcher=Prefork(inner=Choosy()))


def test_there_are_as_many_workers_as_cores_unless_somebody_says_otherwise():
    assert _supervised.cores() == len(os.sched_getaffinity(0))
    assert Prefork().start(None)._target == _supervised.cores()
    assert Prefork(7).start(None)._target == 7


def test_no_two_workers_have_the_same_limit_and_none_has_more():
    live = Prefork(jitter=0.5).start(None)
    limits = {live._at_random(10_000) for _ in range(50)}
    assert len(limits) > 10
    assert 5_000 <= min(limits) <= max(limits) <= 10_000
    assert live._at_random(1) == 1
    assert live._at_random(None) is None


# --- serving ----------------------------------------------------------------------------------------------------------

INNER = ["Sync()", "Threads()", "Forks()", "Pool()", "Adaptive()", "Asyncio()", "None"]


@pytest.mark.parametrize("inner", INNER)
def test_requests_run_in_the_workers_and_are_all_accounted_for(inner):
    with serving(f"serve(Prefork(2, {inner}))") as (program, address):
        workers = set(started(program, 2))
        answers = [talk(address, b"%d" % number).split() for number in range(40)]
        assert [int(number) for number, _ in answers] == list(range(40))
        pids = {int(pid) for _, pid in answers}
        assert not pids & {program.pid}
        if inner != "Forks()":
            assert pids <= workers
        assert ended(program) == {"finished": 40}
        assert gone(*workers, within=0)


def test_while_one_worker_is_busy_the_other_serves():
    with serving("serve(Prefork(2, Sync()), held)") as (program, address):
        one, other = Held(address), Held(address)
        assert {one.pid, other.pid} == set(started(program, 2))
        assert one.go() == other.go() == b"got go"
        assert ended(program) == {"finished": 2}


@pytest.mark.parametrize("inner", ["Sync()", "Adaptive()"])
def test_datagrams_too(inner):
    body = "echo = lambda request, peer, server: request[1].sendto(request[0] + b' %d' % os.getpid(), peer)\n"
    with serving(body + f"serve(Prefork(2, {inner}), echo, UDP('127.0.0.1', 0))") as (program, address):
        answers = [ask(address, b"%d" % number).split() for number in range(20)]
        assert [int(number) for number, _ in answers] == list(range(20))
        assert {int(pid) for _, pid in answers} <= set(started(program, 2))
        assert ended(program) == {"finished": 20}


def test_handlers_that_are_awaited_too():
    body = """
from socketkit.handlers.coroutines import AsyncStreamRequestHandler
class Who(AsyncStreamRequestHandler):
    async def handle(self):
        self.writer.write(await self.reader.read(100) + b" %d" % os.getpid())
serve(Prefork(2, Asyncio()), Who)
"""
    with serving(body) as (program, address):
        answers = [talk(address, b"%d" % number).split() for number in range(20)]
        assert [int(number) for number, _ in answers] == list(range(20))
        assert {int(pid) for _, pid in answers} <= set(started(program, 2))
        assert ended(program) == {"finished": 20}


def test_the_workers_are_told_of_in_the_parent_once_each_takes_requests():
    with serving("serve(Prefork(3, Sync()))") as (program, _address):
        found = program.line(r"^started (\d+) (\d+)", 3)
        assert {int(match[2]) for match in found} == {program.pid}
        assert len({int(match[1]) for match in found} | {program.pid}) == 4
        assert ended(program) == {}
        assert "died" not in program.output


def test_the_counts_of_living_workers_are_part_of_the_servers():
    body = """
def tell(*_):
    stats = server.stats()
    print("now", stats.active, stats.accepted, stats.outcomes)
signal.signal(signal.SIGUSR1, tell)
server = Server(TCP("127.0.0.1", 0), held, dispatcher=Prefork(2, Sync()))
Server = lambda *args, **parts: server
serve(None)
"""
    with serving(body) as (program, address):
        one, other = Held(address), Held(address)

        def now(count):
            program.send_signal(signal.SIGUSR1)
            return program.line(r"^now (.*)", count)[-1][1]

        assert now(1) == "2 2 {}"
        one.go()
        count = 2
        while (told := now(count)) == "2 2 {}":  # its worker has sent the reply, and is about to account for it
            count += 1
        assert told == "1 2 {'finished': 1}"
        other.go()
        assert ended(program) == {"finished": 2}


def test_every_outcome_is_counted_across_processes():
    handler = """
def handler(request, peer, server):
    how = request.recv(100)
    if how == b"raise": raise ValueError(how)
    if how == b"gone": raise ConnectionResetError(how)
    if how == b"kill": os.kill(os.getpid(), signal.SIGKILL)
    if how == b"exit": os._exit(3)
class Picky(Server):
    def verify_request(self, request, peer):
        return request.recv(2, socket.MSG_PEEK) != b"no"
Server = Picky
"""
    with serving(handler + "serve(Prefork(1, Sync()), handler)") as (program, address):
        for how in (b"raise", b"gone", b"fine", b"no"):
            talk(address, how)
        for how in (b"kill", b"exit"):
            with contextlib.suppress(OSError):  # reset, or not connected any more
                talk(address, how)
        program.line(r"log: ERROR worker \d+ died: SIGKILL, perhaps because memory ran out; it had served 4 requests")
        program.line(r"^died \d+ exit code 3")
        assert ended(program) == {"failed": 1, "aborted": 1, "finished": 1, "refused": 1, "died": 2}


def test_one_request_at_a_time_needs_no_worker():
    python(
        SERVER
        + """
with Server(TCP("127.0.0.1", 0), who, dispatcher=Prefork(2, Sync())) as server:
    with socket.create_connection(server.addresses[0]) as client:
        client.sendall(b"x")
        server.handle_request()
        assert client.recv(100) == b"x %d" % os.getpid()
assert server.stats().outcomes == {"finished": 1}
"""
    )


def test_a_server_without_a_drain_serves_again():
    body = """
class Again(Server):
    def shutdown_later(self): signal.signal(signal.SIGTERM, lambda *_: self.stop(wait=False))
with Again(TCP("127.0.0.1", 0), held, dispatcher=Prefork(1, Sync()), lifecycle=Classic(), observers=[Watcher()]) as server:
    server.shutdown_later()
    print("port", server.addresses[0][1])
    server.serve_forever()
    print("again")
    server.serve_forever()
print("stats", server.stats().active, server.stats().accepted, *(f"{k}={v}" for k, v in server.stats().outcomes.items()))
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no children")
"""
    with serving(body) as (program, address):
        first = Held(address)
        program.send_signal(signal.SIGTERM)
        program.line("^again")
        second = Held(address)  # while the first is not over
        assert first.pid != second.pid
        assert first.go() == second.go() == b"got go"
        assert ended(program) == {"finished": 2}


def test_a_classic_program_runs_under_it(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "import os, socketserver\n"
        "class Handler(socketserver.StreamRequestHandler):\n"
        "    def handle(self): self.wfile.write(self.rfile.readline() + b'%d' % os.getpid())\n"
        "with socketserver.TCPServer(('127.0.0.1', 0), Handler) as server:\n"
        "    print('port', server.server_address[1], os.getpid())\n"
        "    server.serve_forever()\n"
        "print('over')\n"
    )
    command = ("-m", "socketkit", "run", "--dispatcher", "prefork:2/sync", "--lifecycle", "graceful", str(script))
    with Program.python(*command, env=with_path(ROOT)) as program:
        port, parent = map(int, program.line(r"^port (\d+) (\d+)")[0].groups())
        answers = [talk(("127.0.0.1", port), b"%d\n" % number).split() for number in range(20)]
        assert [int(number) for number, _ in answers] == list(range(20))
        assert parent not in {int(pid) for _, pid in answers}
        assert program.stop() == 0, program.output
        program.line("^over")


# --- a worker's surroundings ------------------------------------------------------------------------------------------


def test_a_worker_has_only_the_descriptors_it_needs():
    handler = """
def handler(request, peer, server):
    links = []
    for each in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{each}"))
        except OSError:
            pass
    kinds = [link.partition(":")[0] + (":" + link.partition(":")[2] if link.startswith("anon") else "") for link in links]
    request.sendall(b"%d " % os.getpid() + " ".join(sorted(kind for kind in kinds if kind.startswith(("socket", "anon")))).encode())
"""
    with serving(handler + "serve(Prefork(3, Sync()), handler)") as (program, address):
        pids = started(program, 3)
        os.kill(pids[0], signal.SIGKILL)
        newcomer = started(program, 4)[3]
        seen = {}
        while newcomer not in seen:
            pid, *links = hear(address).decode().split()
            seen[int(pid)] = links
        # the listener, the request, its end of the channel to the parent, the two ends of its wake-up; and its own selector
        assert all(links == ["anon_inode:[eventpoll]", *["socket"] * 5] for links in seen.values()), seen
        ended(program)


def test_a_worker_keeps_the_programs_signal_handlers_and_none_of_its_parents_loop():
    handler = """
def handler(request, peer, server):
    facts = signal.getsignal(signal.SIGUSR1) is print, signal.getsignal(signal.SIGALRM) is print, signal.getsignal(signal.SIGHUP)
    request.sendall(repr((*facts, signal.set_wakeup_fd(-1) in wakeups, signal.pthread_sigmask(signal.SIG_BLOCK, ()))).encode())
signal.signal(signal.SIGUSR1, print)
signal.signal(signal.SIGALRM, print)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
pair = socket.socketpair()
pair[1].setblocking(False)
signal.set_wakeup_fd(pair[1].fileno())
wakeups = {pair[1].fileno()}
"""
    with serving(handler + "serve(Prefork(1, Sync()), handler)") as (program, address):
        assert hear(address) == b"(True, True, <Handlers.SIG_IGN: 1>, False, set())"
        ended(program)


@pytest.mark.parametrize("lifecycle", ["Graceful(10)", "Classic()"])
def test_a_program_that_a_worker_starts_has_the_default_signal_handlers(lifecycle):
    body = """
import subprocess
from socketkit.lifecycles.classic import Classic
source = "import signal; print([number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN])"
def handler(request, peer, server):
    for process in [subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE), subprocess.Popen(["sleep", "100"])]:
        process.send_signal(signal.SIGINT) if process.stdout is None else request.sendall(process.stdout.read().strip())
        request.sendall(b" %d" % process.wait())
"""
    with serving(body + f"serve(Prefork(1, Sync()), handler, lifecycle={lifecycle})") as (_program, address):
        assert hear(address) == b"[<Signals.SIGPIPE: 13>, <Signals.SIGXFSZ: 25>] 0 -2"


def test_no_two_workers_draw_the_same_numbers():
    handler = (
        "import random\nhandler = lambda request, peer, server: (held(request, peer, server), request.sendall(b'%r' % random.random()))\n"
    )
    handler = handler.replace("b'%r' % random.random()", "repr(random.random()).encode()")
    with serving(handler + "random.seed(1)\nserve(Prefork(2, Sync()), handler)") as (program, address):
        one, other = Held(address), Held(address)
        assert one.go() != other.go()
        ended(program)


def test_what_a_worker_printed_is_not_lost():
    with serving("serve(Prefork(1, Sync()), lambda *_: sys.stdout.write('printed in a worker\\n'))") as (program, address):
        talk(address, b"x")
        ended(program)
        program.line("^printed in a worker")


def test_a_child_of_a_worker_counts_for_nothing_and_ends_when_it_is_told_to():
    handler = """
import multiprocessing
def handler(request, peer, server):
    child = multiprocessing.get_context("fork").Process(target=signal.pause)
    child.start()
    child.terminate()
    child.join()
    request.sendall(b"%d" % child.exitcode)
"""
    with serving(handler + "serve(Prefork(1, Sync()), handler)") as (program, address):
        assert hear(address) == b"-15"
        assert ended(program) == {"finished": 1}


# --- a worker ends as a program does ---------------------------------------------------------------------------------


BEGINS = """
import atexit, weakref
from concurrent.futures import ProcessPoolExecutor
faulthandler.dump_traceback_later(60, exit=True)
class Made: pass
made, going = Made(), threading.Event()
def say(word):
    os.write(1, b"\\n%s %d\\n" % (word.encode(), os.getpid()))
def last():
    going.wait()
    say("thread")
def begin(request, peer, server):
    global pool, own
    pool, own = ProcessPoolExecutor(1), Made()
    atexit.register(say, "exits")
    weakref.finalize(own, say, "finalizes")
    threading.Thread(target=last, daemon=False).start()  # a dispatcher's threads are daemons, which a new thread would be too
    request.sendall(b"%d %d" % (os.getpid(), pool.submit(os.getpid).result()))
    going.set()
atexit.register(say, "parent-exits")
weakref.finalize(made, say, "parent-finalizes")
daemon = multiprocessing.get_context("fork").Process(target=signal.pause, daemon=True)
daemon.start()
"""


@pytest.mark.parametrize("inner", ["Sync()", "Pool(2)", "Asyncio()"])
@pytest.mark.parametrize("how", ["SIGTERM to the server", "SIGTERM to the worker", "max_requests"])
def test_a_worker_ends_what_it_began_and_runs_what_was_registered_with_atexit(how, inner):
    limit = "max_requests=1" if how == "max_requests" else ""
    with serving(BEGINS + f"serve(Prefork(1, {inner}, {limit}), begin)\nprint('daemon lives:', daemon.is_alive())") as (program, address):
        worker, child = map(int, hear(address).split())
        if how == "SIGTERM to the worker":
            os.kill(worker, signal.SIGTERM)
        if how != "SIGTERM to the server":
            program.line(f"worker {worker} has left")
        assert program.stop() == 0, program.output
        assert gone(worker, child)
        program.line("^daemon lives: True")
        said = [(match[1], int(match[2])) for match in program.line(r"^((?:parent-)?(?:thread|exits|finalizes)) (\d+)$", 5)]
        assert said[0] == ("thread", worker)
        assert sorted(said[1:3]) == [("exits", worker), ("finalizes", worker)]
        assert sorted(said[3:]) == [("parent-exits", program.pid), ("parent-finalizes", program.pid)]
        assert "log: ERROR" not in program.output


def test_what_a_killed_worker_leaves_behind_does_not_hold_the_port():
    body = """
def begin(request, peer, server):
    child = multiprocessing.get_context("fork").Process(target=signal.pause)
    child.start()
    request.sendall(b"%d %d" % (os.getpid(), child.pid))
serve(Prefork(1, Sync()), begin, lifecycle=Graceful(0.2))
"""
    with serving(body) as (program, address):
        worker, child = map(int, hear(address).split())
        assert program.stop() == 0
        assert gone(worker)
        assert not gone(child, within=0)
        with socket.create_server(address):
            pass
        os.kill(child, signal.SIGKILL)


def test_forking_beside_other_threads_is_warned_of():
    with serving("threading.Thread(target=threading.Event().wait, daemon=True, name='bystander').start()\nserve(Prefork(1))") as (
        program,
        _,
    ):
        program.line(r"log: WARNING this process forks while other threads run \(bystander\)")
        started(program)
        ended(program)
    with serving("serve(Prefork(1))") as (program, _):
        started(program)
        ended(program)
        assert "WARNING" not in program.output


# --- workers that die -------------------------------------------------------------------------------------------------


class Crowd:
    """Clients that ask and check without a pause until told to stop; what went wrong is in `failures` and `wrong`."""

    def __init__(self, address, size=4):
        self.address = address
        self.answers = collections.Counter()
        self.failures, self.wrong, self.refused = [], [], []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(size)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number):
        count = 0
        while not self._stop.is_set():
            count += 1
            question = b"%d-%d" % (number, count)
            try:
                answer = talk(self.address, question)
            except ConnectionRefusedError as error:
                self.refused.append(error)
            except OSError as error:
                self.failures.append(error)
            else:
                said, _, pid = answer.partition(b" ")
                if not answer:
                    self.failures.append(answer)
                elif said != question:
                    self.wrong.append((question, answer))
                else:
                    self.answers[int(pid)] += 1


def test_workers_that_are_killed_under_load_are_replaced_within_a_second_and_cost_one_request_each():
    kills = 10
    with serving("serve(Prefork(3, Sync()))") as (program, address):
        pids = started(program, 3)
        held = len(os.listdir(f"/proc/{program.pid}/fd"))
        with Crowd(address) as crowd:
            for number in range(kills):
                killed = time.monotonic()
                os.kill(pids[number], signal.SIGKILL)
                pids = started(program, 4 + number)
                assert time.monotonic() - killed < 1
        assert (crowd.wrong, crowd.refused) == ([], [])
        assert len(crowd.failures) <= kills
        assert len(crowd.answers) > 3
        assert len(os.listdir(f"/proc/{program.pid}/fd")) == held
        outcomes = ended(program)
        assert outcomes.get("died", 0) <= kills
        assert outcomes["finished"] + outcomes.get("died", 0) >= crowd.answers.total()
        dead = program.line(r"^log: ERROR worker (\d+) died: SIGKILL.*; it had served (\d+) requests?", kills)
        assert [int(match[1]) for match in dead] == pids[:kills]
        assert len(program.line(r"^died (\d+) SIGKILL", kills)) == kills


def test_a_worker_that_dies_idle_again_and_again_is_replaced_no_faster_than_makes_sense():
    with serving("serve(Prefork(1, Sync()))") as (program, _address):
        began = time.monotonic()
        for number in range(5):
            os.kill(started(program, number + 1)[number], signal.SIGKILL)
        started(program, 6)
        assert time.monotonic() - began >= 5 * SHORTEST_PAUSE
        ended(program)


BROKEN = """
class Broken:
    def start(self, work):
        {0}
"""


@pytest.mark.parametrize(
    ("failure", "cause"),
    [("raise OSError('no disk')", "exit code 1"), ("os.kill(os.getpid(), 11)", "SIGSEGV"), ("os._exit(0)", "exit code 0")],
)
def test_workers_that_cannot_boot_are_started_ever_more_slowly_and_end_the_server(failure, cause):
    with serving(BROKEN.format(failure) + "serve(Prefork(1, Broken(), boots=4))") as (program, address):
        assert program.wait(20) == 1
        program.line(rf"BootError: 4 workers in a row ended before they were ready, the last: {cause}; the log has their errors")
        assert [match[1] for match in program.line(r"log: WARNING cannot start a worker .* in (\S+) s", 3)] == ["0.1", "0.2", "0.4"]
        assert program.output.count(f"died: {cause}") == 4
        if "OSError" in failure:
            assert program.output.count("OSError: no disk") == 4
        program.line("^no children")
        with pytest.raises(ConnectionRefusedError):
            talk(address, b"x")


def test_a_boot_that_succeeds_makes_up_for_those_that_failed(tmp_path):
    body = f"""
count = 0
class Moody(Sync):
    def start(self, work):
        attempts = open({str(tmp_path / "attempts")!r}, "ab+")
        attempts.write(b"x")
        attempts.flush()
        if attempts.tell() % 3: raise OSError("not in the mood")
        return super().start(work)
serve(Prefork(1, Moody(), boots=3), lambda *_: os._exit(1))
"""
    with serving(body) as (program, address):
        for number in range(3):
            started(program, number + 1)
            with contextlib.suppress(OSError):  # reset, or not connected any more
                talk(address, b"x")
            program.line("died: exit code 1; it had served 0", 2 * number + 3)
        started(program, 4)
        ended(program)


def test_a_worker_that_takes_too_long_to_boot_is_ended_and_shows_where_it_stands():
    body = BROKEN.format("threading.Event().wait()") + "serve(Prefork(1, Broken(), boot_timeout=0.2, boots=2))"
    with serving(body) as (program, _address):
        assert program.wait(20) == 1
        program.line(r"BootError: 2 workers .*, the last: it was not ready within 0.2 s \(SIGABRT\)")
        program.line(r'File "<string>", line \d+ in start', 2)


def test_the_stacks_of_an_aborted_worker_do_not_run_into_a_line_of_the_log():
    slow = """
class Slow(logging.Handler):
    def emit(self, record):
        for half in (record.getMessage() + " (begins)", " (ends)\\n"):
            os.write(1, half.encode())
            time.sleep(0.1)
logging.getLogger("socketkit.dispatchers.prefork").addHandler(Slow())
"""
    body = slow + BROKEN.format("threading.Event().wait()") + "serve(Prefork(1, Broken(), boot_timeout=0.2, boots=1))"
    with serving(body) as (program, _address):
        assert program.wait(20) == 1
        program.line(r"^the supervisor aborts worker \d+: it was not ready within 0.2 s \(begins\) \(ends\)")
        program.line(r"BootError: a worker ended before it was ready: it was not ready within 0.2 s \(SIGABRT\); the log has its errors")


def test_a_system_without_processes_to_give_is_asked_again_while_there_are_workers():
    body = """
import errno
from socketkit._system import children
class NoMore:
    left = 2
    def __getattr__(self, name): return getattr(os, name)
    def fork(self):
        if not self.left: raise OSError(errno.EAGAIN, "no more")
        self.left -= 1
        return os.fork()
children.os = no_more = NoMore()
signal.signal(signal.SIGUSR1, lambda *_: setattr(no_more, "left", 1))
serve(Prefork(2, Sync(), boots=2))
"""
    with serving(body) as (program, address):
        os.kill(started(program, 2)[0], signal.SIGKILL)
        program.line("cannot start a worker .*no more.*; the next attempt is in 0.4 s")  # a third failure: more than would end the server
        assert int(talk(address, b"x").split()[1]) == started(program, 2)[1]
        program.send_signal(signal.SIGUSR1)
        started(program, 3)
        ended(program)


def test_without_a_pidfd_an_end_is_noticed_all_the_same():
    body = "import socketkit.dispatchers._supervision.processes as processes\nprocesses.pidfd = lambda pid: None\nserve(Prefork(2, Forks(), max_age=0.5))"
    with serving(body) as (program, address):
        with Crowd(address, 2) as crowd:
            os.kill(started(program, 2)[0], signal.SIGKILL)
            program.line(r"^died \d+ SIGKILL")
            started(program, 6)
        assert (crowd.wrong, crowd.refused) == ([], [])
        assert len(crowd.failures) <= 2
        assert program.output.count("\ndied") == 1
        ended(program)


def test_other_peoples_children_keep_their_exit_codes():
    body = """
import subprocess
others = [subprocess.Popen([sys.executable, "-c", f"import os; os._exit({number})"]) for number in range(5)]
serve(Prefork(2, Sync()))
print("codes", [other.wait() for other in others])
"""
    with serving(body) as (program, _address):
        pids = started(program, 2)
        for number in range(4):
            os.kill(pids[number], signal.SIGKILL)
            pids = started(program, 3 + number)
        assert program.stop() == 0
        program.line(r"^codes \[0, 1, 2, 3, 4\]")


# --- workers that are replaced ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["Sync()", "Threads()", "Pool()", "Adaptive()", "Asyncio()"])
def test_a_worker_that_has_done_its_share_is_replaced_and_no_request_is_lost(inner):
    with serving(f"serve(Prefork(2, {inner}, max_requests=30, jitter=0.2))") as (program, address):
        with Crowd(address) as crowd:
            started(program, 12)
        assert (crowd.failures, crowd.wrong, crowd.refused) == ([], [], [])
        assert len(crowd.answers) >= 10
        assert ended(program) == {"finished": crowd.answers.total()}
        assert "died" not in program.output


def test_a_worker_of_age_is_replaced_and_no_request_is_lost():
    with serving("serve(Prefork(2, Adaptive(), max_age=0.2, jitter=0))") as (program, address):
        with Crowd(address) as crowd:
            started(program, 8)
        assert (crowd.failures, crowd.wrong, crowd.refused) == ([], [], [])
        assert ended(program) == {"finished": crowd.answers.total()}


def test_a_worker_that_has_grown_is_replaced():
    body = """
hoard = []
def handler(request, peer, server):
    hoard.append(b"x" * int(request.recv(100)))
    request.sendall(b"%d" % os.getpid())
from socketkit.dispatchers._supervision.process_worker import memory_in_use
serve(Prefork(1, Sync(), max_rss=memory_in_use() + 50_000_000), handler)
"""
    with serving(body) as (program, address):
        first = int(talk(address, b"1"))
        assert started(program) == [first]
        assert int(talk(address, b"100000000")) == first
        while int(talk(address, b"1")) == first:
            pass
        assert len(started(program, 2)) == 2
        assert gone(first)
        assert ended(program)["finished"] >= 3
        assert "died" not in program.output


CONVERSATIONS = """
from http.server import BaseHTTPRequestHandler
class Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        data = b"%d\\n" % os.getpid()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *_): pass
class Own(Http):  # a loop of its own
    def handle(self):
        self.close_connection = True
        self.handle_one_request()
        while not self.close_connection:
            self.handle_one_request()
class Lines(ConversationHandler):
    def handle_one_request(self):
        self.rfile.readline()
        self.wfile.write(b"%d\\n" % os.getpid())
class Messages(MessageHandler):
    def reply(self, message, client_address):
        return b"%d" % os.getpid()
"""


def converse(address, handler):
    """Make requests on one connection, which is renewed when the server closes it, and yield the number of the process that answers each."""
    is_http = handler in {"Http", "Own"}
    while True:
        with socket.create_connection(address, timeout=10) as client, client.makefile("rb") as file:
            with contextlib.suppress(ConnectionError):
                while True:
                    client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" if is_http else b"x\n")
                    while is_http and file.readline().strip():
                        pass
                    line = file.readline()
                    if not line:
                        break
                    yield int(line)


@pytest.mark.parametrize("inner", ["Sync()", "Threads()", "Pool(2)", "Executor()"])
@pytest.mark.parametrize("handler", ["Http", "Own", "Lines", "Messages"])
def test_each_request_of_a_conversation_counts_towards_the_share_of_a_worker(handler, inner):
    with serving(CONVERSATIONS + f"serve(Prefork(1, {inner}, max_requests=20, jitter=0), {handler})") as (program, address):
        answers, answered = converse(address, handler), []
        while len(set(answered)) < 4:
            answered.append(next(answers))
        answers.close()
        counts = [answered.count(pid) for pid in dict.fromkeys(answered)]
        assert all(count >= 20 for count in counts[:-1]), counts
        for pid, count in zip(dict.fromkeys(answered), counts[:-1], strict=False):
            program.line(rf"worker {pid} has left; it had served {count} requests")
        ended(program)


@pytest.mark.parametrize("handler", ["Http", "Own", "Lines", "Messages"])
def test_a_worker_busy_with_one_conversation_does_not_hang(handler):
    with serving(CONVERSATIONS + f"serve(Prefork(1, Sync(), hang_timeout=0.5), {handler})") as (program, address):
        answers, end = converse(address, handler), time.monotonic() + 1.5
        assert {next(answers) for _ in iter(lambda: time.monotonic() < end, False)} == set(started(program))
        answers.close()
        ended(program)


@pytest.mark.parametrize("inner", ["Sync()", "Pool(2)"])
def test_a_worker_that_has_grown_within_a_conversation_is_replaced(inner):
    with serving(CONVERSATIONS + f"serve(Prefork(1, {inner}, max_rss=1), Lines)") as (program, address):
        answers, answered = converse(address, "Lines"), set()
        while len(answered) < 2:
            answered.add(next(answers))
        answers.close()
        ended(program)


def test_memory_is_counted_in_bytes():
    before = memory_in_use()
    ballast = b"x" * 64_000_000
    assert 60_000_000 < memory_in_use() - before < 80_000_000
    del ballast


def test_a_connection_that_waits_for_its_first_byte_outlives_its_workers_term():
    with serving("serve(Prefork(1, Adaptive(defer=60)))") as (program, address), socket.create_connection(address, timeout=10) as client:
        [pid] = started(program)
        assert talk(address, b"x") == b"x %d" % pid  # it has accepted both by now: they are taken in their order
        os.kill(pid, signal.SIGTERM)
        successor = started(program, 2)[1]
        client.sendall(b"late")
        assert client.recv(100) == b"late %d" % pid
        assert gone(pid)
        assert talk(address, b"x") == b"x %d" % successor
        assert ended(program) == {"finished": 3}


def test_a_worker_that_is_told_to_end_finishes_and_is_replaced():
    with serving("serve(Prefork(1, Sync()), held)") as (program, address):
        request = Held(address)
        os.kill(request.pid, signal.SIGTERM)
        assert started(program, 2)[0] == request.pid
        assert request.go() == b"got go"
        assert gone(request.pid)
        successor = Held(address)
        assert successor.pid == started(program, 2)[1]
        assert successor.go() == b"got go"
        ended(program)
        assert "died" not in program.output


def test_a_worker_that_does_not_finish_within_its_drain_is_ended():
    with serving("serve(Prefork(1, Sync(), drain=0.2), held)") as (program, address):
        request = Held(address)
        os.kill(request.pid, signal.SIGTERM)
        assert gone(request.pid)
        assert request.read() == b""
        assert ended(program) == {"aborted": 1}, program.output  # its socket was shut down, so that the handler woke up and could end


def test_a_worker_that_does_not_even_then_is_killed():
    body = "def stubborn(request, peer, server):\n    request.sendall(b'%d\\n' % os.getpid())\n    while True: time.sleep(100)\n"
    with serving(body + "serve(Prefork(1, Sync(), drain=0.2), stubborn)") as (program, address):
        request = Held(address)
        os.kill(request.pid, signal.SIGTERM)
        assert gone(request.pid, within=5)
        program.line(rf"log: WARNING worker {request.pid} did not end in time, so it was killed; it had served 0 requests")
        assert request.read() == b""
        assert ended(program) == {"died": 1}


# --- workers that hang ------------------------------------------------------------------------------------------------

HANGING = """
def handler(request, peer, server):
    what = request.recv(100)
    request.sendall(b"%d\\n" % os.getpid())
    if what == b"loop":
        while True: pass
    if what == b"sleep":
        threading.Event().wait()
"""


@pytest.mark.parametrize("how", [b"loop", b"sleep", b"stop"])
def test_a_worker_that_hangs_shows_where_it_stands_and_is_replaced_while_the_others_serve(how):
    with serving(HANGING + "serve(Prefork(2, Sync(), hang_timeout=0.5), handler)") as (program, address):
        with socket.create_connection(address, timeout=10) as client:
            client.sendall(how)
            pid = int(client.makefile("rb").readline())
            if how == b"stop":
                os.kill(pid, signal.SIGSTOP)
            assert int(talk(address, b"x", timeout=0.4)) != pid
            program.line(rf"log: ERROR the supervisor aborts worker {pid}: it has not answered for 0\.[5-9] s")
            program.line(rf"^died {pid} it has not answered for .* \((SIGABRT|SIGKILL)\)")
        if how != b"stop":
            program.line(r'File "<string>", line \d+ in handler')
        started(program, 3)
        outcomes = ended(program)
        assert how == b"stop" or outcomes["died"] == 1


def test_a_worker_that_is_idle_or_busy_with_many_requests_does_not_hang():
    with serving("serve(Prefork(2, Sync(), hang_timeout=0.3), lambda r, *_: (who(r, *_), time.sleep(0.02)))") as (program, address):
        pids = set(started(program, 2))
        with Crowd(address, 6) as crowd:
            time.sleep(0.7)  # busy for longer than a worker may hang
        assert set(crowd.answers) <= pids
        assert crowd.failures == []
        time.sleep(0.7)  # and idle
        ended(program)
        assert "died" not in program.output


def test_one_thread_that_hangs_does_not_make_its_worker_hang():
    body = HANGING + "serve(Prefork(1, Threads(), hang_timeout=0.3), handler, lifecycle=Graceful(0))"
    with serving(body) as (program, address), socket.create_connection(address, timeout=10) as client:
        client.sendall(b"sleep")
        pid = int(client.makefile("rb").readline())
        assert not select.select([client], [], [], 0.8)[0]
        assert int(talk(address, b"x")) == pid
        assert program.stop() == 0


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", INNER[:-1])
@pytest.mark.parametrize("group", [False, True], ids=["to the parent", "to the group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_what_runs_may_finish(inner, group, number):
    with serving(f"serve(Prefork(2, {inner}), held)") as (program, address):
        started(program, 2)
        request = Held(address)
        (os.killpg if group else os.kill)(program.pid, number)
        program.line("worker .* has left")  # the idle one
        assert request.go() == b"got go"
        assert program.wait(10) == 0, program.output
        program.line("^no children")
        program.line(r"^stats 0 1 finished=1")
        program.line(r"^report 1 finished, 0 forced, 0 stuck")
        assert "died" not in program.output
        with pytest.raises(ConnectionRefusedError):
            talk(address, b"x")


@pytest.mark.parametrize("inner", ["Sync()", "Threads()", "Adaptive()", "Asyncio()"])
def test_at_the_deadline_sockets_are_shut_down(inner):
    with serving(f"serve(Prefork(2, {inner}), held, lifecycle=Graceful(0.2))") as (program, address):
        request = Held(address)
        assert program.stop() == 0
        assert request.read() == b""
        program.line(r"^report 0 finished, 1 forced, 0 stuck")
        program.line(r"^stats 0 1 aborted=1")
        program.line("^no children")


def test_at_the_deadline_a_worker_ends_its_children_with_their_requests():
    with serving("serve(Prefork(2, Forks()), held, lifecycle=Graceful(0.2))") as (program, address):
        request = Held(address)
        assert program.stop() == 0
        assert request.read() == b""
        assert gone(request.pid)
        program.line(r"^report 0 finished, 1 forced, 0 stuck")
        program.line("^no children")
        assert "did not end in time" not in program.output


def test_a_worker_that_does_not_heed_the_deadline_is_killed():
    body = "def stubborn(request, peer, server):\n    request.sendall(b'%d\\n' % os.getpid())\n    while True: time.sleep(100)\n"
    with serving(body + "serve(Prefork(2, Sync()), stubborn, lifecycle=Graceful(0.2))") as (program, address):
        request = Held(address)
        assert program.stop() == 0
        program.line(r"^stats 0 1 died=1")
        program.line("^no children")
        program.line(rf"log: WARNING worker {request.pid} did not end in time, so it was killed")
        assert "memory" not in program.output
        assert gone(request.pid, within=0)
        assert request.read() == b""


def test_a_classic_server_that_waits_for_nothing_lets_idle_workers_end_and_kills_none(tmp_path):
    script = tmp_path / "program.py"
    script.write_text("""
import atexit, logging, os, socketserver, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="log: %(levelname)s %(message)s")
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        atexit.register(os.write, 1, b"ended\\n")
        self.request.sendall(b"x")
class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
with Server(("127.0.0.1", 0), Handler) as server:
    print("port", server.server_address[1])
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
""")
    command = "-m", "socketkit", "run", "--dispatcher", "prefork:2", "--lifecycle", "classic", str(script)
    with Program.python(*command, env=with_path(ROOT), cwd=tmp_path) as program:
        address = "127.0.0.1", int(program.line(r"^port (\d+)")[0][1])
        program.line(r"worker \d+ is ready", 2)
        assert hear(address) == b"x"
        os.killpg(program.pid, signal.SIGINT)
        assert program.wait() == 0
        program.line("^ended")
        assert "did not end in time" not in program.output


def test_a_handler_may_stop_the_whole_server():
    with serving("serve(Prefork(3, Sync()), lambda request, peer, server: (server.stop(), request.sendall(b'bye')))") as (program, address):
        started(program, 3)
        assert hear(address) == b"bye"
        assert program.wait(10) == 0
        program.line(r"^stats 0 1 finished=1")
        program.line("^no children")
        assert "died" not in program.output


@pytest.mark.parametrize("inner", INNER[:-1])
def test_idle_workers_notice_at_once_that_their_parent_is_dead_and_the_port_is_free(inner):
    with serving(f"serve(Prefork(2, {inner}))") as (program, address):
        pids = started(program, 2)
        talk(address, b"x")
        program.send_signal(signal.SIGKILL)
        assert gone(*pids, within=1)
        with socket.create_server(address):
            pass


def test_a_busy_worker_finishes_when_its_parent_is_dead():
    with serving("serve(Prefork(2, Sync()), held)") as (program, address):
        pids = set(started(program, 2))
        request = Held(address)
        program.send_signal(signal.SIGKILL)
        assert gone(*(pids - {request.pid}), within=1)
        assert not gone(request.pid, within=0)
        assert request.go() == b"got go"
        assert gone(request.pid, within=1)


@pytest.mark.parametrize("alarm", ["", "signal.signal(signal.SIGALRM, print)\n"])
@pytest.mark.parametrize("inner", ["Sync()", "Threads()"])
def test_a_worker_that_lost_its_parent_does_not_outlive_its_drain(inner, alarm):
    body = alarm + "def stubborn(request, peer, server):\n    request.sendall(b'%d\\n' % os.getpid())\n    while True: time.sleep(100)\n"
    with serving(body + f"serve(Prefork(1, {inner}, drain=0.1), stubborn)") as (program, address):
        request = Held(address)
        program.send_signal(signal.SIGKILL)
        assert gone(request.pid, within=3)
        assert request.read() == b""
        with socket.create_server(address):
            pass


def test_a_child_of_the_parents_does_not_keep_workers_alive():
    body = """
pid = os.fork
def beside(server):
    def fork(*_):
        if not os.fork():
            print("beside", os.getpid())
            signal.pause()
    signal.signal(signal.SIGUSR1, fork)
beside(None)
serve(Prefork(1, Sync()))
"""
    with serving(body) as (program, _address):
        [pid] = started(program)
        program.send_signal(signal.SIGUSR1)
        beside = int(program.line(r"^beside (\d+)")[0][1])
        program.send_signal(signal.SIGKILL)
        assert gone(pid, within=1)
        assert not gone(beside, within=0)
        os.kill(beside, signal.SIGKILL)
