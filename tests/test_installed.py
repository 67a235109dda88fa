"""Whether plugins are installed: `importlib.metadata` and the quick look agree."""

import importlib.metadata
import os
import sys
import zipfile

import pytest

from helpers.support import python
from socketkit import hookspecs
from socketkit.composition import builtin, catalog, places
from socketkit.composition.installed import may_have_plugins

PLUGIN = "[console_scripts]\nx = y\n\n[ socketkit-test ]\ngreen = green\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder on an import path that has nothing else."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "missing"), str(tmp_path)])
    return tmp_path


def install(folder, name, entries):
    (folder / name).mkdir()
    (folder / name / "METADATA").write_text("Metadata-Version: 2.1\nName: green\nVersion: 1\n")
    (folder / name / "entry_points.txt").write_text(entries)


@pytest.mark.parametrize("kind", ["green-1.dist-info", "green.egg-info", "GREEN-1.DIST-INFO"])
def test_a_plugin_is_seen(folder, kind):
    assert not may_have_plugins("socketkit-test")
    install(folder, kind, PLUGIN.replace("[ ", "[").replace(" ]", "]"))
    assert may_have_plugins("socketkit-test")


def test_other_entry_points_are_no_plugins(folder):
    install(folder, "green-1.dist-info", "[socketkit-tester]\ngreen = green\n# [socketkit-test]\n[socketkit]\nsocketkit-test = x\n")
    (folder / "odd.egg-info").write_text("a file")
    assert not may_have_plugins("socketkit-test")
    assert not importlib.metadata.entry_points(group="socketkit-test")


def test_a_plugin_in_the_working_directory_is_seen(folder, monkeypatch):
    install(folder, "green-1.dist-info", "[socketkit-test]\ngreen = green\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [""])
    assert may_have_plugins("socketkit-test")


def test_what_only_importlib_can_read_may_have_plugins(folder, monkeypatch):
    with zipfile.ZipFile(folder / "green.zip", "w") as made:
        made.writestr("green-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: green\nVersion: 1\n")
    for path in ([str(folder / "green.zip")], [str(folder / "green.egg")]):
        monkeypatch.setattr(sys, "path", path)
        assert may_have_plugins("socketkit-test")


def test_an_import_hook_of_another_library_may_have_plugins(folder, monkeypatch):
    class Finder:
        def find_distributions(self, context=None): ...

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    assert may_have_plugins("socketkit-test")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_entry_points_that_cannot_be_read_may_be_plugins(folder):
    install(folder, "green-1.dist-info", "")
    (folder / "green-1.dist-info" / "entry_points.txt").chmod(0)
    assert may_have_plugins("socketkit-test")


def test_the_group_is_that_of_the_hooks():
    assert catalog.GROUP == hookspecs.PROJECT


@pytest.mark.parametrize("kind", catalog.KINDS)
def test_each_part_of_ours_is_in_its_place(kind):
    offered = getattr(builtin, f"socketkit_{kind}s")()
    assert offered.keys() == places.PLACES[kind].keys()
    for name, recipe in offered.items():
        assert places.recipe_at(kind, name) is recipe
        assert places.name_at(recipe) == name
    assert places.recipe_at(kind, "none") is None


@pytest.mark.skipif(bool(importlib.metadata.entry_points(group="socketkit")), reason="a plugin is installed, which may have observers")
def test_without_plugins_a_name_imports_its_part_and_no_other():
    python(
        """
import sys
from socketkit import Server, StreamRequestHandler
Server("tcp://127.0.0.1:0", StreamRequestHandler, dispatcher="prefork:2/pool:4", lifecycle="graceful:drain=500ms")
absent = "pluggy cattrs importlib.metadata ssl socketkit.hookspecs socketkit.composition.builtin socketkit.dispatchers.forks"
assert not set(absent.split()) & sys.modules.keys(), set(absent.split()) & sys.modules.keys()
"""
    )
