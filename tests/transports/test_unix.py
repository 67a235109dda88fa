"""Unix sockets: a path is never taken from a live server, never shown with wider permissions, never removed for somebody else."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import threading
import time

import pytest

from helpers.support import python
from socketkit import UnixDatagram, UnixStream
from socketkit.errors import ListenError


@pytest.fixture(params=[UnixStream, UnixDatagram], ids=["stream", "datagram"])
def recipe(request):
    return request.param


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a short name: these paths may have 107 bytes only
    return "s"


def leave_a_stale_socket(path, recipe):
    kind = socket.SOCK_STREAM if recipe is UnixStream else socket.SOCK_DGRAM
    with socket.socket(socket.AF_UNIX, kind) as dead:
        dead.bind(path)


def test_it_listens_and_removes_its_path(recipe, path):
    listener = recipe(path).open()
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    listener.close()
    listener.close()
    assert not os.path.exists(path)


def test_a_socket_left_by_a_dead_server_is_replaced(recipe, path):
    leave_a_stale_socket(path, recipe)
    recipe(path).open().close()


def test_a_live_server_keeps_its_path(recipe, path):
    first = recipe(path).open()
    with pytest.raises(ListenError, match="stop the program that uses it") as caught:
        recipe(path).open()
    assert caught.value.errno == errno.EADDRINUSE
    assert os.path.exists(path)
    first.close()


def test_of_two_servers_that_start_at_once_one_is_told_that_the_path_is_in_use(recipe, path, monkeypatch):
    """The first stops after bind(2), before it listens; the second looks just then."""
    bound, go_on, waits, results = threading.Event(), threading.Event(), threading.Event(), []
    lstat, sleep = os.lstat, time.sleep

    def look(path):
        found = lstat(path)
        if threading.current_thread() is first and not bound.is_set():
            bound.set()
            assert go_on.wait(10)
        return found

    def wait(seconds):
        if threading.current_thread() is second:
            waits.set()
        sleep(seconds)

    def start():
        try:
            results.append(recipe(path).open())
        except ListenError as error:
            results.append(error.errno)
        waits.set()

    monkeypatch.setattr(os, "lstat", look)
    monkeypatch.setattr(time, "sleep", wait)
    first, second = threading.Thread(target=start), threading.Thread(target=start)
    first.start()
    assert bound.wait(10)
    second.start()
    assert waits.wait(10)
    go_on.set()
    first.join(10)
    second.join(10)
    [listener] = [each for each in results if each != errno.EADDRINUSE]
    assert len(results) == 2
    with socket.socket(socket.AF_UNIX, listener.socket.type) as client:
        client.connect(path)
    assert os.listdir() == [path]
    listener.close()


def test_a_lock_that_a_program_keeps_on_the_folder_does_not_keep_a_server_from_starting(recipe, path, monkeypatch):
    monkeypatch.setattr("socketkit.transports.unix.PATIENCE", 0.1)
    folder = os.open(".", os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    recipe(path).open().close()
    os.close(folder)


def test_a_live_server_of_the_other_kind_keeps_its_path(path):
    first = UnixStream(path).open()
    with pytest.raises(ListenError):
        UnixDatagram(path).open()
    first.close()


@pytest.mark.parametrize("what", ["file", "directory", "fifo", "dangling link"])
def test_what_is_no_socket_is_never_removed(recipe, path, what):
    {"file": lambda: open(path, "w").close(), "directory": lambda: os.mkdir(path), "fifo": lambda: os.mkfifo(path)}.get(
        what, lambda: os.symlink("nowhere", path)
    )()
    with pytest.raises(ListenError, match="exists and is not a socket; remove it"):
        recipe(path).open()
    assert os.path.lexists(path)


def test_a_path_that_another_server_took_over_stays(recipe, path):
    first = recipe(path).open()
    os.rename(path, "aside")
    second = recipe(path).open()
    first.close()
    assert os.path.exists(path)
    second.close()
    os.unlink("aside")


def test_a_forked_child_does_not_remove_its_parents_path(recipe, path):
    python(
        f"""
import os
from socketkit import {recipe.__name__}
listener = {recipe.__name__}({path!r}).open()
if os.fork() == 0:
    listener.close()
    os._exit(0)
os.wait()
assert os.path.exists({path!r})
listener.close()
assert not os.path.exists({path!r})
"""
    )


@pytest.mark.skipif("sys.platform != 'linux'", reason="elsewhere the mode is set after binding")
def test_the_mode_is_exact_from_the_first_moment(recipe, path):
    seen, done = set(), threading.Event()

    def look():
        while not done.is_set():
            with contextlib.suppress(FileNotFoundError):
                seen.add(stat.S_IMODE(os.stat(path).st_mode))

    watcher = threading.Thread(target=look)
    previous = os.umask(0)
    watcher.start()
    try:
        for _ in range(300):
            recipe(path, mode=0o600).open().close()
    finally:
        os.umask(previous)
        done.set()
        watcher.join()
    assert seen <= {0o600}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777], ids=oct)
def test_the_mode_is_exact_whatever_the_umask(recipe, path, umask):
    python(
        f"""
import os, stat
from socketkit import *
os.umask({umask})
listener = {recipe.__name__}("s", mode=0o660).open()
assert stat.S_IMODE(os.stat("s").st_mode) == 0o660
listener.close()
assert not os.path.exists("s"), "its own path is known again"
"""
    )


@pytest.mark.skipif("sys.platform != 'linux'", reason="only Linux has abstract names")
def test_an_abstract_name_leaves_nothing_in_the_file_system(recipe, path):
    listener = recipe("@socketkit-test").open()
    assert listener.url.endswith(":@socketkit-test")
    assert listener.address == b"\0socketkit-test"
    assert os.listdir() == []
    listener.close()


@pytest.mark.parametrize("length", [108, 109, 4000])
def test_a_path_that_is_too_long_is_refused_with_the_limit(recipe, length):
    with pytest.raises(ListenError, match=f"has {length} bytes; use one of at most 107"):
        recipe("/" + "x" * (length - 1)).open()


def test_a_directory_that_is_missing_is_named_as_the_remedy(recipe, path):
    with pytest.raises(ListenError, match="create the directory first"):
        recipe("missing/s").open()


@pytest.mark.parametrize("given", ["", "a\0b", None, 7, b"bytes"])
def test_what_is_no_path_is_refused(recipe, given):
    with pytest.raises(ValueError, match="path must be a file name"):
        recipe(given)


@pytest.mark.parametrize("mode", [-1, 0o1000, "600", True])
def test_what_is_no_mode_is_refused(recipe, mode):
    with pytest.raises(ValueError, match="mode must be permission bits"):
        recipe("s", mode=mode)


def test_a_datagram_from_a_socket_without_a_name_has_no_address(path):
    listener = UnixDatagram(path).open()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.sendto(b"hello", path)
        (data, _), peer = listener.accept()
    assert data == b"hello"
    assert not peer
    listener.close()
