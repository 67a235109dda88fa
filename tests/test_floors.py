"""The building's plan: who may import whom, what an import brings with it, and that serving calls no hook."""

import ast
import importlib.util
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.support import ROOT, python

PACKAGE = Path(importlib.util.find_spec("socketkit").origin).parent

FLOORS = """
    _system errors
    seams logs notify
    hookspecs handlers
    transports layers dispatchers lifecycles _engine
    composition
    catalog config _classic
    server socketserver
    _dropin
    socketkit
    cli testing
    __main__ _dropin.child
"""
"""From the ground up. A module imports only from floors below its own, and from its own folder."""

OWNERS = {
    "pluggy": {"hookspecs", "composition.catalog"},
    "cattrs": {"composition.options"},
    "tomllib": {"composition.config"},
    "click": {"cli", "testing.__main__"},
    "pytest": {"testing.pytest_plugin"},
}
"""What only these modules (or the modules of these packages) may import."""

_FLOOR = {name: floor for floor, names in enumerate(FLOORS.strip().splitlines()) for name in names.split()}


def floor(module: str) -> int:
    """Return the floor of a module: its own, or that of the folder it is in."""
    while module not in _FLOOR:
        module = module.rpartition(".")[0]
    return _FLOOR[module]


def modules() -> dict[str, Path]:
    """Return all modules: by name within the package, which itself is called socketkit."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix(".__init__") if name != "__init__" else "socketkit"] = path
    return found


MODULES = modules()


def imports(source: str, module: str) -> Iterator[str]:
    """Yield each name that the source imports anywhere, in functions too, except where only the type checker looks."""
    for node in _executed(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = f"socketkit.{module}".split(".")[: -node.level]
                base = ".".join((*package, *filter(None, (node.module,))))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    yield tree
    only_for_types = isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING"
    for child in tree.orelse if only_for_types else ast.iter_child_nodes(tree):
        yield from _executed(child)


def own(imported: str) -> str | None:
    """Return the module of ours that an imported name is or comes from, None for somebody else's."""
    if top(imported) != "socketkit":
        return None
    name = imported.removeprefix("socketkit").removeprefix(".")
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or "socketkit"


def top(module: str) -> str:
    return module.partition(".")[0]


def misplaced(module: str, source: str) -> list[str]:
    """Return a sentence for each import that does not go down. Siblings among the parts are strangers, but for private modules."""
    found = []
    for imported in imports(source, module):
        other = own(imported)
        if other is None or other == module:
            continue
        if top(other) == top(module) and floor(other) == floor(module):
            if top(module) in PARTS and not (other == top(module) or any(name.startswith("_") for name in other.split("."))):
                found.append(f"{module} imports its sibling {other}")
        elif floor(other) >= floor(module):
            found.append(f"{module} imports {other}, which is not below it")
    return found


PARTS = {"transports", "layers", "dispatchers", "lifecycles"}
"""Folders with many implementations of one seam. They and `_engine` stand on one floor, so neither imports the other."""


