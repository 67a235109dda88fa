"""The seams: the few Protocols through which every replaceable part is replaced.

A *recipe* is the configuration of one part: a frozen attrs class, comparable and printable, without sockets or threads.
A *live part* is what a recipe creates when a server starts. It owns resources and has `close()`.
Conform by shape; do not inherit from these classes. A power that only some parts have is a Protocol of its own (`Adapts`, `Awaits`,
`Narrows`, `Cuts`, `Forces`, `Lingers`, `Shares`, `Watches`, `Connects`). It is looked up once, when a server is composed, and never on a
request.

The names are imported when the first is used, because classic servers use none.

Times are float seconds, deadlines are on `time.monotonic()`, and None means no limit.
"""

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from socketkit.seams.names import *  # noqa: F403 - all names, and no others
    from socketkit.seams.names import __all__ as __all__
else:
    _NAMES = frozenset(
        """
        Adapts Address Answered Answers AnyLayer Awaits BeginsInLoop BoundsHandlers Branch Checks Clock Connects Copies Cuts
        Daemonizes Dispatch Dispatcher DrainReport Drive EVENTS EventLoop Expires Forces ForksRequests ForksWorkers Handshake
        InWork Inline Intake IsAsync Kind Kinds Layer Lifecycle Lingers Listener Located NamesClient Narrows NeedsSocket Nests OpenIntake
        OpensSeveral PackedReplica Parking Parks Queue REFUSALS Refusal Renews RenewsWorkers ReplacesSocket Replica
        RepliesToMessages Request Requires RunsAsync RunsInPlace RunsInterpreters Seconds Serving ShakesHands Shares SpeaksFirst
        Starts State Stats StaysInProcess Stuck TakesAnySocket TakesKinds TakesLoopConnections Transport Unit UnpackedReplica
        Upgrades UsesAsyncLibrary Wakeup Watcher Watches Work at_least open_listeners permission_bits seconds seconds_or_none socket_path
        some_seconds_or_none
        """.split()  # noqa: SIM905 - a list literal would take a line for each
    )
    """The names of `socketkit.seams.names`, without importing it: to ask for any other must import nothing."""

    def __getattr__(name: str) -> object:
        """Import all names. Raises: AttributeError if this is none of them."""
        if name != "__all__" and name not in _NAMES:  # such as __warningregistry__, by a loop over sys.modules
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import socketkit.seams.names as names  # noqa: PLC0415, PLR0402 - `from socketkit.seams import` would ask this function

        globals().update({each: getattr(names, each) for each in ("__all__", *names.__all__)})
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *_NAMES})
