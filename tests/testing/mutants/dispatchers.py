"""Dispatchers that break one promise each: some are called for each request, the others drive."""

import contextlib
import os
import queue
import select
import socket
import threading
import time
from functools import partial
from typing import ClassVar

import attrs

from socketkit import Sync, Threads
from socketkit.seams import Parking


class Live:
    """A sound live part, a thread for each request, of which mutants replace a part."""

    def __init__(self, work, inner=None):
        self.work = work
        self.inner = inner or Threads().start(work)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def dispatch(self, request, client_address):
        self.inner.dispatch(request, client_address)


@attrs.frozen
class Sound:
    Part = Live

    def start(self, work):
        return self.Part(work)


class Driver:
    """A sound live part that drives, with a thread for each unit, of which mutants replace a part."""

    def __init__(self):
        self.threads = []

    def drive(self, open_intake):
        with open_intake() as intake:
            while not intake.stopped:
                unit = intake.take()
                if unit is not None:
                    self.run(unit)

    def run(self, unit):
        thread = threading.Thread(target=unit, daemon=True)
        self.threads.append(thread)
        thread.start()

    def wait(self, timeout):
        end = None if timeout is None else time.monotonic() + timeout
        for thread in self.threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self.threads)

    def close(self):
        pass


@attrs.frozen
class Driving:
    Part = Driver

    def start(self, work):
        return self.Part()


# --- what it is -------------------------------------------------------------------------------------------------------


class Waitless(Sound):
    class Part:
        def __init__(self, work):
            pass

        def dispatch(self, request, client_address):
            pass

        def close(self):
            pass


class Silent(Sound):
    class Part(Live):
        def wait(self, timeout):
            self.inner.wait(timeout)


class OddParking(Driving):
    class Part(Driver):
        parking = 10.0


class Generous(Driving):
    class Part(Driver):
        def narrow(self, limits):
            return attrs.evolve(limits, max_connections=1_000_000)


class Fussy(Sound):
    def check(self, handler):
        raise TypeError("not this one")


class OddKinds(Sound):
    kinds = frozenset({"streams"})


class Uncounted(Sound):
    forks_workers = True


class Countless(Sound):
    interpreters = 0


class Domestic(Sound):
    """Says that other interpreters serve, and serves itself."""

    interpreters = 2


class Boastful(Sound):
    """Says that it runs one handler at a time."""

    def max_handlers(self, handler):
        return 1


class Undaunted(Sound):
    def daemonized(self):
        pass


# --- called by hand ---------------------------------------------------------------------------------------------------


class Patient(Sound):
    class Part(Live):
        def force(self):
            threading.Event().wait()

        unshare = force


class Hasty(Sound):
    class Part(Live):
        def wait(self, timeout):
            return True


class Mistaken(Sound):
    class Part(Live):
        inline = True


class Keeping(Driving):
    class Part(Driver):
        kept: ClassVar[list] = []

        def adapt(self, request):
            self.kept.append(request)
            return request.dup()


# --- taking requests --------------------------------------------------------------------------------------------------


class Crowded(Driving):
    class Part(Driver):
        def drive(self, open_intake):
            with open_intake() as intake:
                other = threading.Thread(target=self._drive, args=(intake,), daemon=True)
                other.start()
                self._drive(intake)
                other.join(1)

        def _drive(self, intake):
            while not intake.stopped:
                unit = intake.take()
                if unit is not None:
                    self.run(unit)


class Numb(Driving):
    class Part(Driver):
        def drive(self, open_intake):
            with contextlib.suppress(RuntimeError):
                super().drive(open_intake)


class Repeating(Driving):
    class Part(Driver):
        def run(self, unit):
            super().run(lambda: (unit(), unit()))


class Hoarding(Driving):
    """Takes all there is, and has one thread to run it."""

    class Part(Driver):
        def __init__(self):
            super().__init__()
            self.units = queue.SimpleQueue()
            threading.Thread(target=self.work, daemon=True).start()

        def work(self):
            while True:
                self.units.get()()

        def run(self, unit):
            self.units.put(unit)


