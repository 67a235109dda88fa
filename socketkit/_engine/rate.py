"""How fast and how many: a token bucket, and refusing at random as a server fills up. Used only by the thread that takes."""

from __future__ import annotations

import math
from collections.abc import Callable

from socketkit.seams import Clock


class Bucket:
    """A token bucket that gains `rate` tokens a second, up to `burst` (None: one second's worth). Not thread-safe."""

    def __init__(self, rate: float, burst: int | None, clock: Clock) -> None:
        self._rate = rate
        self._burst = float(max(1, math.ceil(rate)) if burst is None else burst)
        self._clock = clock
        self._tokens = self._burst
        self._filled = clock()

    def due(self) -> float:
        """Return the seconds until a token is available; 0.0 if one is."""
        if self._tokens >= 1.0:
            return 0.0
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        return max(0.0, (1.0 - self._tokens) / self._rate)

    def take(self) -> None:
        """Take a token; call it only after `due` has returned 0.0."""
        self._tokens -= 1.0


class Chance:
    """Refuses a growing share of connections beyond `start`, and all at `full`. Source: sshd_config(5), MaxStartups."""

    def __init__(self, start: float, full: float, draw: Callable[[], float] | None) -> None:
        if draw is None:
            import random  # noqa: PLC0415 - only for overflow="early"

            draw = random.random
        self._start, self._width, self._draw = start, full - start, draw

    def is_against(self, count: int) -> bool:
        """Return whether to refuse one more connection when `count` are open."""
        return count > self._start and self._draw() * self._width < count - self._start
