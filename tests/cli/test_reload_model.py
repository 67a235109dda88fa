"""A configuration that is read again and again, good and bad, while it is served: what was good last is what is served.

Hypothesis makes up the order. A conversation that has begun goes on whatever happens to the file.
"""

import contextlib
import os
import signal
import socket
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from helpers.reloads import GIVEN, Service
from socketkit.testing.clients import address, talk

TWO = """
[servers.words]
listen = "unix://words.sock"
handler = "given:{handler}"
dispatcher = "{dispatcher}"

[servers.chat]
listen = "tcp://127.0.0.1:0"
handler = "given:chat"
"""

BAD = {
    "no TOML": "[servers",
    "a key that is none": TWO.format(handler="lower", dispatcher="sync") + "colour = 1\n",
    "no such handler": TWO.format(handler="nobody", dispatcher="sync"),
    "no such dispatcher": TWO.format(handler="lower", dispatcher="sideways"),
    "nothing": "",
}


class Reloads(RuleBasedStateMachine):
    """What is known of the service: which handler its words have, and which clients are talking to it."""

    def __init__(self):
        super().__init__()
        self.opened = contextlib.ExitStack()
        self.chats = []

    @initialize()
    def serve(self):
        folder = self.opened.enter_context(tempfile.TemporaryDirectory(prefix="r"))
        self.opened.enter_context(contextlib.chdir(folder))
        Path("given.py").write_text(GIVEN)
        self.write("upper", "adaptive")
        self.service = self.opened.enter_context(Service("two.toml"))
        [chat] = [url for url in self.service.serving(2) if url.startswith("tcp")]
        self.chat = address(chat)
        assert self.service.told() == ["READY=1"]

    def write(self, handler, dispatcher):
        self.handler = handler
        Path("two.toml").write_text(TWO.format(handler=handler, dispatcher=dispatcher))

    @rule(handler=st.sampled_from(["upper", "lower"]), dispatcher=st.sampled_from(["adaptive", "thread", "pool:2", "sync", "fork"]))
    def reload(self, handler, dispatcher):
        self.write(handler, dispatcher)
        assert self.service.reload() == ["READY=1"]

    @rule(bad=st.sampled_from(sorted(BAD)))
    def reload_what_is_bad(self, bad):
        Path("two.toml").write_text(BAD[bad])
        ready, status = self.service.reload()
        assert ready == "READY=1"
        assert status.startswith("STATUS=reload failed: ")

    @rule()
    def ask(self):
        assert talk("words.sock", b"Aa") == {"upper": b"AA", "lower": b"aa"}[self.handler]

    @precondition(lambda self: len(self.chats) < 5)
    @rule()
    def begin_to_chat(self):
        client = self.opened.enter_context(socket.create_connection(self.chat, timeout=10))
        assert client.recv(5) == b"hello"
        self.chats.append(client)

    @precondition(lambda self: self.chats)
    @rule(data=st.data())
    def go_on_chatting(self, data):
        client = data.draw(st.sampled_from(self.chats))
        client.sendall(b"go on")
        assert client.recv(5) == b"GO ON"

    @precondition(lambda self: self.chats)
    @rule(data=st.data(), reset=st.booleans())
    def stop_chatting(self, data, reset):
        client = data.draw(st.sampled_from(self.chats))
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        self.chats.remove(client)

    @invariant()
    def it_serves(self):
        assert not hasattr(self, "service") or self.service.code is None, self.service.output

    def teardown(self):
        with self.opened:
            if hasattr(self, "service"):
                for client in self.chats:
                    client.close()
                assert self.service.stop(signal.SIGTERM) == 0, self.service.output
                assert "Traceback" not in self.service.output
                assert not os.path.exists("words.sock")


def reload(examples):
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    run_state_machine_as_test(
        Reloads, settings=settings(max_examples=examples, stateful_step_count=20, deadline=None, suppress_health_check=checks)
    )


def test_any_order_of_reloads_serves_what_was_good_last():
    reload(8)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_thousand_orders_of_reloads():
    reload(1000)
