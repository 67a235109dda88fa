"""The names of the built-in dispatchers, for tests that run under each."""

from socketkit.composition import builtin
from socketkit.composition.capabilities import missing

EVERY = tuple(name for name, kind in builtin.socketkit_dispatchers().items() if not missing(kind()))
"""Those that this platform can run."""

EVERY_IN_PLACE = tuple(name for name in EVERY if name != "interpreters")
"""Those that serve any server and handler. Interpreters copy the server, and import its handler from a module."""
