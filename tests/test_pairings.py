"""Every transport with every dispatcher and every kind of handler: it serves, or it is refused in one sentence. Nothing in between."""

import sys

import pytest

from helpers.support import python
from socketkit.composition.catalog import Catalog

TRANSPORTS = {
    "tcp": "tcp://127.0.0.1:0",
    "udp": "udp://127.0.0.1:0",
    "unix": "unix://{folder}/s",
    "unix-dgram": "unix-dgram://{folder}/s",
    "memory": "memory://",
}
DISPATCHERS = {
    **{offer.name: offer.name for offer in Catalog.load().offers("dispatcher") if offer.distribution == "socketkit"},
    "executor": "executor:concurrent.futures:ThreadPoolExecutor",
    "executor of processes": "executor:concurrent.futures:ProcessPoolExecutor",
    "prefork": "prefork:1/sync",
    "prefork/fork": "prefork:1/fork",
    "prefork/pool": "prefork:1/pool:2",
    "prefork/adaptive": "prefork:1/adaptive",
    "prefork/asyncio": "prefork:1/asyncio",
    "prefork/prefork": "prefork:1/prefork:1",
    "interpreters": "interpreters:1",
    "interpreters/sync": "interpreters:1/sync",
    "interpreters/asyncio": "interpreters:1/asyncio",
    "interpreters/prefork": "interpreters:1/prefork:1",
}
HANDLERS = {
    "function": {"stream", "datagram"},
    "Stream": {"stream"},
    "Datagram": {"datagram"},
    "Conversation": {"stream"},
    "Message": {"stream", "datagram"},
    "AsyncStream": {"stream"},
    "AsyncDatagram": {"datagram"},
    "Http": {"stream"},
}
KINDS = {"tcp": "stream", "unix": "stream", "memory": "stream", "udp": "datagram", "unix-dgram": "datagram"}


def serves(transport, dispatcher, handler):
    """Whether the pairing has to work, by the rules that the documentation gives."""
    if dispatcher in {"prefork/prefork", "interpreters/prefork"} or KINDS[transport] not in HANDLERS[handler]:
        return False
    if dispatcher.startswith("interpreters") and (sys.version_info < (3, 14) or transport == "memory"):
        return False
    if handler.startswith("Async"):
        return dispatcher in {"asyncio", "prefork/asyncio", "interpreters/asyncio"}
    return dispatcher != "executor of processes" or handler == "Message"


def test_the_tables_name_all_there_is():
    inherited = {"fd", "systemd"}  # their listeners are those of the others
    assert set(TRANSPORTS) | inherited == {offer.name for offer in Catalog.load().offers("transport") if offer.distribution == "socketkit"}
    assert {offer.name for offer in Catalog.load().offers("dispatcher") if offer.distribution == "socketkit"} <= set(DISPATCHERS)


@pytest.mark.timeout(150)  # an interpreter needs seconds to start on a busy machine
@pytest.mark.parametrize("dispatcher", DISPATCHERS)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_it_serves_or_it_is_refused(transport, dispatcher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("s")
    expected = {handler: serves(transport, dispatcher, handler) for handler in HANDLERS}
    url = TRANSPORTS[transport].format(folder=folder)
    python(
        f"""
from helpers.pairing_handlers import outcome
expected = {expected!r}
found = {{handler: outcome({url!r}, {DISPATCHERS[dispatcher]!r}, handler) for handler in expected}}
wrong = {{handler: found[handler] for handler in expected if (found[handler] == "served") != expected[handler]}}
assert not wrong, wrong
for handler, said in found.items():
    assert said == "served" or said and "\\n" not in said and ";" in said, (handler, said)
""",
        guard=120,
    )
