"""Which steps of the template a server overrides, and what its class says of the files of a handler."""

import socket

import pytest

from socketkit import ConversationHandler, Server, StreamRequestHandler, TCPServer, ThreadingTCPServer, socketserver
from socketkit._engine.steps import RequestTemplate, replaced_steps


class Relayed(Server):
    def process_request(self, request, client_address):
        super().process_request(request, client_address)


class Borrowed(TCPServer):
    process_request_thread = RequestTemplate.process_request_thread


def instance(kind):
    return kind.__new__(kind)


@pytest.mark.parametrize("kind", [Server, TCPServer, ThreadingTCPServer, Borrowed])
def test_the_library_s_own_steps_are_no_overrides_whatever_class_they_are_taken_from(kind):
    assert replaced_steps(instance(kind)) == set()


def test_an_override_is_one_wherever_it_says_that_it_comes_from(monkeypatch):
    monkeypatch.setattr(Relayed.process_request, "__module__", Server.__module__)
    assert replaced_steps(instance(Relayed)) == {"process_request"}


def test_conversations_park_also_if_the_library_s_modules_have_other_names(monkeypatch):
    class Echo(ConversationHandler):
        def handle_one_request(self):
            self.wfile.write(self.rfile.readline())

    for step in (RequestTemplate.verify_request, RequestTemplate.finish_request, Server.process_request):
        monkeypatch.setattr(step, "__module__", "moved.elsewhere")
    from socketkit._engine.conversation import opener_of

    class Elsewhere(Server):  # a class of its own: what is known of others is remembered
        pass

    server = Elsewhere("tcp://127.0.0.1:0", Echo, dispatcher="pool:1")
    assert opener_of(server) is not None


def test_a_composed_server_s_writer_does_not_come_from_the_classic_module(monkeypatch):
    monkeypatch.setattr(socketserver, "_SocketWriter", None)
    made = []

    class Look(StreamRequestHandler):
        def handle(self):
            made.append(type(self.wfile).__name__)

    ours, theirs = socket.socketpair()
    with ours, theirs:
        Look(ours, ("peer", 1), Server("tcp://127.0.0.1:0", Look))
    assert made == ["SocketWriter"]
