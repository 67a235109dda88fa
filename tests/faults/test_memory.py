"""A failed memory allocation anywhere in a handler. An endurance figure covers the server around the handler."""

import pytest

from helpers.support import python

pytest.importorskip("_testcapi", reason="this Python cannot make an allocation fail")

PROGRAM = """
import _testcapi, socket, sys
from socketkit import Graceful, Server, TCP

def handler(request, client_address, server):
    number = int(request.recv(100))
    _testcapi.set_nomemory(number, number + 1)
    try:
        words = {}  # plain steps: CPython 3.12 and 3.13 crash if they cannot allocate a closure
        for each in range(10):
            words[str(each)] = [each, "x" * each]
        reply = repr(words).encode()
    finally:
        _testcapi.remove_mem_hooks()
    request.sendall(reply)  # the client is in this process, and needs memory from here on

def ask(number):
    with socket.create_connection(server.addresses[0], timeout=10) as client:
        client.sendall(b"%d" % number)
        return b"".join(iter(lambda: client.recv(4096), b""))

with Server(TCP("127.0.0.1", 0), handler, dispatcher=sys.argv[1], lifecycle=Graceful(drain=5)).start() as server:
    good = ask(100_000)
    replies = [ask(number) for number in range(1, 151)]  # no Python makes 150 allocations for these steps
    print(eval(good)["4"], set(replies) == {b"", good}, ask(100_000) == good)
    server.stop()
    stats = server.stats()
    print(stats.active, sum(stats.outcomes.values()), stats.outcomes.get("failed", 0) >= replies.count(b""), replies.count(b"") > 10)
"""


@pytest.mark.parametrize("dispatcher", ["sync", "thread", "pool:2", "adaptive", "asyncio"])
def test_any_allocation_of_a_handler_that_fails_costs_its_request_only(dispatcher):
    done = python(PROGRAM, dispatcher, guard=20)
    assert done.stdout.splitlines() == ["[4, 'xxxx'] True True", "0 152 True True"], done.stderr