def test_every_module_has_a_floor():
    for module in MODULES:
        assert floor(module) >= 0  # else it raises


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_below(module):
    assert misplaced(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("seams.stats", "from socketkit._engine.ledger import Ledger"),
        ("_engine.ledger", "def late():\n    from socketkit import server"),
        ("_system.wakeup", "import socketkit.seams.types"),
        ("composition.config", "from socketkit import Server"),
        ("dispatchers.pool", "from socketkit._engine.intake import Intake"),
        ("_engine.work", "from socketkit.dispatchers.adaptive import Adaptive"),
        ("dispatchers.sync", "from socketkit.dispatchers.threads import Threads"),
        ("dispatchers.sync", "from .threads import Threads"),
        ("dispatchers.sync", "from socketkit.transports._sockets import open_socket"),
        ("server", "from socketkit import socketserver"),
    ],
)
def test_a_misplaced_import_is_found(module, source):
    assert len(misplaced(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("seams.limits", "from socketkit.seams.validators import at_least"),
        ("server", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from socketkit.cli import main"),
        ("transports.tcp", "from socketkit.transports._sockets import open_socket"),
        ("server", "from socketkit import config"),
        ("cli.serve", "from socketkit import Server\nfrom socketkit.cli import errors"),
    ],
)
def test_an_import_from_below_is_allowed(module, source):
    assert misplaced(module, source) == []


CONTRACT = {"seams", "hookspecs", "errors", "logs"}
"""All that a plugin may import from, besides the public names of the package."""


@pytest.mark.parametrize("path", sorted(ROOT.glob("plugins/*/src/**/*.py")), ids=lambda path: path.parent.name)
def test_a_plugin_needs_nothing_but_the_contract(path):
    used = {own(each) for each in imports(path.read_text(), "plugin")} - {None, "socketkit"}
    assert {top(each) for each in used} <= CONTRACT


@pytest.mark.parametrize("path", sorted(ROOT.glob("plugins/*/tests/**/*.py")), ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_a_plugins_tests_need_nothing_of_the_checkout(path):
    found = set(imports(path.read_text(), "plugin"))
    assert {top(own(each)) for each in found if own(each)} - {"socketkit"} <= CONTRACT | {"testing", "socketserver", "catalog"}
    assert (
        re.findall(r"^.*(?:\bhelpers\b|\bfaults\b|socketkit\._|socketserver\._|_socketkit_engine).*$", path.read_text(), re.MULTILINE) == []
    )


@pytest.mark.parametrize("module", [module for module in MODULES if top(module) in PARTS])
def test_a_part_of_ours_stands_where_a_plugin_does(module):
    used = {top(own(each)) for each in imports(MODULES[module].read_text(), module) if own(each)}
    assert used - {top(module)} <= CONTRACT | {"_system", "handlers"}  # and on what only knows the operating system


def test_no_module_imports_itself_by_way_of_others():
    graph = {module: {own(each) for each in imports(path.read_text(), module)} - {None, module} for module, path in MODULES.items()}
    graph.pop("socketkit")  # re-exports everything, on demand
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " imports ".join((*way, module))
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_has_one_door(library):
    users = {module for module, path in MODULES.items() if library in {top(each) for each in imports(path.read_text(), module)}}
    assert {module for module in users if not {module, top(module)} & OWNERS[library]} == set()
    assert users, f"nobody imports {library} any more: take it out of OWNERS"


def test_time_is_read_from_the_monotonic_clock_only():
    users = set()
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text())
        names = {node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node) == "time.time"}
        if names or "time.time" in imports(path.read_text(), module):
            users.add(module)
    assert users == set()


FEW_NEED = "pluggy cattrs click asyncio multiprocessing concurrent.futures pickle random subprocess tempfile ssl difflib importlib.metadata tomllib"
"""Modules that take long to import or that a fork has to copy, each needed by few programs."""

ONLY_COMPOSED_SERVERS_NEED = (
    "urllib.parse ipaddress pathlib socketkit.server socketkit.composition.config socketkit.composition.catalog socketkit.transports"
)
"""Modules that the classic names do without."""


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        ("import socketkit", f"{FEW_NEED} {ONLY_COMPOSED_SERVERS_NEED}"),
        ("import socketkit.socketserver", f"{FEW_NEED} {ONLY_COMPOSED_SERVERS_NEED}"),
        (
            """
from socketkit import Server, TCP, Threads, Graceful, StreamRequestHandler
Server(TCP("127.0.0.1", 0), StreamRequestHandler, dispatcher=Threads(), lifecycle=Graceful())
""",
            FEW_NEED,
        ),
        (
            """
from socketkit import *
Server(TCP("127.0.0.1", 0), StreamRequestHandler, dispatcher=Pool()), Prefork(2), Executor(), Asyncio()
""",
            FEW_NEED,
        ),
    ],
    ids=["socketkit", "classic names", "composed of objects", "all names"],
)
def test_an_import_brings_nothing_that_few_programs_need(program, absent):
    python(
        f"""
import logging, sys
needed = set(sys.modules)  # by every server: Python 3.15 imports pathlib for its tracebacks
{program}
present = set({absent!r}.split()) & (sys.modules.keys() - needed)
assert not present, present
"""
    )


FEW_CLASSIC_SERVERS_NEED = "attr attrs ast contextvars dis inspect logging re signal traceback typing warnings"
"""Modules of the standard library, and attrs, that no classic name needs at import."""

NO_CLASSIC_SERVER_NEEDS = "attr attrs ast dis inspect logging traceback typing ssl"
"""Modules that no classic server needs to answer a request, unless its handler fails."""

