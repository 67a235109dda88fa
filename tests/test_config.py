from __future__ import annotations

import contextlib
import math
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketkit.composition import config, options
from socketkit.composition.catalog import KINDS, Catalog, Offer, Plugin
from socketkit.composition.config import Composition
from socketkit.dispatchers.forks import Forks
from socketkit.dispatchers.sync import Sync
from socketkit.dispatchers.threads import Threads
from socketkit.errors import ConfigError, HandlerError, PluginError, UnknownPartError
from socketkit.lifecycles.classic import Classic
from socketkit.lifecycles.graceful import Graceful
from socketkit.server import Server
from socketkit.transports.layered import Layered
from socketkit.transports.tcp import TCP
from socketkit.transports.udp import UDP
from socketkit.transports.unix import UnixDatagram, UnixStream

if TYPE_CHECKING:
    from socketkit.seams import Dispatcher


@attrs.frozen
class Outer:
    workers: int = 1
    inner: Dispatcher = attrs.field(factory=Sync)

    def start(self, work: Any) -> Any: ...


@attrs.frozen
class Seal:
    cert: str = attrs.field(kw_only=True)

    def wrap(self, request: Any, client_address: Any) -> Any: ...


@attrs.frozen
class Handed:
    descriptor: int = attrs.field(validator=attrs.validators.ge(0))
    kind = "stream"

    def open(self) -> Any: ...

    @property
    def url(self):
        return f"handed://{self.descriptor}"


@pytest.fixture(autouse=True)
def catalog(monkeypatch):
    """More parts than are built in, and a plugin that is broken."""
    offers = [("dispatcher", "outer", Outer), ("layer", "seal", Seal), ("transport", "handed", Handed)]
    more = Plugin("more", "more-parts", "1", tuple(Offer(*offer, "more", "more-parts", "1") for offer in offers))
    sad = Plugin("sad", "sad-parts", "1", error=PluginError("sad", "sad-parts", "it cannot be imported"))
    catalog = Catalog((*Catalog.load().plugins, more, sad))
    monkeypatch.setattr(Catalog, "load", lambda: catalog)


def faults(call, *arguments):
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    return {fault.key: fault.message for fault in caught.value.faults}


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "recipe"),
    [
        ("tcp://127.0.0.1:9999", TCP("127.0.0.1", 9999)),
        ("tcp://[::1]:0?backlog=5&nodelay=false", TCP("::1", 0, backlog=5, nodelay=False)),
        ("udp://*:53?max_packet_size=512", UDP("*", 53, max_packet_size=512)),
        ("unix:///run/echo.sock?mode=0o660", UnixStream("/run/echo.sock", mode=0o660)),
        ("unix:@echo", UnixStream("@echo")),
        ("unix-dgram:///run/log", UnixDatagram("/run/log")),
        ("handed://3", Handed(3)),
        ("tcp+seal://h:1?seal.cert=a.pem", Layered(TCP("h", 1), Seal(cert="a.pem"))),
        ({"use": "tcp", "host": "h", "port": 1, "backlog": 5}, TCP("h", 1, backlog=5)),
        ({"use": "tcp", "host": "h", "port": 1, "layers": [{"use": "seal", "cert": "a"}]}, Layered(TCP("h", 1), Seal(cert="a"))),
    ],
)
def test_transports(spec, recipe):
    assert config.transport(spec) == recipe


@pytest.mark.parametrize(
    ("spec", "recipe"),
    [
        ("sync", Sync()),
        ("thread,daemon=true", Threads(daemon=True)),
        ("fork:4", Forks(4)),
        ("fork:max_children=4", Forks(4)),
        ("outer:2/fork:3", Outer(2, Forks(3))),
        ("outer/outer/thread", Outer(inner=Outer(inner=Threads()))),
        ({"use": "fork"}, Forks()),
        ({"use": "fork", "max_children": 4}, Forks(4)),
        ({"use": "outer", "workers": 2, "inner": {"use": "outer", "inner": "fork:3"}}, Outer(2, Outer(1, Forks(3)))),
        ({"use": "outer", "inner": Threads()}, Outer(inner=Threads())),
    ],
)
def test_dispatchers(spec, recipe):
    assert config.dispatcher(spec) == recipe


