"""No check of the kit is empty: for each there is a part that breaks that promise, and its author is told how."""

import functools
import importlib
import json
import logging

import pytest

from helpers.support import TESTS
from socketkit.testing.programs import Program, with_path
from testing.mutants.__main__ import KINDS

COMMON = set(KINDS["transports"].promises()) & set(KINDS["dispatchers"].promises()) & set(KINDS["layers"].promises())
"""Checks of all recipes, for which one mutant is enough."""

MUTANTS = {(seam, name): words for seam in KINDS for name, (_, words) in importlib.import_module(f"testing.mutants.{seam}").MUTANTS.items()}
SOUND = [(seam, make) for seam in KINDS for make in importlib.import_module(f"testing.mutants.{seam}").SOUND]


@functools.cache
def found(seam):
    """Return the promise, the result and the reason of each check of a seam's mutants."""
    with Program.python("-m", "testing.mutants", seam, env=with_path(TESTS)) as program:
        assert program.wait(timeout=150) == 0, program.output
        lines = [json.loads(line) for line in program.output.splitlines() if line.startswith('["test_')]
    return {name: finding for name, *finding in lines}


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("seam", "name"), MUTANTS)
def test_a_broken_promise_is_found_and_explained(seam, name):
    promise, result, reason = found(seam)[name]
    method = getattr(KINDS[seam], name.partition(" ")[0])
    assert (promise, result) == (method.__doc__.partition("\n")[0], "broken")
    assert MUTANTS[seam, name] in reason


@pytest.mark.parametrize("seam", KINDS)
def test_every_check_has_a_mutant(seam):
    names = {name.partition(" ")[0] for each, name in MUTANTS if each == seam}
    common = COMMON if seam != "transports" else set()
    assert names | common == set(KINDS[seam].promises()) | common


@pytest.mark.parametrize(("seam", "make"), SOUND, ids=lambda each: each if isinstance(each, str) else "")
def test_what_mutants_start_from_keeps_every_promise(seam, make):
    handler = logging.NullHandler()
    logging.getLogger("socketkit").addHandler(handler)
    try:
        members = {"make": lambda _self: make(), "client": getattr(importlib.import_module(f"testing.mutants.{seam}"), "client", None)}
        from socketkit.testing.conformance.promises import find

        checks = type("Checks", (KINDS[seam],), members)()
        assert [str(each) for each in (find(getattr(checks, name)) for name in checks.promises()) if each.result == "broken"] == []
    finally:
        logging.getLogger("socketkit").removeHandler(handler)
