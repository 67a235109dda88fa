"""Clients of the programs under test, and what they read."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import attrs
from prometheus_client.parser import text_string_to_metric_families

PLUGIN = Path(__file__).parents[1]

LATE = 30
"""Seconds after which a program or an answer counts as missing."""

GUARDED = f"import faulthandler; faulthandler.dump_traceback_later({LATE}, exit=True)\n"


def metrics_of(text):
    """Return the value of each sample of an exposition, by its name and labels as Prometheus writes them."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def scrape(address):
    """Return the samples that a listener with the layer answers."""
    url = f"http://{address[0]}:{address[1]}/metrics"
    with urllib.request.urlopen(url, timeout=LATE) as answer:
        return metrics_of(answer.read().decode())


def ask(address, word):
    """Send a word to a server, and return all that it answers; nothing if it ends the connection without."""
    with socket.create_connection(address, timeout=LATE) as client:
        client.sendall(f"{word}\n".encode())
        with contextlib.suppress(ConnectionError):
            return client.makefile("rb").read().decode()
        return ""


@attrs.define
class Running:
    """A program that runs. Its output comes line by line."""

    process: subprocess.Popen

    def line(self):
        line = self.process.stdout.readline()
        assert line, f"the program has ended with {self.process.wait(LATE)}"
        return line.rstrip("\n")

    def stop(self):
        """End it as a service manager does, and return the rest of its output."""
        self.process.send_signal(signal.SIGTERM)
        rest, _ = self.process.communicate(timeout=LATE)
        assert self.process.returncode == 0, rest
        return rest


def until(condition):
    """Return once the condition is true, for what nothing announces; fail the test if it never becomes true."""
    deadline = time.monotonic() + LATE
    while not condition():
        assert time.monotonic() < deadline, "the condition never became true"
        time.sleep(0.01)