@pytest.mark.parametrize(
    ("spec", "recipe"),
    [
        ("classic", Classic()),
        ("graceful:500ms", Graceful(0.5)),
        ("graceful:drain=10,signals=false", Graceful(10, signals=False)),
        ("graceful:none", Graceful(None)),
        ({"use": "graceful", "drain": "30s"}, Graceful(30)),
        ({"use": "graceful", "drain": 0}, Graceful(0)),
    ],
)
def test_lifecycles(spec, recipe):
    assert config.lifecycle(spec) == recipe


@pytest.mark.parametrize(
    ("resolve", "recipe"),
    [(config.transport, TCP("h", 1)), (config.dispatcher, Sync()), (config.lifecycle, Classic())],
)
def test_a_recipe_object_is_taken_as_it_is(resolve, recipe):
    assert resolve(recipe) is recipe


def test_an_object_is_a_recipe_by_its_shape():
    class Mine:
        def start(self, work): ...

    mine = Mine()
    assert config.dispatcher(mine) is mine


@pytest.mark.parametrize("resolve", [config.transport, config.dispatcher, config.lifecycle])
@pytest.mark.parametrize("spec", [None, 5, True, b"tcp://h:1", ["sync"], object(), math.nan])
def test_what_is_no_part_is_refused(resolve, spec):
    (message,) = faults(resolve, spec).values()
    assert "give a recipe object" in message


def test_a_class_in_the_place_of_an_object_is_told_apart():
    assert faults(config.dispatcher, Threads) == {"": "Threads is a class; give an instance, as in Threads(...)"}


@pytest.mark.parametrize(
    ("resolve", "spec", "expected"),
    [
        (config.dispatcher, "sync/thread", {"": "dispatcher 'sync' takes no inner dispatcher"}),
        (config.lifecycle, {"use": "graceful", "inner": "classic"}, {"": "lifecycle 'graceful' takes no inner lifecycle"}),
        (config.dispatcher, "sync:4", {"": "dispatcher 'sync' takes no value; remove '4'"}),
        (config.dispatcher, "thread:4", {"": "dispatcher 'thread' takes no value; remove '4'"}),
        (config.dispatcher, "fork:4,max_children=5", {"": "max_children is given twice, by '4' and as an option"}),
        (config.transport, "tcp://h:1?port=2", {"": "port is given twice, by 'h:1' and as an option"}),
        (
            config.dispatcher,
            "outer:x/fork:y",
            {"workers": "must be a whole number, not 'x'", "inner.max_children": "must be a whole number, not 'y'"},
        ),
        (config.dispatcher, "outer/forc", {"inner": None}),
        (config.dispatcher, {}, {"": 'needs the key `use` with the name of a dispatcher, as in { use = "name", option = value }'}),
        (config.dispatcher, {"use": 5}, {"": 'needs the key `use` with the name of a dispatcher, as in { use = "name", option = value }'}),
        (config.dispatcher, {"use": "fork", "max_children": "4"}, {"max_children": "must be a whole number, not '4'"}),
        (config.transport, {"use": "tcp", "host": "h", "port": True}, {"port": "must be a whole number, not True"}),
        (
            config.transport,
            {"use": "tcp"},
            {"host": "is missing; transport 'tcp' requires it", "port": "is missing; transport 'tcp' requires it"},
        ),
        (config.transport, "handed://-1", {"descriptor": "must be >= 0: -1"}),
        (config.transport, "handed://", {"descriptor": "is missing; transport 'handed' requires it"}),
        (config.transport, "tcp+seal://h:x", {"": None, "layers[0].cert": "is missing; layer 'seal' requires it"}),
        (
            config.transport,
            "tcp+sael://h:1",
            {"layers[0]": "no layer named 'sael', did you mean 'seal'?; installed: "},
        ),
        (config.transport, {"use": "tcp", "host": "h", "port": 1, "layers": "seal"}, {"layers": "must be a list, not 'seal'"}),
        (config.transport, "udp+seal://h:1?seal.cert=a", {"": None}),
        (config.lifecycle, "graceful:-1", {"drain": "must be seconds, such as 1.5, 500ms, 30s or 5m, or none, not '-1'"}),
        (config.lifecycle, {"use": "graceful", "drain": math.nan}, {"drain": None}),
    ],
)
def test_faults_of_a_part_are_told_by_option(resolve, spec, expected):
    found = faults(resolve, spec)
    assert found.keys() == expected.keys()
    for key, message in expected.items():
        assert message is None or found[key].startswith(message)


def test_a_place_the_transport_cannot_read_is_told_with_its_own_sentence():
    assert "write 127.0.0.1:9999" in faults(config.transport, "tcp://nowhere")[""]


