"""Logging that never makes serving code wait: the public face of `socketkit._system.logs`."""

from socketkit._system.logs import Log as Log  # noqa: PLC0414 - re-exported
