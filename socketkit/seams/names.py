"""All names of the seams, which `socketkit.seams` offers as its own."""

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
    StaysInProcess,
    TakesAnySocket,
    TakesKinds,
    TakesLoopConnections,
    Upgrades,
    UsesAsyncLibrary,
    Watches,
)
from socketkit.seams.states import State
from socketkit.seams.stats import DrainReport, InWork, Queue, Stats, Stuck
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
__all__ += ["RunsInterpreters", "StaysInProcess", "TakesAnySocket", "TakesLoopConnections", "Upgrades", "UsesAsyncLibrary"]
__all__ += ["Address", "Clock", "InWork", "Kind", "Request", "Seconds", "Unit"]
__all__ += ["Answered", "Handshake", "Layer", "Listener", "Transport", "open_listeners"]
__all__ += ["at_least", "permission_bits", "seconds", "seconds_or_none", "socket_path", "some_seconds_or_none"]