class Unwatchful(Sound):
    class Part(Live):
        loop = None

        def attach(self, loop):
            if loop is not None:
                self.loop, (self.ours, self.theirs) = loop, os.pipe()
                loop.watch(self.ours, print)
            else:
                os.close(self.ours)
                os.close(self.theirs)
                self.loop.unwatch(self.ours)


# --- running requests -------------------------------------------------------------------------------------------------


class Forgetful(Sound):
    class Part(Live):
        count = 0

        def dispatch(self, request, client_address):
            self.count += 1
            if self.count % 5:
                super().dispatch(request, client_address)
            else:
                request.close()


class Slow(Sound):
    """Has no thread for a request that comes soon after another."""

    class Part(Live):
        last = 0.0

        def dispatch(self, request, client_address):
            before, self.last = self.last, time.monotonic()
            if self.last - before < 0.05:
                raise RuntimeError("not so fast")
            super().dispatch(request, client_address)


class Direct(Sound):
    """Calls the handler itself."""

    class Part(Live):
        def dispatch(self, request, client_address):
            threading.Thread(target=self.run, args=(request, client_address), daemon=True).start()

        def run(self, request, client_address):
            self.work.handler(request, client_address, None)
            request.close()


class Unguarded(Direct):
    class Part(Direct.Part):
        def run(self, request, client_address):
            self.work.handler(request, client_address, None)
            request.shutdown(2)
            request.close()
            self.work.settle(request, "finished")


class OneLine(Driving):
    """Loses what comes in one piece with a line."""

    class Part(Driver):
        def adapt(self, request):
            return OneLine.Request(fileno=request.detach())

    class Request(socket.socket):
        def recv_into(self, buffer, *rest):
            line = b"".join(self.recv(len(buffer), *rest).partition(b"\n")[:2])
            buffer[: len(line)] = line
            return len(line)


class Timeless(Driving):
    """Sleeps until the descriptor of its intake is readable, whatever is due before."""

    class Part(Driver):
        parking = Parking()

        def drive(self, open_intake):
            with open_intake() as intake:
                while not intake.stopped:
                    select.select([intake.fileno()], [], [])
                    while (unit := intake.take(0)) is not None:
                        self.run(unit)


class Pretending(Sound):
    forks_requests = True


class Small(Driving):
    class Part(Driver):
        parking = Parking()

        def narrow(self, limits):
            return attrs.evolve(limits, max_connections=50)


class StreamsOnly(Sound):
    class Part(Live):
        def dispatch(self, request, client_address):
            if not isinstance(request, tuple):
                super().dispatch(request, client_address)


class Unawaited(Sound):
    runs_async = True


class Blunt(Sound):
    class Part(Live):
        def cut(self, request):
            pass


class Shared(Sound):
    """Has one live part for all servers, which the first to end closes."""

    class Part(Live):
        closed: ClassVar[list] = []

        def dispatch(self, request, client_address):
            if self.closed:
                raise RuntimeError("it is closed")
            super().dispatch(request, client_address)

        def close(self):
            self.closed.append(self)


# --- stopping ---------------------------------------------------------------------------------------------------------


class HastyDriver(Driving):
    class Part(Driver):
        def wait(self, timeout):
            return True


class Deaf(Driving):
    class Part(Driver):
        def adapt(self, request):
            return Deaf.Request(fileno=request.detach())

    class Request(socket.socket):
        def shutdown(self, how):
            pass


class SharedThreads(Driving):
    """Waits for all its threads before it drives again."""

    class Part(Driver):
        def drive(self, open_intake):
            self.wait(None)
            super().drive(open_intake)


class Abandoning(Driving):
    """Gives up the requests of the run before when it drives again."""

    class Part(Driver):
        def __init__(self):
            super().__init__()
            self.requests = []

        def adapt(self, request):
            self.requests.append(request)
            return request

        def drive(self, open_intake):
            for request in self.requests:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)
            super().drive(open_intake)


class DrivesOnce(Driving):
    """Runs units in the serving thread, and only until the first stop."""

    class Part(Driver):
        driven = False

        def run(self, unit):
            unit()

        def drive(self, open_intake):
            if not self.driven:
                self.driven = True
                super().drive(open_intake)


