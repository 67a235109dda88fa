"""Executors and handlers that other processes can import."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

from socketkit.handlers.messages import MessageHandler

answer = 42


def two_processes():
    """Processes that are started afresh, by a server that has no threads: so tests can use them in any process."""
    return ProcessPoolExecutor(2, mp_context=get_context("forkserver"))


def two_forks():
    return ProcessPoolExecutor(2, mp_context=get_context("fork"))


def two_spawned():
    return ProcessPoolExecutor(2, mp_context=get_context("spawn"))


def two_default():
    return ProcessPoolExecutor(2)


def two_interpreters():
    from concurrent.futures import InterpreterPoolExecutor

    return InterpreterPoolExecutor(2)


def two_threads():
    return ThreadPoolExecutor(2, thread_name_prefix="from-the-factory")


def broken():
    raise ZeroDivisionError("no executor today")


class Inline(Executor):
    """Runs everything at once, in the thread that submits."""

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - as every executor does
            future.set_exception(error)
        return future


class Refusing(Executor):
    """Takes what it is given and runs none of it."""

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        future.set_exception(TypeError("cannot pickle that"))
        return future


class UnpicklableError(Exception):
    def __init__(self, one, other):
        super().__init__(one)


class Worker(MessageHandler):
    """Does what it is told."""

    def reply(self, message, client_address):
        word, _, rest = message.partition(b" ")
        return getattr(self, word.decode())(rest)

    def upper(self, text):
        return text.upper()

    def pid(self, _text):
        return str(os.getpid()).encode()

    def interpreter(self, _text):
        from concurrent import interpreters

        return b"%d" % interpreters.get_current().id

    def quiet(self, _text):
        return None

    def number(self, _text):
        return 1

    def function(self, _text):
        return lambda: None

    def fail(self, text):
        raise ValueError(text.decode())

    def fail_oddly(self, text):
        raise UnpicklableError(text.decode(), 2)

    def exit(self, _text):
        sys.exit(3)

    def die(self, _text):
        os.kill(os.getpid(), signal.SIGKILL)

    def attributes(self, _text):
        return repr(sorted(vars(self))).encode()

    def hold_until(self, fifo):
        """Return once there is a byte in the FIFO to take."""
        os.write(1, b"holding %d\n" % os.getpid())
        with open(fifo, "rb", buffering=0) as file:
            file.read(1)
        return b"held"

    def ignored_by_programs(self, _text):
        source = "import signal; print([number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN])"
        return subprocess.run([sys.executable, "-c", source], check=True, stdout=subprocess.PIPE).stdout.strip()

    def hold(self, text):
        time.sleep(float(text))
        return b"held"


class Lengths(Worker):
    framing = "length"
