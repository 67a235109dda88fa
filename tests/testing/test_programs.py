import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers.support import gone, wait_until
from socketkit.testing.clients import address
from socketkit.testing.programs import Program, python, run, with_path


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
    with Program.python("-c", source, stdin=reader) as program, ThreadPoolExecutor() as other:
        found = other.submit(program.line, r"^serving (\S+)")
        wait_until(lambda: program.output == "serving tcp")
        os.write(writer, b"\n")
        assert found.result()[0][1] == "tcp://127.0.0.1:7"
    os.close(reader)
    os.close(writer)


def test_a_program_that_does_not_print_a_line_shows_what_it_does_instead():
    source = "import threading; print('starts'); threading.Event().wait()"
    with Program.python("-c", source) as program:
        program.line("starts")
        with pytest.raises(AssertionError, match=r"printed 0 lines with 'serving', not 1:\nstarts\n(?s:.*)in wait"):
            program.line("serving", timeout=0.1)
        assert program.wait() == -signal.SIGABRT


def test_a_program_that_does_not_end_shows_what_it_does_instead():
    with Program.python("-c", "import signal; print('starts'); signal.pause()") as program:
        program.line("starts")
        with pytest.raises(AssertionError, match=r"did not end:\nstarts\n(?s:.*)most recent call first"):
            program.wait(timeout=0.1)


def test_with_a_program_its_whole_group_ends():
    source = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print("started", child.pid, flush=True)
"""
    with Program.python("-c", source) as program:
        [started] = program.line(r"^started (\d+)")
        assert program.wait() == 0
    assert gone(int(started[1]))


def test_folders_come_first_on_the_path():
    assert python("import sys; print(*sys.path[1:3])", env=with_path("/first", "/second")).stdout == "/first /second\n"


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


def test_a_condition_is_waited_for_until_it_is_true():
    answers = iter([0, "", None, "true"])
    assert wait_until(lambda: next(answers)) is None
    assert list(answers) == []


def test_a_condition_that_does_not_become_true_fails_the_test():
    with pytest.raises(AssertionError, match=r"the condition did not become true within 0\.01 s"):
        wait_until(lambda: False, 0.01)
