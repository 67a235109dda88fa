"""The documentation builds without a warning, and its reference names everything there is."""

import ast
import importlib
import inspect
import re
import runpy
import sys
from itertools import pairwise
from pathlib import Path

import attrs
import pytest

import socketkit
from helpers.support import ROOT, python
from socketkit import errors, hookspecs, seams, socketserver
from socketkit._engine import run as serving
from socketkit.cli import COMMANDS
from socketkit.composition import builtin, config
from socketkit.testing import conformance
from socketkit.testing.__main__ import KINDS
from socketkit.testing.programs import run, with_path

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PARTS = sorted(path for path in (DOCS / "reference/parts").glob("*.md") if path.stem != "index")
MODULES = sorted((ROOT / "socketkit").rglob("*.py"))
RECIPES = {
    **builtin.socketkit_transports(),
    **builtin.socketkit_layers(),
    **builtin.socketkit_dispatchers(),
    **builtin.socketkit_lifecycles(),
}
LONG = {
    "reference/differences.md",
    "reference/faults.md",
    "explanation/contract.md",
    "explanation/endurance.md",
}  # a row for each difference, fault, promise


def of(page):
    return str(page.relative_to(DOCS))


@pytest.fixture(scope="module")
def reference():
    """Return the text of the reference, with the tables that its build draws from the code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", sys.path[:])
        drawn = runpy.run_path(str(DOCS / "conf.py"))["myst_substitutions"]
    text = "\n".join(page.read_text() for page in sorted((DOCS / "reference").rglob("*.md")))
    return re.sub(r"\{\{ (\w+) \}\}", lambda found: drawn[found[1]], text)


def missing(names, text):
    return sorted(name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text))


def test_a_name_that_is_not_there_is_found():
    assert missing(["tcp", "unix", "Layer"], "unix-dgram Layered tcp") == ["Layer", "unix"]


# --- the build --------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_the_documentation_builds_without_a_warning(tmp_path):
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package)
    command = (sys.executable, "-m", "sphinx", "-n", "-W", "-q", "--keep-going", "-d", str(tmp_path / "trees"))
    run(*command, str(DOCS), str(tmp_path / "html"), guard=250)
    index = (tmp_path / "html/reference/parts/tcp.html").read_text()
    assert "TIME_WAIT" in index  # the docstring of an option


# --- everything has an entry ------------------------------------------------------------------------------------------


def test_every_public_name_is_in_the_reference(reference):
    assert missing(socketkit.__all__, reference) == []


def test_every_hook_is_in_the_reference(reference):
    hooks = [name for name in vars(hookspecs) if name.startswith("socketkit_")]
    assert len(hooks) == 5
    assert missing(hooks, reference) == []


def test_every_error_is_in_the_reference_and_says_when_it_is_raised(reference):
    names = [name for name, thing in vars(errors).items() if inspect.isclass(thing) and issubclass(thing, errors.SocketkitError)]
    assert missing(names, reference) == []
    when = (DOCS / "reference/errors.md").read_text().partition("## When each is raised")[2]
    assert missing(set(names) - {"SocketkitError"}, when) == []


def test_every_event_is_in_the_reference(reference):
    assert missing(seams.EVENTS, reference) == []


def test_every_promise_that_the_kit_checks_is_in_the_reference(reference):
    assert missing({name for kind in KINDS.values() for name in kind.promises()}, reference) == []
    assert missing(conformance.__all__, reference) == []


def test_every_seam_is_in_the_reference(reference):
    protocols = [
        name
        for name, thing in ((each, getattr(seams, each)) for each in seams.__all__)
        if getattr(thing, "_is_protocol", False) and thing.__module__.startswith(seams.__name__)
    ]
    assert {"Transport", "Layer", "Dispatcher", "Lifecycle"} < set(protocols)
    assert missing((f"autoclass:: socketkit.seams.{name}" for name in protocols), reference) == []


def test_every_part_has_a_page_and_every_page_a_part():
    assert {page.stem for page in PARTS} == {*RECIPES, "layered"}


@pytest.mark.parametrize("page", PARTS, ids=of)
def test_a_part_page_has_the_skeleton_of_all(page):
    text, recipe = page.read_text(), RECIPES.get(page.stem, socketkit.Layered)
    assert text.startswith(f"# {'Layered' if page.stem == 'layered' else page.stem}\n")
    assert f"| class | `socketkit.{recipe.__name__}` |" in text
    assert f".. autoclass:: socketkit.{recipe.__name__}\n" in text
    wanted = ["Options", *(["When each takes effect"] if attrs.fields(recipe) else []), "Example", "See also"]
    assert [heading for heading in re.findall(r"^## (.*)$", text, re.MULTILINE) if heading in wanted] == wanted


@pytest.mark.parametrize("page", [page for page in PARTS if page.stem in RECIPES], ids=of)
def test_every_option_of_a_part_says_what_it_does(page):
    recipe = RECIPES[page.stem]
    bodies = [ast.parse(inspect.getsource(each)).body[0].body for each in recipe.__mro__[:-1]]
    told = {
        field.target.id
        for body in bodies
        for field, after in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    }
    assert {field.name for field in attrs.fields(recipe)} - told == set()


def test_every_classic_name_says_what_it_is_composed_of():
    assert missing(socketserver.__all__, (DOCS / "reference/classic-names.md").read_text()) == []


def test_every_key_of_a_server_is_in_the_reference():
    page = (DOCS / "reference/configuration.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == [field.name for field in attrs.fields(config.Composition)]


def test_every_command_is_in_the_reference():
    page = (DOCS / "reference/command-line.md").read_text()
    assert re.findall(r"^## socketkit (\w+)\n\n\{\{ help_(\w+) \}\}$", page, re.MULTILINE) == [(name, name) for name in COMMANDS]


def test_every_environment_variable_is_in_the_reference():
    used = {name for path in MODULES for name in re.findall(r"\bSOCKETKIT_[A-Z_]+\b", path.read_text())}
    assert "SOCKETKIT_DISABLED_PLUGINS" in used
    told = {name for name in used if not name.startswith("SOCKETKIT_RUN")} | {"SOCKETKIT_RUN"}
    assert missing(told, (DOCS / "reference/environment.md").read_text()) == []


def test_every_logger_is_in_the_reference():
    source = """
