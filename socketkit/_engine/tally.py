"""The counts of other serving processes, which their parent reads while they run and after they have ended."""

from __future__ import annotations

import threading

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import TypeAlias

    from socketkit.seams import Stats

    Reading: TypeAlias = tuple[int, dict[str, int]]
    """The number of requests in progress, and that of each outcome: what `Stats` is made of, but not an attrs class."""

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
        if memory is None:
            import mmap  # noqa: PLC0415 - for servers with workers only

            memory = memoryview(mmap.mmap(-1, mmap.PAGESIZE))
        self.memory = memory
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

    def read(self) -> Reading:
        outcomes = {outcome: count for outcome, count in zip(OUTCOMES, self._counts[1:], strict=False) if count}
        return self._counts[0] - sum(outcomes.values()), outcomes  # accepted is read last, so it is never too small

    def stats(self) -> Stats:
        """Return the same as `read`."""
        return stats_of(self.read())

    def detach(self) -> None:
        """Switch to a private copy: for a child of the writing process, which must not write to the shared counters."""
        self._counts = memoryview(bytearray(self._counts)).cast("Q")


class Tallies:
    """The tallies of the running replicas of a server, and the sum of those that have ended. Thread-safe."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._now: tuple[Reading, tuple[Tally, ...]] = (0, {}), ()  # both in one value, so that readers need no lock to miss none

    @property
    def settled(self) -> int:
        """Number of settled requests; read without a lock, so safe in a signal handler."""
        return sum(self.read()[1].values())

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
            active, outcomes = tally.read()
            died = {"died": active} if active else {}
            ended = total(ended, (0, outcomes), (0, died))
            self._now = ended, tuple(each for each in running if each is not tally)

    def read(self) -> Reading:
        """Return a consistent snapshot of all replicas, running and ended."""
        ended, running = self._now
        return total(ended, *(tally.read() for tally in running))


def total(*readings: Reading) -> Reading:
    summed: dict[str, int] = {}
    for _, outcomes in readings:
        for outcome, count in outcomes.items():
            summed[outcome] = summed.get(outcome, 0) + count
    return sum(active for active, _ in readings), summed


def stats_of(reading: Reading) -> Stats:
    from socketkit.seams.stats import Stats  # noqa: PLC0415 - an attrs class, and classic servers have no statistics

    return Stats(*reading)
