"""Refused resources: descriptors for a while, a single memory allocation, a single system call."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from faults.deaths import ask
from faults.lab import PATIENCE, Counted, Figure, Lab, ProcessorTime, no_descriptors, within
from helpers.support import ROOT, TESTS
from socketkit.testing.programs import Program, with_path


class CannotMeasureError(Exception):
    """This system lacks something that the measurement needs; the message names it."""


# --- descriptors -----------------------------------------------------------------------------------------------------


def emfile(lab: Lab, size: int) -> Figure:
    """Leave no descriptor free while a client waits. Measures attempts, processor time and log lines."""
    counted, latch = Counted(), lab.latch()
    attempts = counted.attempts
    holds = lab.dispatcher != "sync"  # its only thread would be in the handler and attempt nothing

    def handle(_handler: object, message: bytes) -> bytes:
        if message == b"hold":
            latch.hold()
        return message[::-1]

    with lab.serve(handle, faults=counted, blocking=True) as served, contextlib.ExitStack() as stack:
        served.good(8)
        pids = served.processes()
        assert served.quiet()
        if holds:
            held = stack.enter_context(served.connect())
            served.send(held, b"hold")
            latch.wait()
        waiting = stack.enter_context(served.client())
        processor = stack.enter_context(contextlib.closing(ProcessorTime(pids)))
        with no_descriptors(pids):
            taken, used, began = attempts.value, processor.seconds(), time.monotonic()
            waiting.connect(served.address)
            served.send(waiting, b"patience")
            early = bool(select.select([waiting], [], [], size / 10)[0])
            seconds = time.monotonic() - began
            tried, busy = attempts.value - taken, processor.seconds() - used
            if holds:
                latch.release()
            hurt = holds and served.receive(held) != b"dloh"
        relieved = time.monotonic()
        answered = served.receive(waiting) == b"ecneitap"
        after = time.monotonic() - relieved
    return {
        "seconds": round(seconds, 1),
        "attempts/s": round(tried / seconds / len(pids), 1),
        "% of one processor": round(busy / seconds / len(pids) * 100, 2),
        "log lines": round(len(lab.log().splitlines()) / len(pids), 1),
        "active requests failed": int(hurt),
        "wrong": int(early) + int(not answered),
        "ms until served": round(after * 1000),
    }


# --- memory and system calls -----------------------------------------------------------------------------------------

HANDLERS = {"asyncio": "awaited"}
"""The handlers of dispatchers that do not use the plain handler."""

AT_MOST = 5.0
"""Seconds within which a server has to serve again, or to end."""

DETACH = 1.0
"""Seconds that strace gets to detach from processes; it sometimes waits indefinitely for one that has ended."""

NO_ANSWER = 1.0
"""Seconds after which a request counts as never ended."""


class Victim:
    """A server that suffers faults repeatedly. If it ends, a new one replaces it."""

    def __init__(self, dispatcher: str) -> None:
        self._command = ("-m", "faults.served", HANDLERS.get(dispatcher, "plain"), dispatcher)
        self._stack = contextlib.ExitStack()
        self.counts = {"kept serving": 0, "requests never ended": 0, "ended": 0, "crashed": 0, "hung": 0}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def live(self, **environment: str) -> Program:
        """Return the server; start one if none is running."""
        if not self._is_there():
            self._stack.close()
            variables = {**with_path(ROOT, TESTS), **environment}
            self.program = self._stack.enter_context(Program.python(*self._command, cwd=ROOT, env=variables))
            self.port = int(self.program.line(r"^port (\d+)")[0][1])
            assert within(PATIENCE, lambda: self.ask() == "answered")
        return self.program

    def ask(self) -> str:
        """Send a request, and return a word for its outcome. Counts a request that never ends."""
        end = ask(self.port, NO_ANSWER)
        if end == "hung" and self.program.code is None:
            self.counts["requests never ended"] += 1
        return end

    def workers(self) -> list[int]:
        """Return the pids of the server's permanent workers, if any."""
        if "prefork" not in self._command[-1]:
            return []
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            tasks = Path(f"/proc/{self.program.pid}/task").iterdir()
            return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        return []

    def judge(self, what: str) -> None:
        """Count the server's reaction to a fault: it serves again or ends within `AT_MOST` seconds, or else it hangs."""
        end = time.monotonic() + AT_MOST
        while (code := self.program.code) is None and time.monotonic() < end:
            if self.ask() == "answered":
                self.counts["kept serving"] += 1
                return
        kind = "hung" if code is None else "ended" if code > 0 else "crashed"
        self.counts[kind] += 1
        if kind == "hung":
            self.program.send_signal(signal.SIGABRT)  # makes it dump the stacks of its threads
            self.program.wait()
        if kind != "ended":
            print(f"{what}: {kind}, exit code {code}\n{self.program.output[-3000:]}", file=sys.stderr)
        self._stack.close()

    def _is_there(self) -> bool:
        return hasattr(self, "program") and self.program.code is None


