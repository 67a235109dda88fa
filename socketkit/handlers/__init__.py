"""Request handlers: plain blocking classes, one instance for each request."""

from socketkit.handlers.base import BaseRequestHandler, DatagramRequestHandler, StreamRequestHandler
from socketkit.handlers.conversation import ConversationHandler

__all__ = ["BaseRequestHandler", "ConversationHandler", "DatagramRequestHandler", "StreamRequestHandler"]