import importlib, logging, pkgutil, socketkit
for module in pkgutil.walk_packages(socketkit.__path__, "socketkit."):
    if ".child" not in module.name and "__main__" not in module.name:
        importlib.import_module(module.name)
print(*logging.root.manager.loggerDict)
"""
    loggers = {name for name in python(source, env=with_path(ROOT)).stdout.split() if name.startswith("socketkit.")}
    assert loggers == LOGGERS


def test_the_figure_of_the_states_shows_those_there_are():
    drawn = set(re.findall(r'class="name"[^>]*>(\w+)<', (DOCS / "explanation/states.svg").read_text()))
    told = set(re.findall(r"^\| `([A-Z]+)` \|", (DOCS / "explanation/states.md").read_text(), re.MULTILINE))
    assert drawn == told == {state.name for state in serving.State}


def test_the_figure_of_a_request_names_methods_there_are():
    figure = (DOCS / "explanation/path-of-a-request.svg").read_text()
    methods = set(re.findall(r">(\w+_\w+)<", figure))
    assert {"verify_request", "process_request", "close_request"} < methods
    assert {name for name in methods if not hasattr(socketkit.Server, name)} == set()


# --- pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=of)
def test_links_of_a_page_lead_somewhere(page):
    assert broken_links(page) == []


def broken_links(page):
    """Return the places that the page refers to and that are not there; what has a scheme is not looked at."""
    text = re.sub(r"^(`{3,})(?!\{)[^\n]*\n.*?^\1$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    places = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^```\{image\} (\S+)$", text, re.MULTILINE)
    return [place for place in places if not re.match(r"\w+:", place) and not leads_somewhere(page, place)]


def leads_somewhere(page, place):
    path, _, anchor = place.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.is_file():
        return False
    headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
    return not anchor or anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "other.md").write_text("# Here\n## A part\n")
    page = tmp_path / "page.md"
    page.write_text("[a](other.md) [b](other.md#a-part) [c](gone.md) [d](other.md#gone) [e](https://x.y/z)\n```text\n[f](no)\n```\n")
    assert broken_links(page) == ["gone.md", "other.md#gone"]


@pytest.mark.parametrize("page", [page for page in PAGES if of(page) not in LONG], ids=of)
def test_a_page_is_short(page):
    assert len(page.read_text().splitlines()) <= 150


LOGGERS = set(re.findall(r"^\| `(socketkit\.[\w.]+)` \|", (DOCS / "reference/logging.md").read_text(), re.MULTILINE))
"""Their names are of subjects, not of modules."""


@pytest.mark.parametrize("page", PAGES, ids=of)
def test_a_page_has_one_title_and_names_only_what_can_be_imported(page):
    text = re.sub(r"^(`{3,}).*?^\1$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    for name in set(re.findall(r"`(socketkit(?:\.\w+)+)`", text)) - LOGGERS:
        imported(name)


def imported(name):
    module, attributes = name, []
    while True:
        try:
            thing = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, attribute = module.rpartition(".")
            attributes.insert(0, attribute)
    for attribute in attributes:
        thing = getattr(thing, attribute)
    return thing


def test_a_name_that_cannot_be_imported_is_found():
    with pytest.raises(AttributeError):
        imported("socketkit.platform.FEATURES")


def test_every_folder_of_the_four_has_an_index():
    assert {path.parent.name for path in DOCS.glob("*/index.md")} == {"tutorial", "how-to", "reference", "explanation"}
    assert Path(DOCS / "index.md").is_file()
