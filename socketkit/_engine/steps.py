"""The request steps that composed and classic servers share, as template methods."""

from __future__ import annotations

from functools import lru_cache

from socketkit._system.forking import forks, leave_if_forked

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from socketkit._engine.engine import Engine

    Function = TypeVar("Function", bound=Callable[..., Any])
    from socketkit.seams import Address, Request, ShakesHands
else:
    Any = object  # for programs that evaluate the annotations of a subclass

STEPS = frozenset({"verify_request", "process_request", "process_request_thread", "finish_request"})
"""The steps that a request goes through on its way to its handler."""

_own_steps: list[Any] = []


def own_step(function: Function) -> Function:
    """Mark a step as the library's own. A server whose steps are all marked may run its requests without calling them."""
    _own_steps.append(function)
    return function


def replaced_steps(server: RequestTemplate) -> frozenset[str]:
    """Return the names of the steps that the server's class overrides."""
    kind: Any = type(server)
    return _replaced_steps(kind)


@lru_cache(maxsize=256)  # bounded, for programs that create classes dynamically
def _replaced_steps(kind: type) -> frozenset[str]:
    return frozenset(step for step in STEPS if not any(getattr(kind, step) is own for own in _own_steps))


def replaces(server: RequestTemplate, method: str) -> bool:
    """Return whether the server's class overrides this one of the methods that are marked as the library's own."""
    return not any(getattr(type(server), method) is own for own in _own_steps)


class RequestTemplate:
    """The steps of a request after its accept. Names without an underscore come from the standard library and may be overridden.

    Subclasses define `process_request`, `shutdown_request`, `close_request` and `handle_error`.
    """

    RequestHandlerClass: Any
    process_request: Any
    shutdown_request: Any
    close_request: Any
    handle_error: Any

    _make_engine: Any  # returns the server's engine; called by `engine_of`
    _socketkit_layered = False  # whether it has had connections with layers; here, because it is read for each request

    @own_step
    def verify_request(self, request: Request, client_address: Address) -> bool:  # noqa: ARG002 - for overriding
        """Return whether to serve the request. If it raises, the request ends and `handle_error` is called."""
        return True

    def _pass_layer(self, request: Request, layer: ShakesHands | None, objection: str) -> Request | None:
        """For handlers that upgrade their connection: see `socketkit._engine.request.Requests.pass_layer`."""
        return engine_of(self).pass_layer(request, layer, objection)

    def _layer_to_upgrade(self, request: Request) -> Any:
        """For asynchronous handlers: return the live layer that the transport leaves to them; None if there is none."""
        entry = engine_of(self).ledger.find(request)
        return None if entry is None else entry.upgrade

    def _fail_upgrade(self, request: Request, error: Exception) -> None:
        """For asynchronous handlers: see `socketkit._engine.request.Requests.fail_upgrade`."""
        engine_of(self).fail_upgrade(request, error)

    @own_step
    def process_request_thread(self, request: Request, client_address: Address) -> None:
        """Run the request here: handler, errors, close. Called in the thread or process that the dispatcher chose."""
        behind, engine = forks.behind, engine_of(self)
        entry = engine.ledger.find(request)
        leave = engine.enter_handler(entry)
        try:
            self.finish_request(request, client_address)
        except Exception as error:  # noqa: BLE001 - passed to handle_error
            engine.fail_request(request if entry is None else entry.request, client_address, error)
        except BaseException as error:
            leave_if_forked(error, behind)
            engine.ledger.fail(request if entry is None else entry.request, error)
            raise
        finally:
            if leave is not None:
                leave()
            engine.end_request(request if entry is None else entry.request)  # its handler may have had it replaced

    @own_step
    def finish_request(self, request: Request, client_address: Address) -> None:
        """Call the handler. Raises: RuntimeError if the connection has not passed its layers, so that nobody sends it plain text."""
        if self._socketkit_layered and (entry := engine_of(self).ledger.find(request)) is not None and entry.layers:
            raise RuntimeError(f"{entry.layers[0]} has not been passed; call process_request, not finish_request, in a thread of your own")
        self.RequestHandlerClass(request, client_address, self)

    def handle_timeout(self) -> None:
        """Do nothing; `handle_request` calls this when no request arrived in time."""

    @own_step
    def service_actions(self) -> None:
        """Do nothing; the serving loop calls this after every turn, and at least every `poll_interval` seconds."""


ENGINE = "_socketkit_engine"
"""The instance attribute that holds a server's engine; its name is unlikely to clash with a program's own."""


def engine_of(server: RequestTemplate) -> Engine:
    """Return the server's engine, created on first use: some programs never call a server's constructor."""
    attributes = vars(server)
    engine: Engine | None = attributes.get(ENGINE)
    if engine is None:
        engine = attributes.setdefault(ENGINE, server._make_engine())  # noqa: SLF001 - a server and its engine form one unit
    return engine
