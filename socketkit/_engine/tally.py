"""The counts of other serving processes, which their parent reads while they run and after they have ended."""

from __future__ import annotations

import mmap
import threading

from socketkit.seams.stats import Stats

TIMED_OUT = "timed out"

OUTCOMES = ("finished", "failed", "aborted", "refused", "died", TIMED_OUT)
"""How a request can end.

aborted: the peer disconnected. refused: by a limit or by verification, or for lack of a thread or process. died: its process ended
without reporting. timed out: a deadline passed, or the peer stopped reading. failed: its handler or a hook raised anything else.
"""

_TURNS = 1 + len(OUTCOMES)


class Tally:
    """Counters in shared memory: a worker process or interpreter writes them, its parent reads them, even after the worker has ended.

    Each counter is one aligned word, so a reader never sees a partial write. Threads of the writing process must take turns, because
    `+=` is a read and a write. The memory is freed with the last reference to the tally.
    """

    def __init__(self, memory: memoryview | None = None) -> None:
        """memory: that of the same tally in another interpreter; None: new memory, which processes forked from this one share."""
        self.memory = memoryview(mmap.mmap(-1, mmap.PAGESIZE)) if memory is None else memory
        self._counts = self.memory.cast("Q")  # requests accepted, one counter per outcome, `_TURNS`

    def accept(self) -> None:
        self._counts[0] += 1

    def settle(self, outcome: str) -> None:
        """Count one settled request; an unknown outcome counts as failed."""
        self._counts[1 + OUTCOMES.index(outcome if outcome in OUTCOMES else "failed")] += 1

    def converse(self) -> None:
        """Count one request of a conversation."""
        self._counts[_TURNS] += 1

    @property
    def served(self) -> int:
        """Number of requests that have ended: those within conversations if there are any, otherwise those that are settled."""
        return self._counts[_TURNS] or sum(self._counts[1:_TURNS])

    def stats(self) -> Stats:
        outcomes = {outcome: count for outcome, count in zip(OUTCOMES, self._counts[1:], strict=False) if count}
        return Stats(self._counts[0] - sum(outcomes.values()), outcomes)  # accepted is read last, so it is never too small

    def detach(self) -> None:
        """Switch to a private copy: for a child of the writing process, which must not write to the shared counters."""
        self._counts = memoryview(bytearray(self._counts)).cast("Q")


class Tallies:
    """The tallies of the running replicas of a server, and the sum of those that have ended. Thread-safe."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._now: tuple[Stats, tuple[Tally, ...]] = Stats(), ()  # both in one value, so that readers need no lock to miss none

    @property
    def settled(self) -> int:
        """Number of settled requests; read without a lock, so safe in a signal handler."""
        return sum(self.stats().outcomes.values())

    def open(self) -> Tally:
        """Return the tally of a process that is about to be forked; its counts are included from now on."""
        tally = Tally()
        with self._changing:
            ended, running = self._now
            self._now = ended, (*running, tally)
        return tally

    def close(self, tally: Tally) -> None:
        """Keep the counts of a process that has ended. Requests it still had in progress count as "died"."""
        with self._changing:
            ended, running = self._now
            last = tally.stats()
            died = {"died": last.active} if last.active else {}
            ended = total(ended, Stats(0, last.outcomes), Stats(0, died))
            self._now = ended, tuple(each for each in running if each is not tally)

    def stats(self) -> Stats:
        """Return a consistent snapshot of all replicas, running and ended."""
        ended, running = self._now
        return total(ended, *(tally.stats() for tally in running))


def total(*readings: Stats) -> Stats:
    outcomes: dict[str, int] = {}
    for reading in readings:
        for outcome, count in reading.outcomes.items():
            outcomes[outcome] = outcomes.get(outcome, 0) + count
    return Stats(sum(reading.active for reading in readings), outcomes)
