"""Every example of the README and the documentation does what the page says. How pages are written for it: see `helpers.snippets`."""

import ast
import contextlib
import re
import sys
import tomllib

import click
import pytest

from helpers import snippets
from helpers.support import ROOT, python
from socketkit.cli import COMMANDS, main
from socketkit.composition import config
from socketkit.testing.programs import run, with_path

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(autouse=True)
def ports_of_its_own():
    snippets.ports.clear()


def pages_with(language):
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if snippets.blocks(page, language)]


@pytest.mark.parametrize("page", pages_with("python"))
def test_the_programs_of_a_page_run_and_its_servers_answer(page, tmp_path):
    answers = snippets.run(page, tmp_path)
    programs = "".join(block.text for block in snippets.blocks(page, "python"))
    served = any(isinstance(node, ast.Attribute) and node.attr == "serve_forever" for node in ast.walk(ast.parse(programs)))
    assert bool(answers) == served or "Thread(target=" in programs
    if page == README:
        assert answers == [b"HELLO\n", b"HELLO\n", b"hello\n"]


@pytest.mark.parametrize(
    ("page", "call"),
    [
        ("write-a-dispatcher", "check_dispatcher(lambda: Crew(4))"),
        ("write-an-event-loop", "check_dispatcher(Loop)"),
        ("write-a-transport", "check_transport(lambda: Adopted("),
        ("write-a-layer", "check_layer(Proxied, balancer)"),
        ("write-a-lifecycle", "check_lifecycle(make)"),
        ("observe-a-server", "check_observers(lambda: Slow("),
    ],
)
def test_the_part_of_a_page_is_proved_by_the_kit(page, call):
    [proof] = [block for block in snippets.blocks(ROOT / f"docs/how-to/{page}.md", "python") if block.heading == "Prove it"]
    assert call in proof.text  # and the page runs, so the part passes


def test_the_dispatcher_of_the_tutorial_is_proved_by_the_kit():
    page = ROOT / "docs/tutorial/write-a-dispatcher.md"
    assert "check_dispatcher(lambda: Bounded(2))" in page.read_text()  # and the page runs, so the part passes


def test_the_dispatcher_of_the_tutorial_gives_up_its_queue_at_the_deadline():
    page = ROOT / "docs/tutorial/write-a-dispatcher.md"
    python(
        snippets.blocks(page, "python")[0].text
        + """
import socket
from socketkit import Graceful, Server, TCP
inside = threading.Event()

def reads(request, client_address, server):
    inside.set()
    request.recv(1)

with Server(TCP("127.0.0.1", 0), reads, dispatcher=Bounded(1), lifecycle=Graceful(drain=0.2)).start() as server:
    clients = [socket.create_connection(server.addresses[0]) for _ in range(5)]
    assert inside.wait(10)
    while server.stats().active < 5: pass
    report = server.stop()
assert (report.finished, report.forced, report.stuck) == (0, 5, ()), report
assert server.stats().outcomes == {"finished": 1, "refused": 4}
"""
    )


def test_the_plugin_of_the_page_passes_its_own_tests(tmp_path):
    page = ROOT / "docs/how-to/publish-a-plugin.md"
    snippets.save(page, tmp_path)
    here = {"cwd": tmp_path, "env": with_path(tmp_path / "src")}
    tested = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", **here).stdout
    assert re.search(r"^\d+ passed, \d+ skipped", tested, re.MULTILINE)
    [command] = [each for block in snippets.blocks(page, "sh") for each in snippets.commands(block) if "socketkit.testing" in each]
    assert run(sys.executable, *command[1:], **here).stdout.endswith("1 of 1 promises kept\n")


def test_the_readme_changes_one_word():
    six_lines, changed, *_ = snippets.blocks(README, "python")
    code = [line for line in six_lines.text.splitlines() if line]
    assert len(code) == 6
    before, after = (re.findall(r"\w+", line) for line in (code[-1], changed.text))
    assert [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]] == [("thread", "fork")]


@pytest.mark.parametrize("page", pages_with("toml"))
def test_the_tables_of_a_page_are_right(page, tmp_path, monkeypatch):
    snippets.save(page, tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "myapp"]:
        monkeypatch.delitem(sys.modules, name)  # another page's
    for block in snippets.blocks(page, "toml"):
        document = tomllib.loads(block.text)
        if "servers" in document:
            stand_in_for_myapp(document["servers"], tmp_path)
            path = tmp_path / "checked.toml"
            path.write_text(block.text)
            assert config.read(path).keys() == document["servers"].keys(), block


