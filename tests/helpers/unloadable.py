"""A handler whose module needs an extension module that other interpreters than the main one cannot load."""

import readline  # noqa: F401 - this one is in the standard library

from helpers.interpreted import Words


class Edited(Words):
    pass
