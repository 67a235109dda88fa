import importlib
import logging
import pickle
import subprocess
import sys
import textwrap
from importlib.metadata import entry_points
from typing import ClassVar

import attrs
import pytest

from socketkit import Server, hookspecs
from socketkit._system import logs
from socketkit.composition.catalog import KINDS, Catalog
from socketkit.dispatchers.threads import Threads
from socketkit.errors import ClashError, PluginError, UnknownPartError

GOOD = """
    import attrs
    from socketkit.hookspecs import hookimpl

    @attrs.frozen
    class Green:
        workers: int = 8

    @hookimpl
    def socketkit_dispatchers():
        return {"green": Green}
"""

BROKEN = {
    "raises-at-import": (
        "import nowhere_to_be_found",
        "it cannot be imported (ModuleNotFoundError: No module named 'nowhere_to_be_found')",
    ),
    "leaves-at-import": ("raise SystemExit('needs a newer system')", "it cannot be imported (SystemExit: needs a newer system)"),
    "syntax": ("def", "it cannot be imported (SyntaxError: invalid syntax"),
    "no-hook": ("def socketkit_dispatchers(): return {}", "it has no hooks; mark its functions"),
    "misspelt-hook": (
        "from socketkit.hookspecs import hookimpl\n@hookimpl\ndef socketkit_dispatcher(): return {}",
        "no hook is named 'socketkit_dispatcher', did you mean 'socketkit_dispatchers'?",
    ),
    "wrong-argument": (
        "from socketkit.hookspecs import hookimpl\n@hookimpl\ndef socketkit_layers(settings): return {}",
        "its hooks are not declared as in socketkit.hookspecs",
    ),
    "raising-hook": (
        "from socketkit.hookspecs import hookimpl\n@hookimpl\ndef socketkit_layers(): raise RuntimeError('no luck')",
        "socketkit_layers() raised (RuntimeError: no luck)",
    ),
    "forgotten-return": (
        "from socketkit.hookspecs import hookimpl\n@hookimpl\ndef socketkit_layers(): {}",
        "socketkit_layers() returned None, which is not a mapping",
    ),
    "wrong-return": (
        "from socketkit.hookspecs import hookimpl\n@hookimpl\ndef socketkit_transports(): return ['tcp']",
        "socketkit_transports() returned ['tcp'], which is not a mapping",
    ),
    "wrong-name": (
        "from socketkit.hookspecs import hookimpl\n@hookimpl\ndef socketkit_lifecycles(): return {'a:b': object}",
        "socketkit_lifecycles() offers 'a:b'; a name has only letters",
    ),
    "wrong-recipe": (
        "from socketkit.hookspecs import hookimpl\n@hookimpl\ndef socketkit_lifecycles(): return {'calm': object}",
        "socketkit_lifecycles() offers <class 'object'> as 'calm'; a recipe is an attrs class",
    ),
    "unknown-type": (
        """
            from __future__ import annotations
            import attrs
            from socketkit.hookspecs import hookimpl

            @attrs.frozen
            class Calm:
                where: Path

            @hookimpl
            def socketkit_lifecycles(): return {"calm": Calm}
        """,
        "the options of 'calm' have types that cannot be resolved at run time (NameError: name 'Path' is not defined)",
    ),
}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a distribution with one plugin."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("SOCKETKIT_DISABLED_PLUGINS", raising=False)
    modules = []

    def install(distribution, plugin, source, version="1.2"):
        module = f"plugin_{len(modules)}_for_tests"
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[socketkit]\n{plugin} = {module}\n")
        importlib.invalidate_caches()
        Catalog.forget()

    Catalog.forget()
    yield install
    Catalog.forget()
    for module in modules:
        sys.modules.pop(module, None)


def plugin(name):
    return next(plugin for plugin in Catalog.load().plugins if plugin.name == name)


def test_our_own_parts_come_through_the_hooks(install):
    offer = Catalog.load().find("dispatcher", "thread")
    assert (offer.recipe, offer.plugin, offer.distribution) == (Threads, "builtin", "socketkit")
    assert Catalog.load().plugins[0].error is None


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_a_hook(kind):
    assert f"socketkit_{kind}s" in vars(hookspecs)


