"""Certificates are renewed without a restart: new handshakes get the new one, and nothing that goes wrong with the files ends anything."""

import contextlib
import gc
import itertools
import logging
import os
import select
import shutil
import socket
import ssl
import subprocess
import threading
import time
import weakref
from datetime import UTC, datetime, timedelta

import attrs
import pytest

from helpers import innards
from helpers.support import SERVE, python
from socketkit import TCP, TLS, Graceful, Layered, Server, StreamRequestHandler
from socketkit._system import logs
from socketkit.errors import ConfigError
from socketkit.layers import _expiry, _tls
from socketkit.testing import FakeClock
from socketkit.testing.certificates import authority, certificate
from socketkit.testing.clients import address
from socketkit.testing.programs import Program

IN_PROCESS = ("sync", "thread", "pool:2", "adaptive:8", "executor", "asyncio")
IN_OTHERS = ("fork", "prefork:2", "prefork:2/fork", "prefork:2/asyncio")
LATE = 20
OFTEN = 0.02

HANDLERS = """
import socketserver

class Upper(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())
"""


class Upper(StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


@attrs.frozen
class Files:
    """A certificate and its key in two files, which can be replaced."""

    folder: object
    cert: str
    key: str

    def put(self, pair):
        """Put another pair in place, each file in one step."""
        for file, to in zip(pair, (self.cert, self.key), strict=True):
            shutil.copy(file, f"{to}.new")
            os.chmod(f"{to}.new", 0o600)
            os.replace(f"{to}.new", to)


@pytest.fixture
def files(tmp_path):
    made = Files(tmp_path, str(tmp_path / "cert.pem"), str(tmp_path / "cert.key"))
    made.put(issued(0))
    return made


def issued(number):
    """Return one of several certificates for the same name."""
    return certificate(issue=number)


def serial(pair):
    """Return the serial number of the certificate in the first of these files."""
    return ssl._ssl._test_decode_cert(pair[0])["serialNumber"]


def serving(files, dispatcher="adaptive:8", handler=Upper, clock=time.monotonic, **options):
    options = {"cert": files.cert, "key": files.key, "reload": OFTEN, **options}
    return Server(Layered(TCP("127.0.0.1", 0), TLS(**options)), handler, dispatcher=dispatcher, lifecycle=Graceful(drain=5), clock=clock)


def commanded(files, dispatcher):
    """Return `socketkit serve` as a program, for the working directory to be the folder of the files."""
    (files.folder / "given.py").write_text(HANDLERS)
    url = f"tls://127.0.0.1:0?tls.cert={files.cert}&tls.key={files.key}&tls.reload={OFTEN}"
    return Program(*SERVE, "given:Upper", "--listen", url, "--dispatcher", dispatcher)


def trusting():
    return ssl.create_default_context(cafile=authority("Authority"))


def connect(where, name="localhost", context=None):
    return (context or trusting()).wrap_socket(socket.create_connection(where, timeout=LATE), server_hostname=name)


def seen(where, name="localhost"):
    """Shake hands, and return the serial number of the server's certificate."""
    with connect(where, name) as client:
        return client.getpeercert()["serialNumber"]


def until(condition):
    end = time.monotonic() + LATE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def answered(client, line=b"text\n"):
    client.sendall(line)
    return client.recv(100) == line.upper()


def said(caplog, *levels):
    logs.flush()
    return [record.getMessage() for record in caplog.records if record.name == "socketkit.layers.tls" and record.levelno in levels]


# --- serving -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dispatcher", IN_PROCESS)
def test_new_handshakes_get_the_new_certificate(dispatcher, files):
    with serving(files, dispatcher).start() as server:
        where = server.addresses[0]
        for number in (0, 1, 2, 0):
            files.put(issued(number))
            until(lambda number=number: seen(where) == serial(issued(number)))


@pytest.mark.parametrize("dispatcher", IN_OTHERS)
def test_new_handshakes_get_it_in_every_process(dispatcher, files, monkeypatch):
    monkeypatch.chdir(files.folder)
    with commanded(files, dispatcher) as program:
        [where] = map(address, program.serving())
        with connect(where) as early:
            for number in (1, 2):
                files.put(issued(number))
                until(lambda number=number: {seen(where) for _ in range(20)} == {serial(issued(number))})  # in all workers, that is
            assert answered(early)
        assert program.stop() == 0


@pytest.mark.parametrize("dispatcher", [*IN_PROCESS[1:], "pool:2"])
def test_a_conversation_in_progress_goes_on(dispatcher, files):
    with serving(files, dispatcher).start() as server, connect(server.addresses[0]) as early:
        assert answered(early)
        for number in (1, 2):
            files.put(issued(number))
            until(lambda number=number: seen(server.addresses[0]) == serial(issued(number)))
            assert answered(early)


def test_openssl_sees_the_new_certificate(files):
    with serving(files).start() as server:
        files.put(issued(1))
        where = "{}:{}".format(*server.addresses[0])
        command = ["openssl", "s_client", "-connect", where, "-CAfile", authority("Authority"), "-verify_return_error"]

        def shown():
            ended = subprocess.run(command, input=b"", capture_output=True, timeout=LATE, check=True)
            found = subprocess.run(["openssl", "x509", "-noout", "-serial"], input=ended.stdout, capture_output=True, check=True)
            return found.stdout.decode().strip().partition("=")[2]

        until(lambda: shown() == serial(issued(1)))


@pytest.mark.parametrize("dispatcher", ["adaptive:8", "pool:4", "thread", "fork", "prefork:2"])
def test_ten_rotations_a_second_fail_no_handshake(dispatcher, files, monkeypatch):
    monkeypatch.chdir(files.folder)
    pairs = [issued(number) for number in range(4)]
    serials = {serial(pair) for pair in pairs}
    over, failures, found, counts = threading.Event(), [], set(), [0, 0, 0, 0]

    def shake(number):
        while not over.is_set():
            try:
                found.add(seen(where))
            except OSError as error:
                failures.append(error)
            counts[number] += 1

    with commanded(files, dispatcher) as program:
        [where] = map(address, program.serving())
        clients = [threading.Thread(target=shake, args=(number,)) for number in range(len(counts))]
        for client in clients:
            client.start()
        for number, pair in enumerate(itertools.cycle(pairs)):
            if number >= 30 and (failures or (found == serials and min(counts) > 3)):  # a busy machine needs more than 30
                break
            files.put(pair)
            over.wait(0.1)
        over.set()
        for client in clients:
            client.join(LATE)
        assert program.stop() == 0
    assert failures == []


def test_the_files_are_looked_at_as_often_as_asked_for(files):
    clock = FakeClock()
    with serving(files, clock=clock, reload=60.0).start() as server:
        where, before = server.addresses[0], serial(issued(0))
        assert seen(where) == before
        until(lambda: "socketkit-timekeeper" in {thread.name for thread in threading.enumerate()})
        files.put(issued(1))
        clock.advance(59)
        assert seen(where) == before
        clock.advance(1.5)
        until(lambda: seen(where) == serial(issued(1)))


def test_without_reload_they_are_read_again_only_by_the_next_start(files):
    clock = FakeClock()
    server = serving(files, clock=clock, reload=None)
    with server.start():
        looked = threading.Event()
        innards.run(server).call_later(0.0, looked.set)  # after the look that comes with the start
        assert looked.wait(LATE)
        files.put(issued(1))
        clock.advance(100_000)
        assert seen(server.addresses[0]) == serial(issued(0))
    with server.start():
        until(lambda: seen(server.addresses[0]) == serial(issued(1)))


# --- files -------------------------------------------------------------------------------------------------------------


def renewing(files, clock=_expiry.now, **options):
    return _tls.RenewedEncryption(TLS(**{"cert": files.cert, "key": files.key, **options}), clock)


def presented(layer, name="localhost"):
    """Shake hands with the layer in memory, and return the serial number of the certificate."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(LATE)

    def shake():
        handshake = layer.begin(theirs, None)
        select.select([theirs], [], [], LATE)  # it has something to begin with
        handshake.go_on()
        handshake.request.close()

    handshake = threading.Thread(target=shake)
    handshake.start()
    try:
        with trusting().wrap_socket(ours, server_hostname=name) as client:
            return client.getpeercert()["serialNumber"]
    finally:
        handshake.join(LATE)


def lose(files):
    os.unlink(files.cert)


def lose_key(files):
    os.unlink(files.key)


def cut_in_half(files):
    with open(files.cert, "r+") as file:
        file.truncate(os.stat(files.cert).st_size // 2)


def mix(files):
    shutil.copy(issued(1)[0], files.cert)


def expire(files):
    files.put(certificate("late", days=-1))


BROKEN = {
    lose: "cannot read {cert}: No such file or directory",
    lose_key: "cannot read {key}: No such file or directory",
    cut_in_half: "cannot use {cert} and {key}: ",
    mix: "cannot use {cert} and {key}: key values mismatch",
    expire: "the certificate in {cert} has expired",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_files_that_cannot_be_used_change_nothing_and_the_log_says_why_once(broken, files, caplog):
    caplog.set_level(logging.INFO, "socketkit")
    layer = renewing(files)
    broken(files)
    for _ in range(5):
        layer.renew()
        logs.finish()  # so that nothing is left out as a repetition
    [line] = said(caplog, logging.WARNING)
    assert line.startswith("the files have changed, but the old certificates stay in use: ")
    assert BROKEN[broken].format(cert=files.cert, key=files.key) in line
    assert presented(layer) == serial(issued(0))
    files.put(issued(1))
    layer.renew()
    layer.renew()
    assert presented(layer) == serial(issued(1))
    assert said(caplog, logging.INFO) == [f"new handshakes use what is now in {files.cert}, {files.key}"]
    assert len(said(caplog, logging.WARNING)) == 1


def test_another_fault_is_said_and_so_is_the_same_one_after_a_good_pair(files, caplog):
    layer = renewing(files)
    for broken in (mix, lose):
        broken(files)
        layer.renew()
    files.put(issued(1))
    layer.renew()
    lose(files)
    layer.renew()
    logs.finish()
    faults = [line.partition("use: ")[2] for line in said(caplog, logging.WARNING)]
    lost = f"cannot read {files.cert}: No such file or directory"
    assert faults == [f"cannot use {files.cert} and {files.key}: key values mismatch", lost, lost]


def test_a_pair_of_which_only_the_certificate_is_new_is_used_once_the_key_is(files):
    layer = renewing(files)
    cert, key = issued(1)
    shutil.copy(cert, files.cert)
    layer.renew()
    assert presented(layer) == serial(issued(0))
    shutil.copy(key, files.key)
    layer.renew()
    assert presented(layer) == serial(issued(1))


def test_a_key_that_becomes_readable_is_used_although_its_time_has_not_changed(files, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "socketkit")
    layer = renewing(files)
    files.put(issued(1))
    with monkeypatch.context() as patch:
        patch.setattr(_tls, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")), raising=False)
        layer.renew()
    assert "Permission denied" in said(caplog, logging.WARNING)[0]
    layer.renew()
    assert presented(layer) == serial(issued(1))


def test_a_fault_is_over_once_the_old_files_are_back(files, caplog):
    caplog.set_level(logging.INFO, "socketkit")
    layer = renewing(files)
    for _ in range(2):
        os.rename(files.cert, f"{files.cert}.away")
        layer.renew()
        os.rename(f"{files.cert}.away", files.cert)
        layer.renew()
        layer.renew()
    assert len(said(caplog, logging.WARNING)) == 2
    assert said(caplog, logging.INFO) == [f"new handshakes use what is now in {files.cert}, {files.key}"] * 2


def test_files_that_have_not_changed_are_not_read(files, monkeypatch):
    layer = renewing(files)
    monkeypatch.setattr(_tls, "load", None)
    for _ in range(3):
        layer.renew()


def test_a_file_that_changes_while_it_is_read_is_read_again(files, monkeypatch):
    layer, load = renewing(files), _tls.load
    files.put(issued(1))

    def overtaken(recipe):
        loaded = load(recipe)
        files.put(issued(2))
        return loaded

    with monkeypatch.context() as patch:
        patch.setattr(_tls, "load", overtaken)
        layer.renew()
    assert presented(layer) == serial(issued(1))
    layer.renew()
    assert presented(layer) == serial(issued(2))


def test_a_context_is_freed_once_no_connection_uses_it(files):
    layer = renewing(files, sni={"one.example": certificate("one.example")})
    contexts = []
    for number in (1, 2, 0):
        contexts.append(weakref.ref(layer._context))
        files.put(issued(number))
        layer.renew()
    gc.collect()
    assert [context() for context in contexts] == [None] * 3


def test_a_symbolic_link_that_is_switched_in_one_step_is_followed(tmp_path):
    """As certbot does it for each file, and Kubernetes for the folder in which all of them are."""
    for number in range(3):
        (tmp_path / f"..{number}").mkdir()
        for file, name in zip(issued(number), ("tls.crt", "tls.key"), strict=True):
            shutil.copy(file, tmp_path / f"..{number}" / name)
    data = tmp_path / "..data"
    data.symlink_to("..0")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    layer = renewing(Files(tmp_path, str(tmp_path / "tls.crt"), str(tmp_path / "tls.key")))
    for number in (1, 2, 0):
        (tmp_path / "..data_tmp").symlink_to(f"..{number}")
        (tmp_path / "..data_tmp").replace(data)
        layer.renew()
        assert presented(layer) == serial(issued(number))


def test_certificates_of_other_server_names_are_renewed_too(files):
    other = Files(files.folder, files.cert + ".one", files.key + ".one")
    other.put(certificate("one.example"))
    layer = renewing(files, sni={"one.example": (other.cert, other.key)})
    other.put(certificate("one.example", issue=1))
    layer.renew()
    assert presented(layer, "one.example") == serial(certificate("one.example", issue=1))
    assert presented(layer) == serial(issued(0))


def test_the_authorities_of_clients_are_renewed_too(files, tmp_path):
    trusted = tmp_path / "clients.pem"
    shutil.copy(authority("Clients"), trusted)

    def is_served(signed_by):
        context = trusting()
        context.load_cert_chain(*certificate("somebody", signed_by=signed_by))
        with contextlib.suppress(ssl.SSLError, ConnectionError), connect(server.addresses[0], context=context) as client:
            return answered(client)
        return False

    with serving(files, client="required", client_ca=str(trusted)).start() as server:
        assert is_served("Clients")
        assert not is_served("Strangers")
        shutil.copy(authority("Strangers"), trusted)
        until(lambda: is_served("Strangers"))
        assert not is_served("Clients")


def test_a_new_key_that_anybody_can_read_is_warned_of(files, caplog):
    layer = renewing(files)
    files.put(issued(1))
    os.chmod(files.key, 0o644)
    layer.renew()
    layer.renew()
    assert [line.partition(" in ")[2] for line in said(caplog, logging.WARNING)] == [f"{files.key}; run chmod 600 on it"]


# --- expiry ------------------------------------------------------------------------------------------------------------


def expiry(pair):
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(ssl._ssl._test_decode_cert(pair[0])["notAfter"]), UTC)


def test_statistics_say_when_each_certificate_expires(files):
    one = certificate("one.example", days=7)
    server = serving(files, sni={"one.example": one})
    assert server.stats().expiries == {}
    with server.start():
        assert server.stats().expiries == {files.cert: expiry(issued(0)), one[0]: expiry(one)}
        files.put(certificate(days=3))
        until(lambda: server.stats().expiries == {files.cert: expiry(certificate(days=3)), one[0]: expiry(one)})


def test_statistics_say_nothing_of_a_programs_own_context(files):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    with Server(Layered(TCP("127.0.0.1", 0), TLS(context=context)), Upper).start() as server:
        assert server.stats().expiries == {}
        files.put(issued(1))
        assert seen(server.addresses[0]) == serial(issued(0))


def test_a_certificate_that_expires_within_14_days_is_warned_of_once_a_day(files, caplog):
    files.put(certificate(days=13.5, age=76))
    now = datetime.now(UTC)
    layer = renewing(files, clock=lambda: now)
    end = expiry((files.cert,))
    expected = [f"the certificate in {files.cert} expires on {end:%Y-%m-%d}, in 13 days; renew it"]
    for hours in (0, 1, 23.9):
        now = datetime.now(UTC) + timedelta(hours=hours)
        layer.renew()
        logs.finish()
    assert said(caplog, logging.WARNING) == expected
    now = datetime.now(UTC) + timedelta(days=12.2)
    layer.renew()
    assert said(caplog, logging.WARNING)[1:] == [expected[0].replace("13 days", "1 day")]
    assert said(caplog, logging.ERROR) == []


def test_a_certificate_that_is_valid_for_longer_is_not_warned_of(files, caplog):
    files.put(certificate(days=14.5, age=76))
    renewing(files).renew()
    assert said(caplog, logging.WARNING, logging.ERROR) == []


@pytest.mark.parametrize(("age", "count"), [(3.5, 0), (5, 1)])
def test_one_that_never_was_valid_for_long_is_warned_of_in_the_last_third(age, count, files, caplog):
    files.put(certificate(days=2, age=age))
    renewing(files)
    assert len(said(caplog, logging.WARNING)) == count


def test_a_certificate_that_has_expired_while_the_server_runs_is_an_error_once(files, caplog):
    now = datetime.now(UTC)
    layer = renewing(files, clock=lambda: now)
    assert said(caplog, logging.WARNING, logging.ERROR) == []
    now = expiry(issued(0)) - timedelta(seconds=1)
    layer.renew()
    for hours in (0, 1, 100):
        now = expiry(issued(0)) + timedelta(hours=hours)
        layer.renew()
        logs.finish()
        assert said(caplog, logging.ERROR) == [f"the certificate in {files.cert} has expired, on {expiry(issued(0)):%Y-%m-%d}; renew it"]
    assert len(said(caplog, logging.WARNING)) == 1


def test_without_reload_the_warning_comes_at_the_start(files, caplog):
    files.put(certificate(days=5.5, age=76))
    server = serving(files, reload=None)
    assert said(caplog, logging.WARNING) == []
    with server.start():
        assert [line.rpartition(", ")[2] for line in said(caplog, logging.WARNING)] == ["in 5 days; renew it"]


# --- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["0", "-1", "often"])
def test_a_pause_that_cannot_be_is_refused(value, files):
    with pytest.raises(ConfigError, match="reload"):
        Server(f"tls://127.0.0.1:0?tls.cert={files.cert}&tls.key={files.key}&tls.reload={value}", Upper)


def test_reload_and_a_context_exclude_each_other():
    with pytest.raises(ValueError, match="context excludes reload, because the context decides everything"):
        TLS(context="m:context", reload=5.0)


def test_reload_can_be_switched_off_in_a_url(files):
    server = Server(f"tls://127.0.0.1:0?tls.cert={files.cert}&tls.key={files.key}&tls.reload=none", Upper)
    assert server.transports[0].layers[0].reload is None


# --- layers of others --------------------------------------------------------------------------------------------------


@attrs.frozen
class Counting:
    """A layer of somebody else, which is its own live part."""

    renew_every: float | None = OFTEN
    fails: bool = False
    calls: list = attrs.field(factory=list, eq=False)

    def start(self):
        return self

    def wrap(self, request, client_address):
        return request, client_address

    def renew(self):
        self.calls.append(threading.get_ident())
        if self.fails:
            raise RuntimeError("no")

    def expiries(self):
        return {"mine": datetime.max.replace(tzinfo=UTC)}


def upper(request, client_address, server):
    request.sendall(request.recv(10).upper())


def test_a_layer_of_somebody_else_is_renewed_and_says_what_expires():
    layer = Counting()
    with Server(Layered(TCP("127.0.0.1", 0), layer), upper).start() as server:
        until(lambda: len(layer.calls) > 3)
        assert server.stats().expiries == layer.expiries()
    assert len(set(layer.calls)) == 1


def test_a_layer_that_raises_is_renewed_again_and_the_server_goes_on(caplog):
    layer = Counting(fails=True)
    with Server(Layered(TCP("127.0.0.1", 0), layer), upper).start() as server:
        until(lambda: len(layer.calls) > 3)
        with socket.create_connection(server.addresses[0], LATE) as client:
            client.sendall(b"a")
            assert client.recv(10) == b"A"
    assert {record.name for record in caplog.records} == {"socketkit.renewal"}


IN_THE_LOOP = """
import attrs, os, sys, threading
from socketkit import TCP, Layered, Server

@attrs.frozen
class Counting:
    renew_every = 0.02
    calls: list = attrs.field(factory=list)
    def start(self):
        return self
    def wrap(self, request, client_address):
        return request, client_address
    def renew(self):
        assert threading.current_thread() is threading.main_thread()
        assert threading.active_count() == 1, threading.enumerate()
        self.calls.append(os.getpid())
        if len(self.calls) == 5 and os.getpid() == parent:
            print("five", flush=True)
            server.stop(wait=False)

parent = os.getpid()
server = Server(Layered(TCP("127.0.0.1", 0), Counting()), print, dispatcher=sys.argv[1])
server.serve_forever()
"""


@pytest.mark.parametrize("dispatcher", ["fork", "prefork:2", "prefork:2/fork"])
def test_where_processes_are_forked_their_parent_renews_in_its_loop_and_without_a_thread(dispatcher):
    assert python(IN_THE_LOOP, dispatcher).stdout == "five\n"


# --- workers -----------------------------------------------------------------------------------------------------------

PREFORK = r"""
import logging, os, sys, threading
from datetime import datetime
from socketkit import Server, StreamRequestHandler

class Told(StreamRequestHandler):
    def handle(self):
        self.rfile.readline()
        [end] = self.server.stats().expiries.values()
        self.wfile.write(end.isoformat().encode())

def tell():
    for line in sys.stdin:
        [end] = server.stats().expiries.values()
        os.write(1, end.isoformat().encode() + b"\n")

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(process)d %(message)s", stream=sys.stdout)
server = Server(sys.argv[1], Told, dispatcher="prefork:2", lifecycle="graceful:drain=5")
with server:
    os.write(1, b"port %d of %d\n" % (server.addresses[0][1], os.getpid()))
    threading.Thread(target=tell, daemon=True).start()
    server.serve_forever()
"""


def test_statistics_in_the_parent_and_in_workers_say_what_is_in_use(files):
    url = f"tls://127.0.0.1:0?tls.cert={files.cert}&tls.key={files.key}&tls.reload={OFTEN}"
    reading, writing = os.pipe()
    with open(writing, "wb", buffering=0) as asking, Program.python("-c", PREFORK, url, stdin=reading) as program:
        os.close(reading)
        [port] = program.line(r"port (\d+)")

        def in_worker():
            with connect(("127.0.0.1", int(port[1]))) as client:
                client.sendall(b"\n")
                return client.recv(100).decode()

        asked = 0
        for pair in (issued(0), certificate(days=3)):
            files.put(pair)
            end = expiry(pair).isoformat()
            until(lambda end=end: in_worker() == end)
            while True:
                asking.write(b"\n")
                asked += 1
                if program.line(r"^(\d+-\d\d-.*\+00:00)$", asked)[-1][1] == end:
                    break
        assert program.stop() == 0


def test_only_the_parent_warns_of_a_certificate_that_expires_and_each_process_says_what_it_uses(files):
    files.put(certificate(days=5.5, age=76))
    url = f"tls://127.0.0.1:0?tls.cert={files.cert}&tls.key={files.key}&tls.reload={OFTEN}"
    with Program.python("-c", PREFORK, url) as program:
        [port] = program.line(r"port (\d+) of (\d+)")
        program.line("INFO .* is ready", 2)
        files.put(certificate(days=4.5, age=76))
        used = program.line(r"INFO (\d+) new handshakes use", 3)
        assert len({each[1] for each in used}) == 3
        assert program.stop() == 0
        warned = program.line(r"WARNING (\d+) the certificate .* expires .*, in (\d) days", 2)
        assert [each.groups() for each in warned] == [(port[2], "5"), (port[2], "4")]
        assert program.output.count("expires") == 2