def stand_in_for_myapp(servers, folder):
    """Write what the reader would have written: the handlers in `myapp` that the tables name."""
    for server in servers.values():
        module, _, name = server["handler"].partition(":")
        if module.partition(".")[0] == "myapp":
            path = folder.joinpath(*module.split("."), "__init__.py")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(f"def {name}(request, client_address, server): ...\n")


@pytest.mark.parametrize("page", pages_with("sh"))
def test_the_commands_of_a_page_can_be_typed(page, tmp_path, monkeypatch):
    snippets.save(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    for block in snippets.blocks(page, "sh"):
        for command in snippets.commands(block):
            try:
                understood(command)
            except click.UsageError as error:
                pytest.fail(f"{block}: {' '.join(command)}: {error.format_message()}")


def understood(command):
    """Raise unless a user could type this in the folder of the checkout."""
    while re.fullmatch(r"\w+=.*", command[0]):
        command = command[1:]
    program, *arguments = command
    program = program.removeprefix(".venv/bin/")
    if program == "systemd-socket-activate":
        understood(arguments[arguments.index("socketkit") :])
        return
    if program in {"python", "python3"} and arguments[:1] == ["-m"]:
        module, *arguments = arguments[1:]
        program = module if module in {"venv", "socketkit", "pip", "pytest"} else "python"
    if program == "socketkit":
        parse(arguments)
    elif program == "pip":
        installable(arguments)
    elif program == "venv":
        assert arguments == [".venv"]
    else:
        assert program in {
            "python",
            "pytest",
            "cd",
            "curl",
            "dig",
            "redis-benchmark",
            "dnsperf",
            "wrk",
            "openssl",
            "setpriv",
            "sphinx-build",
        }, command


def parse(arguments):
    """Parse what follows ``socketkit`` as the command line would, without doing anything. Raises: click.UsageError."""
    name, *rest = arguments
    if name in COMMANDS:
        with contextlib.suppress(click.exceptions.Exit):  # --help
            main.get_command(None, name).make_context(name, rest)
    elif name not in {"--help", "-h", "--version"}:
        raise click.UsageError(f"no command {name}")


def installable(arguments):
    assert arguments[0] == "install"
    for argument in arguments[1:]:
        if argument.startswith("-"):
            assert argument in {"-q", "-e", "--quiet", "--editable"}, argument
            continue
        name, _, extras = argument.partition("[")
        place = ROOT / name if name.startswith(".") else ROOT if name == "socketkit" else ROOT / "plugins" / name
        project = tomllib.loads((place / "pyproject.toml").read_text())["project"]
        assert set(filter(None, extras.rstrip("]").split(","))) <= project["optional-dependencies"].keys(), argument


@pytest.mark.parametrize(
    "command",
    ["socketkit sevre x:Y", "python -m socketkit serve --lisen tcp://127.0.0.1:1 a:B", ".venv/bin/pip install .[tset]", "sockekit demo"],
)
def test_a_command_that_does_not_work_is_found(command):
    with pytest.raises((click.UsageError, AssertionError)):
        understood(command.split())


@pytest.mark.parametrize("heading", ["Run it", "Test it", "Documentation"])
def test_the_readme_says_in_one_line_how_to_run_to_test_and_to_document(heading):
    [block] = [block for block in snippets.blocks(README, "sh") if block.heading == heading]
    assert block.text.count("\n") == 1
    assert "\\" not in block.text
    assert [command[0] for command in snippets.commands(block)][:2] == ["python3", ".venv/bin/pip"]


def test_a_page_is_read_as_it_is_written(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One\n```python\n# a/b.py\nx = 9123\n```\n## Two\n:::{note}\n```sh\na && b # c\nd \\\n e\n```\n:::\n"
        "- item\n  ```text\n  no\n  ```\n````md\n```python\nnot this\n```\n````\n"
    )
    python, sh = snippets.blocks(page, "python", "sh")
    assert (python.line, python.heading, python.file) == (3, "One", "a/b.py")
    assert python.text == f"# a/b.py\nx = {snippets.ports['9123']}\n"
    assert (sh.heading, sh.file, snippets.commands(sh)) == ("Two", None, [["a"], ["b"], ["d", "e"]])
    [text] = snippets.blocks(page, "text")
    assert text.text == "no\n"


@pytest.mark.parametrize(
    ("program", "what"),
    [
        ("assert 1 == 2", "line 5, in <module>"),
        ("import nowhere", "No module named 'nowhere'"),
        ("from socketkit import *\nServer('udp://127.0.0.1:9999', print)\nraise SystemExit", "page: failed"),
    ],
)
def test_a_page_whose_program_fails_is_found(program, what, tmp_path):
    page = tmp_path / "bad.md"
    page.write_text(f"A page.\n\n```python\nfirst = 1\n{program}\n```\n")
    with pytest.raises(AssertionError, match=what):
        snippets.run(page, tmp_path)