SERVES_ONE = """
import _socket, sys
from socketkit import socketserver

class Upper(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline().upper())

class OneRequest(socketserver.{kind}):
    timeout = 10

    def service_actions(self):
        super().service_actions()
        if self.taken:
            self._BaseServer__shutdown_request = True

    def get_request(self):
        self.taken = True
        return super().get_request()

    taken = False

with OneRequest(("127.0.0.1", 0), Upper) as server:
    client = _socket.socket()
    client.connect(server.server_address)
    client.send(b"text\\n")
    server.serve_forever(0.01)
    assert client.recv(5) == b"TEXT\\n"
"""


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        ("import socketkit", FEW_CLASSIC_SERVERS_NEED),
        ("import socketkit.socketserver", FEW_CLASSIC_SERVERS_NEED),
        *((SERVES_ONE.format(kind=kind), NO_CLASSIC_SERVER_NEEDS) for kind in ("TCPServer", "ThreadingTCPServer", "ForkingTCPServer")),
    ],
    ids=["socketkit", "classic names", "TCPServer", "ThreadingTCPServer", "ForkingTCPServer"],
)
def test_classic_servers_bring_only_what_they_need(program, absent):
    python(
        f"""
import sys
for name in list(sys.modules):  # what a .pth file or sitecustomize has imported
    if name.partition(".")[0] in {absent!r}.split():
        del sys.modules[name]
{program}
present = set({absent!r}.split()) & sys.modules.keys()
assert not present, present
"""
    )


NOTHING_CAN_BE_IMPORTED = """
class Nothing:
    def find_spec(self, name, path=None, target=None):
        raise ImportError(f"{name} is imported while the server serves")

sys.meta_path.insert(0, Nothing())
"""


@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer", "ForkingTCPServer"])
def test_a_server_that_is_made_serves_where_nothing_can_be_imported(kind):
    """As after a program has changed its root folder, or where no descriptor is left."""
    python(SERVES_ONE.format(kind=kind).replace("    client = ", textwrap.indent(NOTHING_CAN_BE_IMPORTED, "    ") + "    client = "))


def test_what_few_programs_need_is_there_for_those_that_do():
    python(
        f"""
import sys
from socketkit import Server, TCP, StreamRequestHandler
from socketkit._engine.steps import engine_of
from socketkit.composition.catalog import Catalog
for dispatcher in ("prefork:2", "asyncio", "executor"):
    engine_of(Server("tcp://127.0.0.1:0", StreamRequestHandler, dispatcher=dispatcher)).start_dispatcher()
Catalog.load()
missing = set({FEW_NEED!r}.split()) - {{"cattrs", "subprocess", "tempfile", "click", "tomllib", "difflib", "ssl"}} - sys.modules.keys()
assert not missing, missing
"""
    )


def test_no_hook_is_called_while_serving():
    served = python(  # its name is looked up at composition, and only then
        """
import pluggy
from socketkit import DatagramRequestHandler, Server, StreamRequestHandler
from socketkit.composition import builtin
from socketkit.composition.catalog import Catalog
from socketkit.testing.clients import ask, talk

own = Catalog.load().plugins[0]  # by the hooks, which the names below are looked up in then

class Upper(StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read().upper())

class UpperDatagram(DatagramRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read().upper())

class PoisonError(Exception):
    pass

def poison(*args, **kwargs):
    raise PoisonError

for dispatcher in builtin.socketkit_dispatchers().keys() - {"interpreters"}:  # which imports its handler from a module
    calls = pluggy.HookCaller.__call__
    stream = Server("tcp://127.0.0.1:0", Upper, dispatcher=dispatcher, lifecycle="graceful:drain=5")
    datagram = Server("udp://127.0.0.1:0", UpperDatagram, dispatcher=dispatcher, lifecycle="graceful:drain=5")
    pluggy.HookCaller.__call__ = poison
    try:
        try:
            own._hooks.hook.socketkit_dispatchers()
        except PoisonError:
            pass
        else:
            raise AssertionError("the poison does not work")
        with stream, datagram:
            stream.start()
            datagram.start()
            for text in (b"one", b"two", b"three"):
                assert talk(stream.addresses[0], text) == text.upper()
                assert ask(datagram.addresses[0], text) == text.upper()
            assert not stream.stop().stuck and not datagram.stop().stuck
    finally:
        pluggy.HookCaller.__call__ = calls
    for server in (stream, datagram):
        assert server.stats().outcomes == {"finished": 3}, (dispatcher, server.stats())
print("served")
""",
    )
    assert served.stdout == "served\n"


def test_importing_socketkit_takes_less_than_a_second(record_property):
    program = "import time; began = time.perf_counter(); import {}; print(time.perf_counter() - began)"
    for name in ("socketserver", "socketkit"):
        seconds = min(float(python(program.format(name)).stdout) for _ in range(3))
        record_property(f"seconds to import {name}", seconds)
    assert seconds < 1
