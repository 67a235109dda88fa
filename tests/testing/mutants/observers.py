"""Observers that break one promise each."""

import os
import time


class Sound:
    def request_finished(self, server, client_address, seconds):
        pass


class Misspelt(Sound):
    def request_finish(self, server, client_address, seconds):
        pass


class Short:
    def request_finished(self, server, client_address):
        pass


class Slow:
    def request_finished(self, server, client_address, seconds):
        time.sleep(0.05)


class Single:
    inside = False

    def request_finished(self, server, client_address, seconds):
        if self.inside:
            raise RuntimeError("it is busy")
        self.inside = True
        time.sleep(0.001)
        self.inside = False


class Leaky(Sound):
    def server_started(self, server):
        os.pipe()


SOUND = (Sound,)
MUTANTS = {
    "test_events": (Misspelt, "request_finish is no event, so nobody calls it; did you mean request_finished?"),
    "test_arguments": (Short, "request_finished(server, client_address, seconds) was called and raised TypeError"),
    "test_quick": (Slow, "hand long work to a thread of its own"),
    "test_threads": (Single, "called by eight threads at once, it raised RuntimeError: it is busy"),
    "test_served": (Leaky, "after the server was closed there is still: descriptors"),
}
