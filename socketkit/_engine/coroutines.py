"""Running a request in an event loop: that of asyncio, or of another library."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from socketkit._engine.passage import Passage
from socketkit._system.forking import forks, leave_if_forked
from socketkit.handlers.base import unwrapped
from socketkit.handlers.coroutines import constructing
from socketkit.seams import Address, EventLoop, Request

if TYPE_CHECKING:  # asyncio takes longer to import than all of socketkit, and most programs do not need it
    from socketkit._engine.engine import Engine
    from socketkit._engine.ledger import Entry
    from socketkit._system.loop_connections import LoopConnection
    from socketkit.handlers.coroutines import AsyncRequestHandler


async def serve(engine: Engine, request: Request, client_address: Address, loop: EventLoop) -> None:
    """Run one request in this event loop: layers, handler, errors, close, settle. See `socketkit.seams.Work.run_async`."""
    ledger = engine.ledger
    entry = ledger.find(request)
    connection = None
    if entry is not None:
        entry.thread = threading.get_ident()
        if entry.layers:
            try:
                connection = await _pass_layers(engine, entry, loop)
            except Exception as error:  # noqa: BLE001 - a layer is a plug-in fed by a peer: its errors end that connection only
                engine.fail_in_layer(entry, error)
                return
            except BaseException as error:  # the loop cancels it
                ledger.fail(entry.request, error)
                engine.server.shutdown_request(entry.request)
                ledger.settle(entry.request)
                raise
            request, client_address = entry.request, entry.client_address
    try:
        await _process(engine, request, client_address, connection)
    except BaseException as error:
        ledger.fail(request, error)
        if not loop.is_cancellation(error) and not engine.confines(error):
            raise
    finally:
        ledger.settle(request)


async def _pass_layers(engine: Engine, entry: Entry, loop: EventLoop) -> LoopConnection | None:
    """Do for the loop what `Requests.pass_layers` does for a thread. Only layers that block take a thread.

    Return the connection that asyncio's loop has opened, if the last layer wants the loop to shake hands, and the handler takes that.
    Raises: what a layer raises.
    """
    last: Any = entry.layers[-1]
    is_for_loop = hasattr(last, "begin_in_loop") and hasattr(unwrapped(engine.server.RequestHandlerClass), "loop_connection")
    passage = Passage(entry, engine.ledger, left=int(is_for_loop))
    if not all(hasattr(layer, "begin") for layer in entry.layers):
        await loop.run_in_thread(passage.complete)
    while not passage.go_on():
        await loop.until_ready(entry.request, sends=passage.sends)
    if not is_for_loop:
        return None
    await loop.until_ready(entry.request, sends=False)  # a silent client costs no more than its connection
    from socketkit._system.loop_connections import LoopConnection  # noqa: PLC0415 - imports asyncio

    connection = await LoopConnection.open(entry.request)
    try:
        await last.begin_in_loop(connection)
    except BaseException:
        connection.abort()
        raise
    entry.layers = ()
    entry.begin_after_layers(engine.ledger.clock())
    entry.heard = connection.has_data
    return connection


async def _process(engine: Engine, request: Request, client_address: Address, connection: LoopConnection | None) -> None:
    """Do for async handlers what `process_request_thread` does for others. connection: what they get in place of the request."""
    server, behind = engine.server, forks.behind
    leave = engine.enter_handler(engine.ledger.find(request))
    try:
        with constructing() as made:
            server.finish_request(request, client_address)
        for handler in made:
            if connection is not None:
                handler.loop_connection = connection  # type: ignore[attr-defined] # see `socketkit.seams.TakesLoopConnections`
            await _run(handler)
    except Exception as error:  # noqa: BLE001 - passed to handle_error
        engine.fail_request(request, client_address, error)
    except BaseException as error:
        leave_if_forked(error, behind)
        engine.ledger.fail(request, error)
        raise
    finally:
        if leave is not None:
            leave()
        if connection is None:
            server.shutdown_request(request)
        else:
            connection.abort()
            engine.end_request(request)


async def _run(handler: AsyncRequestHandler) -> None:
    try:
        await handler.setup()
        try:
            await handler.handle()
        finally:
            await handler.finish()
    finally:
        handler.leave_loop()


class Asyncio:
    """How to wait in an event loop of asyncio: see `socketkit.seams.EventLoop`."""

    async def until_ready(self, request: Request, *, sends: bool) -> None:
        import asyncio  # noqa: PLC0415 - see above

        loop, fileno = asyncio.get_running_loop(), request.fileno()
        ready = loop.create_future()
        (loop.add_writer if sends else loop.add_reader)(fileno, ready.set_result, None)
        try:
            await ready
        finally:
            (loop.remove_writer if sends else loop.remove_reader)(fileno)

    async def run_in_thread(self, function: Callable[[], Any]) -> Any:
        import asyncio  # noqa: PLC0415 - see above

        task = asyncio.current_task()
        running = asyncio.get_running_loop().run_in_executor(None, function)
        cancelled = False
        while not running.done():
            try:
                await asyncio.wait((running,))
            except asyncio.CancelledError:
                cancelled = True
        if cancelled and task is not None:
            task.cancel()
        return running.result()

    def is_cancellation(self, error: BaseException) -> bool:
        import asyncio  # noqa: PLC0415 - see above

        return isinstance(error, asyncio.CancelledError) and (task := asyncio.current_task()) is not None and task.cancelling() > 0


ASYNCIO = Asyncio()
"""How to wait for a dispatcher that does not say how."""
