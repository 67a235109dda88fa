"""Restart on SIGUSR2: no request is lost, a bad generation changes nothing, and the service manager knows who serves."""

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from helpers.generations import Service, descriptors, holds
from socketkit.testing.clients import address, ask, talk
from socketkit.testing.programs import GUARD

# --- nothing is lost ----------------------------------------------------------------------------------------------------

DISPATCHERS = ["sync", "thread", "fork", "pool:4", "adaptive", "asyncio", "executor", "prefork:2"]


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_a_new_generation_takes_over_every_socket(dispatcher, tmp_path):
    urls = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0", "unix://s", "unix-dgram://d", "tcp://127.0.0.1:0?backlog=7"]
    with Service(tmp_path, "pid", *urls, dispatcher=dispatcher) as service:
        first = service.places
        for _ in range(3):
            before = service.pid
            service.restart()
            service.line(rf"^ends {before} 0 finished, 0 forced, 0 stuck")
            *_, last = service.line(r"^listens (.*)", service.output.count("listens"))
            assert [address(url) for url in last[1].split()] == first
            assert int(talk(first[0], b"x")) == service.pid
            assert int(ask(first[1], b"x")) == service.pid
            assert int(talk(str(tmp_path / "s"), b"x")) == service.pid
            assert int(talk(first[4], b"x")) == service.pid
            assert (tmp_path / "d").is_socket()
        service.signal(signal.SIGTERM)
        service.line(rf"^ends {service.pid} ")
    assert not (tmp_path / "s").exists()  # the last generation is heir to what the first has bound
    assert not (tmp_path / "d").exists()


def test_what_runs_is_finished_by_the_generation_that_took_it(tmp_path):
    with Service(tmp_path, "wait", "tcp://127.0.0.1:0") as service:
        first = service.pid
        with socket.create_connection(service.place, GUARD) as early:
            assert int(early.recv(10)) == first
            service.restart()
            with socket.create_connection(service.place, GUARD) as late:
                assert int(late.recv(10)) == service.pid
                early.sendall(b"early")
                assert early.recv(10) == b"EARLY"
                late.sendall(b"late")
                assert late.recv(10) == b"LATE"
        service.line(rf"^ends {first} 1 finished, 0 forced, 0 stuck")


def test_what_does_not_end_is_forced_at_the_deadline(tmp_path):
    with Service(tmp_path, "wait", "tcp://127.0.0.1:0", options="drain=0.2") as service:
        first = service.pid
        with socket.create_connection(service.place, GUARD) as client:
            assert int(client.recv(10)) == first
            service.restart()
            assert client.recv(10) == b""
        service.line(rf"^ends {first} 0 finished, 1 forced, 0 stuck")


def test_a_generation_whose_every_worker_is_busy_is_replaced_too(tmp_path):
    with Service(tmp_path, "wait", "tcp://127.0.0.1:0", dispatcher="pool:1", options="drain=0.2") as service:
        first = service.pid
        with socket.create_connection(service.place, GUARD) as stuck:
            assert int(stuck.recv(10)) == first
            with socket.create_connection(service.place, GUARD) as waits:  # in the kernel's queue, where nobody takes it
                service.restart()
                assert int(waits.recv(10)) == service.pid
                assert stuck.recv(10) == b""
                service.line(rf"^ends {first} ")


def test_a_connection_that_was_accepted_and_has_said_nothing_yet_is_not_lost(tmp_path):
    with Service(tmp_path, "pid", "tcp://127.0.0.1:0", dispatcher="adaptive:defer=20s") as service:
        first = service.pid
        with socket.create_connection(service.place, GUARD) as client:
            accepted(service.pid, client)
            service.restart()
            client.sendall(b"x")
            assert int(client.recv(10)) == first
        service.line(rf"^ends {first} 1 finished")


def accepted(pid, client):
    """Wait until the process has the other end of the connection."""
    port = client.getsockname()[1]
    while not holds(pid, lambda row: row[2].endswith(f":{port:04X}")):
        time.sleep(0.001)


