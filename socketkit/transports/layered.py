"""A transport with layers between accept and handler."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from socketkit.seams import AnyLayer, Kind, Listener, Transport, open_listeners


@attrs.frozen(init=False)
class Layered:
    """A stream transport whose connections pass through layers, in wire order, in the thread that runs the handler."""

    transport: Transport
    layers: tuple[AnyLayer, ...]

    def __init__(self, transport: Transport, *layers: AnyLayer) -> None:
        self.__attrs_init__(transport, layers)

    def __attrs_post_init__(self) -> None:
        if self.transport.kind != "stream":
            raise ValueError(f"{self.transport.url} carries datagrams, and layers need a stream; leave the layers out")

    @property
    def kind(self) -> Kind:
        """Always "stream"."""
        return self.transport.kind

    @property
    def requires(self) -> frozenset[str]:
        """Features that the transport below requires."""
        features: frozenset[str] = getattr(self.transport, "requires", frozenset())
        return features

    @property
    def url(self) -> str:
        """The URL of the transport below."""
        return self.transport.url

    def open(self) -> Listener:
        """Open the transport below. Raises: ListenError."""
        return self.transport.open()

    def open_all(self) -> Sequence[Listener]:
        """Open the transport below, wherever it listens. Raises: ListenError."""
        return open_listeners(self.transport)
