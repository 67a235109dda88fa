"""What is shipped: the names, the types, the words, and the wheel."""

import ast
import importlib
import inspect
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import socketkit
from helpers.support import ROOT, python
from socketkit.testing.programs import run

PACKAGE = Path(socketkit.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))


def module_name(path):
    return ".".join(("socketkit", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


NAMES = [module_name(path) for path in SOURCES if path.with_name("__init__.py").exists() and path.name != "__main__.py"]


@pytest.mark.parametrize("name", NAMES)
def test_every_module_can_be_imported_on_its_own(name):
    run(sys.executable, "-W", "error", "-c", f"import {name}")


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(importlib.import_module(name), "__all__")])
def test_all_names_what_a_module_offers_and_nothing_else(name):
    module = importlib.import_module(name)
    offered = {
        each
        for each, thing in vars(module).items()
        if not each.startswith("_") and (inspect.isclass(thing) or inspect.isfunction(thing)) and comes_from(thing, name)
    }
    listed = {each for each in module.__all__ if not inspect.ismodule(getattr(module, each))}
    assert offered - set(module.__all__) == set()
    assert {each for each in listed if not hasattr(module, each)} == set()
    assert len(set(module.__all__)) == len(module.__all__)


def comes_from(thing, name):
    """Return whether a module's name is for users: its own, or anything of ours in the package itself, which only re-exports."""
    return thing.__module__ == name or (name == "socketkit" and thing.__module__.startswith("socketkit."))


def test_names_are_imported_when_asked_for_and_the_type_checker_is_told_of_the_same():
    told = {}
    for node in ast.walk(ast.parse(Path(socketkit.__file__).read_text())):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            told = {each.module.removeprefix("socketkit."): tuple(name.name for name in each.names) for each in node.body}
    assert told == socketkit._PLACES
    names = [name for group in told.values() for name in group]
    assert {*names, "socketserver", *socketkit.socketserver.__all__} == set(socketkit.__all__)
    assert {each for each in dir(socketkit) if not each.startswith("__")} == set(socketkit.__all__)
    for place, group in told.items():
        for name in group:
            assert getattr(socketkit, name) is getattr(importlib.import_module(f"socketkit.{place}"), name)


def test_a_name_that_is_not_there_is_no_attribute():
    with pytest.raises(AttributeError, match="module 'socketkit' has no attribute 'Treads'") as caught:
        socketkit.Treads  # noqa: B018 - it raises
    assert caught.value.name == "Treads"
    with pytest.raises(ImportError, match="cannot import name 'Treads'"):
        exec("from socketkit import Treads")


@pytest.mark.parametrize("path", SOURCES, ids=map(module_name, SOURCES))
def test_everything_public_says_what_it_is(path):
    """In a private module the module and its classes; of its functions those that need more words than their names."""
    name = module_name(path)
    missing = list(undocumented(ast.parse(path.read_text()), name))
    if any(part.startswith("_") for part in name.split(".")):
        missing = [each for each in missing if each == name or each.rpartition(".")[2][0].isupper()]
    assert missing == []


def undocumented(node, name):
    """Yield the public classes, functions and methods without a docstring, in whatever branch they are defined."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if not ast.get_docstring(node) and not (isinstance(node, ast.Module) and not node.body):
            yield name
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            overloaded = any("setter" in ast.unparse(each) or "overload" in ast.unparse(each) for each in child.decorator_list)
            if not child.name.startswith("_") and not overloaded:
                yield from undocumented(child, f"{name}.{child.name}")
        elif isinstance(child, ast.If | ast.Try | ast.With):
            inner = list(undocumented(child, name))
            yield from inner


def test_a_missing_docstring_is_found():
    source = '"""M."""\nif 1:\n    class C:\n        """C."""\n        def m(self): ...\n        def _p(self): ...\ndef f(): ...\n'
    assert list(undocumented(ast.parse(source), "m")) == ["m.C.m", "m.f"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Return the wheel as the build backend makes it from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    build = "import hatchling.build, sys; print(hatchling.build.build_wheel(sys.argv[1]))"
    name = run(sys.executable, "-c", build, str(folder), cwd=ROOT).stdout.strip()
    with zipfile.ZipFile(folder / name) as opened:
        yield opened


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel):
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    tree = ROOT / "socketkit"
    source = {
        f"socketkit/{path.relative_to(tree).as_posix()}" for path in tree.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == source
    assert "socketkit/py.typed" in shipped
    assert not [name for name in wheel.namelist() if "test" in name.casefold() and not name.startswith("socketkit/testing/")]


def test_the_wheel_says_what_the_project_is(wheel):
    def read(name):
        [path] = [each for each in wheel.namelist() if each.endswith(f".dist-info/{name}")]
        return wheel.read(path).decode()

    metadata = Parser().parsestr(read("METADATA"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["Version"] == socketkit.__version__ == project["version"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert {line.partition(">=")[0] for line in metadata.get_all("Requires-Dist") if "extra ==" not in line} == {
        "attrs",
        "pluggy",
        "cattrs",
        "click",
    }
    assert "socketkit = socketkit.__main__:main" in read("entry_points.txt")
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text().strip()
    assert [name for name in wheel.namelist() if name.endswith("LICENSE")]


def test_the_changelog_tells_of_this_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in text
    assert f"## [{socketkit.__version__}]" in text


def test_the_annotations_of_classic_classes_can_be_evaluated():
    import typing

    for name in socketkit.socketserver.__all__:
        assert typing.get_type_hints(type(name, (getattr(socketkit.socketserver, name),), {})) is not None


def test_a_name_that_no_module_has_imports_nothing():
    """Code that loops over sys.modules asks each module for names such as __warningregistry__, and a new module would end the loop."""
    python(
        """
import sys, socketkit
before = set(sys.modules)
for module in sys.modules.values():
    assert not hasattr(module, "socketkit_has_no_such_name")
assert set(sys.modules) == before
"""
    )


def test_the_seams_know_their_names_without_importing_them():
    from socketkit import seams
    from socketkit.seams import names

    assert sorted(names.__all__) == sorted(seams._NAMES)