class Locked(Driving):
    """Takes a lock where it is told of a stop."""

    class Part(Driver):
        lock = threading.Lock()

        def drive(self, open_intake):
            with open_intake() as intake:
                intake.on_stop(lambda: self.lock.acquire(timeout=2) and self.lock.release())
                while not intake.stopped:
                    unit = intake.take()
                    if unit is not None:
                        with self.lock:
                            unit()


class Once(Sound):
    started: ClassVar[list] = []

    def start(self, work):
        if self.started:
            raise RuntimeError("it was started already")
        self.started.append(work)
        return super().start(work)


class Leaky(Sound):
    class Part(Live):
        def __init__(self, work):
            super().__init__(work)
            os.pipe()


SOUND = (Sound, Driving, Sync, partial(Threads, daemon=False))
NO_ANSWER = "the server had neither answered nor closed a connection after 1 s"
MUTANTS = {
    "test_shape": (Waitless, "a Part has no method wait"),
    "test_idle_wait": (Silent, "wait(None) with nothing running returned None, not True"),
    "test_parking": (OddParking, "parking is 10.0"),
    "test_narrow": (Generous, "narrow() made max_connections=2 1000000"),
    "test_check": (Fussy, "check() raised TypeError (not this one) for"),
    "test_kinds": (OddKinds, "kinds is frozenset({'streams'})"),
    "test_processes": (Uncounted, "processes is None; it must be the number of worker processes"),
    "test_interpreters": (Countless, "interpreters is 0; it must be the number of interpreters that serve"),
    "test_interpreters and not the main one": (Domestic, "a request ran in the main interpreter"),
    "test_daemonized": (Undaunted, "daemonized() returned None, which has no start()"),
    "test_force": (Patient, "force() had not returned after 1 s; it must not block"),
    "test_unshare": (Patient, "unshare() had not returned after 1 s; it must not block"),
    "test_wait": (Hasty, "wait(0.05) beside a running request returned True, not False"),
    "test_inline": (Mistaken, "dispatch() ran the request in another place, and inline is True"),
    "test_adapt": (Keeping, "after the request that adapt() returned was closed, the connection is still open"),
    "test_take": (Crowded, "two threads were inside take() at the same time"),
    "test_take_raises": (Numb, "1 s after take() has raised, the server has not failed"),
    "test_units": (Repeating, "some were called 2 times"),
    "test_room": (Hoarding, "it waits because there is no room to run it"),
    "test_max_handlers": (Boastful, "handlers ran at once, and max_handlers() returned 1"),
    "test_watch": (Unwatchful, "a descriptor was closed before unwatch()"),
    "test_answers": (Forgetful, "a client that sent '4' was answered ''"),
    "test_all_at_once": (Slow, "30 clients were answered ["),
    "test_error": (Direct, NO_ANSWER),
    "test_exit": (Direct, NO_ANSWER),
    "test_closed_by_handler": (Unguarded, "requests still count as active"),
    "test_client_leaves": (Direct, "requests still count as active"),
    "test_conversation": (OneLine, NO_ANSWER),
    "test_silent_clients": (Small, NO_ANSWER),
    "test_datagrams": (StreamsOnly, "datagram 0 had no answer after 1 s"),
    "test_due": (Timeless, NO_ANSWER),
    "test_forks_requests": (Pretending, "three requests and the server ran in the processes"),
    "test_async": (Unawaited, "a client that sent 'hello' was answered ''"),
    "test_cut": (Blunt, NO_ANSWER),
    "test_two_servers": (Shared, "a client that sent 'hello' was answered ''"),
    "test_drain_waits": (HastyDriver, "the drain ended while a request was still running"),
    "test_drain_ends": (Deaf, "a handler that reads from its client is still running after the drain"),
    "test_queue": (DrivesOnce, "five clients that waited when the drain began were answered ['', "),
    "test_stop_from_a_handler": (Locked, NO_ANSWER),
    "test_starts_again after a drain": (Once, "RuntimeError: it was started already"),
    "test_starts_again on the same live part": (DrivesOnce, NO_ANSWER),
    "test_starts_beside": (SharedThreads, "a start beside a request of the run before had not returned after 1 s"),
    "test_starts_beside and lets it go on": (Abandoning, "a request of the run before was answered '', not 'done'"),
    "test_leaves_nothing": (Leaky, "after the server was closed there is still: descriptors"),
}