def test_an_installed_plugin_is_found_with_its_distribution_and_version(install):
    install("socketkit-green", "green", GOOD)
    offer = Catalog.load().find("dispatcher", "green")
    assert (offer.recipe.__name__, offer.plugin, offer.distribution, offer.version) == ("Green", "green", "socketkit-green", "1.2")
    assert plugin("green").offers == (offer,)


def test_a_recipe_object_is_traced_to_its_supplier(install):
    install("socketkit-green", "green", GOOD)
    offer = Catalog.load().find("dispatcher", "green")
    assert Catalog.load().offer_of(offer.recipe()) is offer
    assert Catalog.load().offer_of(object()) is None


def test_the_catalog_is_made_once(install):
    assert Catalog.load() is Catalog.load()


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_recorded_with_its_distribution_and_the_reason(install, case):
    source, reason = BROKEN[case]
    install("socketkit-sad", "sad", source)
    error = plugin("sad").error
    assert (error.plugin, error.distribution) == ("sad", "socketkit-sad")
    assert error.reason.startswith(reason)
    assert "\n" not in str(error)
    assert plugin("sad").offers == ()


def test_a_broken_plugin_leaves_the_others_alone(install):
    install("socketkit-sad", "sad", "import nowhere_to_be_found")
    install("socketkit-green", "green", GOOD)
    assert Catalog.load().find("dispatcher", "green").plugin == "green"
    assert Catalog.load().find("transport", "tcp").plugin == "builtin"


def test_asking_for_the_name_of_a_broken_plugin_raises_its_error(install):
    install("socketkit-sad", "sad", "import nowhere_to_be_found")
    with pytest.raises(PluginError, match="plugin 'sad' of socketkit-sad cannot be used: it cannot be imported") as caught:
        Catalog.load().find("dispatcher", "sad")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_an_unknown_name_is_told_with_the_nearest_and_all_known(install):
    with pytest.raises(UnknownPartError) as caught:
        Catalog.load().find("dispatcher", "thraed")
    assert "no dispatcher named 'thraed', did you mean 'thread'?; installed: " in str(caught.value)
    assert caught.value.suspects == ()


def test_an_unknown_name_may_be_a_broken_plugins(install):
    install("socketkit-sad", "sad", "import nowhere_to_be_found")
    with pytest.raises(
        UnknownPartError, match=r"perhaps because plugin 'sad' of socketkit-sad cannot be used: it cannot be imported"
    ) as caught:
        Catalog.load().find("dispatcher", "melancholy")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)


@pytest.mark.parametrize("entries", ["[socketkit]\nnonsense\n", "[socketkit]\nodd = !!\n"])
def test_a_distribution_installed_badly_is_recorded_too(install, tmp_path, entries):
    install("odd-parts", "odd", "")
    (info,) = tmp_path.glob("*.dist-info")
    (info / "entry_points.txt").write_text(entries)
    Catalog.forget()
    assert Catalog.load().find("transport", "tcp").plugin == "builtin"
    assert [plugin.distribution for plugin in Catalog.load().plugins if plugin.error] == ["odd-parts"]


def test_a_distribution_without_metadata_is_unknown_but_works(install, tmp_path):
    install("socketkit-green", "green", GOOD)
    (tmp_path / "socketkit_green-1.2.dist-info" / "METADATA").unlink()
    Catalog.forget()
    assert Catalog.load().find("dispatcher", "green").distribution == "unknown"


def test_of_two_copies_of_a_distribution_the_first_on_the_path_counts(install, tmp_path):
    install("socketkit-green", "green", GOOD)
    install("socketkit-green", "green", GOOD.replace("Green", "Olive"), version="1.3")
    assert len([plugin for plugin in Catalog.load().plugins if plugin.name == "green"]) == 1
    Catalog.load().find("dispatcher", "green")


def test_a_disabled_plugin_is_not_even_imported(install, monkeypatch):
    monkeypatch.setenv("SOCKETKIT_DISABLED_PLUGINS", "other, sad")
    install("socketkit-sad", "sad", "import nowhere_to_be_found")
    assert plugin("sad").blocked
    assert plugin("sad").error is None
    with pytest.raises(UnknownPartError, match="plugin 'sad' of socketkit-sad is blocked by SOCKETKIT_DISABLED_PLUGINS"):
        Catalog.load().find("dispatcher", "sad")


