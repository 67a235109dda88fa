"""A transport, a layer, a dispatcher, a lifecycle and a plugin of somebody else's, as a type checker sees them. Never run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, assert_type

import attrs

from socketkit import TCP, Graceful, Layered, Server, Threads
from socketkit.hookspecs import hookimpl
from socketkit.seams import (
    Address,
    Dispatch,
    Dispatcher,
    Drive,
    Intake,
    Kind,
    Layer,
    Lifecycle,
    Listener,
    Renews,
    Request,
    Serving,
    Transport,
    Work,
)
from socketkit.seams.stats import DrainReport


@attrs.frozen
class Elsewhere:
    """A transport that leaves the work to another."""

    port: int
    kind: ClassVar[Kind] = "stream"

    @property
    def url(self) -> str:
        return f"elsewhere://{self.port}"

    def open(self) -> Listener:
        return TCP("127.0.0.1", self.port).open()


@attrs.frozen
class Logged:
    """A layer that changes nothing."""

    def wrap(self, request: Request, client_address: Address) -> tuple[Request, Address]:
        return request, client_address


@attrs.frozen
class Renewed:
    """A layer whose live part is renewed."""

    def start(self) -> Layer:
        return _Renewed()


class _Renewed(Logged):
    renew_every = 60.0

    def renew(self) -> None:
        pass


@attrs.frozen
class Twice:
    """A dispatcher of the simple shape."""

    def start(self, work: Work) -> Dispatch:
        return _Twice(work)


@attrs.define
class _Twice:
    work: Work

    def dispatch(self, request: Request, client_address: Address) -> None:
        self.work.run(request, client_address)

    def wait(self, timeout: float | None) -> bool:
        return timeout is None

    def close(self) -> None:
        pass


@attrs.frozen
class Crank:
    """A dispatcher of the powerful shape."""

    def start(self, work: Work) -> Drive:
        return _Crank(work)


@attrs.define
class _Crank:
    work: Work

    def drive(self, open_intake: Callable[[], Intake]) -> None:
        intake = open_intake()
        while not intake.stopped:
            unit = intake.take(1.0)
            if unit is not None:
                unit()

    def wait(self, timeout: float | None) -> bool:
        return timeout is None

    def close(self) -> None:
        pass


@attrs.frozen
class Brief:
    """A lifecycle."""

    def serve(self, serving: Serving) -> DrainReport:
        serving.run()
        return assert_type(serving.drain(0), DrainReport)


@attrs.frozen
class Incomplete:
    """No dispatcher: what it starts cannot be closed."""

    def start(self, work: Work) -> Callable[[Request, Address], None]:
        return work.run


@hookimpl
def socketkit_dispatchers() -> Mapping[str, type[Dispatcher]]:
    return {"twice": Twice, "crank": Crank}


transport: Transport = Elsewhere(9999)
layer: Layer = Logged()
renewed: Renews = _Renewed()
lifecycle: Lifecycle = Brief()
Server(Layered(Elsewhere(9999), Logged(), Renewed()), print, dispatcher=Twice(), lifecycle=Brief())
Server(Elsewhere(9999), print, dispatcher=Crank(), lifecycle=Graceful())
Server(Elsewhere(9999), print, dispatcher=Incomplete())  # type: ignore[arg-type]
wrong: Transport = Threads()  # type: ignore[assignment]
