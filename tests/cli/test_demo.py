"""`socketkit demo`, and what the command says of itself."""

import subprocess
import sys
import time

import pytest

import socketkit
from socketkit.testing.programs import GUARD

WRONG = """
    import attrs
    from socketkit.hookspecs import hookimpl
    from socketkit.dispatchers.sync import Sync

    class Live:
        def __init__(self, work, wrong):
            self.work, self.wrong = work, wrong

        def dispatch(self, request, client_address):
            if self.wrong == "silent":
                self.work.release(request)
                self.work.settle(request, "finished")
            elif isinstance(request, tuple):
                self.work.run((b"else", request[1]), client_address)
                self.work.settle(request, "finished")
            else:
                request.sendall(b"nonsense\\n" * 3)
                self.work.run(request, client_address)

        def wait(self, timeout):
            return True

        def close(self):
            pass

    @attrs.frozen
    class Wrong:
        def start(self, work):
            return Live(work, "WRONG")

    @attrs.frozen
    class Needy:
        size: int

        def start(self, work):
            raise AssertionError

    @hookimpl
    def socketkit_dispatchers():
        return {"wrong": Wrong, "needy": Needy}
"""

FINE = """
    import attrs
    from socketkit.hookspecs import hookimpl
    from socketkit.dispatchers.threads import Threads

    @attrs.frozen
    class Fine(Threads):
        pass

    @hookimpl
    def socketkit_dispatchers():
        return {"fine": Fine}
"""


def quick_demo(code=0):
    """Return what a demo that takes less than ten seconds says: one of three, so that a moment's standstill of the machine is no failure."""
    times = []
    while not times or times[-1] >= 10:
        assert len(times) < 3, times
        began = time.monotonic()
        done = command("demo", code=code)
        times.append(time.monotonic() - began)
    return done


def command(*arguments, code=0):
    done = subprocess.run([sys.executable, "-m", "socketkit", *arguments], capture_output=True, text=True, timeout=GUARD, check=False)
    assert done.returncode == code, done
    return done


def test_the_demo_serves_under_each_installed_dispatcher_and_ends_within_ten_seconds(here, install):
    install("socketkit-fine", "fine", FINE)
    done = quick_demo()
    assert done.stderr == ""
    blocks = {block.partition(",")[0]: block for block in done.stdout.split("\n\n")[1:-1]}
    assert {"sync", "thread", "fork", "fine"} <= blocks.keys()
    assert "fine, from socketkit-fine 1.2" in blocks["fine"]
    for name in ("sync", "thread", "fork", "fine"):
        for scheme in ("tcp", "udp"):
            assert f"  {scheme}  {scheme}://127.0.0.1:" in blocks[name]
        assert blocks[name].count("answered 'CHANGE ONE WORD' in ") == 2
        assert blocks[name].count(" ms") == 2


@pytest.mark.parametrize("how", ["nonsense", "silent"])
def test_a_wrong_answer_fails_the_demo_and_is_shown_and_the_others_are_tried(here, install, how):
    install("socketkit-wrong", "bad", WRONG.replace('"WRONG"', repr(how)))
    done = quick_demo(code=1)
    [block] = [block for block in done.stdout.split("\n\n") if block.startswith("wrong, ")]
    assert block.count("WRONG: ") == 2
    assert done.stdout.count("answered 'CHANGE ONE WORD' in ") >= 6
    assert "2 of these went wrong" in done.stderr


def test_a_dispatcher_that_cannot_be_tried_is_no_failure(here, install):
    install("socketkit-sad", "sad", "import nowhere_to_be_found")
    install("socketkit-needy", "needy", WRONG.replace('{"wrong": Wrong, "needy": Needy}', '{"needy": Needy}'))
    done = command("demo")
    assert "not tried: plugin 'sad' of socketkit-sad cannot be used" in done.stdout
    [needy] = [block for block in done.stdout.split("\n\n") if block.startswith("needy, ")]
    assert needy.count("not tried: ") == 2


# --- the command itself -----------------------------------------------------------------------------------------------


def test_the_version_is_told():
    assert command("--version").stdout == f"socketkit {socketkit.__version__}\n"


@pytest.mark.parametrize("name", ["serve", "run", "check", "plugins", "demo"])
def test_help_says_what_a_command_does_with_an_example(name):
    done = command(name, "--help").stdout
    assert f"\n  socketkit {name}" in done


def test_help_lists_the_commands():
    done = command("--help").stdout
    assert all(f"\n  {name} " in done for name in ("serve", "run", "check", "plugins", "demo"))
    assert "SOCKETKIT_DISABLED_PLUGINS" in done
    assert not [line for line in done.splitlines() if line.startswith("  ") and line.endswith("...")]
