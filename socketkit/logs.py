"""Logging that never makes serving code wait: the public face of `socketkit._system.logs`."""

from socketkit._system.logs import Log, flush

__all__ = ["Log", "flush"]
