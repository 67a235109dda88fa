"""Servers as they are started by hand, and the client programs of other people."""

import re
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.dispatchers import EVERY, EVERY_IN_PLACE
from socketkit.testing.clients import address, talk
from socketkit.testing.programs import Program, run, with_path

pytestmark = pytest.mark.clients


@pytest.fixture
def client(request):
    """Return a function that runs the client program a test is marked with; skip the test where it is not installed."""
    name = request.node.get_closest_marker("clients").args[0]
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return lambda *arguments, **options: run(name, *map(str, arguments), **options).stdout


@contextmanager
def serving(handler, url, dispatcher="thread"):
    """Serve one of our handlers from the command line; give its URL; stop it as a service manager would, and see that it ends well."""
    command = ("-m", "socketkit", "serve", f"handlers:{handler}", "--listen", url, "--dispatcher", dispatcher)
    with Program.python(*command, env=with_path(Path(__file__).parent)) as program:
        [served] = program.serving()
        yield served
        assert program.stop(signal.SIGTERM) == 0, program.output
    assert "Traceback" not in program.output


@contextmanager
def files(folder, *options):
    """Serve a folder with the unmodified `http.server` under socketkit; give its URL."""
    command = ("-m", "socketkit", "run", *options, "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder))
    with Program.python(*command, "--protocol", "HTTP/1.1") as program:
        [started] = program.line(r"Serving HTTP on 127\.0\.0\.1 port (\d+)")
        yield f"http://127.0.0.1:{started[1]}"
        program.stop(signal.SIGINT)
    raised = set(re.findall(r"^(\w+(?:Error|Exception))\b", program.output, re.MULTILINE))
    assert raised <= {"ConnectionResetError", "BrokenPipeError"}, program.output  # wrk leaves in the middle


@pytest.mark.clients("redis-benchmark")
@pytest.mark.parametrize("keep_alive", ["1", "0"], ids=["one connection for all", "a connection for each"])
@pytest.mark.parametrize("dispatcher", EVERY)
def test_redis_benchmark_gets_its_pongs(client, dispatcher, keep_alive):
    # A handler that loops holds what it runs in: sync has one such place, executor's threads are as many as the machine likes.
    clients, requests = {"sync": "1", "executor": "4"}.get(dispatcher, "8"), (2000 if keep_alive == "1" else 200)
    with serving("Pong", "tcp://127.0.0.1:0", dispatcher) as url:
        host, port = address(url)
        fixed = ("-h", host, "-p", port, "-t", "ping_inline", "--csv")
        report = client(*fixed, "-c", clients, "-n", requests, "-k", keep_alive)
        assert talk((host, port), b"PING\r\nPING\r\n") == b"+PONG\r\n+PONG\r\n"
    [rate] = re.findall(r'^"PING_INLINE","([0-9.]+)"', report, re.MULTILINE)
    assert float(rate) > 0


@pytest.mark.clients("dig")
@pytest.mark.parametrize("dispatcher", EVERY)
def test_dig_gets_the_address(client, dispatcher):
    with serving("Resolver", "udp://127.0.0.1:0", dispatcher) as url:
        host, port = address(url)
        asked = (f"@{host}", "-p", port, "+tries=1", "+time=5")
        assert client(*asked, "+short", "service.example", "A") == "192.0.2.1\n"
        whole = client(*asked, "another.example", "A")
    assert "status: NOERROR" in whole
    assert "flags: qr aa rd;" in whole
    assert re.search(r"^another\.example\.\s+60\s+IN\s+A\s+192\.0\.2\.1$", whole, re.MULTILINE)


@pytest.mark.clients("dnsperf")
@pytest.mark.parametrize("dispatcher", EVERY)
def test_dnsperf_loses_no_answer(client, dispatcher, tmp_path):
    questions = 300 if dispatcher == "fork" else 2000
    data = tmp_path / "questions"
    data.write_text("".join(f"host{number}.example A\n" for number in range(questions)))
    with serving("Resolver", "udp://127.0.0.1:0", dispatcher) as url:
        host, port = address(url)
        report = client("-s", host, "-p", port, "-d", data, "-n", 1, "-q", 10)
    assert re.search(rf"Queries completed:\s+{questions} \(100\.00%\)", report), report
    assert re.search(rf"Response codes:\s+NOERROR {questions} \(100\.00%\)", report), report


@pytest.mark.clients("curl")
@pytest.mark.parametrize("options", [(), *(("--dispatcher", each) for each in EVERY_IN_PLACE)], ids=["as it is", *EVERY_IN_PLACE])
def test_curl_downloads_from_an_unmodified_http_server(client, options, tmp_path):
    content = bytes(range(256)) * 4000
    (tmp_path / "file").write_bytes(content)
    with files(tmp_path, *options) as url:
        client("-sSf", "--max-time", 20, "-o", tmp_path / "first", f"{url}/file", "-o", tmp_path / "second", f"{url}/file")
        missing = client("-sS", "--max-time", 20, "-o", "/dev/null", "-w", "%{http_code}", f"{url}/nothing")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes() == content
    assert missing == "404"


@pytest.mark.clients("curl")
@pytest.mark.parametrize("dispatcher", EVERY)
def test_curl_talks_over_a_unix_socket(client, dispatcher, tmp_path):
    path = tmp_path / "page.sock"
    with serving("Page", f"unix://{path}", dispatcher) as url:
        assert url == f"unix://{path}"
        assert client("-sSf", "--max-time", 20, "--unix-socket", path, "http://localhost/one", "http://localhost/two") == "/one/two"
    assert not path.exists()


@pytest.mark.clients("wrk")
def test_wrk_meets_no_error(client, tmp_path):
    (tmp_path / "file").write_text("content")
    with files(tmp_path) as url:
        report = client("-t", 1, "-c", 8, "-d", "1s", f"{url}/file")
    [requests] = re.findall(r"(\d+) requests in", report)
    assert int(requests) > 0
    assert "Socket errors" not in report
    assert "Non-2xx" not in report
