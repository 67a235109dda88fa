"""The command ``python -m socketkit.testing``, as the author of a part runs it."""

import signal
import sys

import pytest

from socketkit.testing.programs import Program, run, with_path

PARTS = """
import time

import attrs

from socketkit import TCP, Graceful, Sync


@attrs.frozen
class Good:
    def start(self, work):
        return Sync().start(work)


@attrs.frozen
class Bad(Good):
    kinds = frozenset({"streams"})


@attrs.frozen
class Hanging:
    def start(self, work):
        return time.sleep(1000)


class HangingTwice(Hanging):
    def start(self, work):
        try:
            time.sleep(1000)
        finally:
            time.sleep(2000)


@attrs.frozen
class Needy(Good):
    size: int


@attrs.frozen
class Silent:
    "Says nothing about itself."


@attrs.frozen
class Greeted:
    def wrap(self, request, client_address):
        if request.recv(3) != b"hi\\n":
            raise ValueError("no greeting")
        return request, client_address


def greet(sock):
    sock.sendall(b"hi\\n")
    return sock


class Watching:
    def request_failed(self, server, client_address, error):
        pass


good = Good()


def tcp():
    return TCP("127.0.0.1", 0)
"""
CHECK = (sys.executable, "-m", "socketkit.testing")


@pytest.fixture
def here(tmp_path):
    (tmp_path / "parts.py").write_text(PARTS)
    (tmp_path / "broken.py").write_text("raise ZeroDivisionError('on import')")
    return {"cwd": tmp_path, "env": with_path()}


def refused(here, *arguments):
    """Return the sentence with which the command refuses to check a part."""
    return run(*CHECK, *arguments, code=2, **here).stderr.partition("\nError: ")[2].strip()


def test_a_part_that_keeps_its_promises_exits_with_0(here):
    lines = run(*CHECK, "parts:Good", **here).stdout.splitlines()
    assert lines[0] == "Good() as a dispatcher"
    assert "ok      Each request is run once, answered, closed and counted." in lines
    assert lines[-1].endswith(" promises kept")


def test_a_part_that_breaks_a_promise_exits_with_1_and_says_which(here):
    output = run(*CHECK, "parts:Bad", "--only", "test_kinds", code=1, **here).stdout
    assert output == (
        "Bad() as a dispatcher\n"
        'BROKEN  `kinds`, if it has them, are "stream", "datagram" or both.\n'
        "        test_kinds: kinds is frozenset({'streams'})\n"
        "0 of 1 promises kept\n"
    )


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["parts:tcp", "--only", "test_url"], "a transport"),
        (["parts:Greeted", "--client", "parts:greet", "--only", "test_passes_both_ways"], "a layer"),
        (["parts:good", "--only", "test_shape"], "a dispatcher"),
        (["socketkit:Graceful", "--only", "test_times"], "a lifecycle"),
        (["parts:Watching", "--only", "test_events"], "an observer"),
    ],
)
def test_the_methods_of_a_part_tell_what_it_is(here, arguments, kind):
    first, *_, last = run(*CHECK, *arguments, **here).stdout.replace("\n        ", " ").splitlines()
    assert first.endswith(f" as {kind}")
    assert last == "1 of 1 promises kept"


def test_as_says_what_a_part_is_checked_as(here):
    output = run(*CHECK, "parts:Silent", "--as", "dispatcher", "--only", "test_recipe", **here).stdout
    assert output.startswith("Silent() as a dispatcher\n")


def test_a_promise_that_does_not_apply_breaks_nothing(here):
    output = run(*CHECK, "parts:Good", "--only", "test_adapt", **here).stdout
    assert output.endswith("\n        it has no adapt()\nno promise applies\n")


def test_without_the_clients_part_a_layer_breaks_its_promises(here):
    output = run(*CHECK, "parts:Greeted", "--only", "test_passes_both_ways", code=1, **here).stdout
    assert "of 1 bytes, 0 came back" in output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere:Part"], "nowhere:Part cannot be imported: ModuleNotFoundError: No module named 'nowhere'."),
        (["parts:Missing"], "parts:Missing cannot be imported: AttributeError: module 'parts' has no attribute 'Missing'."),
        (["broken:Part"], "broken:Part cannot be imported: ZeroDivisionError: on import."),
        (["parts"], "parts must be MODULE:NAME, such as my_plugin:MyDispatcher."),
        (["parts:Silent"], "a Silent looks like no part; say what it is by --as."),
        (["parts:Good", "--client", "parts:greet"], "--client is for layers, and this is checked as a dispatcher; leave it out."),
    ],
)
def test_what_cannot_be_checked_exits_with_2_and_a_sentence(here, arguments, sentence):
    assert refused(here, *arguments) == sentence


@pytest.mark.parametrize("arguments", [[], ["--as", "dispatcher"]])
def test_a_recipe_that_needs_arguments_is_refused(here, arguments):
    sentence = refused(here, "parts:Needy", *arguments)
    assert sentence.startswith("the recipe cannot be made without arguments: TypeError: ")
    assert sentence.endswith("'size'; name a function that makes it.")


def test_an_unknown_check_is_refused_with_those_there_are(here):
    sentence = refused(here, "parts:Watching", "--only", "test_nothing")
    assert (
        sentence
        == "an observer has no check test_nothing; the checks are test_events, test_arguments, test_quick, test_threads, test_served."
    )


@pytest.mark.parametrize("part", ["Hanging", "HangingTwice"])
def test_a_check_that_hangs_is_broken_off_and_says_where(here, part):
    output = run(*CHECK, f"parts:{part}", "--limit", "0.2", "--only", "test_shape", code=1, **here).stdout
    assert "        test_shape: the check had not ended after 0.2 s; it hangs here:\n" in output
    assert "in start\n" in output
    assert "time.sleep(1000)\n" in output


def test_a_limit_that_makes_no_sense_is_refused(here):
    assert refused(here, "parts:Good", "--limit", "0") == "Invalid value for '--limit': 0.0 is not in the range x>0."


def test_progress_is_seen_line_by_line(here):
    with Program(*CHECK, "parts:Hanging", **here) as program:
        program.line(r"^ok      A recipe holds no descriptor, thread or process until it is used\.$")
        assert program.code is None  # the next check but one hangs


def test_a_report_fits_100_columns(here):
    lines = run(*CHECK, "parts:tcp", **here).stdout.splitlines()
    assert [line for line in lines if len(line) > 100] == []


def test_ctrl_c_ends_it_at_once_with_one_line(here):
    with Program(*CHECK, "parts:Hanging", "--only", "test_shape", **here) as program:
        program.line(r"^Hanging\(\) as a dispatcher$")
        assert program.stop(signal.SIGINT) == 130
        assert program.output == "Hanging() as a dispatcher\ninterrupted\n"