def test_a_place_without_a_scheme_is_told_the_grammar_of_urls():
    assert "is not a URL; write NAME://PLACE" in faults(config.transport, "127.0.0.1:9999")[""]


def test_an_unknown_part_alone_is_an_unknown_part():
    with pytest.raises(UnknownPartError, match="did you mean 'tcp'"):
        config.transport("tpc://h:1")
    with pytest.raises(PluginError, match="sad-parts"):
        config.dispatcher("sad:4")


OURS = [offer for kind in KINDS for offer in Catalog.load().offers(kind) if offer.distribution == "socketkit"]
OPTIONS = [(offer, name) for kind in KINDS for offer in Catalog.load().offers(kind) for name in options.fields(offer.recipe)]


@pytest.mark.parametrize(("offer", "name"), OPTIONS, ids=lambda value: getattr(value, "name", value))
def test_a_slip_in_any_option_is_told_the_right_one(offer, name):
    slips = {name[1:], name[:-1], name[1] + name[0] + name[2:]}
    with pytest.raises(ConfigError) as caught:
        options.build(offer.recipe, "a part", dict.fromkeys(slips, 1))
    messages = {fault.key: fault.message for fault in caught.value.faults}
    for slip in slips:
        assert f"did you mean {name!r}?" in messages[slip]


@pytest.mark.parametrize("offer", OURS, ids=lambda offer: offer.name)
def test_every_default_of_our_recipes_can_be_written_down(offer):
    required = {"host": "h", "port": 1, "path": "p", "number": 3, "name": "n", "factory": "concurrent.futures:ThreadPoolExecutor"}
    required |= {"trusted": ("10.0.0.0/8",), "cert": "cert.pem"}
    defaults = {field.name: required.get(field.name, field.default) for field in attrs.fields(offer.recipe)}
    needed = {name: value for name, value in required.items() if name in defaults}
    inner = {"inner": lambda none: none}  # the one option that is another part
    assert options.build(offer.recipe, "a part", defaults, inner) == offer.recipe(**needed)


@pytest.mark.parametrize(
    ("spec", "remedy"),
    [
        ("thread:daemon=10.0.0.0/8", "if its '/' belongs to a value, write %2F"),
        ({"use": "thread", "inner": {"use": "sync"}}, "leave `inner` out"),
    ],
)
def test_a_part_that_nests_nothing_says_how_to_write_what_was_given(spec, remedy):
    assert faults(config.dispatcher, spec)[""] == f"dispatcher 'thread' takes no inner dispatcher; {remedy}"


@pytest.mark.parametrize(("resolve", "text"), [(config.transport, "127.0.0.1:9999"), (config.dispatcher, "-")])
def test_the_examples_of_an_error_about_the_form_are_accepted(resolve, text):
    examples = faults(resolve, text)[""].rpartition("as in ")[2].split(" or ")
    assert len(examples) == 2
    for example in examples:
        resolve(example)


def test_no_depth_of_nesting_breaks_it():
    assert "is nested too deeply" in faults(config.dispatcher, "outer/" * 5000 + "sync").values()


# --- handlers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    written = []

    def write(name, source):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        written.append(name)

    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_a_handler_is_imported_by_name(module):
    module("handlers_for_tests", "class Group:\n    class Echo: pass")
    assert config.handler("handlers_for_tests:Group.Echo").__name__ == "Echo"


def test_a_callable_is_its_own_handler():
    assert config.handler(print) is print


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("os", "'os' does not name a module and an object in it"),
        ("os:", "'os:' does not name"),
        ("nowhere_at_all:X", "cannot be imported (ModuleNotFoundError: No module named 'nowhere_at_all')"),
        (".relative:X", "cannot be imported (TypeError: "),
        ("os:nothing", "cannot be imported (AttributeError: module 'os' has no attribute 'nothing')"),
        ("os:environ", "'os:environ' cannot be called"),
        (None, "'None' cannot be called"),
        (5, "'5' cannot be called"),
        ("socketserver:ThreadingTCPServer", "'socketserver:ThreadingTCPServer' is a server, not a handler (`socketkit run` runs"),
        (Server, "'Server' is a server, not a handler"),
    ],
)
def test_what_is_no_handler_is_refused(spec, reason):
    with pytest.raises(HandlerError) as caught:
        config.handler(spec)
    assert reason in str(caught.value)
    assert "give module:Class" in str(caught.value)


