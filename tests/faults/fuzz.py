"""Fuzzing of parsers: each accepts a text with the expected result, or rejects it with its own error.

The texts are valid texts with random changes. An independent check verifies each accepted text.
"""

from __future__ import annotations

import os
import random
import socket
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from faults.lab import Figure
from socketkit._system import activation
from socketkit.composition import config
from socketkit.errors import ConfigError, UnknownPartError
from socketkit.handlers.messages import PREFIX, MessageHandler, MessageTooLargeError
from socketkit.seams import grammar

Case = Callable[[random.Random], bool]
"""Tries one text. Returns whether the parser accepted it. Raises if that was wrong, or if the error is not the parser's own."""


def changed(chance: random.Random, seeds: Sequence[Any], pieces: Sequence[Any]) -> Any:
    """Return one of the seeds with a few random insertions, deletions, replacements and rearrangements."""
    text = chance.choice(seeds)
    for _ in range(chance.randrange(5)):
        begin, end = sorted((chance.randrange(len(text) + 1), chance.randrange(len(text) + 1)))
        match chance.randrange(5):
            case 0:
                text = text[:begin] + chance.choice(pieces) + text[begin:]
            case 1:
                text = text[:begin] + text[end:]
            case 2:
                text = text[:end] + text[begin:]
            case 3:
                text = text[:begin] + chance.choice(pieces) + text[end:]
            case 4:
                other = chance.choice(seeds)
                text = text[:begin] + other[chance.randrange(len(other) + 1) :]
    return text


# --- text ------------------------------------------------------------------------------------------------------------

PIECES = [
    *":/?&=.,%@[]+-_*#'\"{}\\ \t\n\0\x7f\x80\xff\u0663\u2028\ud800\U0001f40d",
    "%00",
    "%ff",
    "%2C",
    "//",
    "://",
    "tls",
    "a",
    "0",
    "9" * 30,
]

URLS = [
    "tcp://127.0.0.1:9999",
    "tcp://[fe80::1%25eth0]:80?backlog=5&nodelay=false",
    "tcp+proxy+tls://0.0.0.0:443?tls.cert=a.pem&backlog=5&tls.key=b.pem",
    "tls://*:443?tls.cert=a",
    "unix:///run/a%20%3F%26b.sock?mode=0600",
    "unix:@abstract?backlog=1",
    "fd://3",
    "systemd://web",
    "udp://h:0",
]
PARTS = [
    "sync",
    "pool:32,overflow=reject",
    "prefork:4,max_age=5m/adaptive:16",
    "graceful:drain=10,signals=false",
    "executor:a.b:c",
    "x:%2Fa%2C",
]
OPTIONS = ["max_connections=100,overflow=shed", "rate=1.5,burst=3", "reply=%0A,idle=30s", "allow=10.0.0.0%2F8", "request=500ms"]


def reads_back(read: Callable[[str], Any], seeds: list[str]) -> Case:
    """Return a case in which an accepted value has to parse back from its own text to an equal value."""

    def case(chance: random.Random) -> bool:
        text = changed(chance, seeds, PIECES)
        try:
            found = read(text)
        except ConfigError:
            return False
        assert read(str(found)) == found, (text, found)
        return True

    return case


def accepts(read: Callable[[str], Any], seeds: list[str]) -> Case:
    """Return a case in which an accepted text has to give the same result a second time."""

    def case(chance: random.Random) -> bool:
        text = changed(chance, seeds, PIECES)
        try:
            found = read(text)
        except (ConfigError, UnknownPartError):
            return False
        assert read(text) == found, text
        return True

    return case


FILES = [
    '[servers.echo]\nlisten = ["tcp://127.0.0.1:9999", "unix:///run/echo.sock"]\nhandler = "os:getcwd"\ndispatcher = "adaptive"\n',
    '[servers.a]\nlisten = "udp://h:1"\nhandler = "os:getcwd"\ndispatcher = { use = "prefork", workers = 4, inner = { use = "sync" } }\n',
    '[servers.b]\nlisten = "tcp://h:1"\nhandler = "os:getcwd"\nlifecycle = "graceful:30s"\nlimits = { max_connections = 5, idle = "5s" }\n',
]


def configuration(folder: str) -> Case:
    """Return a case in which a file in this folder is read or rejected. A file that is not TOML has to be rejected."""
    path = Path(folder) / "servers.toml"

    def case(chance: random.Random) -> bool:
        content = changed(chance, FILES, PIECES).encode("utf-8", "surrogatepass")
        path.write_bytes(content)
        try:
            found = config.read(path)
        except ConfigError:
            return False
        assert found.keys() <= tomllib.loads(content.decode())["servers"].keys(), content
        return True

    return case


# --- activation ------------------------------------------------------------------------------------------------------

COUNTS = ["0", "1", "2", "3", "-1", "+1", " 1", "1 ", "1e1", "", "\u0663", "\u00b2", "01", "99"]


def activated(_folder: str) -> Case:
    """Return a case in which this process may have inherited sockets: descriptors from 3 on are open."""
    while os.open(os.devnull, os.O_RDONLY) < activation.FIRST + 2:
        pass
    return variables


