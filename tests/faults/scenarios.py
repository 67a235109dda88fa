"""The scenarios of the catalogue's rows. Each runs for every dispatcher and transport of its row.

A scenario passes, or raises. Under the standard library's classes, the scenarios that it fails according to the catalogue have to raise.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import errno
import logging
import os
import random
import select
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from faults import scenarios_proxy, scenarios_tls  # noqa: F401 - they register their scenarios
from faults.catalogue import GROUPS
from faults.lab import (
    DISPATCHERS,
    PATIENCE,
    Counted,
    Counter,
    Lab,
    ProcessorTime,
    Served,
    no_descriptors,
    resets,
    reverse,
    unacknowledged,
    within,
)
from faults.register import SCENARIOS, holds
from helpers import innards
from socketkit import ConversationHandler, Server
from socketkit.seams import EVENTS
from socketkit.testing import Delegate

__all__ = ("SCENARIOS",)


class OnPurposeError(Exception):
    pass


class OnPurposeExit(BaseException):
    pass


# --- CL: clients -----------------------------------------------------------------------------------------------------


@holds("CL3")
def reset_before_accept(lab: Lab) -> None:
    served = lab.prepare()
    try:
        for _ in range(3):
            resets(served.connect())
        served.start()
        served.good()
    finally:
        served.stop()
    assert lab.log() == "", lab.log()
    if lab.ours:
        outcomes = served.outcomes()
        assert outcomes.get("failed", 0) == 0
        assert sum(outcomes.values()) == 4


@holds("CL4")
def reset_within_a_request(lab: Lab) -> None:
    latch = lab.latch()

    def handle(handler: Any, message: bytes) -> bytes:
        if message == b"hold":
            latch.hold()
            return b"x" * 8_000_000
        return message[::-1]

    with lab.serve(handle, blocking=True) as served:
        client = served.connect()
        served.send(client, b"hold")
        latch.wait()
        resets(client)
        latch.release()
        served.good()
    assert lab.log() == "", lab.log()
    served.ended_as({"aborted": 1, "finished": 1})


@holds("CL4")
def reset_within_the_reply(lab: Lab) -> None:
    with lab.serve(lambda _handler, message: b"x" * 8_000_000 if message == b"much" else message[::-1]) as served:
        client = served.connect()
        served.send(client, b"much")
        assert client.recv(100)
        resets(client)
        served.good()
    assert lab.tracebacks() == 0, lab.log()
    if lab.ours:
        outcomes = served.outcomes()
        assert outcomes.get("failed", 0) == 0, outcomes
        assert sum(outcomes.values()) == 2


@holds("CL5")
def half_close(lab: Lab) -> None:
    reply = b"the whole of it" * 50_000
    with lab.serve(lambda _handler, message: reply if message == b"end" else message[::-1]) as served:
        with served.connect() as client:
            client.sendall(b"end")  # no newline: shutting down the sending side ends the message
            client.shutdown(socket.SHUT_WR)
            assert served.receive(client) == reply
        served.good()


@holds("CL5")
def half_close_by_the_handler(lab: Lab) -> None:
    received = Counter()

    def handle(handler: Any, message: bytes) -> bytes | None:
        if message != b"close":
            return message[::-1]
        handler.wfile.write(b"bye")
        handler.request.shutdown(socket.SHUT_WR)
        if handler.rfile.read() == b"last words":
            received.add()
        return None

    with lab.serve(handle, blocking=True) as served:
        with served.connect() as client:
            served.send(client, b"close")
            assert served.receive(client) == b"bye"
            client.sendall(b"last words")
        assert within(PATIENCE, lambda: received.value == 1)
        served.good()


@holds("CL7")
def more_clients_than_anybody_has_accepted(lab: Lab) -> None:
    served = lab.prepare()
    clients: list[socket.socket] = []
    try:
        clients.extend(served.connect(timeout=1) for _ in range(64))
        for number, client in enumerate(clients):
            served.send(client, b"%d!" % number)
        served.start()
        for number, client in enumerate(clients):
            assert served.receive(client) == (b"%d!" % number)[::-1]
    finally:
        for client in clients:
            client.close()
        served.stop()


@holds("CL9")
def port_scan(lab: Lab) -> None:
    quick = lab.dispatcher in {"sync", "adaptive"} and lab.transport == "tcp"
    count = 10_000 if lab.soak or (quick and lab.ours) else 60 if lab.dispatcher == "fork" else 300
    with lab.serve() as served:
        for _ in range(count):
            served.connect().close()
        served.good()
    assert lab.tracebacks() == 0
    assert len(lab.log().splitlines()) <= 10
    if lab.ours:
        outcomes = served.outcomes()
        assert sum(outcomes.values()) == count + 1, outcomes
        assert outcomes.keys() <= {"finished", "aborted"}, outcomes


@holds("CL10")
def a_line_without_an_end(lab: Lab) -> None:
    with lab.serve() as served:
        served.tell(bytes(300_000))
        served.good()
    served.ended_as({"failed": 1, "finished": 1})


@holds("CL12")
def more_was_sent_than_is_read(lab: Lab) -> None:
    latch, closed, reply = lab.latch(), Counter(), b"the whole of it" * 6000

    def close(original: Any, _server: Any, request: Any) -> None:
        original(request)
        closed.add()

    def handle(_handler: Any, message: bytes) -> bytes:
        if message == b"much":
            latch.hold()
            return reply
        return message[::-1]

    # The default buffer takes all that the client sends since Python 3.14.
    with lab.serve(handle, blocking=True, buffer=8192, methods={"shutdown_request": close}) as served:
        with served.client() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that most of the reply waits at the server
            client.connect(served.address)
            client.sendall(b"much\n" + b"and more that nobody reads" * 1500)
            assert lab.transport == "unix" or within(PATIENCE, lambda: not unacknowledged(client))
            latch.wait()
            latch.release()
            assert within(PATIENCE, lambda: closed.value == 1)
            assert served.receive(client) == reply
        served.good()
    served.ended_as({"finished": 2})


# --- DG: datagrams ---------------------------------------------------------------------------------------------------


@holds("DG1", "DG2")
def datagrams_of_every_size(lab: Lab) -> None:
    largest = 65_507 if lab.transport == "udp" else 65_535
    with lab.serve(lambda _handler, message: b"%d" % len(message)) as served:
        for size in (0, 1, 8192, 8193, largest):
            with served.connect() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
                client.send(bytes(size))
                assert client.recv(100) == b"%d" % size


@holds("DG4")
def nothing_written_nothing_sent(lab: Lab) -> None:
    with lab.serve(lambda _handler, message: None if message == b"quiet" else message[::-1]) as served, served.connect() as client:
        client.send(b"quiet")
        client.send(b"marker")  # two workers may answer in any order, so the check below follows the stop
        assert client.recv(100) == b"rekram"
        served.stop()
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            raise AssertionError(f"a reply of {len(client.recv(100))} bytes to a datagram that got none")


@holds("DG5")
def a_sender_without_a_name(lab: Lab) -> None:
    seen = lab.latch()

    def handle(handler: Any, message: bytes) -> bytes:
        if message == b"nameless":
            assert handler.client_address is None
            os.write(seen._reach, b"x")
        return message[::-1]

    with lab.serve(handle) as served:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.connect(served.address)
            client.send(b"nameless")
        seen.wait()
        served.good()
    served.ended_as({"failed": 1, "finished": 1})
    assert "no address to reply to" in lab.log()


@holds("DG6")
def errors_of_sending(lab: Lab) -> None:
    names = ("ECONNREFUSED", "EMSGSIZE", "EAGAIN", "ENOBUFS", "EPERM", "ENETUNREACH")

    def handle(handler: Any, message: bytes) -> bytes:
        if message.startswith(b"E"):
            number = getattr(errno, message.decode())
            raise OSError(number, os.strerror(number))
        return bytes(1_000_000) if message == b"too much" else message[::-1]

    with lab.serve(handle) as served:
        for message in (*names, "too much"):
            served.tell(message.encode())
        served.good()
    outcomes = served.outcomes()
    assert outcomes.get("failed", 0) + outcomes.get("aborted", 0) == len(names) + 1
    assert outcomes["finished"] == 1


# --- RX: exhausted system resources ----------------------------------------------------------------------------------


@holds("RX1")
def no_descriptor_for_accept(lab: Lab) -> None:
    counted = Counted()
    attempts = counted.attempts
    with lab.serve(faults=counted) as served:
        served.good(2)
        pids = served.processes()
        assert served.quiet()
        waiting = served.client()
        with contextlib.closing(ProcessorTime(pids)) as processor, no_descriptors(pids):
            taken, used, began = attempts.value, processor.seconds(), time.monotonic()
            waiting.connect(served.address)
            served.send(waiting, b"patience")
            assert within(PATIENCE, lambda: attempts.value > taken)
            assert not select.select([waiting], [], [], 1.0)[0], "it was served without a descriptor"
            seconds = time.monotonic() - began
            tried = (attempts.value - taken) / len(pids)
            assert tried <= 20 * seconds, f"{tried} attempts in {seconds:.1f} s"
            assert processor.seconds() - used <= 0.1 * seconds, f"{processor.seconds() - used} s of processor time"
        with waiting:
            waiting.settimeout(1.5)  # a second, and some time for a busy machine
            assert served.receive(waiting) == b"ecneitap"
        served.good()
    lines = lab.log().splitlines()
    assert 1 <= len(lines) <= 2 * len(pids), lab.log()
    assert lab.tracebacks() == 0


@holds("RX2")
def shortages_of_other_kinds(lab: Lab) -> None:
    for number in (errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
        with lab.serve(faults=[number]) as served:
            began = time.monotonic()
            served.good()
            assert time.monotonic() - began >= 0.09, "it did not rest"
            assert os.strerror(number) in lab.log()
            served.good()


@holds("RX3")
def errors_that_are_one_peers(lab: Lab) -> None:
    names = "ECONNABORTED EPROTO ENETDOWN ENETUNREACH EHOSTDOWN EHOSTUNREACH ENONET ENOPROTOOPT EOPNOTSUPP ETIMEDOUT EPERM EINTR"
    numbers = [getattr(errno, name) for name in names.split()]
    with lab.serve(faults=[Delegate(1), *numbers]) as served:
        served.good(3)
    assert lab.log() == "", lab.log()
    served.ended_as({"finished": 3})


@holds("RX4")
def a_listener_that_is_none_any_more(lab: Lab) -> None:
    for number in (errno.EBADF, errno.EINVAL, errno.ENOTSOCK):
        served = lab.prepare(faults=[number])
        served.start()
        try:
            with contextlib.suppress(ConnectionError):
                served._clients.append(served.connect())
                served.send(served._clients[-1], b"anybody there?")
            assert served.ended(1.5), "it goes on"
        finally:
            served.stop()
        assert isinstance(served.error, OSError)
        assert served.error.errno == number
        assert not lab.ours or served.server.state.value == "failed"


@holds("RX4")
def a_descriptor_closed_behind_its_back(lab: Lab) -> None:
    served = lab.prepare()
    served.start()
    served.good()
    descriptor = served.server.socket.detach()
    try:
        with served.connect() as client:
            with contextlib.suppress(ConnectionError):
                served.send(client, b"anybody there?")
            assert served.ended(2.0), "it goes on"
    finally:
        os.close(descriptor)
        served.stop()
    assert isinstance(served.error, OSError), served.error


@holds("RX5")
def no_thread_to_be_had(lab: Lab) -> None:
    start = threading.Thread.start
    refused = Counter()

    def refuse(thread: threading.Thread) -> None:
        refused.add()
        raise RuntimeError("can't start new thread")

    with lab.serve(blocking=True) as served:
        served.good()
        threading.Thread.start = refuse
        try:
            for _ in range(3):
                with contextlib.suppress(OSError), served.connect(timeout=0.5) as client:
                    served.send(client, b"anybody there?")
                    served.receive(client)
        finally:
            threading.Thread.start = start
        served.good(2)
    if lab.ours:
        outcomes = served.outcomes()
        assert outcomes.keys() <= {"finished", "refused"}, outcomes
        assert sum(outcomes.values()) == 6, outcomes
        assert outcomes.get("refused", 0) <= refused.value


@holds("RX5")
def closed_before_there_was_a_thread_again(lab: Lab) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    served = lab.prepare(blocking=True)
    served.start()
    served.good()
    threading.Thread.start = refuse
    try:
        served.tell(b"anybody there?") if lab.dispatcher == "thread" else served.connect().close()
    finally:
        threading.Thread.start = start
        served.stop()


@holds("RX7")
def no_descriptor_within_a_request(lab: Lab) -> None:
    def handle(_handler: Any, message: bytes) -> bytes:
        if message == b"open":
            kept = []
            try:
                kept.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(10))  # soon exhausts the free descriptors
            finally:
                os.write(writer, b"opened %b" % b" ".join(b"%d" % each for each in kept))
        return message[::-1]

    reader, writer = os.pipe()
    with os.fdopen(reader), os.fdopen(writer), lab.serve(handle) as served:
        served.good(2)
        with served.client() as client:
            assert served.quiet()
            with no_descriptors(served.processes(), free=3):
                client.connect(served.address)
                served.send(client, b"open")
                if lab.kind == "stream":
                    with contextlib.suppress(ConnectionError):
                        assert served.receive(client) == b""
                assert select.select([reader], [], [], PATIENCE)[0]
            assert within(PATIENCE, lambda: "Too many open files" in lab.log())
            for each in os.read(reader, 100).split()[1:]:
                if lab.dispatcher not in GROUPS["processes"]:  # whose descriptors end with them
                    os.close(int(each))
        served.good(2)
    assert served.outcomes().get("failed") == 1, served.outcomes()
    assert "Too many open files" in lab.log()


@holds("RX9")
def no_memory_in_a_handler(lab: Lab) -> None:
    raised_in_a_handler(lab, MemoryError("on purpose"))


def _with_a_log(lab: Lab, handler: logging.Handler, stderr: Any) -> None:
    """Serve with this log handler and this standard error."""
    root = logging.getLogger()
    kept, root.handlers[:] = root.handlers[:], [handler]
    kept_stderr, sys.stderr = sys.stderr, stderr

    def handle(_handler: Any, message: bytes) -> bytes:
        if message == b"bad":
            raise OnPurposeError
        return message[::-1]

    try:
        with lab.serve(handle) as served:
            served.tell(b"bad")
            served.good(2)
            assert not served.ended(0)
    finally:
        root.handlers[:] = kept
        sys.stderr = kept_stderr


@holds("RX10")
def a_log_that_cannot_be_written(lab: Lab) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    reader, pipe = os.pipe()
    os.close(reader)
    closed = open(os.devnull, "w")  # noqa: SIM115 - closed while in use
    closed.close()
    try:
        _with_a_log(lab, logging.StreamHandler(closed), closed)
        _with_a_log(lab, logging.NullHandler(), None)
        for descriptor in (full, pipe):
            sink = os.fdopen(os.dup(descriptor), "w", buffering=1)
            try:
                _with_a_log(lab, logging.StreamHandler(sink), sink)
            finally:
                with contextlib.suppress(OSError):  # the buffer cannot be flushed
                    sink.close()
    finally:
        os.close(full)
        os.close(pipe)


@holds("RX10b")
def a_log_handler_that_raises(lab: Lab) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OnPurposeError("the log")

    _with_a_log(lab, Broken(), sys.stderr)


@holds("RX13")
def descriptors_beyond_a_thousand(lab: Lab) -> None:
    kept = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with lab.serve() as served:
            assert served.server.fileno() > 1024
            served.good(2)
    finally:
        for descriptor in kept:
            os.close(descriptor)


# --- HF: handlers and hooks ------------------------------------------------------------------------------------------


def raised_in_a_handler(lab: Lab, *errors: BaseException) -> None:
    """Let a handler raise each of the errors: each fails its own request and is logged once; the next request is answered."""

    def handle(_handler: Any, message: bytes) -> bytes:
        if message.startswith(b"raise"):
            raise errors[int(message[5:])]
        return message[::-1]

    with lab.serve(handle) as served:
        for number in range(len(errors)):
            served.tell(b"raise%d" % number)
            served.good()
    untold = lab.dispatcher == "fork" and isinstance(
        errors[0], KeyboardInterrupt
    )  # not logged there: a terminal sends Ctrl-C to every child
    assert lab.tracebacks() == (0 if untold else len(errors)), lab.log()
    served.ended_as({"failed": len(errors), "finished": len(errors)})


@holds("HF1")
def an_exception(lab: Lab) -> None:
    raised_in_a_handler(lab, OnPurposeError(), KeyError(1), OSError(5, "five"))


@holds("HF2")
def a_system_exit(lab: Lab) -> None:
    raised_in_a_handler(lab, SystemExit(0), SystemExit("a reason"))


@holds("HF3")
def a_keyboard_interrupt(lab: Lab) -> None:
    raised_in_a_handler(lab, KeyboardInterrupt())


@holds("HF4")
def another_base_exception(lab: Lab) -> None:
    raised_in_a_handler(lab, GeneratorExit(), asyncio.CancelledError(), OnPurposeExit())


@holds("HF5")
def an_exit_of_the_process(lab: Lab) -> None:
    _ends_its_process(lab, lambda: os._exit(3), {"fork": "failed", "prefork": "died"})


@holds("HF7")
def a_kill(lab: Lab) -> None:
    _ends_its_process(lab, lambda: os.kill(os.getpid(), signal.SIGKILL), {"fork": "died", "prefork": "died"})


@holds("HF7")
def a_crash(lab: Lab) -> None:
    _ends_its_process(lab, lambda: ctypes.string_at(0), {"fork": "died", "prefork": "died"})


def _ends_its_process(lab: Lab, end: Callable[[], None], outcome: dict[str, str]) -> None:
    def handle(_handler: Any, message: bytes) -> bytes:
        if message == b"end":
            end()
        return message[::-1]

    with lab.serve(handle) as served:
        served.tell(b"end")
        if lab.kind == "datagram":  # the other worker may take the next request first
            assert within(PATIENCE, lambda: served.server.stats().outcomes)
        served.good(3)
    served.ended_as({outcome[lab.dispatcher]: 1, "finished": 3})
    if lab.dispatcher == "prefork":
        assert "worker" in lab.log()


@holds("HF9")
def a_socket_that_a_handler_keeps(lab: Lab) -> None:
    kept = []

    def handle(handler: Any, message: bytes) -> bytes:
        kept.append((handler, handler.request))
        return message[::-1]

    with lab.serve(handle) as served:
        served.good(3)  # each client reads until the end of the connection
    for _, request in kept:
        assert request.fileno() == -1
    kept.clear()


@holds("HF10")
def errors_that_cannot_be_told(lab: Lab) -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise OnPurposeError("cannot be told")

        __repr__ = __str__

    def recurse() -> None:
        recurse()

    def handle(_handler: Any, message: bytes) -> bytes:
        if message == b"mute":
            raise MuteError
        if message == b"deep":
            recurse()
        if message == b"long":
            raise ValueError("x" * 10_000_000)
        return message[::-1]

    with lab.serve(handle) as served:
        for message in (b"mute", b"deep", b"long"):
            served.tell(message)
            served.good()
    served.ended_as({"failed": 3, "finished": 3})
    for error in ("MuteError", "RecursionError", "ValueError"):
        assert error in lab.log()


@holds("HF11")
def raised_in_setup_or_finish(lab: Lab) -> None:
    raised = Counter()

    def fail_once(_handler: Any) -> None:
        if raised.add() == 0:
            raise OnPurposeError(stage)

    for stage in ("setup", "finish"):
        raised = Counter()
        with lab.serve(**{stage: fail_once}) as served, served.connect() as client:
            with contextlib.suppress(ConnectionError):  # the request may have ended already
                served.send(client, b"x")
            if lab.kind == "stream":
                with contextlib.suppress(ConnectionError):
                    served.receive(client)
            elif stage == "finish":
                assert client.recv(10) == b"x"
            else:
                assert within(PATIENCE, lambda raised=raised: raised.value == 1)
            served.good()
        served.ended_as({"failed": 1, "finished": 1})


@holds("HF11")
def raised_in_handle_and_then_in_finish(lab: Lab) -> None:
    def handle(_handler: Any, message: bytes) -> bytes:
        if message == b"bad":
            raise OnPurposeError("the first error")
        return message[::-1]

    def finish(_handler: Any) -> None:
        if failing:
            raise ValueError("the second error")

    failing = [True]
    with lab.serve(handle, finish=finish) as served:
        served.tell(b"bad")
        assert within(PATIENCE, lambda: "the second error" in lab.log())
    log = lab.log()
    assert 0 <= log.index("the first error") < log.index("the second error"), log
    served.ended_as({"failed": 1})


NOT_OF_A_REQUEST = {"serve_forever", "shutdown", "server_close", "fileno", "handle_request", "handle_timeout", "server_activate"}
"""Methods that users call, or that the server calls while it is idle: none of them is a step of a request."""


@holds("HF12")
def raised_in_a_template_method(lab: Lab) -> None:
    names = [name for name, thing in vars(socketserver.BaseServer).items() if callable(thing) and hasattr(Server, name)]
    names = [name for name in names if not name.startswith("_")]
    assert {"verify_request", "process_request", "finish_request", "shutdown_request", "close_request", "handle_error"} <= set(names)
    skipped = (
        {"service_actions"} if lab.dispatcher != "asyncio" else {"service_actions", "process_request_thread"}
    )  # asyncio awaits instead
    for name in sorted({*names, "process_request_thread"} - NOT_OF_A_REQUEST - skipped):
        raised = Counter()

        def fail_once(original: Any, _server: Any, *arguments: Any, raised: Counter = raised) -> Any:
            result = original(*arguments)
            if raised.add() == 0:
                raise OnPurposeError
            return result

        def handle(_handler: Any, message: bytes, name: str = name) -> bytes:
            if message == b"bad" and name == "handle_error":
                raise KeyError(name)
            return message[::-1]

        with lab.serve(handle, methods={name: fail_once}) as served:
            with served.connect() as client, contextlib.suppress(ConnectionError):
                served.send(client, b"bad")
                if lab.kind == "stream":
                    served.receive(client)
                else:
                    client.settimeout(0.2)
                    with contextlib.suppress(TimeoutError):
                        client.recv(10)
            assert within(PATIENCE, lambda raised=raised: raised.value >= 1), name
            served.good(2)
            assert not served.ended(0), name
        if lab.ours:
            outcomes = served.outcomes()
            assert sum(outcomes.values()) == 3, (name, outcomes)


@holds("HF12b")
def raised_in_service_actions(lab: Lab) -> None:
    raised = Counter()

    def fail(original: Any, _server: Any) -> None:
        raised.add()
        raise OnPurposeError

    with lab.serve(methods={"service_actions": fail}) as served:
        assert within(PATIENCE, lambda: raised.value >= 2), "it was not called again after it had raised"
        served.good(2)


@holds("HF12c")
def raised_in_an_observer(lab: Lab) -> None:
    class Observer:
        def __getattr__(self, name: str) -> Any:
            if name not in EVENTS:
                raise AttributeError(name)

            def fail(*_facts: Any) -> None:
                raise OnPurposeError(name)

            return fail

    def handle(_handler: Any, message: bytes) -> bytes:
        if message == b"bad":
            raise KeyError
        return message[::-1]

    with lab.serve(handle, observers=[Observer()], faults=[errno.EMFILE]) as served:
        served.tell(b"bad")
        served.good(3)
        assert served.stop() is not None
    assert sum(served.outcomes().values()) == 4


@holds("HF13")
def raised_while_accepting(lab: Lab) -> None:
    errors = (ValueError("no header"), MemoryError(), TypeError(), OnPurposeError(), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"))
    with lab.serve(faults=errors) as served:
        with served.connect(timeout=1) as client:
            served.send(client, b"first")
            assert served.receive(client) == b"tsrif"
        served.good(2)
        assert not served.ended(0)
    served.ended_as({"finished": 3})


@holds("HF14")
def a_descriptor_that_was_given_away(lab: Lab) -> None:
    checked, broken = Counter(), Counter()
    mine: list[int] = []

    def handle(handler: Any, message: bytes) -> bytes | None:
        if message not in {b"close", b"detach"}:
            return message[::-1]
        handler.rfile.close()
        handler.wfile.close()
        number = handler.request.fileno()
        if message == b"detach":
            handler.request.detach()
            mine.append(number)
        else:
            handler.request.close()
            mine.append(os.open(os.devnull, os.O_RDONLY))
        return None

    def look(original: Any, _server: Any, request: Any) -> None:
        original(request)
        while mine:
            number = mine.pop()
            checked.add()
            try:
                os.close(number)
            except OSError:
                broken.add()

    with lab.serve(handle, methods={"shutdown_request": look}, blocking=True) as served:
        for message in (b"close", b"detach"):
            with served.connect() as client, contextlib.suppress(ConnectionError):
                served.send(client, message)
                assert served.receive(client) == b""
        served.good()
    assert (checked.value, broken.value) == (2, 0)


@holds("HF14b")
def a_number_that_is_anothers_by_now(lab: Lab) -> None:
    """A conversation closes its socket; a new connection gets the descriptor's number and is parked; then the conversation ends."""
    closed, numbers = lab.latch(), []

    class Talk(ConversationHandler):
        def handle_one_request(self) -> None:
            message = self.rfile.readline().rstrip(b"\n")
            numbers.append(self.request.fileno())
            if message == b"close":
                self.rfile.close()
                self.wfile.close()
                self.request.close()
                self.close_connection = True
                closed.hold()
                return
            self.wfile.write(message[::-1])

    with lab.serve(handler=Talk) as served, served.connect() as first, served.client() as second:
        served.send(first, b"close")
        closed.wait()
        assert served.receive(first) == b""  # the number of the server's end is free now
        second.connect(served.address)  # the server's end gets that number, is read from once, and is parked
        served.send(second, b"one")
        assert second.recv(10) == b"eno"
        assert within(PATIENCE, lambda: numbers[1:] != [] and served.server.stats().active == 2)
        assert numbers[0] == numbers[1]
        assert within(PATIENCE, lambda: len(innards.parked(served.server)) == 1)
        closed.release()
        assert within(PATIENCE, lambda: served.server.stats().active == 1)
        second.settimeout(1)
        served.send(second, b"two")
        assert second.recv(10) == b"owt"


