"""Messages to the service manager: the public face of `socketkit._system.notify`."""

from socketkit._system.notify import ping, ready, reloading, send, stopping, watchdog

__all__ = ["ping", "ready", "reloading", "send", "stopping", "watchdog"]
