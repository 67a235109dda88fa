"""The connection to a cluster: its load, the messages that are computed on it, and what happens when parts of it go away.

Everything runs in the event loop of one thread. Other threads only call `compute`, `room`, `fail_all` and `close`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, TypeAlias

import distributed
from distributed.scheduler import KilledWorker

from socketkit.logs import Log
from socketkit_dask._remote import Outcome, attempt
from socketkit_dask._scheduling import make_agent
from socketkit_dask.errors import ClusterError, WorkersLostError

if TYPE_CHECKING:
    from socketkit.seams import Address, RepliesToMessages
    from socketkit_dask import Dask

log = Log("socketkit_dask")

Client: TypeAlias = Any
LocalCluster: TypeAlias = Any
"""Those of Dask, which has few annotations for them."""

_dask: Any = distributed

LOOK_EVERY = 0.1
"""Seconds between two looks at the cluster's load."""

STALE = 2.0
"""Seconds that the scheduler may take to tell its load. Until it does, nothing more is accepted."""

RETRY_EVERY = 1.0
"""Seconds between two attempts to reach a scheduler that has gone away."""


class Cluster:
    """A cluster, local or not, and the thread that talks to it. Owner: the live dispatcher, which calls `start` and `close`.

    looked: called in that thread when `room` may have changed.
    """

    def __init__(self, recipe: Dask, looked: Callable[[], None]) -> None:
        self._recipe = recipe
        self._looked = looked
        self._address = recipe.scheduler or ""
        self._agent = ""
        """The name by which the scheduler knows our agent there."""
        self._capacity = 0
        self._client: Client | None = None
        self._retrying: set[str] = set()
        """Workers that compute a message whose worker died before."""
        self._without_workers: float | None = None
        """Since when the cluster has no workers, on the monotonic clock."""
        self._end = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._failing: asyncio.Future[str] = self._loop.create_future()
        """Gets the reason when all messages that are being computed fail."""
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="socketkit-dask-cluster", daemon=True)

    # for other threads

    def start(self) -> None:
        """Connect, after starting the cluster if it is local. Raises: ClusterError if it is not there in time."""
        self._thread.start()
        try:
            self._started.result()
        except BaseException:
            self._end_soon()
            raise

    def room(self) -> int:
        """Return how many requests of this server the cluster has room for, counting those that it has already."""
        return self._capacity

    def compute(self, handler: type[RepliesToMessages], message: bytes, client_address: Address) -> Future[Outcome]:
        """Return what will become of a message. Cancelling it releases the task on the cluster."""
        return asyncio.run_coroutine_threadsafe(self._compute(handler, message, client_address), self._loop)

    def fail_all(self, reason: str) -> None:
        """Fail all messages that are being computed, without waiting for it."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._fail_all, reason)

    def close(self) -> None:
        """Disconnect, and end the local cluster. Returns when this is done. May be called twice."""
        self._end_soon()
        self._thread.join()

    def _end_soon(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._end.set)

    # the connection

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        finally:
            self._capacity = 0

    async def _serve(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self._recipe.timeout):
                    cluster = await stack.enter_async_context(self._local()) if self._recipe.scheduler is None else None
                    self._client = await self._connect(cluster)
                    await self._look(self._client)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with the cluster, the caller of `start` is told
                await self._disconnect()
                self._started.set_exception(self._unusable(error))
                return
            self._started.set_result(None)
            while self._client is not None:
                await self._watch(self._client)
                await self._disconnect()
                if not self._end.is_set():
                    self._fail_all(f"the connection to the scheduler {self._address} was lost")
                    log.error("lost the scheduler %s; nothing more is accepted until it is back", self._address)
                    self._client = await self._reconnect()

    @contextlib.asynccontextmanager
    async def _local(self) -> AsyncIterator[LocalCluster]:
        recipe = self._recipe
        with tempfile.TemporaryDirectory(prefix="socketkit-dask-", ignore_cleanup_errors=True) as folder:
            async with _dask.LocalCluster(
                n_workers=recipe.workers,
                threads_per_worker=recipe.threads,
                processes=True,
                asynchronous=True,
                scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0", "local_directory": folder},
                security=recipe.security,
                local_directory=folder,
                preload=["socketkit_dask._remote"],
            ) as cluster:
                self._address = cluster.scheduler_address
                yield cluster

    async def _connect(self, cluster: LocalCluster | None = None) -> Client:
        """Return a client that is connected. Raises: OSError, and whatever the scheduler objects to."""
        client = _dask.Client(
            cluster or self._address,
            asynchronous=True,
            set_as_default=False,
            timeout=self._recipe.timeout,
            security=self._recipe.security,
            name="socketkit",
        )
        try:
            await client
            agent = f"socketkit-{client.id}"
            await client.register_plugin(make_agent(agent, client.id))
        except BaseException:
            await client.close()
            raise
        self._agent = agent
        return client

    async def _disconnect(self) -> None:
        client, self._client, self._capacity = self._client, None, 0
        self._looked()
        if client is not None:
            with _unreported() if client.status != "running" else contextlib.nullcontext():
                await client.close()

    async def _reconnect(self) -> Client | None:
        """Return a client once the scheduler is back; None at the end."""
        while not await self._ended_within(RETRY_EVERY):
            with contextlib.suppress(OSError, TimeoutError):
                client = await asyncio.wait_for(self._connect(), STALE)
                log.info("the scheduler %s is back", self._address)
                return client
        return None

    async def _ended_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._end.wait(), seconds)
        return self._end.is_set()

    def _unusable(self, error: Exception) -> ClusterError:
        what, remedy = f"the scheduler at {self._address}", "start one there with `dask scheduler`, or correct the option scheduler"
        if self._recipe.scheduler is None:
            what, remedy = "the local cluster", "start fewer workers, or allow more time with the option timeout"
        reason = f"{type(error).__name__}: {error}" if str(error) else f"no answer within {self._recipe.timeout:g} s"
        unusable = ClusterError(f"{what} cannot be used ({reason}); {remedy}")
        unusable.__cause__ = error
        return unusable

    # the load

    async def _watch(self, client: Client) -> None:
        """Look at the load until the end, or until the connection is lost."""
        while not await self._ended_within(LOOK_EVERY) and client.status == "running" and await self._look(client):
            self._looked()

    async def _look(self, client: Client) -> bool:
        """Look at the load; return False if the scheduler has gone, or another is in its place that does not know our agent."""
        load: tuple[int, int] | None = (0, 0)
        with contextlib.suppress(OSError, TimeoutError):  # it is busy or has gone; `client.status` says which
            load = await asyncio.wait_for(getattr(client.scheduler, self._agent)(), STALE)
        if load is None or client.status != "running":
            return False
        threads, others = load
        self._capacity = int(threads * (1 + self._recipe.backlog)) - others
        self._mind_workers(bool(threads))
        return True

    def _mind_workers(self, are_there: bool) -> None:
        """Say once that there are no workers, and fail what has waited for one too long."""
        now = time.monotonic()
        if are_there:
            if self._without_workers is not None:
                log.info("the cluster at %s has workers again", self._address)
            self._without_workers = None
        elif self._without_workers is None:
            log.warning("the cluster at %s has no workers; nothing more is accepted until it has", self._address)
            self._without_workers = now
        elif self._recipe.patience is not None and now - self._without_workers > self._recipe.patience:
            self._fail_all(
                f"the cluster at {self._address} has had no workers for {self._recipe.patience:g} s; start one with `dask worker`"
            )

    # messages

    def _fail_all(self, reason: str) -> None:
        failing, self._failing = self._failing, self._loop.create_future()
        failing.set_result(reason)

    async def _compute(self, handler: type[RepliesToMessages], message: bytes, client_address: Address) -> Outcome:
        failing = self._failing
        attempts = asyncio.ensure_future(self._attempts(handler, message, client_address))
        try:
            first: set[asyncio.Future[Any]] = {attempts, failing}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if attempts.done():
                return attempts.result()
            raise ClusterError(failing.result())
        finally:
            attempts.cancel()

    async def _attempts(self, handler: type[RepliesToMessages], message: bytes, client_address: Address) -> Outcome:
        for number in range(self._recipe.retries + 1):
            async with self._place(number) as place:
                client = self._connected()
                key = f"{handler.__qualname__}-{uuid.uuid4()}"
                future = client.submit(attempt, handler, message, client_address, key=key, pure=False, **place)
                try:
                    return await future  # type: ignore[no-any-return]
                except KilledWorker:
                    pass
                except CancelledError:
                    if client.status == "running":
                        raise ClusterError(f"somebody cancelled the task {key} on the cluster") from None
                    self._capacity = 0  # `_watch` will notice it too, but only when it looks again
                    self._looked()
                    raise ClusterError(f"the message was lost with the scheduler {self._address}") from None
                finally:
                    future.release()  # also takes it from a worker, if nobody waits for it any more
        raise WorkersLostError(self._recipe.retries + 1)

    def _connected(self) -> Client:
        if self._client is None:
            raise ClusterError(f"the scheduler {self._address} cannot be reached")
        return self._client

    @contextlib.asynccontextmanager
    async def _place(self, number: int) -> AsyncIterator[dict[str, Any]]:
        """Yield the options that say where an attempt runs: anywhere, but further ones on a worker without another of these.

        A message that kills its workers then takes no other message with it for the second time.
        """
        if number == 0:
            yield {}
            return
        while not (free := [each for each in await self._connected().nthreads() if each not in self._retrying]):  # noqa: ASYNC110 - no event
            await asyncio.sleep(LOOK_EVERY)
        self._retrying.add(free[0])
        try:
            yield {"workers": free[:1], "allow_other_workers": True}
        finally:
            self._retrying.discard(free[0])


@contextlib.contextmanager
def _unreported() -> Iterator[None]:
    """Keep Dask from logging with a traceback that a client stopped looking for its scheduler: our log has a line about it."""
    logger = logging.getLogger("distributed.client")
    logger.addFilter(_nothing)
    try:
        yield
    finally:
        logger.removeFilter(_nothing)


def _nothing(_record: logging.LogRecord) -> bool:
    return False
