"""Log records of another interpreter of this process, handled by the logging of this one, where the program has configured it."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
from logging.handlers import QueueHandler
from typing import Any

from socketkit._system.threads import BackgroundThread


class Relay:
    """Hands the records of one interpreter to the loggers of the same names here, in a thread of its own.

    It ends when the other interpreter has closed `writer`, which that owns once `begin` has been called there.
    """

    def __init__(self) -> None:
        """Raises: OSError, RuntimeError if no descriptor or thread is available."""
        self._reader, self.writer = os.pipe()
        self._thread = BackgroundThread(self._run, "socketkit-log-relay")
        try:
            self._thread.start()
        except RuntimeError:
            os.close(self._reader)
            os.close(self.writer)
            raise

    def _run(self) -> None:
        with open(self._reader, "rb") as records, contextlib.suppress(EOFError, OSError):  # noqa: PTH123 - a descriptor
            while True:
                record = logging.makeLogRecord(pickle.load(records))  # noqa: S301 - this process wrote it
                logger = logging.getLogger(record.name)
                if logger.isEnabledFor(record.levelno):
                    with contextlib.suppress(Exception):  # a handler that raises loses its record only
                        logger.handle(record)

    def abandon(self) -> None:
        """End it, if no interpreter has taken over `writer`."""
        os.close(self.writer)

    def finish(self, seconds: float) -> None:
        """Wait until the records are handled, for `seconds` at most."""
        self._thread.join(seconds)


def levels() -> dict[str, int]:
    """Return the level of each logger that has one, and of all together under the name "": see `logging.disable`."""
    loggers = {name: logger.level for name, logger in logging.root.manager.loggerDict.items() if isinstance(logger, logging.Logger)}
    return {"": logging.root.manager.disable, "root": logging.root.level, **{name: level for name, level in loggers.items() if level}}


def begin(writer: int, levels: dict[str, int]) -> None:
    """In the other interpreter: have all that is logged sent to its relay, by these levels. Owns the descriptor from now on."""
    logging.disable(levels.pop(""))
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    logging.root.handlers[:] = [_Sender(writer)]


def end() -> None:
    """In the other interpreter: close the descriptor, after which nothing that is logged there is seen."""
    for handler in logging.root.handlers[:]:
        logging.root.removeHandler(handler)
        handler.close()


class _Sender(QueueHandler):
    """Sends records to a relay."""

    def __init__(self, writer: int) -> None:
        self._stream = open(writer, "wb")  # noqa: SIM115 - a descriptor; `close` closes it
        super().__init__(self._stream)  # type: ignore[arg-type] # the queue of the base class, which only `enqueue` uses

    def enqueue(self, record: Any) -> None:
        frame = pickle.dumps(record.__dict__)  # in one piece, so that a record that cannot be sent leaves nothing behind
        self._stream.write(frame)
        self._stream.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.close()
        super().close()
