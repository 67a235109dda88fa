"""The layer answers HTTP requests, whatever they are, and never waits for a client."""

from __future__ import annotations

import gzip
import socket
import ssl
import urllib.request

import pytest
from prometheus_support import LATE, metrics_of
from socketkit_prometheus import Prometheus
from socketkit_prometheus._scrape import LARGE, MOST, Scrape, Scrapes, takes_gzip

from socketkit import TCP, TLS, BaseRequestHandler, Layered, Server
from socketkit.seams import Answered
from socketkit.testing.certificates import authority, certificate
from socketkit.testing.clients import connect, talk
from socketkit.testing.programs import wait_until


class Never(BaseRequestHandler):
    def handle(self):
        raise AssertionError("the handler ran")


@pytest.fixture
def server():
    recipe = Prometheus()
    with Server(Layered(TCP("127.0.0.1", 0), recipe), Never, observers=[recipe.metrics]) as server:
        yield server.start()


def request(server, data):
    """Send bytes; return the head of the answer in lines, and its body."""
    head, _, body = talk(server.addresses[0], data).partition(b"\r\n\r\n")
    return head.decode().split("\r\n"), body


def get(server, *headers, line="GET /metrics HTTP/1.1"):
    return request(server, "\r\n".join((line, "Host: localhost", *headers, "", "")).encode())


def test_a_scrape_is_answered(server):
    head, body = get(server)
    assert head[0] == "HTTP/1.1 200 OK"
    assert "Content-Type: text/plain; version=0.0.4; charset=utf-8" in head
    assert f"Content-Length: {len(body)}" in head
    assert "Connection: close" in head
    assert metrics_of(body.decode())["socketkit_requests_active"] == 1
    assert server.stop() is not None
    assert server.stats().outcomes == {"finished": 1}


@pytest.mark.parametrize("line", ["GET /metrics?name=x HTTP/1.1", "GET http://localhost:9100/metrics HTTP/1.1", "GET /metrics HTTP/1.0"])
def test_other_forms_of_the_request_are_answered_too(server, line):
    assert get(server, line=line)[0][0] == "HTTP/1.1 200 OK"


def test_bare_newlines_end_lines(server):
    assert request(server, b"GET /metrics HTTP/1.0\nAccept: text/plain\n\n")[0][0] == "HTTP/1.1 200 OK"


def test_head_is_answered_without_a_body(server):
    head, body = get(server, line="HEAD /metrics HTTP/1.1")
    assert head[0] == "HTTP/1.1 200 OK"
    assert body == b""
    assert not [line for line in head if line == "Content-Length: 0"]


@pytest.mark.parametrize(
    ("line", "status", "text"),
    [
        ("GET / HTTP/1.1", "404 Not Found", b"The metrics are at /metrics.\n"),
        ("GET /metrics/ HTTP/1.1", "404 Not Found", b"The metrics are at /metrics.\n"),
        ("POST /metrics HTTP/1.1", "405 Method Not Allowed", b"invalid for this resource"),
        ("GET /metrics HTTP/2.0", "400 Bad Request", b""),
        ("GET /metrics", "400 Bad Request", b""),
        ("hello", "400 Bad Request", b""),
        ("G\0T /metrics HTTP/1.1", "400 Bad Request", b""),
        ("GET  /metrics HTTP/1.1", "400 Bad Request", b""),
        ("", "400 Bad Request", b""),
    ],
)
def test_anything_else_is_refused(server, line, status, text):
    head, body = get(server, line=line)
    assert head[0] == f"HTTP/1.1 {status}"
    assert text in body
    assert ("Allow: GET, HEAD" in head) == (status[:3] == "405")


@pytest.mark.parametrize("data", [b"GET /" + b"x" * MOST, b"\xff" * 10 * MOST])
def test_a_head_that_is_too_long_is_refused(server, data):
    with connect(server.addresses[0], "stream", LATE) as client:
        client.sendall(data)
        assert client.makefile("rb").readline() == b"HTTP/1.1 431 Request Header Fields Too Large\r\n"


