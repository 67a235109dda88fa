"""What a server tells its observers."""

from __future__ import annotations

from collections.abc import Mapping

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import Self

EVENTS: Mapping[str, str] = {
    "server_started": "(server): the listeners are open and the loop is about to take its first request",
    "server_stopping": "(server): stop was asked for",
    "server_stopped": "(server, report): nothing of the run is left; report is a DrainReport or None",
    "request_accepted": "(server, request, client_address): a connection was accepted or a datagram received",
    "handler_entered": "(server, request, client_address, seconds): this thread is about to run the handler; seconds since the accept, "
    "or None if it goes on with a connection that was parked",
    "handler_left": "(server, client_address, outcome, seconds): the handler has returned or raised after these seconds; outcome is None "
    "if its connection is parked now, and so will be entered again",
    "request_finished": "(server, client_address, seconds): a handler returned",
    "request_failed": "(server, client_address, error): a handler, a layer or a hook raised",
    "request_refused": "(server, client_address, reason): turned away before a handler saw it; reason is a Refusal",
    "request_ended": "(server, client_address, outcome, seconds): an accepted request is closed, seconds after its accept; outcome is one "
    "of those in Stats.outcomes",
    "process_ending": "(server): a process that a dispatcher has forked, for one request or as a worker, has served its last one and is "
    "about to exit; called in that process",
    "accept_paused": "(server, url, error, seconds): the system refused a descriptor or memory; that listener rests",
    "accept_resumed": "(server, url, failures): a listener that rested takes requests again",
    "worker_started": "(server, worker): a dispatcher started a process that serves more than one request",
    "worker_died": "(server, worker, reason): one of those, or one that had not started yet, ended without being asked to",
    "worker_left": "(server, worker): one of those has ended, as it was asked to",
}
"""The methods that an observer may have; any object with any of them is one. The thread in which the event happens calls the method,
which must return quickly. An error that it raises is logged, once per observer and event, and does no harm."""

REFUSALS: Mapping[str, str] = {
    "max_connections": "`max_connections` is reached, or nearly so with the overflow `early`",
    "max_per_peer": "`max_per_peer` is reached",
    "network": "`allow` and `deny` do not admit the client's address",
    "user": "`allow_users` does not admit the client's user",
    "idle": "the conversation was closed while idle, to make room for another connection",
    "busy": "every thread of the dispatcher is busy, and it turns away what is beyond",
    "resources": "there is no thread, process or executor that could run the request",
    "verify_request": "the server's `verify_request` returned false",
    "truncated": "the datagram is longer than `max_packet_size`",
    "stop": "the server stopped before the request was run",
    "other": "a part that is not socketkit's own has refused it, and names no kind",
}
"""The kinds of refusals, and what each means."""


class Refusal(str):
    """Why a request is refused: a sentence for people, whose `kind`, one of `REFUSALS`, is for programs."""

    __slots__ = ("kind",)

    kind: str

    def __new__(cls, sentence: str, kind: str = "other") -> Self:
        """Return the sentence with its kind."""
        refusal = super().__new__(cls, sentence)
        refusal.kind = kind
        return refusal
