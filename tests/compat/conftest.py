"""Both libraries, for promises that both keep: a test that also holds for the standard library has understood it."""

import importlib

import pytest

from compat.classic import NEW, OLD


@pytest.fixture(params=[OLD, NEW], ids=["stdlib", "socketkit"])
def library(request):
    """The standard library's module, which is still the real one in this process, and ours."""
    return importlib.import_module(request.param)