def variables(chance: random.Random) -> bool:
    """Set LISTEN_FDS and its companions to anything. Offered are the open descriptors, each under one name, or none."""
    pid = chance.choice([str(os.getpid())] * 5 + ["1", "", "x", f" {os.getpid()}", f"0{os.getpid()}"])
    count, names = chance.choice(COUNTS), changed(chance, ["web:dns:", "a:b:c", "", "tcp%3A%2F%2Fh%3A1"], [":", "%", "\n", "a", "\udc80"])
    names = names.replace("\0", "")
    for name, value in zip(activation._VARIABLES, (pid, count, names, chance.choice(["", "-1", "x", "99999"])), strict=True):
        os.environ[name] = value
    kept, activation._sockets = activation._sockets, activation._Sockets()
    try:
        offers = activation._sockets.read()
    finally:
        activation._sockets = kept
    assert not any(name in os.environ for name in activation._VARIABLES)
    expected = int(count) if pid == str(os.getpid()) and count.isdecimal() else 0
    assert len(offers) <= expected, (pid, count, names)
    assert len({(offer.name, offer.index) for offer in offers}) == len(offers)
    assert all(offer.fileno >= activation.FIRST for offer in offers)
    return bool(offers)


# --- framing ---------------------------------------------------------------------------------------------------------

LIMIT = 40


class Lines(MessageHandler):
    max_message = LIMIT

    def reply(self, message: bytes, client_address: Any) -> bytes:
        return message


class Lengths(Lines):
    framing = "length"


def lines(wire: bytes) -> tuple[list[bytes], bool]:
    """Return the messages in these bytes, and whether a message that is too long follows."""
    *whole, rest = wire.split(b"\n")
    for number, message in enumerate(whole):
        if len(message) > LIMIT:
            return whole[:number], True
    return whole, len(rest) > LIMIT


def lengths(wire: bytes) -> tuple[list[bytes], bool]:
    """Return the same for messages with a length prefix."""
    found = []
    while len(wire) >= PREFIX:
        length = int.from_bytes(wire[:PREFIX], "big")
        if length > LIMIT:
            return found, True
        if len(wire) < PREFIX + length:
            break
        found.append(wire[PREFIX : PREFIX + length])
        wire = wire[PREFIX + length :]
    return found, False


def framing(kind: type[MessageHandler], expected: Callable[[bytes], tuple[list[bytes], bool]]) -> Case:
    """Return a case in which bytes arrive in arbitrary pieces, and the messages in them stay the same."""
    seeds = [b"a\nbb\n\n", b"x" * 39 + b"\n", b"\0\0\0\1a\0\0\0\0\0\0\0\2bb", b"\0\0\0\x28" + b"y" * 40, b"\xff\xff\xff\xff"]
    pieces = [b"\n", b"\0", b"\0\0\0", b"\x28", b"\x29", b"\r", b"\xff", b"z" * 20]

    def case(chance: random.Random) -> bool:
        wire = changed(chance, seeds, pieces)
        cuts = sorted(chance.randrange(len(wire) + 1) for _ in range(chance.randrange(4)))
        found, too_long = taken(kind, [wire[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(wire)], strict=True)])
        assert (found, too_long) == expected(wire), (wire, cuts)
        return bool(found)

    return case


def taken(kind: type[MessageHandler], pieces: list[bytes]) -> tuple[list[bytes], bool]:
    """Return the messages that a handler reads from these pieces, and whether one was too long."""
    found: list[bytes] = []
    client, server = socket.socketpair()
    with client, server:
        handler = kind.__new__(kind)
        handler.request, handler.client_address, handler.server = server, "peer", None
        handler.reply = lambda message, _address: found.append(message)  # returns None, so nothing is sent
        handler.setup()
        server.setblocking(False)
        try:
            for piece in filter(None, pieces):
                client.sendall(piece)
                while handler.rfile.peek(1):
                    handler.handle_one_request()
        except MessageTooLargeError:
            return found, True
        finally:
            handler.finish()
    return found, False


# --- all of them -----------------------------------------------------------------------------------------------------

CASES: dict[str, Callable[[str], Case]] = {
    "addresses": lambda _: reads_back(grammar.url, URLS),
    "parts": lambda _: reads_back(grammar.part, PARTS),
    "durations": lambda _: accepts(grammar.seconds, ["500ms", "30s", "1.5", "5m"]),
    "transports": lambda _: accepts(config.transport, URLS),
    "dispatchers": lambda _: accepts(config.dispatcher, PARTS),
    "limits": lambda _: accepts(config.limits, OPTIONS),
    "configuration": configuration,
    "activation": activated,
    "lines": lambda _: framing(Lines, lines),
    "lengths": lambda _: framing(Lengths, lengths),
}


def fuzz(parser: str, size: int) -> Figure:
    """Give a parser many randomly changed texts. Measures how often it neither reads nor rejects a text correctly."""
    seed = random.SystemRandom().randrange(1 << 32)
    accepted, failures = 0, []
    with TemporaryDirectory(prefix="f") as folder:
        case = CASES[parser](folder)
        for number in range(size):
            try:
                accepted += case(random.Random(seed + number))
            except Exception as error:  # noqa: BLE001 - finding any other error is the purpose
                failures.append(f"seed {seed + number}: {type(error).__name__}: {error}")
    return {
        "texts": size,
        "seed": seed,
        "accepted": accepted,
        "never accepted": int(not accepted),
        "wrong": len(failures),
        "examples": failures[:5],
    }
