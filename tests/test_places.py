"""The table of socketkit's own parts agrees with its hooks, and without plugins a name imports one of them and no other."""

import importlib.metadata

import pytest

from helpers.support import python
from socketkit import hookspecs
from socketkit.composition import builtin, catalog, places


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
absent = "pluggy cattrs ssl socketkit.hookspecs socketkit.composition.builtin socketkit.dispatchers.forks"
assert not set(absent.split()) & sys.modules.keys(), set(absent.split()) & sys.modules.keys()
"""
    )