def test_two_plugins_with_one_name_clash_when_it_is_used_and_only_then(install):
    install("socketkit-one", "one", GOOD)
    install("socketkit-two", "two", GOOD)
    assert Catalog.load().find("dispatcher", "thread").plugin == "builtin"
    with pytest.raises(ClashError) as caught:
        Catalog.load().find("dispatcher", "green")
    assert "'one' of socketkit-one and 'two' of socketkit-two" in str(caught.value)


def test_blocking_one_of_two_settles_the_clash(install, monkeypatch):
    monkeypatch.setenv("SOCKETKIT_DISABLED_PLUGINS", "one")
    install("socketkit-one", "one", GOOD)
    install("socketkit-two", "two", GOOD)
    assert Catalog.load().find("dispatcher", "green").plugin == "two"


def test_a_built_in_name_cannot_be_taken(install):
    install("socketkit-rude", "rude", GOOD.replace('"green"', '"thread"'))
    with pytest.raises(ClashError, match="'builtin' of socketkit and 'rude' of socketkit-rude"):
        Catalog.load().find("dispatcher", "thread")


def test_one_module_may_be_named_by_two_entry_points(install):
    install("socketkit-green", "green", GOOD)
    install("socketkit-alias", "verdant", "from plugin_0_for_tests import *")
    assert Catalog.load().find("dispatcher", "green").recipe.__name__ == "Green"


def test_a_hook_of_a_later_socketkit_may_be_marked_optional(install):
    install(
        "socketkit-green",
        "green",
        textwrap.dedent(GOOD) + "\n@hookimpl(optionalhook=True)\ndef socketkit_filters(): return {}",
    )
    assert plugin("green").error is None


OBSERVERS = """
    from socketkit.hookspecs import hookimpl

    @hookimpl
    def socketkit_observers(server):
        return {}
"""


@pytest.fixture
def alone(install, monkeypatch):
    """Keep plugins that are installed here from observing servers."""
    monkeypatch.setenv("SOCKETKIT_DISABLED_PLUGINS", ",".join(each.name for each in entry_points(group=hookspecs.PROJECT)))


def test_observers_of_all_plugins_are_collected(install, alone):
    install("socketkit-eyes", "eyes", OBSERVERS.format("[server, 'eyes']"))
    install("socketkit-ears", "ears", OBSERVERS.format("iter(['ears'])"))
    assert Catalog.load().observers("server") == ["ears", "server", "eyes"]


def test_a_hook_may_look_at_the_server_that_it_offers_observers_for(install):
    class Seen(Server):
        seen: ClassVar[list[object]] = []

    install("socketkit-eyes", "eyes", OBSERVERS.format("[server.seen.append((server.urls, server.state.value))]"))
    Seen("tcp://127.0.0.1:9999", print)
    assert Seen.seen == [(["tcp://127.0.0.1:9999"], "new")]


def test_a_misspelt_event_of_a_plugins_observer_is_logged(install, alone, caplog):
    install("socketkit-blind", "blind", OBSERVERS.format("[type('Slips', (), {'request_finishd': print})()]"))
    assert Catalog.load().observers("server") == []
    logs.flush()
    assert "observer Slips has a method 'request_finishd', did you mean 'request_finished'?" in caplog.text


@pytest.mark.parametrize("result", ["1/0", "5", "None"])
def test_a_plugin_without_usable_observers_does_no_harm(install, alone, result, caplog):
    install("socketkit-blind", "blind", OBSERVERS.format(result))
    install("socketkit-eyes", "eyes", OBSERVERS.format("['eyes']"))
    with caplog.at_level(logging.ERROR, "socketkit.catalog"):
        assert Catalog.load().observers("server") == ["eyes"]
        assert logs.flush()
    assert [record.getMessage() for record in caplog.records] == (
        [] if result == "None" else ["plugin 'blind' of socketkit-blind failed to supply observers"]
    )


@pytest.mark.parametrize("offer", [offer for kind in KINDS for offer in Catalog.load().offers(kind)], ids=lambda offer: offer.name)
def test_our_recipes_are_frozen(offer):
    assert offer.recipe.__setattr__ is attrs.frozen(type("Frozen", (), {})).__setattr__


def test_importing_the_catalog_leaves_pluggy_and_cattrs_alone():
    program = (
        "import sys, socketkit.composition.config, socketkit.composition.catalog; sys.exit(bool({'pluggy', 'cattrs'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
