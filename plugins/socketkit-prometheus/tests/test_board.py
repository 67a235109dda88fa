"""The numbers that processes share, in programs that fork."""

from __future__ import annotations

import pytest

from socketkit.testing.programs import python

PROGRAM = """
import os, signal, sys, threading
from socketkit_prometheus import _board
from socketkit_prometheus._board import Board

def settle(words):
    words[1] = words[0]

def child(do):
    pid = os.fork()
    if not pid:
        try:
            do()
        finally:
            os._exit(0)
    return pid

def join(pid):
    return os.waitpid(pid, 0)[1]

board = Board(2, settle)
board.open()

def add(count, then=lambda: None):
    slot = board.slot or board.claim()
    with slot.lock:
        slot.words[0] += count
    then()
"""


def run(source):
    assert python(PROGRAM + source).stdout == "done\n"


def test_each_process_adds_to_the_sums():
    run(
        """
add(1)
for pid in [child(lambda: add(10)) for _ in range(5)]:
    join(pid)
assert board.sums() == [51, 50], board.sums()  # those that have ended are settled, and this process is not
print("done")
""",
    )


def test_the_counts_of_a_killed_process_stay_and_are_settled():
    run(
        """
reader, writer = os.pipe()
pid = child(lambda: add(3, lambda: (os.write(writer, b"x"), signal.pause())))
os.read(reader, 1)
assert board.sums() == [3, 0]
os.kill(pid, signal.SIGKILL)
join(pid)
assert board.sums() == [3, 3]
assert board.sums() == [3, 3]
print("done")
""",
    )


def test_slots_are_used_again():
    run(
        """
_board.SLOTS = 2
board = Board(2, settle)
board.open()
add(1)
for _ in range(5):
    join(child(lambda: add(1)))
assert board.sums() == [6, 5], board.sums()
print("done")
""",
    )


def test_a_process_too_many_is_told_so():
    run(
        """
_board.SLOTS = 2
board = Board(2, settle)
board.open()
add(1)
reader, writer = os.pipe()
pid = child(lambda: add(1, lambda: (os.write(writer, b"x"), signal.pause())))
os.read(reader, 1)

def fails():
    try:
        add(1)
    except OSError as error:
        os.write(writer, str(error).encode())

join(child(fails))
said = os.read(reader, 100)
assert b"2 processes count already" in said, said
assert board.sums() == [2, 0]
os.kill(pid, signal.SIGKILL)
join(pid)
join(child(lambda: add(1)))
assert board.sums()[0] == 3
print("done")
""",
    )


def test_a_fork_while_other_threads_count_does_no_harm():
    run(
        """
stop = threading.Event()
counted = []

def count():
    mine = 0
    while not stop.is_set():
        add(1)
        mine += 1
    counted.append(mine)

threads = [threading.Thread(target=count) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(50):
    assert join(child(lambda: add(1))) == 0
stop.set()
for thread in threads:
    thread.join()
assert board.sums()[0] == sum(counted) + 50
print("done")
""",
    )


def test_a_grandchild_counts_for_itself():
    run(
        """
def both():
    add(1)
    join(child(lambda: add(10)))
    add(100)

join(child(both))
assert board.sums() == [111, 111], board.sums()
print("done")
""",
    )


def test_a_program_that_is_executed_gets_no_descriptor():
    run(
        """
import subprocess
listing = subprocess.run([sys.executable, "-c", "import os; print([os.readlink(f'/proc/self/fd/{each}') for each in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{each}')])"],
    close_fds=False, capture_output=True, text=True, check=True).stdout
assert "socketkit" not in listing, listing
print("done")
""",
    )


@pytest.mark.parametrize("name", ["fork", "no fork"])
def test_platforms_without_fork_need_no_shared_memory(monkeypatch, name):
    from socketkit_prometheus import _board

    monkeypatch.setattr(_board, "FORKS", name == "fork")
    board = _board.Board(2, lambda words: None)
    assert board.sums() == [0, 0]
    slot = board.claim()
    slot.words[1] += 5
    assert board.claim() is slot
    assert board.sums() == [0, 5]
