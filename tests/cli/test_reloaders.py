"""Programs that watch their own files and start themselves again: the process that serves has the drop-in, before and after."""

import contextlib
import os
import signal
import sys

import pytest

from helpers.support import free_port
from socketkit.testing.programs import Program, run, with_path

RUN = (sys.executable, "-m", "socketkit", "run")

WERKZEUG = """
import http.server, os, socketserver, sys
from werkzeug.serving import is_running_from_reloader, run_simple

def app(environ, start_response):
    server = sys.modules["werkzeug.serving"].ThreadedWSGIServer
    lines = [VERSION, socketserver.__file__, str(is_running_from_reloader()), server.__mro__[-3].__module__, repr(socketserver._Override.dispatcher)]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return ["\\n".join(lines).encode()]

if __name__ == "__main__":
    run_simple("127.0.0.1", int(sys.argv[1]), app, use_reloader=True, reloader_type="stat", reloader_interval=0.1, threaded=True)
"""

DJANGO = """
import socketserver, sys
from django.conf import settings
from django.http import HttpResponse
from django.urls import path

settings.configure(DEBUG=True, ROOT_URLCONF=__name__, SECRET_KEY="no secret", ALLOWED_HOSTS=["*"], LOGGING_CONFIG=None)

def index(request):
    from django.core.servers.basehttp import WSGIServer
    lines = [VERSION, socketserver.__file__, str("RUN_MAIN" in __import__("os").environ), WSGIServer.__mro__[-3].__module__, repr(socketserver._Override.dispatcher)]
    return HttpResponse("\\n".join(lines), content_type="text/plain")

urlpatterns = [path("", index)]

if __name__ == "__main__":
    from django.core.management import execute_from_command_line
    execute_from_command_line(sys.argv)
"""


def fetch(port):
    command = ("curl", "-sS", "--max-time", "10", "--retry", "20", "--retry-all-errors", "--retry-delay", "1", f"http://127.0.0.1:{port}/")
    return run(*command).stdout.splitlines()


def touch_until(file, seen):
    """Change the file's time until `seen` no longer raises: neither reloader says when it has taken its first look."""
    written = file.stat().st_mtime
    for later in range(1, 11):
        os.utime(file, (written + later, written + later))
        with contextlib.suppress(AssertionError):
            seen()
            return
    pytest.fail("no change was noticed")


PROGRAMS = {
    "werkzeug": (WERKZEUG, ["{port}"], r"Restarting with stat"),
    "django": (DJANGO, ["runserver", "127.0.0.1:{port}", "--skip-checks"], r"Starting development server"),
}


@pytest.mark.clients
@pytest.mark.parametrize(
    ("dispatcher", "chosen"), [(None, "None"), ("thread", "Threads(daemon=False)"), ("fork:9", "Forks(max_children=9)")]
)
@pytest.mark.parametrize("library", PROGRAMS)
def test_a_reloader_s_process_serves_on_the_drop_in_and_so_does_the_next(tmp_path, library, dispatcher, chosen):
    pytest.importorskip(library)
    source, arguments, started = PROGRAMS[library]
    program_file, port = tmp_path / "reloaded.py", free_port()
    program_file.write_text(f"VERSION = 'first'\n{source}")
    options = ["--dispatcher", dispatcher] if dispatcher else []
    command = [*RUN, *options, str(program_file), *(each.format(port=port) for each in arguments)]
    with Program(*command, cwd=tmp_path, env={**with_path(), "PYTHONUNBUFFERED": "1"}) as program:
        program.line(started)
        first = fetch(port)
        assert first[0] == "first"
        assert first[1].endswith("socketkit/socketserver.py")
        assert first[2:] == ["True", "socketserver", chosen]
        program_file.write_text(f"VERSION = 'second'\n{source}")
        touch_until(program_file, lambda: program.line(started, count=2, timeout=3))
        assert fetch(port) == ["second", *first[1:]]
        os.killpg(program.pid, signal.SIGINT)
        assert program.wait(10) in {0, 1, -signal.SIGINT, 130}
        assert "Traceback" not in program.output, program.output
