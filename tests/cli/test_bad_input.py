"""What is wrong with what a user typed: a sentence that names the thing and the remedy, an exit code, and nothing bound."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from socketkit.testing.programs import GUARD

SOCKETKIT = (sys.executable, "-m", "socketkit")
TCP = "tcp://127.0.0.1:0"

GREEN = """
    import attrs
    from socketkit.hookspecs import hookimpl

    @attrs.frozen
    class Green:
        workers: int = 8
        requires = frozenset({MORE})

        def start(self, work):
            raise AssertionError("nothing shall be started")

    @hookimpl
    def socketkit_dispatchers():
        return {"green": Green}
"""

STREAMS_ONLY = GREEN.replace("requires = frozenset({MORE})", "kinds = ('stream',)")


def socketkit(*arguments):
    done = subprocess.run([*SOCKETKIT, *arguments], capture_output=True, text=True, timeout=GUARD, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout == ""
    return done.returncode, done.stderr


def serve(handler="handlers:Upper", listen=TCP, *arguments):
    code, errors = socketkit("serve", handler, "--listen", listen, *arguments)
    assert "serving" not in errors
    assert errors.count("\n") == 1, errors
    return code, errors


WRONG = {
    "unknown-transport": (("handlers:Upper", "tpc://127.0.0.1:0"), "no transport named 'tpc', did you mean 'tcp'?"),
    "unknown-dispatcher": (("handlers:Upper", TCP, "--dispatcher", "treads"), "no dispatcher named 'treads', did you mean 'thread'?"),
    "unknown-lifecycle": (("handlers:Upper", TCP, "--lifecycle", "gracefull"), "no lifecycle named 'gracefull', did you mean 'graceful'?"),
    "unknown-layer": (("handlers:Upper", "tcp+tsl://127.0.0.1:0"), "no layer named 'tsl'"),
    "unknown-option": (
        ("handlers:Upper", TCP, "--dispatcher", "fork:max_kids=2"),
        "max_kids: is not an option of dispatcher 'fork', did you mean",
    ),
    "unknown-option-of-a-url": (
        ("handlers:Upper", f"{TCP}?backlogg=5"),
        "backlogg: is not an option of transport 'tcp', did you mean 'backlog'?",
    ),
    "wrong-type": (("handlers:Upper", TCP, "--dispatcher", "fork:many"), "max_children: must be a whole number, not 'many'"),
    "wrong-duration": (("handlers:Upper", TCP, "--lifecycle", "graceful:soon"), "drain: must be seconds, such as 1.5, 500ms, 30s or 5m"),
    "wrong-value": (("handlers:Upper", TCP, "--dispatcher", "fork:0"), "of at least 1"),
    "no-url": (("handlers:Upper", "127.0.0.1:80"), "'127.0.0.1:80' is not a URL; write NAME://PLACE"),
    "no-port": (("handlers:Upper", "tcp://127.0.0.1"), "'127.0.0.1' is not host:port; write 127.0.0.1:9999"),
    "port-out-of-range": (("handlers:Upper", "tcp://127.0.0.1:70000"), "with a port from 0 to 65535"),
    "no-such-module": (
        ("nowhere:Upper", TCP),
        "'nowhere:Upper' cannot be imported (ModuleNotFoundError: No module named 'nowhere')",
    ),
    "no-such-class": (("handlers:Lower", TCP), "'handlers:Lower' cannot be imported (AttributeError"),
    "no-class": (("handlers", TCP), "'handlers' does not name a module and an object in it; give module:Class"),
    "not-callable": (("handlers:number", TCP), "'handlers:number' cannot be called; give module:Class"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_server_that_cannot_be_composed_is_refused_in_one_sentence(here, case):
    arguments, sentence = WRONG[case]
    code, errors = serve(*arguments)
    assert code == 2
    assert sentence in errors


def test_all_faults_of_a_command_are_told_at_once(here):
    code, errors = socketkit(
        "serve", "handlers:Lower", "--listen", TCP, "--listen", "tpc://x", "--dispatcher", "fork:many", "--lifecycle", "calm"
    )
    assert code == 2
    assert [line.partition(": ")[2].partition(":")[0] for line in errors.splitlines()] == [
        "HANDLER",
        "--listen[1]",
        "--dispatcher max_children",
        "--lifecycle",
    ]


USAGE = {
    "nothing": ([], "Missing argument"),
    "no-place": (["handlers:Upper"], "--listen tcp://127.0.0.1:9999"),
    "a-name-after-a-handler": (["handlers:Upper", "tcp://127.0.0.1:0"], "Give addresses with --listen URL"),
    "listen-with-a-file": (["servers.toml", "--listen", TCP], "--listen applies only to a HANDLER"),
    "dispatcher-with-a-file": (["servers.toml", "--dispatcher", "fork"], "--dispatcher applies only to a HANDLER"),
    "unknown-command-line-option": (["handlers:Upper", "--listn", TCP], "--listen"),
    "no-file": (["servers.toml"], "servers.toml cannot be read: No such file or directory"),
}


@pytest.mark.parametrize("case", USAGE)
def test_a_wrong_command_is_told_and_nothing_is_served(here, case):
    arguments, sentence = USAGE[case]
    code, errors = socketkit("serve", *arguments)
    assert code == 2
    assert sentence in errors


@pytest.mark.parametrize("option", ["--dispatcher", "--lifecycle", "--limits"])
def test_an_option_without_a_value_is_not_taken_for_the_default(here, option):
    code, errors = socketkit("serve", "handlers:Upper", "--listen", TCP, option, "")
    assert code == 2
    assert errors.startswith(f"Error: {option}: ")


def test_an_unknown_command_is_told(here):
    code, errors = socketkit("serv")
    assert code == 2
    assert "serv" in errors


# --- what the system refuses: exit code 1 -----------------------------------------------------------------------------


def test_a_port_in_use(here):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        code, errors = serve("handlers:Upper", url)
    assert (code, errors) == (
        1,
        f"Error: cannot listen on {url}: Address already in use; stop the program that uses it, or listen elsewhere\n",
    )


def test_a_path_in_use(here):
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind("taken.sock")
        taken.listen()
        code, errors = serve("handlers:Upper", f"unix://{here}/taken.sock")
        assert code == 1
        assert errors.startswith(f"Error: cannot listen on unix://{here}/taken.sock: Address already in use; ")
    assert Path("taken.sock").is_socket()


def test_a_path_that_is_a_file(here):
    Path("precious").write_text("data")
    code, errors = serve("handlers:Upper", f"unix://{here}/precious")
    assert code == 1
    assert "the path exists and is not a socket; remove it" in errors
    assert Path("precious").read_text() == "data"


def test_a_path_in_a_folder_that_is_not_there(here):
    code, errors = serve("handlers:Upper", f"unix://{here}/nowhere/s")
    assert code == 1
    assert "create the directory first" in errors


def test_an_address_of_another_machine(here):
    code, errors = serve("handlers:Upper", "tcp://192.0.2.1:0")
    assert code == 1
    assert "use an address of this machine" in errors


AS_NOBODY = """
import os, sys, handlers
from socketkit.composition.catalog import Catalog
from socketkit.cli import _serving, main, serve
Catalog.load()  # what is needed is loaded while it may be read
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
main(["serve", "handlers:Upper", "--listen", "unix://" + sys.argv[1]])
"""


def test_no_permission(here):
    here.chmod(0o755)
    Path("closed").mkdir(mode=0o555)
    done = subprocess.run([sys.executable, "-c", AS_NOBODY, "closed/s"], capture_output=True, text=True, timeout=GUARD, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: cannot listen on unix://closed/s: Permission denied; use a port from 1024 on or a path you may write, or run with more privileges\n"
    )


# --- plugins ----------------------------------------------------------------------------------------------------------


def test_a_broken_plugin_is_fatal_to_those_who_need_it_only(here, install):
    install("socketkit-sad", "sad", "import nowhere_to_be_found")
    code, errors = serve("handlers:Upper", TCP, "--dispatcher", "sad")
    assert code == 2
    assert "plugin 'sad' of socketkit-sad cannot be used: it cannot be imported" in errors
    assert "block it with SOCKETKIT_DISABLED_PLUGINS=sad" in errors
    Path("fine.toml").write_text(f'[servers.s]\nlisten = "{TCP}"\nhandler = "handlers:Upper"\ndispatcher = "fork"\n')
    subprocess.run([*SOCKETKIT, "check", "fine.toml"], check=True, capture_output=True, timeout=GUARD)


def test_a_disabled_plugin_is_named_where_its_part_is_missing(here, install, monkeypatch):
    install("socketkit-green", "green", GREEN.replace("{MORE}", ""))
    monkeypatch.setenv("SOCKETKIT_DISABLED_PLUGINS", "green, other")
    code, errors = serve("handlers:Upper", TCP, "--dispatcher", "green")
    assert code == 2
    assert "plugin 'green' of socketkit-green is blocked by SOCKETKIT_DISABLED_PLUGINS" in errors
    code, errors = socketkit("run", "--dispatcher", "green", "handlers.py")
    assert code == 2
    assert "blocked" in errors


def test_two_plugins_with_a_part_of_one_name(here, install):
    install("socketkit-green", "green", GREEN.replace("{MORE}", ""))
    install("socketkit-lawn", "lawn", GREEN.replace("{MORE}", ""))
    code, errors = serve("handlers:Upper", TCP, "--dispatcher", "green")
    assert code == 2
    assert "two plugins offer the dispatcher 'green': 'green' of socketkit-green and 'lawn' of socketkit-lawn; uninstall one" in errors


def test_parts_that_do_not_go_together(here, install):
    install("socketkit-green", "green", STREAMS_ONLY)
    code, errors = serve("handlers:UpperDatagram", "udp://127.0.0.1:0", "--dispatcher", "green")
    assert code == 2
    assert "Green accepts only stream requests, but udp://127.0.0.1:0 carries datagrams; choose another dispatcher or transport" in errors


def test_a_part_that_this_platform_cannot_carry(here, install):
    install("socketkit-green", "green", GREEN.replace("{MORE}", "{'a second sun'}"))
    code, errors = serve("handlers:Upper", TCP, "--dispatcher", "green")
    assert code == 2
    assert f"Green needs a second sun, which this platform ({sys.platform}) lacks" in errors
    code, errors = socketkit("run", "--dispatcher", "green", "handlers.py")
    assert code == 2
    assert "Green needs a second sun" in errors


# --- check ------------------------------------------------------------------------------------------------------------

FAULTY = """
[servers.one]
listen = ["tcp://127.0.0.1:0", "tpc://127.0.0.1:0"]
handler = "handlers:Lower"

