"""Fitting limits to the number of files that the process may have open."""

from __future__ import annotations

import contextlib

import attrs

from socketkit._system.logs import Log
from socketkit.seams.limits import Limits

log = Log("socketkit.admission")

MARGIN = 64
"""Descriptors reserved for the program: standard streams, the loop's own, logs, late imports."""


def fitted(limits: Limits, others: int) -> Limits:
    """Return the limits with `max_connections` lowered, if necessary, to what this process can have open besides `others` descriptors.

    Raises the soft limit of open files as far as needed and the hard limit allows. Source: getrlimit(2), RLIMIT_NOFILE.
    """
    try:
        import resource  # noqa: PLC0415 - only systems with fork have it
    except ImportError:
        return limits
    if limits.max_connections is None:
        return limits
    need = limits.max_connections + others + MARGIN
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _is_enough(soft, need):
        return limits
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (need if _is_enough(hard, need) else hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _is_enough(soft, need):
        return limits
    most = max(1, soft - others - MARGIN)
    log.warning(
        "this process may have %d files open, and max_connections=%d needs %d: no more than %d connections are accepted at a time; "
        "raise the limit (ulimit -n), or lower max_connections",
        soft,
        limits.max_connections,
        need,
        most,
    )
    return attrs.evolve(limits, max_connections=min(most, limits.max_connections))


def _is_enough(limit: int, need: int) -> bool:
    return limit < 0 or limit >= need  # RLIM_INFINITY is -1 here
