"""A stream connection as a unit of work that can be parked: before its first byte, and between the requests of a conversation."""

from __future__ import annotations

import contextlib
import enum
import threading
from collections.abc import Callable
from contextvars import copy_context
from functools import partial

from socketkit._engine.conversation import GOODBYE, has_more, is_conversation, opener_of, say_goodbye
from socketkit._engine.parking import NEVER
from socketkit._engine.passage import Passage
from socketkit._engine.request import NOT_VERIFIED, STOPPED_EARLY, RequestUnit
from socketkit._system.sockets import discard_unread, peek
from socketkit.handlers.conversation import ConversationHandler
from socketkit.handlers.files import discard_rest

TYPE_CHECKING = False  # instead of importing it from typing
if TYPE_CHECKING:
    from typing import Any

    from socketkit._engine.intake import Intake
    from socketkit._engine.sources import RequestSource
    from socketkit.seams import Address, Parking, Request


SOON = 0.001
"""Seconds after which a read of a connection that has been idle for its whole timeout times out."""


class Connection(RequestUnit):
    """One accepted connection, from its acceptance to its outcome; calling it runs it until it would have to wait.

    It is in one place at a time: parked, queued in the intake, or running in the one thread that called it.
    """

    __slots__ = (
        "_context",
        "_fileno",
        "_handler",
        "_is_first",
        "_known_to",
        "_leave",
        "_parking",
        "_passage",
        "_says_goodbye",
        "_verified",
        "deadline",
        "expired",
        "noted",
        "parked_at",
    )

    def __init__(self, source: RequestSource, parking: Parking, request: Request, client_address: Address) -> None:
        super().__init__(source, request, client_address)
        self._parking = parking
        self._handler: Any = None  # set once a conversation has begun
        self._context: Any = None  # the context variables of a conversation that waits
        self._fileno: int = request.fileno()
        self._known_to: Intake | None = None  # the intake where it was last parked, whose poller knows its descriptor
        self._leave: Callable[..., None] | None = None  # while a thread is in its handler, and observers want to know when it leaves
        self._is_first = False  # it waits for its first request, with the first-byte limit
        self._passage: Passage | None = None  # while it passes its layers
        self._verified = False  # `verify_request` has returned true
        self._says_goodbye = False  # its handler tells the client which response is the last
        self.parked_at = self.deadline = self.noted = NEVER
        self.expired = False

    @property
    def begun(self) -> bool:
        """Whether its conversation has begun."""
        return self._handler is not None

    def fileno(self) -> int:
        return self._fileno

    def arrive(self) -> Connection | None:
        """Open its ledger entry; return itself if it can run at once, or None after parking it for its first byte."""
        self._source.ledger.open(self)
        if peek(self.request) is not None:
            return self
        self._park(self._parking.defer)
        return None

    def __call__(self) -> None:
        try:
            if self.layers:
                self._pass_layers()
            elif self._handler is None:
                self._begin()
            else:
                self._context.run(self._converse)
        except BaseException as error:
            if self._source.ledger.find(self.request) is not self:
                raise  # it was ended properly, and the error is meant for the process
            self._fail(error)

    def move(self, intake: Intake) -> None:
        """Wait in `intake` from now on, after being removed from another one."""
        self._source.intake = intake
        if self._handler is None:
            self._park(self._parking.defer)
        else:
            self._wait_for_request()

    def is_readable(self) -> bool:
        """Return whether there is something to read, including end of stream or an error."""
        return peek(self.request) is not None

    def is_owed_goodbye(self, now: float) -> bool:
        """Return whether its client may be about to send a request, whose response could tell it that it was the last."""
        return self._says_goodbye and now - self.parked_at < GOODBYE

    def refuse(self, reason: str, reply: bytes = b"") -> None:
        """Refuse the connection instead of running it, or end its conversation instead of continuing it."""
        if self._handler is not None:
            self._source.ledger.refuse(self.request, reason)
            self._context.run(self._end)
            return
        self._forget()
        super().refuse(reason, reply)

    def evict(self, reason: str) -> None:
        """Make the next call end its conversation, which was already removed from the lot."""
        self._source.ledger.refuse(self.request, reason)
        own = getattr(getattr(self._source.server, "dispatcher", None), "connections", None)
        self._source.ledger.say_cut(self, "limits.max_connections" if own is None else "dispatcher.connections", reason)
        self.expired, self._is_first = True, False

    def abandon(self) -> None:
        """End it while parked, because its server stops."""
        if self._handler is None:
            self._end()
        else:
            self._context.run(self._end)

    # inside

    def _pass_layers(self) -> None:
        """Pass the layers as far as that needs no wait for the client; then wait without a thread, or begin."""
        engine, intake = self._source.engine, self._source.intake
        self.thread = threading.get_ident()
        self.heard = self.heard or not self.expired
        try:
            if not self._verify():
                return
        except BaseException as error:  # noqa: BLE001 - `_fail` judges every error of a request
            self._fail(error)
            return
        self._passage = self._passage or Passage(self, engine.ledger, engine.live)
        try:
            passed = self._passage.go_on() or (intake.ending and self.heard and self._passage.complete(GOODBYE))
        except Exception as error:  # noqa: BLE001 - a layer is a plug-in fed by a peer: its errors end that connection only
            self._forget()
            engine.fail_in_layer(self, error)
            return
        if passed:
            self._passage = None
            if self.heard:
                self._begin()
            else:
                self._rest(self._parking.defer)
        elif intake.ending:
            self.refuse(STOPPED_EARLY)
        else:
            self._rest(None)

    def _rest(self, seconds: float | None) -> None:
        self.thread = None
        self._park(seconds)

    def _verify(self) -> bool:
        """Return whether `verify_request` lets the request in, now or earlier; otherwise refuse it."""
        if not self._verified:
            self._verified = self._source.server.verify_request(self.request, self.client_address)
            if not self._verified:
                self._source.ledger.refuse(self.request, NOT_VERIFIED)
                discard_unread(self.request)
                self._close()
        return self._verified

    def _begin(self) -> None:
        """Begin the conversation, or run the handler in one piece."""
        if self.expired and self.is_readable():
            self.expired = False  # its first byte arrived while other connections were served
        opener = opener_of(self._source.server)
        if opener is None:
            self._leave_parking()
            if self._verified or is_conversation(self._source.server.RequestHandlerClass):
                # not straight to the handler: the `finish` of a conversation may leave bytes unread, which the template does not
                self._source.engine.run_request(self.request, self.client_address, verified=self._verified)
            else:
                super().__call__()
        else:
            self.thread = threading.get_ident()
            self._open(opener)

    def _open(self, opener: Callable[..., Any]) -> None:
        """Verify the request, construct the handler without running it, and begin the conversation."""
        server, request = self._source.server, self.request
        try:
            if not self._verify():
                return
            self._leave = self._source.engine.enter_handler(self)
            handler = opener(request, self.client_address, server)
        except BaseException as error:  # noqa: BLE001 - `_fail` judges every error of a request
            self._fail(error)
            return
        if has_more(handler, request) is None:
            self._run_on(handler, handler.handle)
            return
        self._handler, self.heard = handler, True  # no first-byte deadline: it has a byte, or will be parked
        self._says_goodbye = say_goodbye(handler, self._is_last)
        if not isinstance(handler, ConversationHandler):
            handler.close_connection = True  # as `handle()` of http.server sets it before the first request
        if self.expired:  # no first byte in time, but the handler is set up and has sent any greeting
            self._suspend()
            self._wait_for_request(first=True)
        else:
            self._converse()

    def _run_on(self, handler: Any, handle: Callable[[], object]) -> None:
        """Run the rest of the conversation in this thread, because only the handler knows what it reads next."""
        self._leave_parking()
        self._say_no_goodbye()
        self._handler = None
        try:
            try:
                handle()
            finally:
                handler.finish()
        except BaseException as error:  # noqa: BLE001 - `_fail` judges every error of a request
            self._fail(error)
        else:
            discard_unread(self.request)  # that of http.server's handlers does not do it
            self._close()

    def _leave_parking(self) -> None:
        if not self.expired:
            self.heard = True
        elif self._source.deadlines is not None:
            self._source.deadlines.listen_to(self.request)
        self._forget()  # first: the handler may close the descriptor, and its number may be reused

    def _converse(self) -> None:
        """Serve requests until none is left to read; then park or end."""
        self.thread = threading.get_ident()
        self._enter()
        self._start_clock()
        try:
            if not self.expired:
                self._is_first = False
            then = self._time_out() if self.expired else self._serve_requests()
        except BaseException as error:  # noqa: BLE001 - `_fail` judges every error of a request
            self._give_up(error)
            return
        if then is _Then.END:
            if self.expired and self._is_first:  # otherwise the client has made a request before
                self._source.ledger.cut(self, "first_byte", "no request arrived in time")
            self._end()
            return
        if then is _Then.RUN_ON:
            self._run_on(self._handler, partial(_go_on, self._handler))
            return
        self.thread = None
        self._suspend()
        if then is _Then.GO_ON:
            self._mark_idle()
            if not self._source.intake.again(self):  # it has used up its share: other units go first
                self._end()
        else:
            self._wait_for_request()

    def _enter(self) -> None:
        """Have observers know that this thread goes on with the handler."""
        if self._leave is None:
            self._leave = self._source.engine.enter_handler(self, again=True)

    def _suspend(self) -> None:
        """Leave the handler, and keep its context, until the connection goes on."""
        self._leave_handler(parked=True)
        self._context = copy_context()

    def _leave_handler(self, *, parked: bool) -> None:
        """Have observers know that this thread has left the handler, if they know that it had entered."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave(parked=parked)

    def _serve_requests(self) -> _Then:
        """Serve requests that can be read without waiting, `max_inline` at most."""
        handler = self._handler
        if isinstance(handler, ConversationHandler) and not handler.another_request():
            return _Then.END
        for _ in range(self._parking.max_inline):
            handler.handle_one_request()
            if handler.close_connection:
                return _Then.END
            more = has_more(handler, self.request)
            if more is None:
                return _Then.RUN_ON
            if not more and not (self._source.intake.ending and peek(self.request)):
                return _Then.WAIT
        return _Then.END if self._source.intake.ending else _Then.GO_ON

    def _time_out(self) -> _Then:
        """End a conversation that was idle for too long. A handler of `http.server` sees its own timeout, which it logs."""
        handler = self._handler
        was_idle = self.outcome == "finished" and not self._is_first and not self._source.intake.ending
        if was_idle and not self._own_timeout():
            limits = self._source.engine.limits
            key = "dispatcher.idle" if limits is None or limits.idle is None else "limits.idle"
            self._source.ledger.say_cut(self, key, f"no request came within {self._parking.idle:g} s")
        elif was_idle and not isinstance(handler, ConversationHandler):
            self.request.settimeout(SOON)
            handler.handle_one_request()
        return _Then.END

    def _own_timeout(self) -> float | None:
        """Return the seconds that the handler itself waits for a request, by its attribute or by its socket; None: it has no limit."""
        own: float | None = getattr(self._handler, "timeout", None)
        return self.request.gettimeout() if own is None else own

    def _wait_for_request(self, *, first: bool = False) -> None:
        limit = self._own_timeout() or self._parking.idle
        if self._source.intake.ending:
            if not self._says_goodbye:
                self._end()
                return
            limit = GOODBYE if limit is None else min(limit, GOODBYE)
        deadlines = self._source.deadlines
        if first and deadlines is not None and deadlines.first_byte is not None and (limit is None or deadlines.first_byte < limit):
            self._is_first, limit = True, deadlines.first_byte
        self._mark_idle()
        self._park(limit)

    def _start_clock(self) -> None:
        deadlines = self._source.deadlines
        if deadlines is not None:
            if not self._is_within_request():
                self.began = self._source.ledger.clock()
            if deadlines.asleep:
                deadlines.begin()

    def _mark_idle(self) -> None:
        """Stop the clock of its request, unless one is partly read: that keeps its deadline."""
        if not self._is_within_request():
            self.began = NEVER

    def _is_within_request(self) -> bool:
        return getattr(self._handler, "is_within_request", False)

    def _park(self, seconds: float | None) -> None:
        """Park in the intake, or in its successor; end if there is none."""
        if self.request.fileno() != self._fileno:  # the handler has closed it
            self._end()
            return
        intake = None
        while intake is not self._source.intake:
            intake = self._source.intake
            if self._known_to is not intake:
                self._known_to, self.noted = intake, NEVER
            try:
                if intake.park(self, seconds):
                    return
            except (OSError, ValueError) as error:  # the system cannot watch more descriptors
                intake.lot.leave(self)
                self._give_up(error)
                return
        self._end()

    def _end(self) -> None:
        """Finish the handler, if there is one, and close."""
        self._forget()  # first: a handler that has closed its socket leaves it open until `finish` closes the files
        try:
            if self._handler is not None:
                self._enter()
                self._handler.finish()
        except BaseException as error:  # noqa: BLE001 - `_fail` judges every error of a request
            self._fail(error)
        else:
            self._close()

    def _give_up(self, error: BaseException) -> None:
        """Finish the handler, if there is one, and close, because of `error`, the exception being handled."""
        self._forget()
        if self._handler is not None:
            with contextlib.suppress(BaseException):  # report the first error only
                self._handler.finish()
        self._fail(error)

    def _is_last(self) -> bool:
        """Return whether to tell the client that the current request is the last."""
        return self._source.intake.ending or self._source.intake.lame

    def _forget(self) -> None:
        if self._known_to is not None:
            self._known_to.forget(self)
            self._known_to = None

    def _close(self) -> None:
        self._forget()
        if self._handler is not None:
            discard_rest(self._handler)  # our `finish` has done it already; that of http.server's handlers does not
        self._say_no_goodbye()
        self._leave_handler(parked=False)
        super()._close()

    def _say_no_goodbye(self) -> None:
        if self._says_goodbye:
            vars(self._handler).pop("end_headers", None)  # breaks the reference cycle
            self._says_goodbye = False


class _Then(enum.Enum):
    """What a conversation does next."""

    END = enum.auto()
    WAIT = enum.auto()
    GO_ON = enum.auto()
    RUN_ON = enum.auto()


def _go_on(handler: Any) -> None:
    """Do what is left of a conversation's `handle()`."""
    if isinstance(handler, ConversationHandler):
        handler.handle()
    else:
        while not handler.close_connection:
            handler.handle_one_request()
