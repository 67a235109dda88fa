"""Request handlers: plain blocking classes, one instance for each request."""

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from socketkit.handlers.base import BaseRequestHandler, DatagramRequestHandler, StreamRequestHandler
    from socketkit.handlers.conversation import ConversationHandler

__all__ = ["BaseRequestHandler", "ConversationHandler", "DatagramRequestHandler", "StreamRequestHandler"]

if not TYPE_CHECKING:  # a type checker that saw it would accept any name

    def __getattr__(name: str) -> object:
        """Import a name on first use: a classic server needs no `ConversationHandler`."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from socketkit.handlers import base, conversation  # noqa: PLC0415 - see above

        value = globals()[name] = getattr(base, name, None) or getattr(conversation, name)
        return value
