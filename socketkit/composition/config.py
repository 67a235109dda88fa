"""Turns text, mappings and TOML files into recipes. No socket is opened here, and all faults are reported together, key by key.

A part is given as a recipe object, which is used as it is; as text, in the forms of `socketkit.seams.grammar`; or as a mapping
``{use = "name", option = value, ...}``, where ``inner`` holds another part of the same kind, and a transport's ``layers`` a list.

All functions raise ConfigError with a `Fault` for each problem. If a single part has an unknown name, the error is the one from
`socketkit.composition.catalog.Catalog.find`; inside a larger specification it becomes one more fault.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial, reduce
from importlib import import_module
from reprlib import repr as brief
from typing import Any, TypeVar, cast

import attrs

from socketkit.composition import capabilities
from socketkit.composition.catalog import Catalog, PartKind
from socketkit.composition.options import FaultCollector, Text, build, call, fields, leading
from socketkit.errors import ConfigError, HandlerError, did_you_mean
from socketkit.seams import Dispatcher, Lifecycle, Transport, grammar
from socketkit.seams.limits import Limits

R = TypeVar("R")

MAX_FILE_SIZE = 1024 * 1024
"""Size limit of a configuration file, in bytes; a larger file is refused."""


@attrs.frozen
class Composition:
    """The parts of one server. None means the server's default."""

    listen: tuple[Transport, ...]
    handler: Callable[..., object]
    dispatcher: Dispatcher | None = None
    lifecycle: Lifecycle | None = None
    limits: Limits | None = None


# --- parts -----------------------------------------------------------------------------------------------------------


def transport(spec: object) -> Transport:
    """Return the transport for a recipe, a URL or a mapping, wrapped in its layers."""
    layers: object = ()
    if isinstance(spec, str):
        url = grammar.url(spec)
        spec, layers = url.transport, url.layers
    elif isinstance(spec, Mapping):
        spec = dict(spec)
        layers = spec.pop("layers", ())
    return cast("Transport", _layered(spec, layers) if layers else _part("transport", spec))


def dispatcher(spec: object) -> Dispatcher:
    """Return the dispatcher for a recipe, text such as ``prefork:4/pool:16``, or a mapping."""
    return cast("Dispatcher", _part("dispatcher", spec))


def lifecycle(spec: object) -> Lifecycle:
    """Return the lifecycle for a recipe, text such as ``graceful:10``, or a mapping."""
    return cast("Lifecycle", _part("lifecycle", spec))


def limits(spec: object) -> Limits:
    """Return the limits for a recipe, text such as ``max_connections=100,overflow=shed``, or a mapping."""
    if isinstance(spec, Limits):
        return spec
    if isinstance(spec, str):
        spec = {key: Text(value) for key, value in grammar.options(spec).items()}
    if not isinstance(spec, Mapping):
        raise ConfigError.of(f"{brief(spec)} does not describe limits; give Limits(...), text such as max_connections=100, or a mapping")
    return build(Limits, "limits", spec)


def classic_limits(text: str) -> Limits:
    """Return the limits for the classic servers of a program: those that the text gives, and no others.

    Raises: ConfigError, also for a limit that only a composed server keeps.
    """
    given = grammar.options(text)
    if "line" in given:
        raise ConfigError.of("limits.line: the files of classic handlers have no limit for lines; leave it out, or compose a Server")
    none = dict.fromkeys(("max_connections", "line", "first_byte", "handshake", "request", "write_stall"))
    return build(Limits, "limits", {**none, **{key: Text(value) for key, value in given.items()}})


def handler(spec: object) -> Callable[..., object]:
    """Return the handler that ``module:Class`` names, or the given callable.

    The module is imported by the usual rules; the caller must set up `sys.path`.
    Raises: HandlerError.
    """
    found = _import(spec) if isinstance(spec, str) else spec
    if not callable(found):
        raise HandlerError(spec if isinstance(spec, str) else brief(spec), "cannot be called")
    if isinstance(found, type) and hasattr(found, "serve_forever"):
        name = spec if isinstance(spec, str) else found.__qualname__
        raise HandlerError(name, "is a server, not a handler (`socketkit run` runs a program that starts one)")
    return found


