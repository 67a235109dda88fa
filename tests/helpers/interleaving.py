"""Every interleaving of two calls, step by step: for code whose safety depends on the order of its steps."""

import itertools
import sys
import threading
from typing import ClassVar


class Lock:
    """A replacement for a lock of the code under test: a thread does not pause while it holds the lock, which could cause a deadlock."""

    _holders: ClassVar[set[int]] = set()

    def __init__(self):
        self._lock = threading.Lock()

    def __enter__(self):
        self._lock.acquire()
        self._holders.add(threading.get_ident())

    def __exit__(self, *_error):
        self._holders.discard(threading.get_ident())
        self._lock.release()

    @classmethod
    def is_held(cls):
        """Return whether this thread holds such a lock."""
        return threading.get_ident() in cls._holders


class Stepped:
    """A call in its own thread, which pauses before each line in the modules under test, or before each instruction (event="opcode")."""

    def __init__(self, modules, function, *arguments, event="line"):
        self._files = {module.__file__ for module in modules}
        self._event = event
        self._may, self._stands, self._over, self._free = threading.Semaphore(0), threading.Semaphore(0), False, False
        arguments = (function, *arguments)
        self._thread = threading.Thread(target=self._run, args=arguments, daemon=True)  # nobody lets it finish if the test fails
        self._thread.start()
        self._stands.acquire()

    def go(self, lines):
        """Run this many steps of the call; return whether it has that many."""
        for _ in range(lines):
            if self._over:
                return False
            self._may.release()
            self._stands.acquire()
        return True

    def finish(self):
        self._free = True
        self._may.release()
        self._thread.join()
        return self.result

    def _run(self, function, *arguments):
        sys.settrace(self._trace)
        try:
            self.result = function(*arguments)
        finally:
            sys.settrace(None)
            self._over = True
            self._stands.release()

    def _trace(self, frame, event, _argument):
        if frame.f_code.co_filename not in self._files:
            return None
        frame.f_trace_opcodes = self._event == "opcode"
        if event == self._event and not self._free and not Lock.is_held():
            self._stands.release()
            self._may.acquire()
        return self._trace


def schedules(modules, make, one, other):
    """Run every interleaving of two calls, and yield its objects and results. Each time both calls pause in turn, and then finish.

    modules: the module or modules whose lines count. make: returns a tuple of objects for both calls. one, other: receive these objects,
    and return a function and its arguments.
    """
    modules = modules if isinstance(modules, tuple) else (modules,)
    for lines in range(100):
        for others in range(100):
            made = make()
            calls = [Stepped(modules, *each(*made)) for each in (one, other)]
            enough = [call.go(steps) for call, steps in zip(calls, (lines, others), strict=True)]
            yield (*made, *(call.finish() for call in calls))
            if not enough[1]:
                break
        if not enough[0]:
            return


def interruptions(modules, make, one, other):
    """Run one call, which the whole of another interrupts before its first instruction, then again before its second, and so on.

    This also finds what goes wrong within a line. Arguments, and what is yielded: as for `schedules`.
    """
    modules = modules if isinstance(modules, tuple) else (modules,)
    for steps in itertools.count():
        made = make()
        call = Stepped(modules, *one(*made), event="opcode")
        is_over = not call.go(steps)
        function, *arguments = other(*made)
        result = function(*arguments)
        yield (*made, call.finish(), result)
        if is_over:
            return
