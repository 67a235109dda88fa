"""A handler for workers to import. It does what it is told."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from socketkit import MessageHandler


class Replies(MessageHandler):
    def reply(self, message, client_address):
        word, _, rest = message.decode().partition(" ")
        return getattr(self, word)(rest)

    def upper(self, text):
        return text.upper().encode()

    def pid(self, _text):
        return str(os.getpid()).encode()

    def attributes(self, _text):
        return repr(sorted(vars(self))).encode()

    def quiet(self, _text):
        return None

    def fail(self, text):
        raise ValueError(text)

    def exit(self, _text):
        sys.exit(3)

    def number(self, _text):
        return 1

    def hold(self, folder):
        """Say in one FIFO which process this is, and return once there is a byte to take in the other."""
        with Path(folder, "begun").open("wb", buffering=0) as begun:
            begun.write(b"%d\n" % os.getpid())
        with Path(folder, "leave").open("rb", buffering=0) as leave:
            leave.read(1)
        return b"held by %d" % os.getpid()

    def die(self, folder):
        """Die, after leaving a note."""
        with Path(folder, "deaths").open("ab", buffering=0) as deaths:
            deaths.write(b"%d\n" % os.getpid())
        os.kill(os.getpid(), signal.SIGKILL)


class Lengths(Replies):
    framing = "length"
