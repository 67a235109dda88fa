"""The examples of a Markdown page: extracted, run as real programs, and called by a real client.

How to write a page for it:

* ``python`` blocks run in order, as one program. When a server calls `serve_forever` in the main thread, a client connects, sends a line,
  reads the reply, and presses Ctrl-C. The program then continues with the next block.
* A block of any kind whose first line is a comment with a file name (``# echo.toml``, ``<!-- README.md -->``) is first saved as that
  file, next to the program. A saved ``python`` block can be imported, and also runs.
* Ports 9000 to 9999 stand for free ports: each is replaced with the same port everywhere on the page.
* ``toml`` blocks are read as TOML, and through `socketkit.composition.config` if they describe servers. ``myapp`` stands for the reader's
  own module.
* ``sh`` blocks contain one command per line; see `commands`.
* Blocks that must not run are marked as ``text`` or have no language. Other languages, such as ``console``, do not run either.

Run as a program, with a page's path, this module runs that page's ``python`` blocks in the working directory.
"""

from __future__ import annotations

import contextlib
import linecache
import re
import shlex
import signal
import socket
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from helpers.support import TESTS, free_port
from socketkit.testing.clients import talk
from socketkit.testing.programs import Program, with_path

LINE = b"hello\n"
"""The line that the client sends to each server."""


@attrs.frozen
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    """The number of its first line in the page."""
    language: str
    text: str
    heading: str
    """The last heading before it."""

    @property
    def file(self) -> str | None:
        """The file to save the block as, if it names one."""
        named = re.match(r"(?:#|<!--)\s*([\w./-]+\.\w+)\s*(?:-->)?$", self.text.partition("\n")[0])
        return named[1] if named else None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|:{3,})(?P<info>.*)$")


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the page's blocks in those languages, in order."""
    text = _with_free_ports(page.read_text(encoding="utf-8"))
    return [block for block in _blocks(text, page.name) if block.language in languages]


def _blocks(text: str, page: str) -> Iterator[Block]:
    lines = iter(enumerate(text.splitlines(), 1))
    heading = ""
    for _, line in lines:
        opened = _FENCE.match(line)
        if opened is None:
            heading = line.lstrip("#").strip() if line.startswith("#") else heading
            continue
        if opened["fence"].startswith(":"):
            continue  # a container: treat the blocks inside as ordinary blocks
        start, found = 0, []
        for number, inner in lines:
            if inner.strip() == opened["fence"]:
                break
            start = start or number
            found.append(inner.removeprefix(opened["indent"]))
        yield Block(page, start, opened["info"].strip("{} ").partition(" ")[0], "\n".join(found) + "\n", heading)


ports: dict[str, str] = {}
"""The ports that replace those on pages: different for each test, so that none binds a port with lingering connections."""


def _with_free_ports(text: str) -> str:
    def free(found: re.Match[str]) -> str:
        if found[0] not in ports:
            ports[found[0]] = str(free_port())
        return ports[found[0]]

    return re.sub(r"\b9[0-9]{3}\b", free, text)


def save(page: Path, folder: Path) -> None:
    """Write the blocks that name a file to that file in the folder."""
    for block in blocks(page, "python", "toml", "sh", "ini"):
        if block.file:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)


# --- python -----------------------------------------------------------------------------------------------------------


def run(page: Path, folder: Path, python: str = sys.executable) -> list[bytes]:
    """Run the page's program in the folder; return the answer of each of its servers to `LINE`.

    python: the interpreter that runs it.
    Raises: AssertionError with the program's output, if it fails or hangs.
    """
    save(page, folder)
    (folder / "page.md").write_text(_with_free_ports(page.read_text(encoding="utf-8")))
    answers: list[bytes] = []
    with Program(python, "-u", "-X", "faulthandler", "-m", "helpers.snippets", "page.md", cwd=folder, env=with_path(TESTS)) as program:
        while True:
            [said] = program.line(rf"^(?:page: serving {len(answers)} (?P<where>.*)|page: (?P<end>done|failed))$")
            if said["end"]:
                code = program.wait()
                assert (said["end"], code) == ("done", 0), program.output
                return answers
            kind, _, where = said["where"].partition(" ")
            answers.append(_client(kind, _address(where)))
            program.send_signal(signal.SIGINT)


def _address(text: str) -> Any:
    host, _, port = text.rpartition(",")
    return (host, int(port)) if port.isdecimal() else text


def _client(kind: str, where: Any) -> bytes:
    if kind == "stream":
        return talk(where, LINE)
    with socket.socket(socket.AF_INET if isinstance(where, tuple) else socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.bind(("127.0.0.1", 0) if isinstance(where, tuple) else "\0a client of the page")
        client.sendto(LINE, where)
        return client.recv(65536)


def main(page: Path) -> None:
    """Run the page's blocks in this process, and print the address of each server."""
    sys.path[:0] = [str(Path.cwd()), str(Path.cwd() / "src")]
    _announce_servers()
    program = sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        for block in _blocks(page.read_text(encoding="utf-8"), page.name):
            if block.language == "python":
                name = f"<{block}>"
                linecache.cache[name] = (len(block.text), None, block.text.splitlines(keepends=True), name)
                code = compile("\n" * (block.line - 1) + block.text, name, "exec")
                with contextlib.suppress(KeyboardInterrupt):  # the client's Ctrl-C, if the program does not handle it
                    exec(code, vars(program))
    except BaseException:
        print("page: failed", flush=True)
        raise
    print("page: done", flush=True)


def _announce_servers() -> None:
    """Make every server that calls `serve_forever` in the main thread print its address."""
    from socketkit import Server, socketserver

    counted = iter(range(1000))

    def announce(sock: socket.socket) -> None:
        if threading.current_thread() is threading.main_thread():
            kind = "stream" if sock.type == socket.SOCK_STREAM else "datagram"
            name = sock.getsockname()
            where = ",".join(map(str, name[:2])) if isinstance(name, tuple) else name
            print(f"page: serving {next(counted)} {kind} {where}", flush=True)

    def composed(server: Server, poll_interval: float = 0.5) -> None:
        with server:
            announce(server.socket)
            composed_serve(server, poll_interval)

    def classic(server: socketserver.BaseServer, poll_interval: float = 0.5) -> None:
        announce(server.socket)
        classic_serve(server, poll_interval)

    composed_serve, Server.serve_forever = Server.serve_forever, composed
    classic_serve, socketserver.BaseServer.serve_forever = socketserver.BaseServer.serve_forever, classic


# --- sh ---------------------------------------------------------------------------------------------------------------


def commands(block: Block) -> list[list[str]]:
    """Return the commands of an ``sh`` block as lists of words: one per line, or several joined by ``&&``; comments are dropped."""
    found: list[list[str]] = []
    for line in block.text.replace("\\\n", " ").splitlines():
        command: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word in {"&&", "|", "&", ";"}:
                found += [command] if command else []
                command = []
            else:
                command.append(word)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
