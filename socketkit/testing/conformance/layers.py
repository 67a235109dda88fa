"""What a layer promises: see `socketkit.seams.Layer`, `socketkit.seams.ShakesHands` and `socketkit.seams.Starts`."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from socketkit.errors import ConfigError, IncompatibleError
from socketkit.lifecycles.graceful import Graceful
from socketkit.seams import Answered
from socketkit.seams.limits import Limits
from socketkit.server import Server
from socketkit.testing.chaos import ChaosProxy, Drip
from socketkit.testing.conformance.commands import Client, Commands, Lines
from socketkit.testing.conformance.promises import Report, applies_if, check, expect
from socketkit.testing.conformance.recipes import RecipeConformance, check_handlers
from socketkit.testing.leaks import Account
from socketkit.transports.layered import Layered
from socketkit.transports.tcp import TCP

HANDSHAKE = 0.3
"""Seconds that a server of a check gives to handshakes that cannot succeed."""

ENDED = (OSError, ValueError, Answered)
"""What a layer may raise to end a connection."""


class LayerConformance(RecipeConformance):
    """The promises of a layer. Override `client` unless the layer waits for nothing from its clients."""

    seam: ClassVar[str] = "layer"

    def client(self, sock: socket.socket) -> socket.socket:
        """Do a client's part on a connected, blocking socket, and return the socket to go on with.

        If the layer answers its clients itself, that is to ask for what it answers.
        """
        return sock

    # what it is

    def test_shape(self) -> None:
        """It has one of `wrap`, `begin` and `start`, and what `start` returns has one of the first two."""
        layer = self._live()
        shapes = [name for name in ("wrap", "begin") if callable(getattr(layer, name, None))]
        expect(len(shapes) == 1, f"a {type(layer).__name__} has {' and '.join(shapes) or 'neither wrap nor begin'}; it needs one of them")

    def test_check(self) -> None:
        """`check`, if it has one, accepts a handler, or refuses it with ConfigError or IncompatibleError."""
        handlers = (Commands, Lines, functools.partial(Commands), lambda *_: None)
        check_handlers(self.make(), handlers, ConfigError, IncompatibleError)

    # a handshake of its own

    def test_never_blocks(self) -> None:
        """`go_on` returns None while the client says nothing, and does not block."""
        layer = self._live()
        applies_if(hasattr(layer, "begin"), "it has wrap(), which may block")
        ours, theirs = self._connected()
        with ours, theirs, _begun(layer, ours, theirs.getsockname()) as handshake:
            passed = self.at_once(functools.partial(_go_on, handshake), "go_on() without a word from the client")
            applies_if(passed is None, "it waits for nothing from its clients")
            expect(handshake.sends in {False, True}, f"sends is {handshake.sends!r}")
            again = self.at_once(handshake.go_on, "the second go_on() without a word from the client")
            expect(again is None, f"go_on() returned None and then, with nothing new, {again!r}")

    def test_client_gone(self) -> None:
        """A client that leaves before its handshake is over ends it with OSError or ValueError."""
        layer = self._live()
        applies_if(hasattr(layer, "begin"), "it has wrap()")
        ours, theirs = self._connected()
        with ours, _begun(layer, ours, theirs.getsockname()) as handshake:
            applies_if(self.at_once(functools.partial(_go_on, handshake), "go_on()") is None, "it waits for nothing from its clients")
            theirs.close()
            try:
                passed = self.at_once(handshake.go_on, "go_on() after the client has left")
            except (OSError, ValueError):
                return
            expect(False, f"go_on() after the client has left returned {passed!r}; it must raise OSError or ValueError")

    def test_begin_reads_nothing(self) -> None:
        """`begin` reads nothing yet."""
        layer = self._live()
        applies_if(hasattr(layer, "begin"), "it has wrap()")
        ours, theirs = self._connected()
        with ours, theirs:
            theirs.sendall(b"hello")
            ours.recv(5, socket.MSG_PEEK)  # waits until all is there
            copy = ours.dup()  # the layer may detach the socket
            with copy, _begun(layer, ours, theirs.getsockname()), contextlib.suppress(BlockingIOError):
                left = copy.recv(5, socket.MSG_PEEK)
                expect(left == b"hello", f"begin() has read some of b'hello': {left!r} is left")
                return
            expect(False, "begin() has read what the client sent; leave that to go_on()")

    # when it ends a connection

    def test_request_is_all(self) -> None:
        """Closing `Handshake.request` closes the connection: the server closes nothing else."""
        layer = self._live()
        applies_if(hasattr(layer, "begin"), "it has wrap()")
        ours, theirs = self._connected()
        with ours, theirs:
            with _begun(layer, ours, theirs.getsockname()) as handshake, contextlib.suppress(*ENDED):
                handshake.go_on()
            self._has_ended(theirs, "after `request` of a handshake was closed")

    def test_failure_leaves_all(self) -> None:
        """When it raises to end a connection, the caller closes the request, and nothing keeps the connection open."""
        layer = self._live()
        ours, theirs = self._connected()
        with ours, theirs:
            theirs.sendall(b"\xff" * 600)
            theirs.shutdown(socket.SHUT_WR)
            request, failed = self.at_once(
                lambda: _passed(layer, ours, theirs.getsockname()), "a layer whose client sends garbage and ends"
            )
            request.close()
            applies_if(failed, "it lets any bytes pass")
            self._has_ended(theirs, "after the layer has raised and the request was closed")

    # in a server

    def test_address(self) -> None:
        """Handlers get the client's address: that of the peer, unless the layer declares `names_client`."""
        self._reaches_handlers()
        applies_if(not getattr(self.make(), "names_client", False), "it declares names_client")
        with self._serving(Commands) as server, self._client(server.addresses[0]) as talking:
            expected = talking.address
            found = talking.ask("address")
            expect(found == str(expected), f"the handler got the address {found} of a client at {expected}")

    def test_replaces_socket(self) -> None:
        """A layer that gives handlers another object than the socket declares `replaces_socket`."""
        self._reaches_handlers()
        with self._serving(Commands) as server, self._client(server.addresses[0]) as talking:
            found = talking.ask("type")
        declared = all(getattr(each, "replaces_socket", False) for each in (self.make(), self._live()))
        expect(found == "socket" or declared, f"the handler got a {found}; declare replaces_socket = True on the recipe and the live part")

    def test_no_timeout(self) -> None:
        """Handlers get a request that blocks, without a timeout."""
        self._reaches_handlers()
        with self._serving(Commands) as server, self._client(server.addresses[0]) as talking:
            found = talking.ask("timeout")
            expect(found == "None", f"the handler got a request with a timeout of {found} s; restore what the layer changes")

    def test_two_servers(self) -> None:
        """Two servers with one recipe serve at the same time, and the end of one leaves the other alone."""
        recipe = self.make()
        with self._serving(Commands, recipe=recipe) as one:
            with self._serving(Commands, recipe=recipe) as other:
                for server in (one, other):
                    self._is_served(server)
            self._is_served(one)

    def test_passes_both_ways(self) -> None:
        """What a client sends reaches the handler, and its reply the client, to the last byte."""
        self._reaches_handlers()
        with self._serving(Commands) as server:
            for size in (1, 60_000):
                text = "x" * size
                with self._client(server.addresses[0]) as talking:
                    answer = talking.ask(f"echo {text}")
                expect(
                    answer == text,
                    f"of {size} bytes, {len(answer)} came back" if answer in text else "other bytes came back than were sent",
                )
            self._counts(server, finished=2)

    def test_end_of_stream(self) -> None:
        """The end of the reply arrives as the end of the stream."""
        self._reaches_handlers()
        with self._serving(Commands) as server, self._client(server.addresses[0]) as talking:
            talking.ask("echo x")
            rest = talking.hear()
            expect(rest == "", f"after the reply, the client reads {rest!r}")

    def test_conversation(self) -> None:
        """The requests of a conversation pass one by one and several at a time."""
        self._reaches_handlers()
        with self._serving(Lines) as server, self._client(server.addresses[0]) as talking:
            for number in range(10):
                expect((answer := talking.ask(str(number))) == str(number), f"request {number} of a conversation was answered {answer!r}")
            talking.tell("a", "b", "c")
            answers = [talking.hear() for _ in range(3)]
            expect(answers == ["a", "b", "c"], f"three requests in one piece were answered {answers}")

    def test_byte_by_byte(self) -> None:
        """It understands what arrives one byte at a time, and takes no byte that is meant for the handler."""
        with self._serving(Commands) as server, ChaosProxy(server.addresses[0], Drip(1, 0.0), Drip(1, 0.001, to="server")) as proxy:
            with self._client(proxy.address) as talking:
                answer = self._answer(talking)
            expect(self._is_right(answer), f"through a line that carries one byte at a time, the answer was {answer!r}")

    def test_together(self) -> None:
        """It takes no byte that is meant for the handler, though that byte arrives together with its own."""
        self._reaches_handlers()
        applies_if(hasattr(socket, "TCP_CORK"), "this system cannot hold a client's bytes back")
        with self._serving(Commands) as server, socket.create_connection(server.addresses[0], self.patience) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)  # for 200 ms at most. Source: tcp(7)
            number = os.dup(sock.fileno())  # the client's part may detach the socket
            with socket.socket(fileno=number) as corked, contextlib.closing(Client(self.client(sock), self.patience)) as talking:
                talking.tell("echo hello")
                corked.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
                answer = talking.hear()
            expect(answer == "hello", f"a client whose request came together with what the layer reads was answered {answer!r}")

    def test_garbage(self) -> None:
        """Bytes that make no sense end their own connection at most, also when they are many."""
        with self._serving(Commands) as server:
            for noise in (b"\0", b"\xff" * 70_000, b"GET / HTTP/1.1\r\n\r\n", os.urandom(5_000)):
                with contextlib.suppress(OSError), socket.create_connection(server.addresses[0], self.patience) as sock:
                    sock.sendall(noise)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(65_536):
                        pass
                self._is_served(server)
            self.until(
                lambda: not server.stats().active, "{seconds} s after clients that sent garbage have left, requests still count as active"
            )

    def test_silent_clients(self) -> None:
        """Clients that say nothing hold up nobody, and are given up when the time for the handshake is over."""
        with self._serving(Lines, handshake=HANDSHAKE) as server, contextlib.ExitStack() as silent:
            for _ in range(50):
                silent.enter_context(socket.create_connection(server.addresses[0], self.patience))
            time.sleep(0.05)  # until the layer has begun with them, which nothing announces
            with self._client(server.addresses[0]) as talking:
                expect(self._is_right(self._answer(talking, "hello")), "beside 50 silent clients, another one was not answered")
            waits = hasattr(self._live(), "begin") and not self._passes_at_once()
            applies_if(waits, "it waits for nothing from its clients")
            self.until(lambda: not server.stats().active, "{seconds} s later, silent clients still have not been given up")

    def test_answers(self) -> None:
        """If it declares `answers`, each client gets an answer and counts as finished, and no handler runs."""
        applies_if(self._declares_answers, "it does not declare answers")
        ran = list[Any]()
        with self._serving(lambda *request: ran.append(request)) as server:
            for _ in range(2):
                with self._client(server.addresses[0]) as talking:
                    expect(talking.hear(), "a client was not answered")
                    while talking.hear():
                        pass
            self._counts(server, finished=2)
        expect(not ran, "a handler ran; raise Answered once all is sent")

    def test_leaves_nothing(self) -> None:
        """After the server is closed, nothing is left of the layer."""
        with self._serving(Commands) as server:
            self._is_served(server)
        before = Account.take()
        with self._serving(Commands) as server:
            self._is_served(server)
        left = before.left_since()
        expect(not left, f"after the server was closed there is still: {'; '.join(left)}")

    # inside

    @property
    def _declares_answers(self) -> bool:
        return getattr(self.make(), "answers", False)

    def _reaches_handlers(self) -> None:
        applies_if(not self._declares_answers, "it declares answers, so no client reaches a handler")

    def _answer(self, talking: Client, question: str = "echo hello") -> str:
        """Return the first line that the layer answers or, if it answers nobody, the answer of a handler to the question."""
        return talking.hear() if self._declares_answers else talking.ask(question)

    def _is_right(self, answer: str) -> bool:
        return bool(answer) if self._declares_answers else answer == "hello"

    def _live(self) -> Any:
        recipe = self.make()
        return recipe.start() if hasattr(recipe, "start") else recipe

    def _passes_at_once(self) -> bool:
        ours, theirs = self._connected()
        with ours, theirs, _begun(self._live(), ours, theirs.getsockname()) as handshake:
            return _go_on(handshake) is not None

    @contextlib.contextmanager
    def _serving(self, handler: Any, handshake: float | None = None, recipe: Any = None) -> Iterator[Server]:
        transport = Layered(TCP("127.0.0.1", 0), self.make() if recipe is None else recipe)
        with Server(
            transport, handler, lifecycle=Graceful(drain=self.patience), limits=Limits(handshake=handshake or self.patience)
        ) as server:
            self.at_once(server.start, "the start of a server")
            yield server

    @contextlib.contextmanager
    def _client(self, address: Any) -> Iterator[Client]:
        with socket.create_connection(address, self.patience) as sock:
            try:
                passed = self.client(sock)
            except OSError as error:
                expect(False, f"the client's part failed with {type(error).__name__}: {error}")
            with contextlib.closing(Client(passed, self.patience)) as talking:
                yield talking

    def _is_served(self, server: Server) -> None:
        with self._client(server.addresses[0]) as talking:
            answer = self._answer(talking)
        expect(self._is_right(answer), f"a client that sent 'hello' was answered {answer!r}")

    def _has_ended(self, sock: socket.socket, when: str) -> None:
        sock.settimeout(self.patience)
        try:
            while sock.recv(65_536):
                pass
        except TimeoutError:
            expect(False, f"{when}, the connection is still open; keep no copy of the socket")
        except OSError:
            pass  # reset

    def _connected(self) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a TCP connection, the server's first."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname(), self.patience)
            return listener.accept()[0], client

    def _counts(self, server: Server, **outcomes: int) -> None:
        self.until(lambda: not server.stats().active, "after all clients have left, {seconds} s later, requests still count as active")
        found = dict(server.stats().outcomes)
        expect(found == outcomes, f"the requests were counted as {found}, not {outcomes}")


