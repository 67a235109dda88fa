"""The plugin keeps the promises of a dispatcher, as the kit for authors of plugins checks them."""

from __future__ import annotations

from socketkit_trio import Trio, TrioDatagramRequestHandler, TrioStreamRequestHandler

from socketkit.testing.conformance import DispatcherConformance, Obeys


class Commands(Obeys, TrioStreamRequestHandler):
    async def setup(self):
        await super().setup()
        self.received = b""

    async def read_line(self):
        while b"\n" not in self.received and (data := await self.stream.receive_some()):
            self.received += data
        line, end, self.received = self.received.partition(b"\n")
        return line + end

    async def write(self, data):
        await self.stream.send_all(data)


class Mirror(TrioDatagramRequestHandler):
    async def handle(self):
        await self.reply(self.packet)


class TestBlockingHandlers(DispatcherConformance):
    async_commands = Commands

    def make(self):
        return Trio()


class TestHandlersForTrio(TestBlockingHandlers):
    commands = Commands
    mirror = Mirror


class TestFewTasks(TestHandlersForTrio):
    def make(self):
        return Trio(2, workers=2)
