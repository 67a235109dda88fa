"""Promises of a seam, each with the check that proves it, and the report of one part."""

from __future__ import annotations

import inspect
import textwrap
import threading
import time
import unittest
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import attrs

WIDTH = 100
"""Columns of a report, if no word is longer."""

_INDENT = " " * 8


class BrokenPromiseError(AssertionError):
    """A part breaks a promise. The message tells its author what was seen, and what should have been."""


class DoesNotApplyError(unittest.SkipTest):
    """A promise is not this part's, because the part does not declare the ability that it is about. pytest shows it as skipped."""


@attrs.frozen
class Finding:
    """What became of one promise."""

    promise: str
    """The promise, as a sentence."""
    result: Literal["kept", "broken", "does not apply"]
    reason: str = ""
    """What was seen, or which ability is not declared."""
    check: str = ""
    """The name of the method that checked it, such as ``test_drain_waits``."""

    def __str__(self) -> str:
        mark = {"kept": "ok", "broken": "BROKEN", "does not apply": "-"}[self.result]
        reason = f"{self.check}: {self.reason}" if self.result == "broken" else self.reason
        return "\n".join((_wrap(self.promise, f"{mark:8}"), *(_wrap(line, _INDENT) for line in reason.splitlines())))


def _wrap(line: str, first: str = "") -> str:
    """Return the line broken into several, all but the first indented as in a report; one that is indented itself stays as it is."""
    if line.startswith(" "):
        return first + line
    return textwrap.fill(line, WIDTH, initial_indent=first, subsequent_indent=_INDENT, break_long_words=False, break_on_hyphens=False)


def with_article(seam: str) -> str:
    """Return the name of a seam after "a" or "an"."""
    return f"an {seam}" if seam == "observer" else f"a {seam}"


@attrs.frozen
class Report:
    """The findings about one part."""

    part: str
    """The recipe, as it is printed."""
    seam: str
    """What it was checked as, such as ``transport``."""
    findings: tuple[Finding, ...]

    @property
    def broken(self) -> tuple[Finding, ...]:
        """The promises that it breaks."""
        return tuple(each for each in self.findings if each.result == "broken")

    @property
    def summary(self) -> str:
        """How many promises are kept, in words."""
        applied = [each for each in self.findings if each.result != "does not apply"]
        if not applied:
            return "no promise applies"
        return f"{len(applied) - len(self.broken)} of {len(applied)} promises kept"

    @property
    def title(self) -> str:
        """What was checked, and as what."""
        return _wrap(f"{self.part} as {with_article(self.seam)}")

    def __str__(self) -> str:
        return "\n".join((self.title, *map(str, self.findings), self.summary))


class NotConformingError(AssertionError):
    """A part breaks promises of its seam. The message is the whole report, which `report` holds as an object."""

    def __init__(self, report: Report) -> None:
        super().__init__(f"\n{report}")
        self.report = report


class Conformance:
    """The promises of one seam: each is a method whose name begins with ``test_`` and whose docstring is the promise.

    Derive a class whose name begins with ``Test`` and define `make`: pytest then runs each promise as a test.
    """

    seam: ClassVar[str]
    patience: float = 10.0
    """Seconds after which a call that should return at once, or an answer that should come, counts as missing."""

    def make(self) -> Any:
        """Return a new recipe of the part to check."""
        raise NotImplementedError(f"{type(self).__name__} needs a method make(), which returns a recipe of the part to check")

    @classmethod
    def promises(cls) -> list[str]:
        """Return the names of the methods, in the order of the classes."""
        return list(dict.fromkeys(name for base in reversed(cls.__mro__) for name in vars(base) if name.startswith("test_")))

    # for checks

    def at_once(self, function: Callable[[], Any], what: str) -> Any:
        """Return what the function returns, called in another thread. Raises: BrokenPromiseError if it blocks; what it raises."""
        results: list[tuple[Any, BaseException | None]] = []

        def call() -> None:
            try:
                results.append((function(), None))
            except BaseException as error:  # noqa: BLE001 - raised again below, in the thread of the check
                results.append((None, error))

        thread = threading.Thread(target=call, name=f"socketkit-check {what}", daemon=True)
        thread.start()
        thread.join(self.patience)
        if not results:
            raise BrokenPromiseError(f"{what} had not returned after {self.patience:g} s; it must not block")
        value, error = results[0]
        if error is not None:
            raise error
        return value

    def until(self, condition: Callable[[], object], otherwise: str) -> None:
        """Wait for what nothing announces. Raises: BrokenPromiseError in the end; ``{seconds}`` in the message stands for `patience`."""
        deadline = time.monotonic() + self.patience
        while not condition():
            expect(time.monotonic() < deadline, otherwise.format(seconds=f"{self.patience:g}"))
            time.sleep(0.001)


def check(kind: type[Conformance], make: Callable[[], Any], only: str | None = None) -> Report:
    """Check one part and return the report. only: the method of a single promise.

    Raises: NotConformingError if it breaks a promise.
    """
    checks = type(kind.__name__, (kind,), {"make": lambda _self: make()})
    findings = tuple(find(getattr(checks(), name)) for name in kind.promises() if only in {None, name})
    report = Report(repr(make()), kind.seam, findings)
    if report.broken:
        raise NotConformingError(report)
    return report


def find(promised: Callable[[], object]) -> Finding:
    """Check one promise, given as a method of a `Conformance`."""
    kept = Finding((inspect.getdoc(promised) or "").partition("\n")[0], "kept", check=promised.__name__)
    try:
        promised()
    except DoesNotApplyError as error:
        return attrs.evolve(kept, result="does not apply", reason=str(error))
    except BrokenPromiseError as error:
        return attrs.evolve(kept, result="broken", reason=str(error))
    except Exception as error:  # noqa: BLE001 - a part of somebody else's may raise anything
        return attrs.evolve(kept, result="broken", reason=f"{type(error).__name__}: {error}")
    return kept


# --- for checks ------------------------------------------------------------------------------------------------------


def expect(condition: object, otherwise: str) -> None:
    """Raises: BrokenPromiseError with this message, unless the condition is true."""
    if not condition:
        raise BrokenPromiseError(otherwise)


def applies_if(condition: object, otherwise: str) -> None:
    """Raises: DoesNotApplyError with this reason, unless the condition is true."""
    if not condition:
        raise DoesNotApplyError(otherwise)
