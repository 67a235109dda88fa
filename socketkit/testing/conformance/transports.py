"""What a transport promises: see `socketkit.seams.Transport` and `socketkit.seams.Listener`."""

from __future__ import annotations

import contextlib
import pickle
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Timer
from typing import Any, ClassVar

import attrs

from socketkit.composition import options
from socketkit.errors import ConfigError, ListenError
from socketkit.seams import grammar, open_listeners
from socketkit.server import Server
from socketkit.testing.clients import connect
from socketkit.testing.conformance.promises import BrokenPromiseError, Report, applies_if, check, expect
from socketkit.testing.conformance.recipes import RecipeConformance
from socketkit.testing.leaks import Account

NO_PLACES = ("", "?", ":", "::::", "[", "a:b:c", "host:99999999", "host:port", "\0", "\udcff", "x" * 70_000)
"""Texts that hardly any transport takes for the place in its URL."""

MOST = 60_000
"""Bytes of a datagram that any system carries on this machine."""


class TransportConformance(RecipeConformance):
    """The promises of a transport. Override `connect` if clients need more than a socket that connects to the address."""

    seam: ClassVar[str] = "transport"
    opens_once: ClassVar[bool] = False
    """Whether a listener uses its place up, as that of a socket does which the process was given. Then `make` returns a recipe for the
    same place within one check, and for a new place in the next check."""

    def connect(self, address: Any) -> socket.socket:
        """Return a client's socket that is connected to the address. The check closes it."""
        return connect(address, "stream" if self._is_stream() else "datagram", self.patience)

    # what it is

    def test_kind(self) -> None:
        """`kind` is "stream" or "datagram"."""
        kind = self.make().kind
        expect(kind in {"stream", "datagram"}, f"kind is {kind!r}")

    def test_url(self) -> None:
        """`url` is the URL to listen on, as a user would type it."""
        _expect_url(self.make().url, "url")

    def test_place(self) -> None:
        """The place in its URL, between ``://`` and ``?``, can be read back: by `locate`, or else as the first option."""
        recipe = self.make()
        kind, place = type(recipe), grammar.url(recipe.url).transport.value
        values = {field.name: getattr(recipe, field.name) for field in attrs.fields(kind) if field.init}
        if hasattr(recipe, "locate"):
            values |= {name: options.Text(value) if isinstance(value, str) else value for name, value in recipe.locate(place).items()}
        elif values:
            values[next(iter(values))] = options.Text(place)
        again = options.build(kind, recipe.url, values)
        expect(again.url == recipe.url, f"{recipe.url} is read back as {again!r}, whose URL is {again.url}")

    def test_locate(self) -> None:
        """`locate`, if it has one, refuses text that is no place with ValueError and one sentence."""
        recipe = self.make()
        applies_if(hasattr(recipe, "locate"), "it has no locate()")
        for text in NO_PLACES:
            try:
                fields = recipe.locate(text)
            except ValueError as error:
                expect(str(error) and "\n" not in str(error), f"locate({text[:20]!r}) raised ValueError with the message {str(error)!r}")
            except Exception as error:  # noqa: BLE001 - whatever it raises, it is the wrong one
                expect(False, f"locate({text[:20]!r}) raised {type(error).__name__} ({error}), not ValueError")
            else:
                expect(isinstance(fields, dict), f"locate({text[:20]!r}) returned {fields!r}, not a dict of options")

    # opening and closing

    def test_open(self) -> None:
        """`open` returns a listener with a descriptor, a URL and an address."""
        with self._open() as listener:
            expect(isinstance(listener.fileno(), int) and listener.fileno() >= 0, f"fileno() of an open listener is {listener.fileno()!r}")
            _expect_url(listener.url, "url of an open listener")
            expect(hasattr(listener, "socket"), "the listener has no attribute socket; without a listening socket it is None")
            _ = listener.address

    def test_close(self) -> None:
        """`close` may be called twice, and `fileno` is -1 from then on."""
        with self._open() as listener:
            listener.close()
            number = listener.fileno()
            expect(number == -1, f"fileno() after close() is {number!r}, not -1, so a loop would watch somebody else's descriptor")

    def test_leaves_nothing(self) -> None:
        """A closed listener leaves no descriptor, thread or process behind."""
        before = Account.take()
        with self._open():
            pass
        left = before.left_since()
        expect(not left, f"after close() there is still: {'; '.join(left)}")

    def test_leaves_no_path(self) -> None:
        """A closed listener leaves no path behind."""
        with self._open() as listener:
            path = listener.address
            applies_if(isinstance(path, str) and path and Path(path).exists(), "it listens at no path")
            listener.close()
            expect(not Path(path).exists(), f"after close(), {path} is still there")

    def test_opens_again(self) -> None:
        """The place can be listened on again once the listener is closed: a server is started, stopped and started."""
        applies_if(not self.opens_once, "it can be opened only once")
        recipe = self.make()
        for _ in range(2):
            for listener in open_listeners(recipe):
                listener.close()

    def test_taken(self) -> None:
        """A place that is taken is refused with ListenError, and nothing stays open."""
        with self._open() as listener:
            recipe = self._again(listener)
            before = Account.take()
            try:
                others = open_listeners(recipe)
            except ListenError:
                left = before.left_since()
                expect(not left, f"open() raised ListenError and left open: {'; '.join(left)}")
            except OSError as error:
                expect(False, f"open() raised {type(error).__name__} ({error}); wrap it in ListenError")
            else:
                for other in others:
                    other.close()
                applies_if(False, "the place can be shared")

    def test_opened_twice(self) -> None:
        """Two listeners of one recipe do not disturb each other, if their place can be shared."""
        recipe = self.make()
        with contextlib.ExitStack() as stack:
            one = stack.enter_context(self._open(recipe))
            try:
                other = stack.enter_context(self._open(recipe))
            except ListenError:
                applies_if(False, "the place cannot be shared")
            applies_if(hasattr(one, "connect") or one.address != other.address, "both share one address")
            for listener in (one, other, one):
                self._exchange(listener)
            other.close()
            expect(one.fileno() != -1, "closing one of two listeners of one recipe has closed the other too")
            self._exchange(one)

    def test_several(self) -> None:
        """Each listener that `open_all` returns takes requests."""
        applies_if(hasattr(self.make(), "open_all"), "it has no open_all()")
        with self._open_all(self.make()) as listeners:
            for listener in listeners:
                self._exchange(listener)

    def test_several_or_none(self) -> None:
        """If one of several places is taken, `open_all` raises ListenError and closes what it has opened."""
        applies_if(hasattr(self.make(), "open_all"), "it has no open_all()")
        with self._open_all(self.make()) as listeners:
            applies_if(len(listeners) > 1, "it listens in one place")
            for listener in listeners[:-1]:
                listener.close()
            recipe = self._again(listeners[-1])
            before = Account.take()
            try:
                with self._open_all(recipe):
                    applies_if(False, "the place can be shared")
            except ListenError:
                left = before.left_since()
                expect(not left, f"open_all() raised ListenError and left open: {'; '.join(left)}")

    def test_copier(self) -> None:
        """`copier`, if it has one, makes a listener from a duplicate of the socket; closing it leaves this one open, and its path."""
        with self._open() as listener:
            applies_if(hasattr(listener, "copier"), "it has no copier()")
            make = pickle.loads(pickle.dumps(listener.copier()))  # noqa: S301 - as it would travel to another interpreter
            with contextlib.closing(make(listener.socket.dup())) as copy:
                _expect_url(copy.url, "url of a copied listener")
                self._exchange(copy)
            path = listener.address
            expect(not isinstance(path, str) or not path or Path(path).exists(), f"after close() of a copy, {path} is gone")
            self._exchange(listener)

    # taking requests

    def test_accept_never_blocks(self) -> None:
        """`accept` raises BlockingIOError when no request waits."""
        with self._open() as listener:
            self._nothing_waits(listener)

    def test_quiet(self) -> None:
        """The descriptor is not readable while no request waits, so that a loop can sleep."""
        with self._open() as listener:
            readable = select.select([listener.fileno()], [], [], 0.05)[0]
            expect(not readable, "the descriptor of a listener is readable without a request, so a loop would never sleep")

    def test_owned(self) -> None:
        """A request stays open when its listener is closed: the caller of `accept` owns it."""
        with self._arrived(b"hello") as (listener, client):
            request, _ = self._accept(listener)
            applies_if(self._is_stream(), "a datagram's request uses the socket of the listener")
            with contextlib.closing(request):
                listener.close()
                try:
                    request.sendall(b"welcome")
                except OSError as error:
                    expect(False, f"after close() of the listener, a request of it raised {type(error).__name__}: {error}")
                self._receive(client, b"welcome")

    def test_accept(self) -> None:
        """The descriptor is readable while a request waits, and `accept` returns it with its sender's address."""
        with self._arrived(b"hello") as (listener, client):
            request, _address = self._accept(listener)
            if self._is_stream():
                with contextlib.closing(request):
                    expect(hasattr(request, "shutdown"), f"a {type(request).__name__} has no shutdown(how), which a server calls")
                    self._receive(request, b"hello")
            else:
                expect(isinstance(request, tuple) and len(request) == 2, f"a datagram's request is {request!r}, not (data, socket)")  # noqa: PLR2004
                expect(request[0] == b"hello", f"the datagram b'hello' arrived as {request[0]!r}")
            self._nothing_waits(listener)
            del client

    def test_sender(self) -> None:
        """`accept` returns the address of the client that sent the request."""
        with self._arrived(b"hello") as (listener, client):
            request, address = self._accept(listener)
            if self._is_stream():
                request.close()
            applies_if(client.getsockname(), "its clients have no addresses")
            expect(address == client.getsockname(), f"accept() returned the address {address!r} for a client at {client.getsockname()!r}")

    def test_request_waits(self) -> None:
        """A stream request blocks until its client sends, because handlers are written that way."""
        applies_if(self._is_stream(), "a datagram is there as a whole")
        with self._open() as listener, contextlib.closing(self._client(listener)) as client:
            self._waits(listener)
            request, _ = self._accept(listener)
            later = Timer(0.05, client.sendall, [b"hello"])
            later.start()
            try:
                with contextlib.closing(request):
                    self.at_once(lambda: request.recv(5), "recv() of a request whose client sends")
            except (BlockingIOError, TimeoutError) as error:
                expect(False, f"recv() of a request whose client has not sent yet raised {type(error).__name__}; make the request block")
            finally:
                later.join()

    def test_largest(self) -> None:
        """If it has `max_packet_size`, a datagram of that many bytes arrives whole, and a longer one does not pass for it."""
        applies_if(not self._is_stream(), "it has no datagrams")
        with self._open() as listener, contextlib.closing(self._client(listener)) as client:
            applies_if(hasattr(listener, "max_packet_size"), "it has no max_packet_size")
            largest = listener.max_packet_size
            expect(isinstance(largest, int) and largest > 0, f"max_packet_size is {largest!r}")
            for size in (min(largest, MOST), largest + 1):
                if size > MOST:
                    continue
                client.send(bytes(size))
                self._waits(listener)
                found = len(self._accept(listener)[0][0])
                fits = found == size if size <= largest else found > largest
                expect(fits, f"a datagram of {size} bytes arrived with {found}; max_packet_size is {largest}")

    def test_dropped(self) -> None:
        """`dropped`, if it has one, is the number of datagrams lost, or None; any thread may read it."""
        with self._open() as listener:
            applies_if(hasattr(listener, "dropped"), "it has no dropped")
            dropped = self.at_once(lambda: listener.dropped, "dropped")
            expect(dropped is None or (isinstance(dropped, int) and dropped >= 0), f"dropped is {dropped!r}")

    def test_connect(self) -> None:
        """`connect`, if it has one, returns a blocking socket in any thread, and raises OSError once the listener is closed."""
        with self._open() as listener:
            applies_if(hasattr(listener, "connect"), "it has no connect()")
            with contextlib.closing(self.at_once(listener.connect, "connect() in another thread")) as client:
                expect(client.getblocking(), "the socket that connect() returned does not block")
            listener.close()
            try:
                listener.connect().close()
            except OSError:
                return
            expect(False, "connect() of a closed listener returned a socket; it must raise OSError")

    def test_reply(self) -> None:
        """What is written to the request reaches the client that it came from."""
        with self._arrived(b"hello") as (listener, client):
            request, client_address = self._accept(listener)
            if self._is_stream():
                with contextlib.closing(request):
                    request.sendall(b"welcome")
                    self._receive(client, b"welcome")
            else:
                request[1].sendto(b"welcome", client_address)
                self._receive(client, b"welcome")

    def test_end_of_stream(self) -> None:
        """After `shutdown(SHUT_WR)` and `close` of the request, the client reads the rest and the end."""
        applies_if(self._is_stream(), "datagrams have no end of stream")
        with self._arrived(b"hello") as (listener, client):
            request, _ = self._accept(listener)
            request.sendall(b"welcome")
            request.recv(100)
            request.shutdown(socket.SHUT_WR)
            request.close()
            self._receive(client, b"welcome")
            try:
                rest = client.recv(100)
            except TimeoutError:
                expect(False, f"{self.patience:g} s after the request was shut down and closed, the client still waits for the end")
            expect(rest == b"", f"after the end of the reply, the client reads {rest!r}")

    def test_client_gone(self) -> None:
        """A client that has gone before it is accepted harms nobody: `accept` returns it or raises OSError, and the next one is served."""
        applies_if(self._is_stream(), "datagrams have no connections")
        with self._arrived(b"hello") as (listener, client):
            client.close()
            with contextlib.suppress(OSError):
                self.at_once(listener.accept, "accept() with a client that has gone")[0].close()
            self._exchange(listener)

    def test_served(self) -> None:
        """A server on it answers its clients, stops, and can be started again."""
        server = Server(self.make(), _echo)
        for _ in range(1 if self.opens_once else 2):
            with server.start():
                for _ in range(3):
                    with contextlib.closing(self._client_of(server)) as client:
                        client.sendall(b"hello")
                        self._receive(client, b"hello")

    # inside

    def _is_stream(self) -> bool:
        return bool(self.make().kind == "stream")

    @contextlib.contextmanager
    def _open(self, recipe: Any = None) -> Iterator[Any]:
        with self._open_all(self.make() if recipe is None else recipe) as listeners:
            yield listeners[0]

    @contextlib.contextmanager
    def _open_all(self, recipe: Any) -> Iterator[Any]:
        listeners = open_listeners(recipe)
        expect(listeners, "open_all() returned no listener")
        try:
            yield listeners
        finally:
            for listener in listeners:
                listener.close()

    def _client(self, listener: Any) -> socket.socket:
        client: socket.socket = listener.connect() if hasattr(listener, "connect") else self.connect(listener.address)
        client.settimeout(self.patience)
        return client

    def _client_of(self, server: Server) -> socket.socket:
        try:
            try:
                client = server.connect()
            except ConfigError:  # its listeners have no `connect`
                client = self.connect(server.addresses[0])
        except OSError as error:
            raise BrokenPromiseError(f"a client cannot connect to a server on it: {type(error).__name__}: {error}") from error
        client.settimeout(self.patience)
        return client

    @contextlib.contextmanager
    def _arrived(self, data: bytes) -> Iterator[tuple[Any, socket.socket]]:
        """Yield a listener at which a client waits, and that client, which has sent the data."""
        with self._open() as listener, contextlib.closing(self._client(listener)) as client:
            client.sendall(data)
            self._waits(listener)
            yield listener, client

    def _exchange(self, listener: Any) -> None:
        """Have the listener take one request of a new client."""
        with contextlib.closing(self._client(listener)) as client:
            client.sendall(b"hello")
            self._waits(listener)
            request, _ = self._accept(listener)
            if self._is_stream():
                with contextlib.closing(request):
                    self._receive(request, b"hello")

    def _accept(self, listener: Any) -> Any:
        try:
            return self.at_once(listener.accept, "accept() with a request waiting")
        except BlockingIOError:
            expect(False, "accept() raised BlockingIOError although a request waits and the descriptor is readable")

    def _waits(self, listener: Any) -> None:
        readable = select.select([listener.fileno()], [], [], self.patience)[0]
        expect(readable, f"the descriptor of the listener was not readable within {self.patience:g} s of a client's connection")

    def _receive(self, sock: socket.socket, expected: bytes) -> None:
        """Read what is expected from a socket. Raises: BrokenPromiseError when something else comes, or nothing."""
        sock.settimeout(self.patience)
        found = b""
        try:
            while len(found) < len(expected):
                data = sock.recv(len(expected) - len(found))
                if not data:
                    break
                found += data
        except TimeoutError:
            expect(False, f"only {found!r} of {expected!r} arrived within {self.patience:g} s")
        expect(found == expected, f"{found!r} arrived where {expected!r} was sent")

    def _nothing_waits(self, listener: Any) -> None:
        try:
            found = self.at_once(listener.accept, "accept() without a request")
        except BlockingIOError:
            return
        except OSError as error:
            expect(False, f"accept() without a request raised {type(error).__name__} ({error}), not BlockingIOError")
        expect(False, f"accept() without a request returned {found!r}; it must raise BlockingIOError")

    def _again(self, listener: Any) -> Any:
        """Return a recipe for the very place of an open listener, where the recipe as it is would choose another one."""
        recipe = self.make()
        port = listener.address[1] if isinstance(listener.address, tuple) else None
        return recipe if port is None or not hasattr(recipe, "port") else attrs.evolve(recipe, port=port)


def check_transport(make: Callable[[], Any], connect: Callable[[Any], socket.socket] | None = None, *, only: str | None = None) -> Report:
    """Check a transport; `make` returns a new recipe, for a place on this machine that is free. See `check_dispatcher`.

    connect: returns a client's socket that is connected to an address, as `TransportConformance.connect`.
    """
    if connect is None:
        return check(TransportConformance, make, only)
    return check(type("TransportConformance", (TransportConformance,), {"connect": staticmethod(connect)}), make, only)


def _expect_url(url: object, what: str) -> None:
    try:
        grammar.url(str(url))
    except ConfigError as error:
        expect(False, f"{what} is no URL: {error}")


def _echo(request: Any, client_address: Any, _server: Any) -> None:
    if isinstance(request, tuple):
        request[1].sendto(request[0], client_address)
    else:
        request.sendall(request.recv(100))
