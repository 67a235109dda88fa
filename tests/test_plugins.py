"""Each plugin in this repository is complete. Where it is installed, its names can be used and the example of its README runs."""

import re
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from helpers import snippets
from helpers.support import ROOT, python
from socketkit.testing.programs import run

PLUGINS = sorted(path for path in (ROOT / "plugins").iterdir() if path.is_dir())
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]

every_plugin = pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
every_installed_plugin = pytest.mark.parametrize(
    "plugin", [pytest.param(path, id=path.name, marks=pytest.mark.plugin(path.name)) for path in PLUGINS]
)


def project(plugin):
    return tomllib.loads((plugin / "pyproject.toml").read_text("utf-8"))["project"]


def package(plugin):
    return plugin.name.replace("-", "_")


def test_the_table_has_a_line_for_each_plugin():
    page = (ROOT / "plugins/README.md").read_text("utf-8")
    lines = re.findall(r"^\| \[([\w-]+)\]\((\S+)\) \| \S.* \|$", page, re.MULTILINE)
    assert lines == [(plugin.name, f"{plugin.name}/README.md") for plugin in PLUGINS]


@every_plugin
def test_a_plugin_has_every_file(plugin):
    files = ("README.md", "CHANGELOG.md", "LICENSE", f"src/{package(plugin)}/__init__.py", f"src/{package(plugin)}/py.typed")
    assert [path for path in files if not (plugin / path).is_file()] == []
    assert (plugin / "LICENSE").read_text("utf-8") == (ROOT / "LICENSE").read_text("utf-8")


@every_plugin
def test_a_plugin_is_named_after_its_folder_and_offers_its_package(plugin):
    described = project(plugin)
    assert described["name"] == plugin.name
    assert set(described["entry-points"]["socketkit"].values()) <= modules(plugin)
    assert "socketkit" in described["keywords"]
    assert "Typing :: Typed" in described["classifiers"]


def modules(plugin):
    sources = plugin / "src"
    return {".".join(path.relative_to(sources).with_suffix("").parts).removesuffix(".__init__") for path in sources.rglob("*.py")}


@every_plugin
def test_a_plugin_is_made_for_this_socketkit(plugin):
    described = project(plugin)
    [needed] = [each for each in map(Requirement, described["dependencies"]) if each.name == "socketkit"]
    assert needed.specifier.contains(VERSION)
    assert not needed.specifier.contains("99")  # a later version may change the seams
    assert described["version"].split(".")[:2] == VERSION.split(".")[:2]


@every_plugin
def test_a_changelog_tells_of_the_version(plugin):
    text = (plugin / "CHANGELOG.md").read_text("utf-8")
    assert "## [Unreleased]" in text
    assert f"## [{project(plugin)['version']}]" in text


@every_plugin
def test_a_plugin_is_proved_by_the_kit(plugin):
    source = (plugin / "tests/test_conformance.py").read_text("utf-8")
    assert re.search(r"^class Test\w+\(\w*Conformance\):$", source, re.MULTILINE)


@every_plugin
def test_a_readme_has_an_example_and_says_how_to_install(plugin):
    readme = plugin / "README.md"
    assert snippets.blocks(readme, "python")
    assert re.search(rf"^pip install \S*\b{plugin.name}\b", readme.read_text("utf-8"), re.MULTILINE)


@every_plugin
def test_the_tests_of_a_plugin_run_with_settings_of_their_own(plugin):
    settings = tomllib.loads((plugin / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"]
    assert settings["testpaths"] == ["tests"]
    assert settings.get("pythonpath", ["tests"]) == ["tests"]  # of the plugin's folder: modules that only its own tests share
    assert "-p socketkit.testing.pytest_plugin" in " ".join(settings["addopts"])


NAMES = """
import sys
from importlib.metadata import distribution
from socketkit.catalog import KINDS, Catalog

for entry in distribution(sys.argv[1]).entry_points.select(group="socketkit"):
    plugin = entry.load()
    for kind in KINDS:
        for name, recipe in getattr(plugin, f"socketkit_{kind}s", dict)().items():
            assert Catalog.load().find(kind, name).recipe is recipe
            print(kind, name)
"""
"""Prints each part that the hooks of a distribution offer, if a server gets that part by its name."""


@every_installed_plugin
def test_every_part_that_a_plugin_offers_is_listed_and_can_be_used(plugin):
    listed = run(sys.executable, "-m", "socketkit", "plugins").stdout
    for name in project(plugin)["entry-points"]["socketkit"]:
        [parts] = re.findall(rf"^{name}, from {plugin.name} [\d.]+\n((?:  .*\n)*)", listed, re.MULTILINE)  # no word of it being broken
    offered = [line.split() for line in python(NAMES, plugin.name).stdout.splitlines()]
    for kind, name in offered:
        assert re.search(rf"^  {kind}:.*\b{name}\b", parts, re.MULTILINE)


@every_installed_plugin
def test_the_example_of_a_readme_runs(plugin, tmp_path):
    snippets.ports.clear()
    answers = snippets.run(plugin / "README.md", tmp_path)
    assert all(answers)
