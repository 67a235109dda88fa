"""Serving as the standard library does it: the loop and nothing around it."""

from __future__ import annotations

import attrs

from socketkit.seams import Serving


@attrs.frozen
class Classic:
    """No signal is handled, nothing is drained; the listeners stay open until the server is closed, and it may serve again."""

    def serve(self, serving: Serving) -> None:
        """Run the loop."""
        serving.run()