def test_a_handler_is_named_once_in_an_error():
    assert faults(config.composition, {"listen": "tcp://h:1", "handler": "os"})["handler"].startswith("'os' does not name a module")


@pytest.mark.parametrize("source", ["1/0", "raise SystemExit(3)", "def"])
def test_a_module_that_fails_is_a_handler_that_cannot_be_imported(module, source):
    module("failing_for_tests", source)
    with pytest.raises(HandlerError, match="cannot be imported"):
        config.handler("failing_for_tests:X")


# --- servers ---------------------------------------------------------------------------------------------------------


def test_a_composition_from_text_equals_one_from_tables_and_one_from_objects():
    text = {"listen": "tcp://h:1", "handler": "os:getcwd", "dispatcher": "fork:4", "lifecycle": "graceful:5s"}
    tables = {
        "listen": [{"use": "tcp", "host": "h", "port": 1}],
        "handler": "os:getcwd",
        "dispatcher": {"use": "fork", "max_children": 4},
        "lifecycle": {"use": "graceful", "drain": 5},
    }
    objects = {"listen": TCP("h", 1), "handler": config.handler("os:getcwd"), "dispatcher": Forks(4), "lifecycle": Graceful(5.0)}
    assert config.composition(text) == config.composition(tables) == config.composition(objects)


def test_dispatcher_and_lifecycle_may_be_left_to_the_server():
    made = config.composition({"listen": ["tcp://h:1", "udp://h:1"], "handler": print})
    assert made == Composition((TCP("h", 1), UDP("h", 1)), print)


def test_every_fault_of_a_composition_is_told_at_once_by_its_key():
    spec = {
        "listen": ["tcp://h:1?backlg=5", "udp://h", {"use": "unix", "path": ""}],
        "handlr": "os:getcwd",
        "dispatcher": {"use": "outer", "workers": "4", "inner": {"use": "fork", "max_children": True, "max": 1}},
        "lifecycle": "gracefull",
    }
    found = faults(config.composition, spec, "servers.echo")
    assert list(found) == [
        "servers.echo.listen[0].backlg",
        "servers.echo.listen[1]",
        "servers.echo.listen[2].path",
        "servers.echo.handlr",
        "servers.echo.dispatcher.workers",
        "servers.echo.dispatcher.inner.max_children",
        "servers.echo.dispatcher.inner.max",
        "servers.echo.lifecycle",
        "servers.echo.handler",
    ]
    assert found["servers.echo.listen[0].backlg"] == "is not an option of transport 'tcp', did you mean 'backlog'?"
    assert found["servers.echo.handlr"] == "is not an option of a server, did you mean 'handler'?"
    assert found["servers.echo.lifecycle"].startswith("no lifecycle named 'gracefull', did you mean 'graceful'?")


@pytest.mark.parametrize("spec", [None, 5, "tcp://h:1", []])
def test_a_composition_is_a_table(spec):
    assert faults(config.composition, spec, "servers.a")["servers.a"].startswith("must be a table with listen and handler")


