"""`socketkit plugins`: what is installed, whatever state it is in."""

import subprocess
import sys
from itertools import pairwise

import pytest

from socketkit.testing.programs import GUARD

GREEN = '''
    from __future__ import annotations
    import attrs
    from socketkit.hookspecs import hookimpl
    from socketkit.seams import Seconds

    @attrs.frozen
    class Base:
        pause: Seconds | None = attrs.field(default=None, kw_only=True)
        """Between two requests."""

    @attrs.frozen
    class Green(Base):
        """Runs handlers in the garden."""

        size: int
        """Square metres.

        More is better.
        """
        tools: list[str] = attrs.field(factory=lambda: ["rake"], kw_only=True)
        key: str = attrs.field(default="hunter2", repr=False, kw_only=True)
        _seed: int = attrs.field(default=1, kw_only=True)
        grown: int = attrs.field(init=False, default=0)

        def start(self, work):
            raise AssertionError

    @hookimpl
    def socketkit_dispatchers():
        return {"green": Green}
'''


def plugins(*arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "socketkit", "plugins", *arguments], capture_output=True, text=True, timeout=GUARD, check=False
    )
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    return done.stderr if code else done.stdout


def test_our_own_parts_are_listed_by_kind(here):
    listed = plugins()
    assert listed.startswith("builtin, from socketkit")
    for kind, names in (
        ("transport", {"tcp", "udp", "unix", "unix-dgram"}),
        ("dispatcher", {"sync", "thread", "fork", "pool", "adaptive", "prefork", "asyncio", "executor", "interpreters"}),
        ("lifecycle", {"classic", "graceful"}),
    ):
        assert kind != "dispatcher" or "thread (Threads), fork (Forks)" in listed
        lines = [line.partition(":")[2] for line in listed.splitlines() if line.startswith(f"  {kind}:")]
        assert names <= set(" ".join(lines).replace(",", "").split())


def test_others_are_listed_with_their_distribution_and_version(here, install):
    install("socketkit-green", "green", GREEN)
    assert "green, from socketkit-green 1.2\n  dispatcher: green (Green)\n" in plugins()


EARS = """
    from socketkit.hookspecs import hookimpl

    @hookimpl
    def socketkit_observers(server):
        raise AssertionError("there is no server to observe")
"""


def test_a_plugin_with_observers_says_so(here, install):
    install("socketkit-ears", "ears", EARS)
    observes = "ears, from socketkit-ears 1.2\n  observers:  for servers that are composed by name\n"
    assert observes in plugins()
    assert plugins("ears") == observes


def test_a_broken_plugin_is_listed_with_the_reason_and_the_rest_all_the_same(here, install):
    install("socketkit-sad", "sad", "import nowhere_to_be_found")
    install("socketkit-green", "green", GREEN)
    listed = plugins()
    assert (
        "sad, from socketkit-sad 1.2: broken, it cannot be imported (ModuleNotFoundError: No module named 'nowhere_to_be_found')\n"
        in listed
    )
    assert "dispatcher: green" in listed
    assert plugins("sad").startswith("sad, from socketkit-sad 1.2: broken")


def test_a_disabled_plugin_is_listed_as_that_and_not_loaded(here, install, monkeypatch):
    install("socketkit-sad", "sad", "raise AssertionError('loaded')")
    monkeypatch.setenv("SOCKETKIT_DISABLED_PLUGINS", "sad")
    assert "sad, from socketkit-sad 1.2: disabled by SOCKETKIT_DISABLED_PLUGINS\n" in plugins()


def test_a_clash_is_listed_once_with_both_sides(here, install):
    install("socketkit-green", "green", GREEN)
    install("socketkit-lawn", "lawn", GREEN)
    [line] = [line for line in plugins().splitlines() if line.startswith("clash: ")]
    assert "'green' of socketkit-green and 'lawn' of socketkit-lawn" in line
    assert plugins("green").count("dispatcher green: Green, from socketkit-") == 2


@pytest.mark.parametrize("name", ["green", "verdant"])
def test_a_part_is_told_with_its_options_their_types_defaults_and_meaning(here, install, name):
    install("socketkit-green", "verdant", GREEN)
    told = plugins(name)
    assert told.partition("dispatcher green")[1:] == (
        "dispatcher green",
        """: Green, from socketkit-green 1.2
    Runs handlers in the garden.
    pause: Seconds | None = None
        Between two requests.
    size: int (needed)
        Square metres.

        More is better.
    tools: list[str] = ['rake']
    key: str = (not shown)
    seed: int = 1
""",
    )
    assert told.startswith("verdant, from socketkit-green 1.2\n") == (name == "verdant")


def test_every_option_of_ours_is_explained(here):
    told = plugins("builtin").splitlines()
    for line, below in pairwise(told):
        if line.startswith("    ") and not line.startswith("     ") and (" = " in line or line.endswith("(needed)")):
            assert below.startswith("        "), f"{line.strip()} has no comment"


def test_an_unknown_name_is_told_with_the_nearest(here):
    assert "no plugin or part is named 'gracefull', did you mean 'graceful'?; installed: " in plugins("gracefull", code=2)