@holds("HF15")
def what_belongs_to_the_process(lab: Lab) -> None:
    def handle(handler: Any, message: bytes) -> bytes:
        if message == b"spoil":
            socket.setdefaulttimeout(0.01)
            os.umask(0o777)
            os.chdir("/")
        if message == b"timeout":
            return str(handler.request.gettimeout()).encode()
        return message[::-1]

    umask, cwd = os.umask(0o022), os.getcwd()
    try:
        with lab.serve(handle, blocking=True) as served:
            assert served.ask(b"spoil") == b"liops"
            for _ in range(2):
                if lab.kind == "stream":
                    assert served.ask(b"timeout") == b"None"
                served.good()
    finally:
        socket.setdefaulttimeout(None)
        os.umask(umask)
        os.chdir(cwd)


_bled: contextvars.ContextVar[bytes] = contextvars.ContextVar("_bled", default=b"clean")


def _bleed(_handler: Any, message: bytes) -> bytes:
    before = _bled.get()
    _bled.set(message)
    return before


@holds("HF16")
def context_variables(lab: Lab) -> None:
    with lab.serve(_bleed) as served:
        for _ in range(4):
            assert served.ask(b"dirty") == b"clean"


@holds("HF16")
def crossed_replies(lab: Lab) -> None:
    wrong = []

    def client(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(20):
                message = chance.randbytes(chance.randrange(1, 40)).hex().encode()
                if served.ask(message) != message[::-1]:
                    wrong.append(message)
        except Exception as error:  # noqa: BLE001 - reported below
            wrong.append(error)

    with lab.serve() as served:
        clients = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
    assert wrong == []
    served.ended_as({"finished": 120})


@holds("RX15")
def thousands_in_work(lab: Lab) -> None:
    looks, latch = Counter(), lab.latch()
    is_alive = threading.Thread.is_alive

    def counted(thread: threading.Thread) -> bool:
        looks.add()
        return is_alive(thread)

    def handle(_handler: Any, message: bytes) -> bytes:
        latch.hold()
        return message[::-1]

    count = 200
    with lab.serve(handle) as served, contextlib.ExitStack() as stack:
        threading.Thread.is_alive = counted
        try:
            for _ in range(count):
                client = stack.enter_context(served.connect())
                served.send(client, b"x")
                latch.wait()
            assert looks.value <= 5 * count, f"{looks.value} looks at threads for {count} requests"
        finally:
            threading.Thread.is_alive = is_alive
            latch.release(count)


@holds("HF17")
def a_program_that_a_handler_runs(lab: Lab) -> None:
    def handle(_handler: Any, _message: bytes) -> bytes:
        program = subprocess.run(
            ["/bin/sh", "-c", "ls -l /proc/self/fd; exit 7"], capture_output=True, check=False, stdin=subprocess.DEVNULL
        )
        return b"%d %d" % (program.returncode, program.stdout.count(b"socket:"))

    with lab.serve(handle) as served:
        for _ in range(3):
            assert served.ask(b"run") == b"7 0"


@holds("HF18")
def a_handler_that_forks(lab: Lab) -> None:
    reader, writer = os.pipe()

    def handle(_handler: Any, message: bytes) -> bytes:
        if message == b"fork":
            pid = os.fork()
            if pid == 0:
                sys.exit(7)
            end = time.monotonic() + 2
            status = -1
            while time.monotonic() < end and status == -1:
                done, code = os.waitpid(pid, os.WNOHANG)
                status = os.waitstatus_to_exitcode(code) if done else -1
                time.sleep(0.002)
            if status == -1:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            os.write(writer, b"%d." % status)
        return message[::-1]

    try:
        with lab.serve(handle, blocking=True) as served:
            with served.connect() as client:
                served.send(client, b"fork")
                assert select.select([reader], [], [], PATIENCE)[0]
                status = os.read(reader, 10)
            served.good(2)
            if lab.transport.startswith("unix"):
                assert os.path.exists(served.address)
            assert status != b"-1.", "the child did not exit: it serves on"
            assert status == b"7.", f"the child ended with {status!r}"
    finally:
        os.close(reader)
        os.close(writer)


# --- LR: starting and stopping ---------------------------------------------------------------------------------------


@holds("LR2")
def stop_from_a_handler(lab: Lab) -> None:
    ours = lab.ours  # the lab itself does not go with the handler into another interpreter

    def handle(handler: Any, message: bytes) -> bytes:
        handler.server.stop(wait=True) if ours else handler.server.shutdown()
        return message[::-1]

    served = lab.prepare(handle)
    served.start()
    try:
        assert served.ask(b"stop") == b"pots"
        assert served.ended(PATIENCE)
    finally:
        served.stop()
    assert served.error is None


@holds("LR4")
def stop_by_many_at_once(lab: Lab) -> None:
    for _ in range(2):  # it can be served again
        served = lab.prepare()
        served.start()
        served.good()
        start = threading.Barrier(50)

        def stop(served: Served = served, start: threading.Barrier = start) -> None:
            start.wait()
            served.server.stop() if lab.ours else served.server.shutdown()

        threads = [threading.Thread(target=stop) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert served.ended(PATIENCE)
        served.stop()


@holds("LR4")
def stop_again_and_serve_again(lab: Lab) -> None:
    served = lab.prepare()
    for _ in range(3):
        served.start()
        served_again = within(PATIENCE, lambda: served.server.addresses != [])
        assert served_again
        served.address = served.server.addresses[0]
        served.good()
        for _ in range(2):
            served.server.stop()
        assert served.ended(PATIENCE)
    served.stop()


@holds("LR5")
def close_while_serving(lab: Lab) -> None:
    served = lab.prepare()
    served.start()
    served.good()
    served.server.server_close()
    assert served.ended(PATIENCE), "it goes on"
    assert served.error is None, served.error
    served.stop()


@holds("LR8")
def a_fork_beside_a_thread_that_holds_locks(lab: Lab) -> None:
    over = threading.Event()
    log = logging.getLogger("busy")
    log.propagate = False
    with (lab.folder / "busy").open("w") as sink:

        class Unbuffered(logging.Handler):  # a buffer has its own lock, which Python leaves locked in a child
            def emit(self, record: logging.LogRecord) -> None:
                os.write(sink.fileno(), b"busy")

        log.addHandler(Unbuffered())

        def always_log() -> None:
            while not over.is_set():
                log.warning("busy")

        def handle(_handler: Any, message: bytes) -> bytes:
            log.warning("in the child")
            return message[::-1]

        busy = threading.Thread(target=always_log)
        busy.start()
        try:
            with lab.serve(handle) as served:
                served.good(20)
        finally:
            over.set()
            busy.join()
            log.handlers.clear()


@holds("LR14")
def clients_that_wait_when_it_stops(lab: Lab) -> None:
    """Every handler is busy and clients wait in the accept queue when the server stops; all of them are answered."""
    latch, busy = lab.latch(), {"sync": 1, "pool": 4}[lab.dispatcher]

    def handle(_handler: Any, message: bytes) -> bytes:
        if message == b"hold":
            latch.hold()
        return message[::-1]

    with lab.serve(handle) as served, contextlib.ExitStack() as stack:
        clients = []
        for message in [b"hold"] * busy + [b"wait"] * 20:
            clients.append(stack.enter_context(served.connect()))
            served.send(clients[-1], message)
            if message == b"hold":
                latch.wait()
        if lab.ours:
            served.server.stop(wait=False)
        else:
            stopper = threading.Thread(target=served.server.shutdown)
            stopper.start()
            stack.callback(stopper.join)
        latch.release(busy)
        answers = [served.receive(client) for client in clients]
        assert answers == [b"dloh"] * busy + [b"tiaw"] * 20


@holds("LR20")
def start_and_stop_again_and_again(lab: Lab) -> None:
    most = PATIENCE if lab.dispatcher == "interpreters" else 1  # each of them imports socketkit
    for _ in range(1000 if lab.soak else 10):
        served = lab.prepare()
        began = time.monotonic()
        served.start()
        served.stop()
        assert time.monotonic() - began < most


@holds("LR21")
def bind_again_at_once(lab: Lab) -> None:
    lingering = contextlib.ExitStack()

    def linger(handler: Any, message: bytes) -> bytes:
        lingering.enter_context(handler.request.dup())  # a busy system limits connections in TIME_WAIT, which would have the same effect
        return message[::-1]

    with lab.serve(reverse if lab.ours else linger) as served:
        served.good(3)
    port = served.address[1]
    with lingering:
        for _ in range(5):
            again = type(served.server)
            if lab.ours:
                from socketkit import TCP

                server = Server(TCP("127.0.0.1", port), served.server.RequestHandlerClass, dispatcher=DISPATCHERS[lab.dispatcher])
                with server.start():
                    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as other:
                        other.sendall(b"again\n")
                        assert other.makefile("rb").read() == b"niaga"
            else:
                again.allow_reuse_address = False
                again(("127.0.0.1", port), None).server_close()