def _import(text: str) -> object:
    module, _, attribute = text.partition(":")
    if not module or not attribute:
        raise HandlerError(text, "does not name a module and an object in it")
    try:
        return reduce(getattr, attribute.split("."), import_module(module))
    except (Exception, SystemExit) as error:  # importing runs the module, which may raise anything
        raise HandlerError(text, f"cannot be imported ({type(error).__name__}: {error})") from error


# The method that identifies a recipe of each kind, and an example of text to suggest instead.
_SHAPES: Mapping[PartKind, tuple[str, str]] = {
    "transport": ("open", "a URL such as tcp://127.0.0.1:9999"),
    "layer": ("wrap", "text such as tls"),
    "dispatcher": ("start", "text such as pool:32"),
    "lifecycle": ("serve", "text such as graceful:10"),
}


def _part(kind: PartKind, spec: Any) -> Any:
    """Return the recipe for `spec`. A transport's text has already been parsed into a `grammar.Part`."""
    if isinstance(spec, str):
        spec = grammar.part(spec)
    if isinstance(spec, grammar.Part):
        recipe = Catalog.recipe(kind, spec.name)
        return _recipe(kind, spec.name, recipe, _values(kind, recipe, spec))
    method, example = _SHAPES[kind]
    if isinstance(spec, Mapping):
        values = dict(spec)
        name = values.pop("use", None)
        if not isinstance(name, str):
            raise ConfigError.of(f'needs the key `use` with the name of a {kind}, as in {{ use = "name", option = value }}')
        return _recipe(kind, name, Catalog.recipe(kind, name), values)
    if isinstance(spec, type):
        raise ConfigError.of(f"{spec.__name__} is a class; give an instance, as in {spec.__name__}(...)")
    if not callable(getattr(spec, method, None)):
        raise ConfigError.of(f"{brief(spec)} is not a {kind}; give a recipe object, {example}, or a mapping with `use`")
    return spec


def _values(kind: PartKind, recipe: type[Any], part: grammar.Part) -> dict[str, object]:
    """Return the option values given as text, including the part's VALUE or place."""
    options: dict[str, object] = {name: Text(value) for name, value in part.options.items()}
    if part.inner:
        options["inner"] = part.inner
    if kind == "transport" and hasattr(recipe, "locate"):
        place = call(recipe.locate, part.value)
    elif not part.value:
        place = {}
    elif name := leading(recipe):
        place = {name: Text(part.value)}
    else:
        raise ConfigError.of(f"{kind} {part.name!r} takes no value; remove {part.value!r}")
    for name in place.keys() & options.keys():
        raise ConfigError.of(f"{name} is given twice, by {part.value!r} and as an option")
    return {**place, **options}


def _recipe(kind: PartKind, name: str, recipe: type[Any], values: dict[str, object]) -> Any:
    title = f"{kind} {name!r}"
    inner = transport if kind == "transport" else partial(_part, kind)
    faults = FaultCollector()
    if "inner" in values and "inner" not in fields(recipe):
        typed = isinstance(values.pop("inner"), grammar.Part)
        with faults.under(""):
            remedy = "if its '/' belongs to a value, write %2F" if typed else "leave `inner` out"
            raise ConfigError.of(f"{title} takes no inner {kind}; {remedy}")
    with faults.under(""):
        made = build(recipe, title, values, {"inner": inner})
    faults.check()
    return made


def _layered(spec: object, layers: object) -> Any:
    from socketkit.transports.layered import Layered  # noqa: PLC0415 - not for a part of another kind

    if not isinstance(layers, list | tuple):
        raise ConfigError.of(f"must be a list, not {brief(layers)}", "layers")
    faults = FaultCollector()
    with faults.under(""):
        transport = _part("transport", spec)
    with faults.under("layers"):
        around = _each(partial(_part, "layer"), layers)
    faults.check()
    return call(Layered, transport, *around)


def _each(resolve: Callable[[Any], R], specs: Iterable[object]) -> list[R]:
    """Return what each specification of a list resolves to; the faults of each are under its index."""
    faults, made = FaultCollector(), []
    for index, spec in enumerate(specs):
        with faults.under(f"[{index}]"):
            made.append(resolve(spec))
    faults.check()
    return made


# --- servers ---------------------------------------------------------------------------------------------------------