def test_openmetrics_is_chosen_if_asked_for(server):
    head, body = get(server, "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1")
    [kind] = [line for line in head if line.startswith("Content-Type: ")]
    assert kind.startswith("Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert body.endswith(b"# EOF\n")
    assert b"# UNIT socketkit_handler_wait_seconds seconds\n" in body


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=one",
        "application/openmetrics-text;version=",
        "application/openmetrics-text;version=99999999999999999999.1",
        "text/plain;version=\N{DIGIT ONE}.x;escaping=none\x0bX-Evil: yes",
        "caf\N{LATIN SMALL LETTER E WITH ACUTE}",
        ";;;,,,=",
        "",
    ],
)
def test_no_accept_header_can_do_harm(server, accept):
    head, body = get(server, f"Accept: {accept}")
    assert head[0] == "HTTP/1.1 200 OK"
    assert b"socketkit_requests_accepted_total" in body
    assert not [line for line in head if "Evil" in line or "one" in line or "9999" in line]


@pytest.mark.parametrize(
    ("accepted", "takes"),
    [(b"gzip", True), (b"br, GZIP;q=0.5", True), (b"gzip;q=0", False), (b"gzip ; q=0.000", False), (b"", False), (b"br", False)],
)
def test_who_takes_gzip(accepted, takes):
    assert takes_gzip(accepted) is takes


def test_a_large_answer_is_compressed_for_who_takes_that(server):
    head, body = get(server, "Accept-Encoding: deflate, gzip")
    assert "Content-Encoding: gzip" in head
    assert f"Content-Length: {len(body)}" in head
    assert len(gzip.decompress(body)) > LARGE
    assert b"socketkit_requests_accepted_total 1.0" in gzip.decompress(body)


def test_metrics_that_nobody_observes_say_what_to_do():
    with Server(Layered(TCP("127.0.0.1", 0), Prometheus()), Never) as server:
        head, body = get(server.start())
    assert head[0] == "HTTP/1.1 503 Service Unavailable"
    assert b"observers=[recipe.metrics]" in body


def test_an_answer_larger_than_the_buffers_goes_on_when_it_can():
    class Long(Scrapes):
        def answer(self, head):
            return b"x" * 3_000_000

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0)
        scrape = Scrape(ours, Long(Prometheus().metrics, "/metrics"))
        assert scrape.go_on() is None
        assert not scrape.sends
        theirs.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        received = 0
        assert scrape.go_on() is None
        assert scrape.sends
        answered = False
        while not answered:
            received += len(theirs.recv(1_000_000))
            try:
                scrape.go_on()
            except Answered:
                answered = True
        ours.close()
        received += sum(map(len, iter(lambda: theirs.recv(1_000_000), b"")))
    assert received == 3_000_000


@pytest.mark.clients("openssl")
@pytest.mark.parametrize("dispatcher", ["adaptive", "pool:2", "thread", "asyncio"])
def test_it_answers_behind_tls(dispatcher):
    recipe = Prometheus()
    cert, key = certificate()
    listen = Layered(TCP("127.0.0.1", 0), TLS(cert, key), recipe)
    trusting = ssl.create_default_context(cafile=authority())
    with Server(listen, Never, dispatcher=dispatcher, observers=[recipe.metrics]) as server:
        server.start()
        with urllib.request.urlopen(f"https://127.0.0.1:{server.addresses[0][1]}/metrics", context=trusting, timeout=LATE) as answer:
            found = metrics_of(answer.read().decode())
        wait_until(lambda: not server.stats().active)
    [expiry] = server.stats().expiries.values()
    assert found[f'socketkit_certificate_expiry_timestamp_seconds{{file="{cert}"}}'] == expiry.timestamp()
    assert server.stats().outcomes == {"finished": 1}
