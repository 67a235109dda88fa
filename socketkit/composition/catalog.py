"""The catalog of installed parts: the recipe for each name, and its supplier. The only caller of pluggy's hooks.

Plugins are discovered when the first name is looked up, so a server composed of objects never triggers discovery.
Each plugin gets its own plugin manager, because in a shared one a single bad plugin would break every call.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attrs

from socketkit._system.logs import Log
from socketkit.composition import capabilities, options
from socketkit.composition.places import name_at, recipe_at
from socketkit.errors import ClashError, PluginError, UnknownPartError, did_you_mean
from socketkit.seams import grammar

if TYPE_CHECKING:
    from importlib.metadata import Distribution

    from pluggy import PluginManager

log = Log("socketkit.catalog")

PartKind: TypeAlias = Literal["transport", "layer", "dispatcher", "lifecycle"]

KINDS: tuple[PartKind, ...] = ("transport", "layer", "dispatcher", "lifecycle")

GROUP = "socketkit"
"""The group of the entry points of plugins: `socketkit.hookspecs.PROJECT`, without importing pluggy."""

_BLOCKED = "SOCKETKIT_DISABLED_PLUGINS"


@attrs.frozen
class Offer:
    """One part name, the recipe class it stands for, and its supplier."""

    kind: PartKind
    name: str
    recipe: type[Any]
    plugin: str
    distribution: str
    version: str


@attrs.frozen
class Plugin:
    """One installed plugin. `offers` is empty if the plugin is blocked or broken; if broken, `error` says why."""

    name: str
    distribution: str
    version: str
    offers: tuple[Offer, ...] = ()
    error: PluginError | None = None
    blocked: bool = False
    _hooks: PluginManager | None = attrs.field(default=None, eq=False, repr=False)

    @property
    def observes(self) -> bool:
        """Whether it has observers, which it may give to each server that is composed by name."""
        return self._hooks is not None and bool(self._hooks.hook.socketkit_observers.get_hookimpls())

    def observers(self, server: object) -> list[object]:
        """Return this plugin's observers for `server`. An error in its hook is logged, not raised."""
        if self._hooks is None:
            return []
        try:
            observers = [observer for found in self._hooks.hook.socketkit_observers(server=server) for observer in found]
            if observers:
                capabilities.check_observers(observers)
        except Exception:
            log.exception("plugin %r of %s failed to supply observers", self.name, self.distribution)
            return []
        return observers


@attrs.frozen
class Catalog:
    """All parts that can be selected by name."""

    plugins: tuple[Plugin, ...]
    """Every installed plugin; socketkit's own parts come first."""

    @classmethod
    def load(cls) -> Catalog:
        """Return the catalog of this process; the first call discovers plugins. A broken plugin is recorded, not raised."""
        return _load()

    @classmethod
    def forget(cls) -> None:
        """Make the next `load` discover plugins again, for tests that install some."""
        _load.cache_clear()
        _have_plugins.cache_clear()

    @classmethod
    def recipe(cls, kind: PartKind, name: str) -> type[Any]:
        """Return the recipe of that name, of the catalog of this process. Raises: as `find`.

        If there are no plugins, one of which might offer the same name, this imports a part of socketkit's own and nothing else.
        """
        recipe = recipe_at(kind, name) if _is_bare() else None
        return cls.load().find(kind, name).recipe if recipe is None else recipe

    @classmethod
    def watching(cls, server: object) -> list[object]:
        """Return the observers that plugins have for `server`. Without plugins this imports nothing."""
        return [] if _is_bare() else cls.load().observers(server)

    @classmethod
    def name_of(cls, recipe: object) -> str | None:
        """Return the name of a recipe object's class; None if it has none. Without plugins this imports nothing."""
        if _is_bare() and (name := name_at(type(recipe))) is not None:
            return name
        offer = cls.load().offer_of(recipe)
        return None if offer is None else offer.name

    def offers(self, kind: PartKind) -> tuple[Offer, ...]:
        """Return every offer of one kind, clashes included."""
        return tuple(offer for plugin in self.plugins for offer in plugin.offers if offer.kind == kind)

    def find(self, kind: PartKind, name: str) -> Offer:
        """Return the offer of that name.

        Raises: ClashError if two plugins offer different recipes under the name; PluginError if a broken plugin has that name;
            UnknownPartError with the nearest name, and with every broken or blocked plugin that might supply it.
        """
        offers = [offer for offer in self.offers(kind) if offer.name == name]
        if not offers:
            raise self._missing(kind, name)
        for other in offers:
            if other.recipe is not offers[0].recipe:  # no clash: two entry points of one module offer the same class
                raise ClashError(kind, name, _source(offers[0]), _source(other))
        return offers[0]

    def offer_of(self, recipe: object) -> Offer | None:
        """Return the offer of a recipe object's class; None if no plugin supplies it."""
        return next((offer for kind in KINDS for offer in self.offers(kind) if offer.recipe is type(recipe)), None)

    def observers(self, server: object) -> list[object]:
        """Return the observers of all plugins for `server`."""
        return [observer for plugin in self.plugins for observer in plugin.observers(server)]

    def _missing(self, kind: PartKind, name: str) -> PluginError | UnknownPartError:
        suspects = []
        for plugin in self.plugins:
            if plugin.error and plugin.name == name:
                broken = plugin.error
                error = PluginError(broken.plugin, broken.distribution, broken.reason)  # a copy: a raised exception collects tracebacks
                error.__cause__ = plugin.error.__cause__
                return error
            if plugin.error:
                suspects.append(str(plugin.error))
            elif plugin.blocked:
                suspects.append(f"plugin {plugin.name!r} of {plugin.distribution} is blocked by {_BLOCKED}")
        known = sorted({offer.name for offer in self.offers(kind)})
        return UnknownPartError(kind, name, tuple(known), tuple(suspects))


