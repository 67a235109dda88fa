"""The seams: the few Protocols through which every replaceable part is replaced.

A *recipe* is the configuration of one part: a frozen attrs class, comparable and printable, without sockets or threads.
A *live part* is what a recipe creates when a server starts. It owns resources and has `close()`.
Conform by shape; do not inherit from these classes. A power that only some parts have is a Protocol of its own (`Adapts`, `Awaits`,
`Narrows`, `Cuts`, `Forces`, `Lingers`, `Shares`, `Watches`, `Connects`). It is looked up once, when a server is composed, and never on a
request.

Each name is imported on first use, because classic servers need few of them.

Times are float seconds, deadlines are on `time.monotonic()`, and None means no limit.
"""

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from socketkit._system.wakeup import Wakeup
    from socketkit.seams.answered import Answered
    from socketkit.seams.dispatchers import Branch, Dispatch, Dispatcher, Drive, EventLoop, Intake, OpenIntake, Replica, Watcher, Work
    from socketkit.seams.events import EVENTS, REFUSALS, Refusal
    from socketkit.seams.interpreters import PackedReplica, UnpackedReplica
    from socketkit.seams.lifecycles import Lifecycle, Serving
    from socketkit.seams.parking import Parking
    from socketkit.seams.powers import (
        Adapts,
        Answers,
        AnyLayer,
        Awaits,
        BeginsInLoop,
        BoundsHandlers,
        Checks,
        Connects,
        Copies,
        Cuts,
        Daemonizes,
        Expires,
        Forces,
        ForksRequests,
        ForksWorkers,
        Inline,
        IsAsync,
        Kinds,
        Lingers,
        Located,
        NamesClient,
        Narrows,
        NeedsSocket,
        Nests,
        OpensSeveral,
        Parks,
        Renews,
        RenewsWorkers,
        ReplacesSocket,
        RepliesToMessages,
        Requires,
        RunsAsync,
        RunsInPlace,
        RunsInterpreters,
        ShakesHands,
        Shares,
        SpeaksFirst,
        Starts,
        TakesAnySocket,
        TakesKinds,
        TakesLoopConnections,
        Upgrades,
        UsesAsyncLibrary,
        Watches,
    )
    from socketkit.seams.states import State
    from socketkit.seams.stats import DrainReport, Queue, Stats, Stuck
    from socketkit.seams.transports import Handshake, Layer, Listener, Transport, open_listeners
    from socketkit.seams.types import Address, Clock, Kind, Request, Seconds, Unit
    from socketkit.seams.validators import at_least, permission_bits, seconds, seconds_or_none, socket_path, some_seconds_or_none

__all__ = ["EVENTS", "REFUSALS", "DrainReport", "Lifecycle", "Parking", "Queue", "Refusal", "Serving", "State", "Stats", "Stuck", "Wakeup"]
__all__ += ["Branch", "Dispatch", "Dispatcher", "Drive", "EventLoop", "Intake", "OpenIntake", "PackedReplica", "Replica"]
__all__ += ["UnpackedReplica", "Watcher", "Work"]
__all__ += [
    "Adapts",
    "AnyLayer",
    "Awaits",
    "BeginsInLoop",
    "BoundsHandlers",
    "Connects",
    "Copies",
    "Cuts",
    "Expires",
    "Forces",
    "Inline",
    "Lingers",
    "Narrows",
    "Parks",
    "Renews",
    "RenewsWorkers",
    "RunsInPlace",
    "ShakesHands",
    "Shares",
    "Watches",
]
__all__ += ["Answers", "Checks", "Daemonizes", "ForksRequests", "ForksWorkers", "Kinds", "Located", "NeedsSocket", "Nests", "OpensSeveral"]
__all__ += ["IsAsync", "NamesClient", "ReplacesSocket", "RepliesToMessages", "Requires", "RunsAsync", "SpeaksFirst", "Starts", "TakesKinds"]
__all__ += ["RunsInterpreters", "TakesAnySocket", "TakesLoopConnections", "Upgrades", "UsesAsyncLibrary"]
__all__ += ["Address", "Clock", "Kind", "Request", "Seconds", "Unit"]
__all__ += ["Answered", "Handshake", "Layer", "Listener", "Transport", "open_listeners"]
__all__ += ["at_least", "permission_bits", "seconds", "seconds_or_none", "socket_path", "some_seconds_or_none"]

_PLACES = {
    "socketkit._system.wakeup": ("Wakeup",),
    "socketkit.seams.answered": ("Answered",),
    "socketkit.seams.dispatchers": (
        "Branch",
        "Dispatch",
        "Dispatcher",
        "Drive",
        "EventLoop",
        "Intake",
        "OpenIntake",
        "Replica",
        "Watcher",
        "Work",
    ),
    "socketkit.seams.events": (
        "EVENTS",
        "REFUSALS",
        "Refusal",
    ),
    "socketkit.seams.interpreters": (
        "PackedReplica",
        "UnpackedReplica",
    ),
    "socketkit.seams.lifecycles": (
        "Lifecycle",
        "Serving",
    ),
    "socketkit.seams.parking": ("Parking",),
    "socketkit.seams.powers": (
        "Adapts",
        "Answers",
        "AnyLayer",
        "Awaits",
        "BeginsInLoop",
        "BoundsHandlers",
        "Checks",
        "Connects",
        "Copies",
        "Cuts",
        "Daemonizes",
        "Expires",
        "Forces",
        "ForksRequests",
        "ForksWorkers",
        "Inline",
        "IsAsync",
        "Kinds",
        "Lingers",
        "Located",
        "NamesClient",
        "Narrows",
        "NeedsSocket",
        "Nests",
        "OpensSeveral",
        "Parks",
        "Renews",
        "RenewsWorkers",
        "ReplacesSocket",
        "RepliesToMessages",
        "Requires",
        "RunsAsync",
        "RunsInPlace",
        "RunsInterpreters",
        "ShakesHands",
        "Shares",
        "SpeaksFirst",
        "Starts",
        "TakesAnySocket",
        "TakesKinds",
        "TakesLoopConnections",
        "Upgrades",
        "UsesAsyncLibrary",
        "Watches",
    ),
    "socketkit.seams.states": ("State",),
    "socketkit.seams.stats": (
        "DrainReport",
        "Queue",
        "Stats",
        "Stuck",
    ),
    "socketkit.seams.transports": (
        "Handshake",
        "Layer",
        "Listener",
        "Transport",
        "open_listeners",
    ),
    "socketkit.seams.types": (
        "Address",
        "Clock",
        "Kind",
        "Request",
        "Seconds",
        "Unit",
    ),
    "socketkit.seams.validators": (
        "at_least",
        "permission_bits",
        "seconds",
        "seconds_or_none",
        "socket_path",
        "some_seconds_or_none",
    ),
}
"""The names imported from each module on first use; the same as those listed above for type checkers."""

_MODULES = {name: module for module, names in _PLACES.items() for name in names}

if not TYPE_CHECKING:  # a type checker that saw it would accept any name

    def __getattr__(name: str) -> object:
        """Import a name on first use."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module  # noqa: PLC0415 - not for a classic server, which needs no name from here

        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