def test_a_server_listens_somewhere():
    assert faults(config.composition, {"listen": [], "handler": print}) == {"listen": "is empty; give at least one address to listen on"}


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3)
texts = st.sampled_from(
    ["tcp://h:1", "udp://h:0", "tcp://h:1?backlog=x", "unix:@a", "h:1", "fork:4", "outer/sync", "graceful:1", "sad", "os:getcwd"]
)
keys = st.sampled_from(["use", "listen", "handler", "dispatcher", "lifecycle", "inner", "layers", "workers", "port", "host", "drain"])
anything = st.recursive(
    scalars | texts | st.sampled_from(["tcp", "outer", "fork", "graceful"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
near_valid = st.fixed_dictionaries(
    {"listen": texts | anything, "handler": st.just("os:getcwd") | anything},
    optional={"dispatcher": texts | anything, "lifecycle": texts | anything},
)


@given(near_valid | anything)
def test_any_mapping_is_a_composition_or_a_configuration_error(spec):
    with contextlib.suppress(ConfigError):
        assert isinstance(config.composition(spec), Composition)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def toml(tmp_path):
    path = tmp_path / "servers.toml"

    def write(content):
        path.write_bytes(content if isinstance(content, bytes) else textwrap.dedent(content).encode())
        return path

    return write


def test_a_file_gives_its_servers_by_name(toml):
    path = toml("""
        [servers.echo]
        listen = ["tcp://127.0.0.1:9999", "unix:///run/echo.sock"]
        handler = "os:getcwd"
        dispatcher = "thread"

        [servers.dns]
        listen = "udp://127.0.0.1:5353"
        handler = "os:getcwd"
        dispatcher = { use = "outer", workers = 4, inner = { use = "fork", max_children = 32 } }
        lifecycle = { use = "graceful", drain = "30s" }
    """)
    servers = config.read(path)
    assert list(servers) == ["echo", "dns"]
    assert servers["echo"].listen == (TCP("127.0.0.1", 9999), UnixStream("/run/echo.sock"))
    assert servers["dns"].dispatcher == Outer(4, Forks(32))
    assert servers["dns"].lifecycle == Graceful(30.0)


def test_a_server_not_asked_for_may_be_broken(toml):
    path = toml('[servers.a]\nlisten = "tcp://h:1"\nhandler = "os:getcwd"\n[servers.b]\ndispatcher = "sad"')
    assert list(config.read(str(path), "a")) == ["a"]
    assert "servers.b.dispatcher" in faults(config.read, path)
    assert "did you mean" in faults(config.read, path, "a", "bb")["servers.bb"]


def test_faults_of_all_servers_are_told_at_once(toml):
    path = toml('servers.b = 5\n[servers.a]\nlisten = "tcp://h:1"')
    assert list(faults(config.read, path)) == ["servers.b", "servers.a.handler"]


def test_two_servers_cannot_have_one_place(toml):
    path = toml("""
        servers.a = { listen = "tcp://h:1", handler = "os:getcwd" }
        servers.b = { listen = ["tcp://h:2", "tcp+seal://h:1?seal.cert=x"], handler = "os:getcwd" }
    """)
    assert faults(config.read, path) == {
        "servers.b.listen": "tcp://h:1 is already used by server 'a'; choose another address, or port 0",
    }


def test_two_servers_may_have_any_free_port_each_or_share_one_on_purpose(toml):
    path = toml("""
        servers.a = { listen = ["tcp://h:0", "tcp://h:1?reuse_port=true"], handler = "os:getcwd" }
        servers.b = { listen = ["tcp://h:0", "tcp://h:1?reuse_port=true"], handler = "os:getcwd" }
    """)
    assert len(config.read(path)) == 2


def test_two_servers_may_both_be_reached_in_memory_only(toml):
    path = toml("""
        servers.a = { listen = ["memory://", "memory://x"], handler = "os:getcwd" }
        servers.b = { listen = ["memory://", "memory://x"], handler = "os:getcwd" }
    """)
    assert len(config.read(path)) == 2


def test_a_byte_order_mark_is_no_fault(toml):
    assert list(config.read(toml(b'\xef\xbb\xbf[servers.a]\r\nlisten = "tcp://h:1"\r\nhandler = "os:getcwd"\r\n'))) == ["a"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "has no [servers.NAME] table"),
        (b"servers = 5", "has no [servers.NAME] table"),
        (b"[servers]", "has no [servers.NAME] table"),
        (b"[server.a]", "has 'server' at the top level, did you mean 'servers'?"),
        (b"[servers.a]\nx = 1\nx = 2\n", "is not TOML: Cannot overwrite a value (at line 3, column 6)"),
        (b"[servers.a]\n[servers.a]", "is not TOML: Cannot declare ('servers', 'a') twice (at line 2, column 11)"),
        (b"[servers.a]\nx = ", "is not TOML: Invalid value (at "),
        (b"[servers.a]\nx = '\xff'", "is not UTF-8 (at line 2)"),
        (b"x = " + b"[" * 100_000, "is nested too deeply"),
        (b"x = " + b"9" * 5000, "is not TOML: "),
        (b"#" * (config.MAX_FILE_SIZE + 1), "is larger than 1048576 bytes"),
    ],
    ids=range(11),
)
def test_a_file_that_cannot_be_used_is_told_by_name_and_line(toml, content, reason):
    path = toml(content)
    (message,) = faults(config.read, path).values()
    assert message.startswith(f"{path} {reason}")


def test_a_file_that_cannot_be_read_is_a_fault_of_the_configuration(tmp_path):
    assert faults(config.read, tmp_path / "none.toml")[""].endswith("none.toml cannot be read: No such file or directory")
    assert "cannot be read" in faults(config.read, tmp_path)[""]
