"""Paths of Unix sockets, when somebody meddles with them."""

import os
import socket
import stat
import threading

import pytest

from socketkit import Server, UnixStream
from socketkit.errors import ListenError
from support import talk


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


def test_an_attacker_who_swaps_the_path_for_a_link_reaches_nothing(folder):
    victim, path, over = folder / "victim", folder / "path", threading.Event()
    victim.write_text("precious")
    victim.chmod(0o640)

    def swap():
        count = 0
        while not over.is_set():
            count += 1
            link = folder / f"link{count}"
            link.symlink_to(victim)
            os.replace(link, path)
            path.unlink(missing_ok=True)

    attacker = threading.Thread(target=swap)
    attacker.start()
    opened = 0
    try:
        for _ in range(300):
            try:
                UnixStream(str(path), mode=0o666).open().close()
                opened += 1
            except ListenError:
                pass
            assert (victim.read_text(), stat.S_IMODE(victim.stat().st_mode)) == ("precious", 0o640)
    finally:
        over.set()
        attacker.join()
    assert opened, "the attacker won every race, so none was run"


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
