"""Serving as in the standard library: only the loop."""

from __future__ import annotations

import attrs

from socketkit.seams import Serving


@attrs.frozen
class Classic:
    """Handle no signals and drain nothing. The listeners stay open until the server is closed, and it may serve again."""

    def serve(self, serving: Serving) -> None:
        """Run the loop."""
        serving.run()