@contextlib.contextmanager
def _begun(layer: Any, sock: socket.socket, address: Any) -> Iterator[Any]:
    """Yield the handshake of a connection, and close it as the server does: by its `request`, whatever that is by then."""
    sock.settimeout(0)
    handshake = layer.begin(sock, address)
    try:
        yield handshake
    finally:
        handshake.request.close()


def _go_on(handshake: Any) -> Any:
    """Return what `go_on` of the handshake returns, or the exception by which it says that it has answered."""
    try:
        return handshake.go_on()
    except Answered as answered:
        return answered


def _passed(layer: Any, sock: socket.socket, address: Any) -> tuple[Any, bool]:
    """Pass a connection; return the request to close, and whether the layer has raised."""
    handshake: Any = None
    try:
        if hasattr(layer, "wrap"):
            return layer.wrap(sock, address)[0], False
        sock.settimeout(0)
        handshake = layer.begin(sock, address)
        while handshake.go_on() is None:
            waiting = [handshake.request]
            select.select([] if handshake.sends else waiting, waiting if handshake.sends else [], [])
    except ENDED:
        return sock if handshake is None else handshake.request, True
    return handshake.request, False


def check_layer(
    make: Callable[[], Any], client: Callable[[socket.socket], socket.socket] | None = None, *, only: str | None = None
) -> Report:
    """Check a layer. client: does a client's part on a connected socket, and returns the socket to go on with. See `check_dispatcher`."""
    if client is None:
        return check(LayerConformance, make, only)
    return check(type("LayerConformance", (LayerConformance,), {"client": staticmethod(client)}), make, only)