[servers.two]
listen = "tcp://127.0.0.1:0?backlog=few"
handler = "handlers:Upper"
dispatcher = { use = "fork", max_children = "3" }
lifecycle = { use = "graceful", drain = "soon", extra = 1 }
typo = true

[servers.three]
handler = "handlers:Upper"
"""


def test_check_tells_every_fault_of_a_file_by_its_key(here):
    Path("faulty.toml").write_text(FAULTY)
    code, errors = socketkit("check", "faulty.toml")
    assert code == 2
    assert {line.split(": ")[1] for line in errors.splitlines()} == {
        "servers.one.listen[1]",
        "servers.one.handler",
        "servers.two.listen.backlog",
        "servers.two.dispatcher.max_children",
        "servers.two.lifecycle.drain",
        "servers.two.lifecycle.extra",
        "servers.two.typo",
        "servers.three.listen",
    }
    assert all(line.startswith("Error: servers.") for line in errors.splitlines())


def test_serve_refuses_what_check_refuses_and_in_the_same_words(here):
    Path("faulty.toml").write_text(FAULTY)
    assert socketkit("serve", "faulty.toml") == socketkit("check", "faulty.toml")


def test_check_tells_what_does_not_go_together_for_each_server(here, install):
    install("socketkit-green", "green", STREAMS_ONLY)
    server = '[servers.{}]\nlisten = "udp://127.0.0.1:0"\nhandler = "handlers:UpperDatagram"\ndispatcher = "green"\n'
    Path("faulty.toml").write_text(server.format("a") + server.format("b"))
    code, errors = socketkit("check", "faulty.toml")
    assert code == 2
    assert [line.split(": ")[1] for line in errors.splitlines()] == ["servers.a", "servers.b"]


def test_check_tells_what_would_be_served_and_binds_nothing(here, usual):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        Path("fine.toml").write_text(
            f'[servers.one]\nlisten = ["tcp://127.0.0.1:{port}", "unix://{here}/s"]\nhandler = "handlers:Upper"\n'
            f'[servers.two]\nlisten = "udp://127.0.0.1:0"\nhandler = "handlers:UpperDatagram"\ndispatcher = "sync"\nlifecycle = "classic"\n'
        )
        done = subprocess.run([*SOCKETKIT, "check", "fine.toml"], capture_output=True, text=True, timeout=GUARD, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout
        == f"servers.one: tcp://127.0.0.1:{port}, unix://{here}/s ({usual}, graceful)\nservers.two: udp://127.0.0.1:0 (sync, classic)\n"
    )
    assert not Path("s").exists()


@pytest.mark.parametrize("dispatcher", ["fork", "prefork:2", "prefork:2/thread", "thread"])
def test_check_warns_of_a_server_that_forks_beside_others(here, dispatcher):
    server = '[servers.{}]\nlisten = "tcp://127.0.0.1:0"\nhandler = "handlers:Upper"\ndispatcher = "{}"\n'
    alone, beside = server.format("a", dispatcher), server.format("a", dispatcher) + server.format("b", "sync")
    warned = []
    for content in (alone, beside):
        Path("some.toml").write_text(content)
        done = subprocess.run([*SOCKETKIT, "check", "some.toml"], capture_output=True, text=True, timeout=GUARD, check=True)
        warned.append(done.stderr)
    warning = "Warning: servers.a forks while the threads of the other servers run; serve it alone, by its NAME\n"
    assert warned == ["", "" if dispatcher == "thread" else warning]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "has no [servers.NAME] table"),
        ("[server.x]", "has 'server' at the top level, did you mean 'servers'?"),
        ("[servers", "is not TOML"),
        ("[servers]\nx = 3", "servers.x"),
    ],
)
def test_check_tells_what_is_wrong_with_the_file_itself(here, content, sentence):
    Path("odd.toml").write_text(content)
    code, errors = socketkit("check", "odd.toml")
    assert code == 2
    assert sentence in errors


def test_serve_tells_the_server_that_is_not_in_the_file(here):
    Path("fine.toml").write_text(f'[servers.echo]\nlisten = "{TCP}"\nhandler = "handlers:Upper"\n')
    code, errors = socketkit("serve", "fine.toml", "ecko")
    assert code == 2
    assert "servers.ecko: is not in fine.toml, did you mean 'echo'?" in errors
    assert Path("fine.toml").exists()
