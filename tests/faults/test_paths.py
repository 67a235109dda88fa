"""Paths of Unix sockets, and attacks on them."""

import itertools
import os
import shutil
import socket
import stat
import subprocess
import sys

import pytest

from helpers.support import ROOT
from socketkit import Server, UnixStream
from socketkit.errors import ListenError
from socketkit.testing.clients import talk
from socketkit.testing.programs import run, with_path


def echo(request, client_address, server):
    request.sendall(request.recv(100))


@pytest.fixture
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("s")


def test_a_link_at_the_path_is_not_followed(folder):
    victim = folder / "victim"
    victim.write_text("precious")
    victim.chmod(0o640)
    for target in (victim, folder / "nowhere"):
        link = folder / "link"
        link.symlink_to(target)
        with pytest.raises(ListenError):
            Server(UnixStream(str(link), mode=0o600), echo).start()
        assert link.is_symlink()
        link.unlink()
    assert (victim.read_text(), stat.S_IMODE(victim.stat().st_mode)) == ("precious", 0o640)
    assert not (folder / "nowhere").exists()


def at_moment(number, action, code):
    """Run `code`, and `action` at one moment of it. Moment 0 is before its first call of a C function, 1 is after it, and so on."""
    moments = itertools.count()

    def profiler(frame, event, argument):
        if event in ("c_call", "c_return") and next(moments) == number:
            action()

    sys.setprofile(profiler)
    try:
        return code()
    finally:
        sys.setprofile(None)


def test_an_attacker_who_swaps_the_path_for_a_link_reaches_nothing_whenever_it_is_done(folder):
    victim, path, link = folder / "victim", folder / "path", folder / "link"
    victim.write_text("precious")
    victim.chmod(0o640)
    swapped = set()

    def swap():
        link.symlink_to(victim)
        link.replace(path)
        swapped.add(number)

    def open_and_close():
        try:
            UnixStream(str(path), mode=0o666).open().close()
        except ListenError:
            return "refused"
        return "opened"

    outcomes = []
    for number in itertools.count():
        outcomes.append(at_moment(number, swap, open_and_close))
        assert (victim.read_text(), stat.S_IMODE(victim.stat().st_mode)) == ("precious", 0o640), number
        path.unlink(missing_ok=True)
        if number not in swapped:  # the code has fewer moments
            break
    assert outcomes[-1] == "opened"
    assert set(outcomes[:-1]) == {"refused", "opened"}


def test_a_relative_path_is_removed_wherever_the_process_is_by_then(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with Server(UnixStream("here"), echo).start():
        assert talk(str(folder / "here"), b"hello") == b"hello"
        os.chdir("/")
    assert os.listdir(folder) == []


def test_a_folder_that_cannot_take_a_socket_is_refused_and_nothing_is_left(folder):
    (folder / "file").write_text("")
    for path, remedy in ((folder / "file" / "s", "give a path inside a directory"), (folder / "gone" / "s", "create the directory first")):
        with pytest.raises(ListenError, match=remedy):
            Server([UnixStream(str(folder / "first")), UnixStream(str(path))], echo).start()
        assert os.listdir(folder) == ["file"]
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(folder / "taken"))
        taken.listen()
        with pytest.raises(ListenError, match="stop the program that uses it"):
            UnixStream(str(folder / "taken")).open()


FULL = """
mount -t tmpfs -o nr_inodes=3 none "$1"
exec "$2" -c '
import os, socket, sys
from socketkit import TCP, Server, UnixStream
from socketkit.errors import ListenError
folder = sys.argv[1]
with Server(UnixStream(folder + "/one"), print).start():
    before = len(os.listdir("/proc/self/fd"))
    places = [TCP("127.0.0.1", 0), UnixStream(folder + "/two"), UnixStream(folder + "/three")]
    try:
        Server(places, print).start()
    except ListenError as error:
        print(error)
    print(sorted(os.listdir(folder)), len(os.listdir("/proc/self/fd")) - before)
    with Server(UnixStream(folder + "/two"), print).start():
        print(sorted(os.listdir(folder)))
print(os.listdir(folder))
' "$1"
"""


def test_a_file_system_without_room_for_a_socket_fails_the_start_and_nothing_stays_bound(folder):
    """The file system has room for its root and two sockets."""
    alone = ("unshare", "-Urm")
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system allows no mount namespace")
    done = run(*alone, "sh", "-ec", FULL, "sh", str(folder), sys.executable, env=with_path(ROOT))
    refused, *rest = done.stdout.splitlines()
    assert refused == f"cannot listen on unix://{folder}/three: No space left on device; free space on that file system"
    assert rest == ["['one'] 0", "['one', 'two']", "[]"]
