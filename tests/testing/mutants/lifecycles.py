"""Lifecycles that break one promise each."""

import signal
import threading
from functools import partial

import attrs


@attrs.frozen
class Sound:
    drain: float = 5.0

    def serve(self, serving):
        try:
            serving.run()
        finally:
            report = serving.drain(self.drain)
        return report


class Twice(Sound):
    def serve(self, serving):
        serving.run()
        return super().serve(serving)


class Silent(Sound):
    def serve(self, serving):
        super().serve(serving)


class Swallowing(Sound):
    def serve(self, serving):
        try:
            return super().serve(serving)
        except RuntimeError:
            return None


class Careless(Sound):
    def serve(self, serving):
        serving.run()
        return serving.drain(self.drain)


class Elsewhere(Sound):
    def serve(self, serving):
        thread = threading.Thread(target=serving.run)
        thread.start()
        thread.join()
        return serving.drain(self.drain)


class Late(Sound):
    def serve(self, serving):
        report = super().serve(serving)
        serving.on_ready(print)
        return report


class Untidy(Sound):
    def serve(self, serving):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        return super().serve(serving)


class TidyAtBest(Sound):
    def serve(self, serving):
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        report = super().serve(serving)
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
        return report


class Jealous(Sound):
    lock = threading.Lock()

    def serve(self, serving):
        if not self.lock.acquire(blocking=False):
            raise RuntimeError("there is a server already")
        try:
            return super().serve(serving)
        finally:
            self.lock.release()


class Sluggish(Sound):
    def serve(self, serving):
        serving.run()
        threading.Event().wait(3)
        return serving.drain(self.drain)


SOUND = (Sound,)
MUTANTS = {
    "test_times": (partial(Sound, "soon"), "drain is 'soon'"),
    "test_runs_once": (Twice, "serve() called run() 2 times"),
    "test_report": (Silent, "serve() returned None, not the report that drain() had returned"),
    "test_error": (Swallowing, "serve() returned although run() had raised, so nobody learns of it"),
    "test_drains_after_an_error": (Careless, "drain in a finally"),
    "test_thread": (Elsewhere, "in another thread than its own"),
    "test_ready_first": (Late, "called on_ready() after run()"),
    "test_leaves_nothing": (Untidy, "after serve() there is still: signals"),
    "test_leaves_nothing_after_an_error": (TidyAtBest, "after serve() has raised there is still: signals"),
    "test_served": (Untidy, "signal only works in main thread"),
    "test_two_servers": (Jealous, "there is a server already"),
    "test_stop_in_another_thread": (Sluggish, "stop(0) beside a client had not returned"),
}