def composition(spec: object, key: str = "") -> Composition:
    """Return the composition that a mapping describes.

    The mapping has ``listen`` and ``handler``, and optionally ``dispatcher``, ``lifecycle`` and ``limits``.
    `key` is its location, such as ``servers.echo``: the keys of faults start with it.
    """
    faults = FaultCollector()
    with faults.under(key):
        if not isinstance(spec, Mapping):
            raise ConfigError.of(f"must be a table with listen and handler, not {brief(spec)}")
        made = build(Composition, "a server", spec, _RESOLVERS)
        capabilities.check(made.listen, made.dispatcher, made.lifecycle, made.handler, made.limits)
    faults.check()
    return made


def _listen(spec: object) -> tuple[Transport, ...]:
    if not isinstance(spec, list | tuple):
        return (transport(spec),)
    if not spec:
        raise ConfigError.of("is empty; give at least one address to listen on")
    return tuple(_each(transport, spec))


_RESOLVERS: Mapping[str, Callable[[Any], object]] = {
    "listen": _listen,
    "handler": handler,
    "dispatcher": dispatcher,
    "lifecycle": lifecycle,
    "limits": limits,
}


def read(path: str | os.PathLike[str], *only: str) -> dict[str, Composition]:
    """Return the servers of a TOML file by name. With names in `only`, return and check just those."""
    servers, faults = _servers(path), FaultCollector()
    compositions: dict[str, Composition] = {}
    for name in only or servers:
        with faults.under(f"servers.{name}"):
            if name not in servers:
                raise ConfigError.of(f"is not in {os.fspath(path)}{did_you_mean(name, tuple(servers))}; the file has {', '.join(servers)}")
            compositions[name] = composition(servers[name])
    _refuse_shared_places(compositions, faults)
    _refuse_several_users(compositions, faults)
    faults.check()
    return compositions


def _refuse_shared_places(servers: Mapping[str, Composition], faults: FaultCollector) -> None:
    from socketkit.transports.layered import Layered  # noqa: PLC0415 - as above
    from socketkit.transports.memory import Memory  # noqa: PLC0415 - as above

    taken: dict[str, str] = {}
    for name, server in servers.items():
        for each in server.listen:
            place = each.transport if isinstance(each, Layered) else each
            if isinstance(place, Memory) or getattr(place, "port", None) == 0 or getattr(place, "reuse_port", False):
                continue  # each has a place of its own, or shares it on purpose
            with faults.under(f"servers.{name}.listen"):
                if place.url in taken:
                    raise ConfigError.of(f"{place.url} is already used by server {taken[place.url]!r}; choose another address, or port 0")
                taken[place.url] = name


def _refuse_several_users(servers: Mapping[str, Composition], faults: FaultCollector) -> None:
    """Refuse servers that do not all run as the same user: a process has only one."""
    users = {name: (getattr(each.lifecycle, "user", None), getattr(each.lifecycle, "group", None)) for name, each in servers.items()}
    for name, user in users.items():
        first = next(iter(users))
        if user != users[first]:
            with faults.under(f"servers.{name}.lifecycle"):
                raise ConfigError.of(
                    f"user and group differ from those of server {first!r}, in the same process; give all servers the same"
                )


def _servers(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the tables below ``[servers]``, not yet checked."""
    from pathlib import Path  # noqa: PLC0415 - only reading a file needs it

    try:
        with Path(path).open("rb") as file:
            return _tables(file.read(MAX_FILE_SIZE + 1))
    except OSError as error:
        raise ConfigError.of(f"{os.fspath(path)} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError.of(f"{os.fspath(path)} {error}") from error


def _tables(content: bytes) -> dict[str, Any]:
    if len(content) > MAX_FILE_SIZE:
        raise ValueError(f"is larger than {MAX_FILE_SIZE} bytes, the limit for a configuration file")
    import tomllib  # noqa: PLC0415 - only reading a file needs it

    try:
        document = tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"is not UTF-8 (at line {line})") from error
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is not TOML: {error}") from error
    servers = document.pop("servers", None)
    for table in document:
        raise ValueError(f"has {table!r} at the top level{did_you_mean(table, ['servers'])}; put all settings in [servers.NAME] tables")
    if not isinstance(servers, dict) or not servers:
        raise ValueError("has no [servers.NAME] table")
    return servers
