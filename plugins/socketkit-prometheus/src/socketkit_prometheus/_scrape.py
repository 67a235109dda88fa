"""The live part of the layer: it answers one HTTP request on each connection. Source: RFC 9110 and RFC 9112."""

from __future__ import annotations

import gzip
import re
from http import HTTPStatus
from ssl import SSLWantReadError, SSLWantWriteError

import attrs
from prometheus_client.exposition import choose_encoder

from socketkit.seams import Address, Answered, Request
from socketkit_prometheus._metrics import Metrics

MOST = 8192
"""Most bytes of a request's head; a longer one is refused."""

LARGE = 1024
"""Bytes from which a body is compressed, for a client that takes that."""

TEXT = "text/plain; charset=utf-8"

UNOBSERVED = (
    "Nothing is measured, because these metrics observe no server. Compose the server by name, or give it observers=[recipe.metrics], "
    "where recipe is the Prometheus() of this listener.\n"
)

_END = re.compile(rb"\r?\n\r?\n")
LONGEST_END = 4
"""Bytes of the longest end of a head."""

_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) (?:https?://[^/?# ]*)?(/[^?# ]*)(?:\?[^ ]*)? HTTP/1\.[0-9]")
_ACCEPT = re.compile(rb"^accept[ \t]*:([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_FORMAT = re.compile(rb"(application/openmetrics-text|text/plain)[ \t]*;[ \t]*version=(0\.0\.[14]|1\.0\.0)(?=[ \t]*(?:[;,]|$))")
_ACCEPT_ENCODING = re.compile(rb"^accept-encoding[ \t]*:([^\r\n]*)", re.IGNORECASE | re.MULTILINE)


class Scrapes:
    """Answers the connections of a listener. path: where the metrics are; everything else is not found."""

    def __init__(self, metrics: Metrics, path: str) -> None:
        self._metrics = metrics
        self._path = path.encode("ascii")

    def begin(self, request: Request, client_address: Address) -> Scrape:  # noqa: ARG002 - whoever may connect may ask
        """Return the handshake that reads the request and answers it."""
        return Scrape(request, self)

    def answer(self, head: bytes) -> bytes:
        """Return the response to a request with this head."""
        found = _REQUEST_LINE.fullmatch(head.partition(b"\n")[0].removesuffix(b"\r"))
        if found is None:
            return reply(HTTPStatus.BAD_REQUEST).whole
        method, path = found.groups()
        made = self._reply_to(method, path, head)
        return made.head if method == b"HEAD" else made.whole

    def _reply_to(self, method: bytes, path: bytes, head: bytes) -> Reply:
        if path != self._path:
            return reply(HTTPStatus.NOT_FOUND, f"The metrics are at {self._path.decode()}.\n")
        if method not in {b"GET", b"HEAD"}:
            return reply(HTTPStatus.METHOD_NOT_ALLOWED, allow="GET, HEAD")
        if not self._metrics.observes:
            return reply(HTTPStatus.SERVICE_UNAVAILABLE, UNOBSERVED)
        return self._exposition(head)

    def _exposition(self, head: bytes) -> Reply:
        encode, kind = choose_encoder(formats(b",".join(_ACCEPT.findall(head))))
        body = encode(self._metrics)
        packed = len(body) >= LARGE and takes_gzip(b",".join(_ACCEPT_ENCODING.findall(head)))
        headers = {"Content-Type": kind, "Vary": "Accept, Accept-Encoding", **({"Content-Encoding": "gzip"} if packed else {})}
        return Reply(HTTPStatus.OK, gzip.compress(body, 5) if packed else body, headers)


@attrs.frozen
class Reply:
    """An HTTP response, after which the connection closes."""

    status: HTTPStatus
    body: bytes
    headers: dict[str, str]

    @property
    def head(self) -> bytes:
        """All but the body."""
        headers = {**self.headers, "Content-Length": str(len(self.body)), "Connection": "close"}
        lines = (f"HTTP/1.1 {self.status.value} {self.status.phrase}", *(f"{name}: {value}" for name, value in headers.items()), "", "")
        return "\r\n".join(lines).encode("ascii")

    @property
    def whole(self) -> bytes:
        """Head and body."""
        return self.head + self.body


def reply(status: HTTPStatus, text: str = "", **headers: str) -> Reply:
    """Return a response with a text, by default the status's own."""
    named = {name.title(): value for name, value in headers.items()}
    return Reply(status, (text or f"{status.description or status.phrase}.\n").encode(), {"Content-Type": TEXT, **named})


def formats(accepted: bytes) -> str:
    """Return what is known of an Accept header: prometheus_client repeats its versions in the answer, and fails on some."""
    return ",".join(f"{kind.decode()};version={version.decode()}" for kind, version in _FORMAT.findall(accepted))


def takes_gzip(accepted: bytes) -> bool:
    """Return whether a client with this Accept-Encoding takes a body that gzip has compressed. Source: RFC 9110, 12.5.3."""
    for each in accepted.lower().split(b","):
        coding, _, weight = each.translate(None, b" \t").partition(b";q=")
        if coding == b"gzip":
            return not weight or bool(weight.strip(b"0."))
    return False


class Scrape:
    """One connection, until it is answered: see `socketkit.seams.Handshake`."""

    sends = False

    def __init__(self, request: Request, scrapes: Scrapes) -> None:
        self.request = request
        self._scrapes = scrapes
        self._head = b""
        self._left: memoryview | None = None  # of the response, once there is one

    def go_on(self) -> None:
        """Read what there is of the head. Once it is complete, send as much of the answer as fits.

        Raises: Answered; OSError if the client has left.
        """
        try:
            if self._left is None:
                self._left = memoryview(self._read())
            while self._left:
                self._left = self._left[self.request.send(self._left) :]
        except SSLWantReadError:
            self.sends = False
        except SSLWantWriteError:
            self.sends = True
        except BlockingIOError:
            self.sends = self._left is not None
        else:
            raise Answered

    def _read(self) -> bytes:
        """Return the answer, once the head is complete. Raises: BlockingIOError or SSLWantReadError, if it is not yet."""
        while len(self._head) < MOST:
            data = self.request.recv(MOST - len(self._head))
            if not data:
                raise ConnectionAbortedError("prometheus: the client has closed before its request was complete")
            seen = max(0, len(self._head) - LONGEST_END + 1)
            self._head += data
            end = _END.search(self._head, seen)
            if end is not None:
                return self._scrapes.answer(self._head[: end.start()])
        return reply(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE).whole