def test_every_kind_of_client_is_answered_in_ten_restarts(tmp_path):
    with Service(tmp_path, "pid", "tcp://127.0.0.1:0", "udp://127.0.0.1:0", "unix://s") as service:
        tcp, udp, _ = service.places
        over, answers = threading.Event(), {}

        def client(name, ask_once):
            answers[name] = []
            try:
                while not over.is_set():
                    answers[name].append(int(ask_once()))
            except (OSError, ValueError) as error:
                answers[name].append(repr(error))

        asked = {"tcp": lambda: talk(tcp, b"x"), "udp": lambda: ask(udp, b"x"), "unix": lambda: talk(str(tmp_path / "s"), b"x")}
        threads = [threading.Thread(target=client, args=item) for item in asked.items()]
        for thread in threads:
            thread.start()
        pids = [service.pid]
        for _ in range(10):
            service.restart()
            pids.append(service.pid)
        over.set()
        for thread in threads:
            thread.join()
        for name, found in answers.items():
            assert set(found) <= set(pids), (name, [each for each in found if each not in pids])
            assert len(set(found)) >= 5, (name, found)  # it asked all the time


@pytest.mark.clients
@pytest.mark.timeout(180)
@pytest.mark.parametrize("dispatcher", ["thread", "fork", "pool:8", "adaptive", "asyncio", "prefork:2"])
def test_redis_benchmark_loses_no_connection_in_ten_restarts(dispatcher, tmp_path):
    if shutil.which("redis-benchmark") is None:
        pytest.skip("redis-benchmark is not installed")
    with Service(tmp_path, "pong", "tcp://127.0.0.1:0", dispatcher=dispatcher) as service:
        total, restarts, done = 0, 0, 0
        while restarts < 10:
            count = {"fork": 300, "thread": 2000}.get(dispatcher, 6000)  # a fork for each takes long on a busy machine
            command = ["redis-benchmark", "-p", str(service.place[1]), "-t", "ping_mbulk", "-n", str(count), "-c", "20", "-k", "0", "--csv"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
                while client.poll() is None and restarts < 10:
                    if meets_requests(service, client):
                        service.restart()
                        restarts += 1
                output, errors = client.communicate(timeout=GUARD)
            assert client.returncode == 0, (output, errors)
            assert "Error" not in errors, errors
            total, done = total + count, done + 1
        assert service.counted() == total, (service.counted(), total, done)


@pytest.mark.clients
@pytest.mark.parametrize("handler", ["Http", "KeptAlive"])
def test_wrk_gets_an_answer_to_every_request_in_ten_restarts(tmp_path, handler):
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")
    with Service(tmp_path, handler, "tcp://127.0.0.1:0") as service:
        host, port = service.place
        restarts, answered, clients = 0, 0, 0
        while restarts < 10:
            client = subprocess.Popen(
                ["wrk", "-t", "1", "-c", "16", "-d", "4s", f"http://{host}:{port}/"], stdout=subprocess.PIPE, text=True
            )
            with client:
                while client.poll() is None and restarts < 10:
                    if meets_requests(service, client):
                        service.restart()
                        restarts += 1
                said = client.communicate(timeout=GUARD)[0]
            assert client.returncode == 0
            assert "Socket errors" not in said, said
            assert "Non-2xx" not in said, said
            answered, clients = answered + int(re.search(r"(\d+) requests in", said)[1]), clients + 1
        assert answered > 1000
        assert 0 <= service.counted() - answered <= 16 * clients, (service.counted(), answered)  # those that wrk ended before their answer


def meets_requests(service, client):
    """Wait until the service has been asked a hundred times more; False if the client ends before."""
    before = service.counted()
    while service.counted() < before + 100:
        if client.poll() is not None:
            return False
        time.sleep(0.001)
    return True


# --- bad generations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        ("sys.exit(3)", "the new one ended with exit code 3"),
        ("raise RuntimeError('boom')", "the new one ended with exit code 1"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the new one ended with SIGSEGV"),
        ("while True: time.sleep(100)", "the new one was not ready within 4 s"),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)", "the new one was not ready within 4 s"),
        (
            "os.close(int(os.environ['SOCKETKIT_READY_FD'])); time.sleep(100)",
            "the new one closed SOCKETKIT_READY_FD without reporting that it serves",
        ),
        ("sys.argv[4:] = ['tcp://192.0.2.1:1']", "the new one ended with exit code 1"),
    ],
)
def test_a_generation_that_does_not_come_to_serve_changes_nothing(trouble, why, tmp_path):
    with Service(tmp_path, "pid", "tcp://127.0.0.1:0", "unix://s", options="restart_timeout=4") as service:
        (tmp_path / "trouble").write_text(
            f"if 'SOCKETKIT_READY_FD' in os.environ:\n    print('troubled', os.getpid(), flush=True)\n    {trouble}"
        )
        assert service.fail() == why
        [told] = service.line(r"^troubled (\d+)")
        with pytest.raises(ProcessLookupError):
            os.kill(int(told[1]), 0)
        assert int(talk(service.place, b"x")) == service.pid
        assert int(talk(str(tmp_path / "s"), b"x")) == service.pid
        (tmp_path / "trouble").unlink()
        before = service.pid
        service.restart()  # and the next one is none the worse for it
        service.line(rf"^ends {before} ")
        assert int(talk(service.place, b"x")) == service.pid
        assert int(talk(str(tmp_path / "s"), b"x")) == service.pid


