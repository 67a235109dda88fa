"""What a server tells its observers."""

from __future__ import annotations

from collections.abc import Mapping

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
    "request_refused": "(server, client_address, reason): turned away before a handler saw it",
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
