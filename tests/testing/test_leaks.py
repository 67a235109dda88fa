"""What a test leaves behind is seen, and fails it."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

from socketkit.testing import Account
from socketkit.testing.programs import python, run


def left_by(leave, undo):
    before = Account.take()
    try:
        leave()
        return before.left_since()
    finally:
        undo()


def test_an_open_descriptor_is_seen():
    reader, writer = socket.socketpair()
    reader.close()
    made = []
    left = left_by(lambda: made.append(os.dup(writer.fileno())), lambda: os.close(made[0]))
    writer.close()
    assert [sentence for sentence in left if sentence.startswith("descriptors: ") and "socket:" in sentence]


def test_the_descriptor_that_ctypes_keeps_for_the_process_is_no_leak():
    python("""
from socketkit.testing import Account
before = Account.take()
import ctypes
ctypes.CFUNCTYPE(None)(int)
left = before.left_since()
assert left == [], left
""")


def test_a_running_thread_is_seen_and_one_that_ends_in_time_is_not(monkeypatch):
    monkeypatch.setattr("socketkit.testing.leaks.GRACE", 0.05)
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="stays")
    left = left_by(thread.start, release.set)
    thread.join()
    assert ["stays" in sentence for sentence in left] == [True]
    quick = threading.Thread(target=int)
    assert left_by(quick.start, quick.join) == []


def test_a_child_that_nobody_waited_for_is_seen():
    children = []

    def leave():
        children.append(subprocess.Popen([sys.executable, "-c", ""]))
        os.waitid(os.P_PID, children[0].pid, os.WEXITED | os.WNOWAIT)

    left = left_by(leave, lambda: [child.wait() for child in children])
    assert [sentence for sentence in left if sentence.startswith("children: ") and "state Z" in sentence]


def test_processes_that_end_while_the_children_are_looked_for_are_no_error(monkeypatch):
    def gone(path, real):
        if re.fullmatch(r"/proc/\d+(/stat)?", str(path)) and f"/{child.pid}" not in str(path):
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), str(path))
        return real(path)

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        stat, read_text = os.stat, Path.read_text
        monkeypatch.setattr(os, "stat", lambda path, **options: gone(path, partial(stat, **options)))
        monkeypatch.setattr(Path, "read_text", lambda path: gone(path, read_text))
        account = Account.take()
        monkeypatch.undo()
        child.communicate(b"\n")
    assert list(account.children) == [child.pid]


def test_a_signal_handler_a_umask_and_a_working_directory_are_seen(tmp_path):
    handler = signal.getsignal(signal.SIGUSR2)
    assert left_by(lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN), lambda: signal.signal(signal.SIGUSR2, handler)) == [
        f"signals: signal {int(signal.SIGUSR2)} is handled by {signal.SIG_IGN!r}"
    ]
    before = Account.take()
    os.umask(0o123)
    os.chdir(tmp_path)
    left = before.left_since()
    before.restore()
    assert left == [f"umask: 123, was {before.umask}", f"cwd: {tmp_path}, was {before.cwd}"]
    assert before.left_since() == []


def test_a_test_that_leaves_something_behind_fails_unless_it_says_why_it_may(tmp_path):
    (tmp_path / "test_it.py").write_text("""
import os, pytest

def test_clean():
    pass

def test_leaves():
    os.umask(0o111)

@pytest.mark.leaves("umask", reason="to see that it may")
def test_forgiven():
    os.umask(0o112)

@pytest.mark.leaves("umask")
def test_gives_no_reason():
    pass

@pytest.mark.leaves("cwd", reason="another one")
def test_not_forgiven():
    os.umask(0o113)
""")
    command = (sys.executable, "-m", "pytest", "-p", "socketkit.testing.pytest_plugin", "-p", "no:cacheprovider", "-rA")
    report = run(*command, cwd=tmp_path, env={**os.environ, "COLUMNS": "200"}, code=1).stdout
    for line in (
        "PASSED test_it.py::test_clean",
        "ERROR test_it.py::test_leaves - Failed: the test left behind:",
        "PASSED test_it.py::test_forgiven",
        "ERROR test_it.py::test_gives_no_reason - Failed: the mark `leaves` needs",
        "ERROR test_it.py::test_not_forgiven - Failed: the test left behind:",
    ):
        assert f"\n{line}" in report, report
    assert "ERROR test_it.py::test_forgiven" not in report
    assert "ERROR test_it.py::test_clean" not in report