def test_workers_that_cannot_boot_are_no_generation(tmp_path):
    with Service(tmp_path, "pid", "tcp://127.0.0.1:0", dispatcher="prefork:2", options="restart_timeout=1") as service:
        (tmp_path / "trouble").write_text("os.register_at_fork(after_in_child=lambda: os._exit(7))")
        assert service.fail() in {"the new one was not ready within 1 s", "the new one ended with exit code 1"}  # whichever comes first
        assert int(talk(service.place, b"x")) == service.pid


def test_a_second_signal_while_a_restart_is_under_way_is_ignored(tmp_path):
    with Service(tmp_path, "pid", "tcp://127.0.0.1:0") as service:
        os.mkfifo(tmp_path / "gate")
        (tmp_path / "trouble").write_text("print('waits', flush=True); open('gate').read()")
        service.signal()
        service.line("^waits")
        service.signal()
        service.line("restart ignored: one is under way")
        (tmp_path / "gate").write_text("go")
        assert service.told()[0] == "RELOADING=1"
        assert service.told()[0] == "READY=1"
        service.line("^begins", 2)  # it has said so before, but by another way
        assert service.output.count("begins") == 2


def test_a_process_that_is_stopped_meanwhile_takes_the_new_one_with_it(tmp_path):
    with Service(tmp_path, "pid", "tcp://127.0.0.1:0") as service:
        (tmp_path / "trouble").write_text("print('waits', os.getpid(), flush=True); time.sleep(1000)")
        service.signal()
        [told] = service.line(r"^waits (\d+)")
        service.signal(signal.SIGTERM)
        assert service.wait() == 0
        service.line("restart failed, .*: this process was told to stop before the new one served")
        with pytest.raises(ProcessLookupError):
            os.kill(int(told[1]), 0)


def test_a_restart_can_be_switched_off(tmp_path):
    with Service(tmp_path, "pid", "tcp://127.0.0.1:0", options="restart=False") as service:
        service.signal()
        assert service.wait() == -signal.SIGUSR2


def test_a_program_with_a_handler_of_its_own_keeps_it(tmp_path):
    (tmp_path / "trouble").write_text("signal.signal(signal.SIGUSR2, lambda number, frame: print('mine', flush=True))")
    with Service(tmp_path, "pid", "tcp://127.0.0.1:0") as service:
        service.signal()
        service.line("^mine")
        assert int(talk(service.place, b"x")) == service.pid


# --- what it inherits ---------------------------------------------------------------------------------------------------


def test_a_socket_that_the_new_generation_does_not_want_is_closed(tmp_path):
    with Service(tmp_path, "pid", "tcp://127.0.0.1:0", "tcp://127.0.0.1:0?backlog=7") as service:
        first, second = service.places
        (tmp_path / "trouble").write_text("sys.argv.pop()")
        before = service.pid
        service.restart()
        service.line(rf"^ends {before}")
        service.line("no server listens any more on tcp://127.0.0.1:0")
        assert int(talk(first, b"x")) == service.pid
        with pytest.raises(ConnectionRefusedError):
            talk(second, b"x")


def test_the_new_generation_cleans_its_environment(tmp_path):
    (tmp_path / "trouble").write_text(
        "import atexit; atexit.register(lambda: print('left', *[key for key in os.environ if 'LISTEN' in key or 'READY_FD' in key], '.'))"
    )
    with Service(tmp_path, "pid", "tcp://127.0.0.1:0") as service:
        for generation in range(3):
            before = service.pid
            service.restart()
            assert service.line("^left (.*)", generation + 1)[-1][1] == "."
            assert not Path(f"/proc/{before}").exists() or service.line(rf"^ends {before}")
            while len({target for target in descriptors(service.pid) if target.startswith("pipe:")}) != 1:  # its standard output remains
                time.sleep(0.001)  # it closes the other one right after its report


def test_the_watchdog_hears_from_the_new_generation(tmp_path):
    with Service(tmp_path, "pid", "tcp://127.0.0.1:0", watchdog="200000") as service:
        first = service.pid
        service.signal()
        service.line(rf"^ends {first}")
        while service.told() != ["WATCHDOG=1"]:  # all that came before
            pass
        for _ in range(20):
            service.told()
        assert int(talk(service.place, b"x")) != first
