"""How a layer says that its client has had its answer."""

from __future__ import annotations


class Answered(Exception):  # noqa: N818 - no error: the connection ends as it should
    """Raised by a layer that has answered its client itself: the connection ends, finished, and no handler sees it. See `Answers`."""
