"""Admission control: the checks before and after each accept. Built from `Limits` for one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from socketkit._engine.accepting import NO_ROOM, NoRoomError
from socketkit._engine.peers import Peers, is_stranger
from socketkit._engine.rate import Bucket, Chance
from socketkit._system.credentials import user_id
from socketkit._system.sockets import is_readable
from socketkit.seams import Address, Refusal, Request
from socketkit.seams.limits import Limits

if TYPE_CHECKING:
    from socketkit._engine.accepting import Source
    from socketkit._engine.ledger import Ledger

FULL = Refusal("max_connections is reached", "max_connections")
NEARLY_FULL = Refusal("max_connections is nearly reached, and this client was among those chosen to be refused", "max_connections")
WRONG_USER = Refusal("the client's user is not allowed", "user")
EVICTED = Refusal("closed while idle, to make room for another connection", "idle")


class Admission:
    """Admits or refuses requests for the sources of one intake, in the thread that takes.

    The cap is hard because the check comes before the accept: one thread at a time takes, and its connection is in the ledger
    before the next check. By then the ledger may hold fewer connections, but never more. At the cap, all sources of connections
    are paused together, and the next settled connection resumes them. That resumption is never missed, because

    - the taking thread sets the ledger's `vacated` callback *before* it counts under the ledger's lock, and a settling thread reads
      `vacated` *after* it has removed its request. If the count still includes the request, it was removed after the count, hence
      after `vacated` was set, and the callback is called.
    - a settling thread clears `vacated` before calling it, and the call always ends with all sources resumed by the taking thread.
      So a thread that read `vacated` long ago and clears it late leaves no source paused.

    Shedding treats conversations that become idle the same way: `parked_one` of the intake is set before the intake is asked for an
    idle one, and a parking thread reads `parked_one` after it has parked.
    """

    def __init__(self, limits: Limits, ledger: Ledger, sources: Sequence[Source], draw: Callable[[], float] | None = None) -> None:
        """Begin.

        draw: returns a uniformly distributed number from 0.0 to less than 1.0; None: `random.random`.
        """
        self._most = limits.max_connections
        self._rejects, self._sheds = limits.overflow in {"reject", "early"}, limits.overflow == "shed"
        self._chance = None
        if limits.overflow == "early" and limits.max_connections is not None:
            self._chance = Chance(limits.early * limits.max_connections, limits.max_connections, draw)
        self.reply = limits.reply.encode()
        self._ledger = ledger
        self._open = ledger.in_work
        self._sources = sources
        self._counted = [source for source in sources if source.counted]
        self._users = frozenset(map(user_id, limits.allow_users))
        self._bucket = None if limits.rate is None else Bucket(limits.rate, limits.burst, ledger.clock)
        if ledger.peers is None and Peers.are_limited(limits):  # otherwise an earlier run's counts are kept
            ledger.peers = Peers(limits)
        self._peers: Peers | None = ledger.peers

    @staticmethod
    def is_needed(limits: Limits, *, counted: bool) -> bool:
        """Return whether the limits need checks; counted: whether the source delivers connections."""
        of_connections = counted and limits.max_connections is not None
        return of_connections or limits.rate is not None or bool(limits.allow_users) or Peers.are_limited(limits)

    def permit(self, source: Source) -> None:
        """Check before an accept. Raises: NoRoomError with the sources to pause; BlockingIOError when no client waits."""
        if self._most is not None and len(self._open) >= self._most and source.counted and not self._rejects:
            self._look_for_room(source, self._most)
        if self._bucket is not None:
            seconds = self._bucket.due()
            if seconds > 0:
                source.intake.call_later(seconds, self._resume)
                raise NoRoomError(self._sources)

    def objection(self, source: Source, request: Request, client_address: Address) -> Refusal | None:
        """Return why an accepted request must be refused, or None to serve it. Takes a token if there is a rate.

        The limits for peers wait for a layer that names the client: see `socketkit._engine.passage`.
        """
        if self._bucket is not None:
            self._bucket.take()
        if self._users and is_stranger(request, self._users):
            return WRONG_USER
        crowd = self._crowd() if source.counted else None
        if crowd is None and self._peers is not None and source.knows_clients:
            return self._peers.objection(client_address, counted=source.counted)
        return crowd

    # inside

    def _crowd(self) -> Refusal | None:
        """Return why there are too many connections to take one more, or None."""
        if self._rejects and self._most is not None:
            others = self._ledger.connections()
            if others >= self._most:
                return FULL
            if self._chance is not None and self._chance.is_against(others):
                return NEARLY_FULL
        return None

    def _look_for_room(self, source: Source, most: int) -> None:
        ledger, intake = self._ledger, source.intake
        ledger.vacated = self._announce
        if ledger.connections() < most:
            ledger.vacated = None
            return
        if self._sheds:
            if not is_readable(source):  # shed a connection only when a new client waits
                ledger.vacated = None
                raise BlockingIOError
            intake.parked_one = self._announce
            idle = intake.lot.longest()
            if idle is not None:
                intake.parked_one = None
                idle.evict(EVICTED)
                intake.again(idle)  # closes it as a unit of work, because that may take a while
        raise NoRoomError(self._counted)

    def _announce(self) -> None:
        """Have the taking thread resume all sources. From any thread."""
        self._sources[0].intake.call_soon(self._resume)

    def _resume(self) -> None:
        """Resume all sources. Only in the taking thread."""
        self._sources[0].intake.accepting.resume(NO_ROOM, self._sources)