def memory(dispatcher: str, size: int) -> Figure:
    """Make the n-th memory allocation of an idle server fail, for each n. Measures whether the server keeps serving, or ends with an error.

    Under prefork, an allocation of the parent fails, and the parent then loses a worker.
    """
    if find_spec("_testcapi") is None:
        raise CannotMeasureError("this Python has no _testcapi")
    with Victim(dispatcher) as victim:
        for number in range(1, size + 1):
            if arm(victim.live(FAIL_FROM=str(number)), number):
                for worker in victim.workers()[:1]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(worker, signal.SIGKILL)
                victim.ask()
            victim.judge(f"allocation {number} of {dispatcher}")
    return {"allocations": size, **victim.counts}


def arm(program: Program, number: int) -> bool:
    """Tell the program to let this allocation fail. Repeats if an earlier allocation failed just then. False: the program has ended."""
    for _ in range(3):
        program.send_signal(signal.SIGUSR1)
        with contextlib.suppress(AssertionError):
            program.line(rf"armed {number}\b", timeout=5)
            return True
        if within(1, lambda: program.code is not None):
            return False
    raise AssertionError(f"allocation {number} cannot be made to fail:\n{program.output}")


CALLS = {
    "accept4": "EMFILE",
    "clone3": "EAGAIN",
    "epoll_ctl": "ENOMEM",
    "sendto": "ENOBUFS",
    "fcntl": "EINVAL",
    "openat": "EMFILE",
}
"""System calls, each with the error to inject."""


def calls(dispatcher: str, size: int) -> Figure:
    """Make the n-th system call of each kind fail while a server serves, for each n. Measures whether the server keeps serving."""
    if shutil.which("strace") is None:
        raise CannotMeasureError("strace is not installed")
    failed = 0
    with Victim(dispatcher) as victim:
        for call, error in CALLS.items():
            for number in range(1, size + 1):
                failed += ask_under(victim, f"{call}:error={error}:when={number}", number + 1)
                victim.judge(f"{call} {number} of {dispatcher}")
    return {"calls failed": failed, **victim.counts}


def ask_under(victim: Victim, fault: str, requests: int) -> int:
    """Send requests while strace injects this fault into the server; return how often it did."""
    pids = [victim.live().pid, *victim.workers()]
    command = ["strace", "-f", "-e", f"trace={fault.partition(':')[0]}", "-e", f"inject={fault}"]
    for pid in pids:
        command += ["-p", str(pid)]
    with Program(*command) as strace:
        for pid in pids:
            strace.line(rf"Process {pid} attached|not permitted")
        if "not permitted" in strace.output:
            raise CannotMeasureError("strace may not attach to processes here")
        for _ in range(requests):
            if victim.ask() in {"refused", "hung"}:
                break
        with contextlib.suppress(ProcessLookupError):
            strace.send_signal(signal.SIGINT)
        within(DETACH, lambda: strace.code is not None)  # otherwise strace is killed, which also detaches it
        return strace.output.count("(INJECTED)")
