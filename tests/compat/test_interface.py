"""The drop-in has the interface that the standard library's `socketserver` has in the Python that runs this test.

With a new version of Python, the first test fails with a sentence for each change that is to be followed.
"""

import importlib
import inspect
import sys
import types
import warnings

import pytest

from compat.classic import NEW, OLD

old, new = importlib.import_module(OLD), importlib.import_module(NEW)

PYTHON = f"Python {sys.version_info.major}.{sys.version_info.minor}"

INTENDED = {
    "BaseServer.__bases__": "RequestTemplate has the steps of a request that classic and composed servers share",
    "BaseServer.process_request_thread": "every dispatcher runs requests by it; a row of docs/reference/differences.md",
    "BaseRequestHandler.peer_certificate": "for handlers of connections with TLS",
    "BaseRequestHandler.upgrade_tls": "for handlers of protocols with STARTTLS",
    "StreamRequestHandler.request_kinds": "a composed server refuses handlers that do not fit its transport",
    "DatagramRequestHandler.request_kinds": "the same",
}
"""What differs on purpose, and why."""

if sys.version_info < (3, 12):
    INTENDED |= dict.fromkeys(["ForkingUnixStreamServer", "ForkingUnixDatagramServer"], "the same names on every version")


def test_the_drop_in_has_the_interface_of_this_python():
    found = differences(old, new)
    assert [sentence for path, sentence in found.items() if path not in INTENDED] == []


def test_every_difference_on_purpose_is_still_one():
    stale = INTENDED.keys() - differences(old, new)
    assert [f"{path} is as in {PYTHON}: remove it from INTENDED" for path in sorted(stale)] == []


def test_the_version_of_the_module_is_as_deprecated_as_the_standard_librarys():
    def version(library):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            value = getattr(library, "__version__", None)
        return value, [(warning.category, str(warning.message), warning.filename) for warning in caught]

    assert version(new) == version(old)
    with pytest.raises(AttributeError, match=f"module '{NEW}' has no attribute 'TreadingMixIn'"):
        new.TreadingMixIn  # noqa: B018 - it raises


# --- how modules are compared ---------------------------------------------------------------------------------------------


def differences(theirs, ours):
    """Return where an interface of ours differs from theirs: dotted names, each with a sentence that says what to do.

    What ours has in addition counts only if its name is for users. What a class inherits counts only where it comes from.
    """
    their_facts, our_facts = interface(theirs), interface(ours)
    pairs = {path: (their_facts.get(path), our_facts.get(path)) for path in {**their_facts, **our_facts}}
    unequal = {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}

    def counts(path):
        class_name, _, member = path.rpartition(".")
        if unequal[path][0] is None and path not in ours.__all__ and (not class_name or member.startswith("_")):
            return False
        bases = [base.__name__ for library in (theirs, ours) for base in getattr(getattr(library, class_name, None), "__mro__", ())[1:]]
        return class_name not in unequal and not any(unequal.get(f"{base}.{member}") == unequal[path] for base in bases)

    return {path: advice(path, *unequal[path]) for path in sorted(unequal) if counts(path)}


def advice(path, theirs, ours):
    if ours is None:
        return f"{path} is in the socketserver of {PYTHON}: add it to ours, as {theirs}"
    if theirs is None:
        return f"{path} is not in the socketserver of {PYTHON}: remove it from ours, or say in INTENDED why it stays"
    return f"{path} is {theirs} in the socketserver of {PYTHON}, and {ours} in ours: make it the same"


def interface(module):
    """Return what a program can see of a module: dotted names, each with a description."""
    listed = set(module.__all__)
    facts = {name: describe(value) for name, value in vars(module).items() if not is_special(name)}
    facts |= {name: f"{facts[name]} in __all__" for name in listed}
    for name in listed:
        kind = getattr(module, name)
        facts[f"{name}.__bases__"] = ", ".join(base.__name__ for base in kind.__bases__)
        facts |= {f"{name}.{member}": describe(value) for member, value in members(kind).items()}
    return facts


