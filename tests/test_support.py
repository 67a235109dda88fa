import os
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest

from helpers.support import Program, address, ask, python, run, talk


def test_a_program_that_hangs_shows_where():
    with pytest.raises(AssertionError, match="most recent call first"):
        python("import threading\nthreading.Event().wait()", guard=0.5)


def test_a_program_that_fails_shows_what_it_printed():
    with pytest.raises(AssertionError, match="exited with 3, not 0:\nso far"):
        python("print('so far')\nraise SystemExit(3)")


def test_a_running_program_is_waited_for_line_by_line_and_stopped():
    source = "import signal; print('serving tcp://[::1]:7 (thread, graceful)'); signal.pause()"
    with Program.python("-c", source) as program:
        assert [address(url) for url in program.serving()] == [("::1", 7)]
        assert program.stop(signal.SIGTERM) == -signal.SIGTERM


def test_waiting_for_a_line_ends_with_the_program():
    with Program.python("-c", "print('something else')") as program, pytest.raises(AssertionError, match="something else"):
        program.serving()


def test_all_that_a_program_has_printed_is_there_when_it_has_ended():
    for _ in range(5):
        with Program.python("-c", "import os; os.write(1, b'x' * 50_000); os._exit(0)") as program:
            assert program.wait() == 0
            assert len(program.output) == 50_000


def test_a_line_is_matched_when_it_is_whole():
    source = "import sys; sys.stdout.write('serving tcp'); sys.stdout.flush(); input(); print('://127.0.0.1:7 ()'); input()"
    reader, writer = os.pipe()
    with Program.python("-c", source, stdin=reader) as program:
        with pytest.raises(AssertionError, match="printed 0 lines"):
            program.line("^serving", timeout=1)
        os.write(writer, b"\n")
        assert program.serving() == ["tcp://127.0.0.1:7"]
    os.close(reader)
    os.close(writer)


def test_the_clients_return_all_that_a_server_says():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        served = threading.Thread(target=_answer, args=(listener,))
        served.start()
        assert talk(listener.getsockname(), b"all of it") == b"all of it" * 10_000
        served.join()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        served = threading.Thread(target=lambda: receiver.sendto(*receiver.recvfrom(100)))
        served.start()
        assert ask(receiver.getsockname(), b"packet") == b"packet"
        served.join()


def _answer(listener):
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as received:
        connection.sendall(received.read() * 10_000)


def test_nobody_else_can_have_the_number_of_a_group_that_is_killed(monkeypatch):
    states, killpg = [], os.killpg

    def note(group, number):
        [state] = [line.split()[1] for line in Path(f"/proc/{group}/status").read_text().splitlines() if line.startswith("State:")]
        states.append(state)
        killpg(group, number)

    monkeypatch.setattr(os, "killpg", note)
    run(sys.executable, "-c", "")
    with Program.python("-c", "print('there')") as program:
        assert program.wait() == 0
        program.send_signal(signal.SIGTERM)  # to one that has ended, and to nobody else
    assert states == ["Z", "Z"], "both had ended, and nobody had waited for them yet"