def _source(offer: Offer) -> str:
    return f"{offer.plugin!r} of {offer.distribution}"


@cache
def _have_plugins() -> bool:
    from importlib import metadata  # noqa: PLC0415 - as below

    return bool(metadata.entry_points(group=GROUP))


def _is_bare() -> bool:
    """Return whether no plugin is installed, as far as this process has looked: if it has discovered plugins already, they count."""
    return not _load.cache_info().currsize and not _have_plugins()


@cache
def _load() -> Catalog:
    from importlib import metadata  # noqa: PLC0415 - as below

    from socketkit import hookspecs  # noqa: PLC0415 - composing from objects needs neither pluggy nor discovery
    from socketkit.composition import builtin  # noqa: PLC0415 - composing from objects needs neither pluggy nor discovery

    blocked = {name.strip() for name in os.environ.get(_BLOCKED, "").split(",")}
    found: dict[tuple[str, str], Plugin] = {}
    for distribution in metadata.distributions():
        for plugin in _plugins_of(distribution, hookspecs.PROJECT, blocked):
            found.setdefault((plugin.distribution, plugin.name), plugin)  # a copy further down sys.path is ignored
    try:
        version = metadata.version("socketkit")
    except metadata.PackageNotFoundError:  # run from a checkout
        version = ""
    return Catalog((_examine("builtin", "socketkit", version, lambda: builtin), *(found[key] for key in sorted(found))))


def _plugins_of(distribution: Distribution, group: str, blocked: Collection[str]) -> Iterator[Plugin]:
    try:
        with _blaming("its entry points cannot be read"):
            entries = distribution.entry_points.select(group=group)
    except _UnfitError as unfit:
        name, version = _identity(distribution)
        yield Plugin(name, name, version, blocked=True) if name in blocked else _broken(name, name, version, unfit)
        return
    for entry in entries:
        if entry.name in blocked:
            yield Plugin(entry.name, *_identity(distribution), blocked=True)
        else:
            yield _examine(entry.name, *_identity(distribution), entry.load)


def _identity(distribution: Distribution) -> tuple[str, str]:
    try:
        return distribution.name or "unknown", distribution.version or ""
    except Exception:  # noqa: BLE001 - no metadata: None in some versions of Python, an exception in others
        return "unknown", ""


# --- one plugin ------------------------------------------------------------------------------------------------------


class _UnfitError(Exception):
    """The reason why a plugin cannot be used."""


def _examine(name: str, distribution: str, version: str, load: Callable[[], object]) -> Plugin:
    """Load a plugin and collect its offers; any failure becomes its `error`."""
    try:
        manager = _hooked(name, load)
        offers = [
            Offer(kind, part, recipe, name, distribution, version)
            for kind in KINDS
            for part, recipe in _offered(manager, f"socketkit_{kind}s").items()
        ]
    except _UnfitError as unfit:
        return _broken(name, distribution, version, unfit)
    return Plugin(name, distribution, version, tuple(offers), hooks=manager)


def _broken(name: str, distribution: str, version: str, unfit: _UnfitError) -> Plugin:
    error = PluginError(name, distribution, str(unfit))
    error.__cause__ = unfit.__cause__
    return Plugin(name, distribution, version, error=error)


@contextmanager
def _blaming(what: str) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:  # a plugin that exits at import must not end the program
        raise _UnfitError(f"{what} ({type(error).__name__}: {' '.join(str(error).split())})") from error


def _hooked(name: str, load: Callable[[], object]) -> PluginManager:
    """Return a manager for this one plugin, after checking that its hooks are known and correctly declared."""
    from pluggy import PluginManager  # noqa: PLC0415 - see _load

    from socketkit import hookspecs  # noqa: PLC0415 - see _load

    manager = PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    known = tuple(spec for spec in vars(hookspecs) if spec.startswith("socketkit_"))
    with _blaming("it cannot be imported"):
        plugin = load()
    with _blaming("its hooks are not declared as in socketkit.hookspecs"):
        manager.register(plugin, name)
    hooks = manager.get_hookcallers(plugin) or []
    if not hooks:
        raise _UnfitError("it has no hooks; mark its functions with socketkit.hookspecs.hookimpl")
    for hook in hooks:
        if not hook.has_spec() and not all(implementation.optionalhook for implementation in hook.get_hookimpls()):
            raise _UnfitError(f"no hook is named {hook.name!r}{did_you_mean(hook.name, known)}")
    return manager


def _offered(manager: PluginManager, name: str) -> Mapping[str, type[Any]]:
    hook = getattr(manager.hook, name)
    if not hook.get_hookimpls():
        return {}
    with _blaming(f"{name}() raised"):
        results = hook()
    parts = results[0] if results else None  # pluggy drops a None
    if not isinstance(parts, Mapping):
        raise _UnfitError(f"{name}() returned {reprlib.repr(parts)}, which is not a mapping of names to recipe classes")
    for part, recipe in parts.items():
        if not isinstance(part, str) or not grammar.is_name(part):
            raise _UnfitError(f"{name}() offers {part!r}; a name has only letters, digits, '-' and '_'")
        if not isinstance(recipe, type) or not attrs.has(recipe):
            raise _UnfitError(f"{name}() offers {reprlib.repr(recipe)} as {part!r}; a recipe is an attrs class")
        with _blaming(f"the options of {part!r} have types that cannot be resolved at run time"):
            options.types_of(recipe)
    return parts