def members(kind):
    """Return the attributes of a class, own and inherited. Special names are left out unless a class statement defines a method."""
    return {
        name: value
        for base in reversed(kind.__mro__[:-1])  # without `object`
        for name, value in vars(base).items()
        if not is_special(name) or (isinstance(value, types.FunctionType | classmethod) and not name.startswith("__annotat"))
    }


def is_special(name):
    return name.startswith("__") and name.endswith("__")


def describe(value):
    if isinstance(value, types.FunctionType):
        return f"a method {signature(value)}"
    if isinstance(value, classmethod | staticmethod):
        return f"a {type(value).__name__} {signature(value.__func__)}"
    if value is None or isinstance(value, bool | int | float | str | tuple):
        return repr(value)
    return f"a {type(value).__name__}"


def signature(function):
    """Return the parameters with their kinds and defaults, without annotations."""
    full = inspect.signature(function)
    parameters = [each.replace(annotation=each.empty) for each in full.parameters.values()]
    return str(full.replace(parameters=parameters, return_annotation=full.empty))


# --- every kind of change is found ----------------------------------------------------------------------------------------

SERVER = """
class Server(Base):
    def close(self): ...
"""

BEFORE = f"""
__all__ = ["Base", "Server"]

class Base:
    size = 5
    def __init__(self, address, late=True): ...
    def close(self): ...
    @staticmethod
    def open(): ...
    @property
    def name(self): ...
{SERVER}"""

CHANGES = {
    "a name": ('"Server"]', '"Server", "Client"]\nclass Client: new = 1', "Client is in .*: add it to ours, as a type in __all__"),
    "a name outside of __all__": ("class Base", "_lock = None\nclass Base", "_lock is in .*: add it to ours, as None"),
    "a name no longer in __all__": (', "Server"]', "]", "Server is a type in the .*, and a type in __all__ in ours"),
    "a name that is gone": (
        SERVER,
        '__all__.remove("Server")',
        "Server is not in .*: remove it from ours, or say in INTENDED why it stays",
    ),
    "a base class": ("(Base):", '(type("Mixed", (), {}), Base):', "Server.__bases__ is Mixed, Base in the .*, and Base in ours"),
    "a method": ("    def close", "    def stop(self): ...\n    def close", "Base.stop is in .*: add it to ours, as a method (self)"),
    "a special method": (
        "def close",
        "def __iter__(self): ...\n    def close",
        "Base.__iter__ is in .*: add it to ours, as a method (self)",
    ),
    "a parameter": ("late=True", "late=True, *, family=None", "Base.__init__ is a method (self, address, late=True, *, family=None) in"),
    "the name of a parameter": ("address", "server_address", "Base.__init__ is a method (self, server_address, late=True) in"),
    "the kind of a parameter": ("late=True", "*, late=True", "Base.__init__ is a method (self, address, *, late=True) in"),
    "a default": ("late=True", "late=False", "Base.__init__ is a method (self, address, late=False) in"),
    "a value": ("size = 5", "size = 4096", "Base.size is 4096 in .*, and 5 in ours: make it the same"),
    "a value of a subclass": ("Server(Base):", "Server(Base):\n    size = 6", "Server.size is 6 in .*, and 5 in ours: make it the same"),
    "a kind of method": ("staticmethod", "classmethod", "Base.open is a classmethod () in .*, and a staticmethod () in ours"),
    "a property that is none": ("    @property\n", "", "Base.name is a method (self) in .*, and a property in ours"),
    "a method that is gone": (
        "    @staticmethod\n    def open(): ...\n",
        "",
        "Base.open is not in .*: remove it from ours, or say in INTENDED why",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_found_once_and_says_what_to_do(change):
    before, after, words = CHANGES[change]
    found = differences(library(BEFORE.replace(before, after, 1)), library(BEFORE))
    [sentence] = found.values()
    start, _, end = words.partition(".*")
    assert sentence.startswith(start)
    assert end in sentence


def test_nothing_is_found_where_nothing_has_changed_for_users():
    ours = "import io\n" + BEFORE.replace("class Base:", "class Base:\n    def _new_engine(self): ...\n    annotated: int", 1)
    assert differences(library(BEFORE), library(ours)) == {}


def library(source):
    module = types.ModuleType("library")
    exec(source, vars(module))
    return module
