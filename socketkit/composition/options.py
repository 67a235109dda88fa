"""Builds a recipe from option values. It checks each against the type and validator of its field, and reports all faults together.

The only user of cattrs. How strictly a type is checked depends on the source of the value. Files and mappings have their own types,
so ``"8"`` is not a number there. URLs and parts given as text have only strings, marked as `Text`, so ``8`` may be a number.
"""

from __future__ import annotations

import math
import reprlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs

from socketkit import seams
from socketkit.errors import ConfigError, Fault, SocketkitError, did_you_mean
from socketkit.seams import grammar

if TYPE_CHECKING:
    from cattrs import Converter

R = TypeVar("R")


class Text(str):
    """An option's value as written in a URL or a part: it may represent a number, a duration, true, false or none."""

    __slots__ = ()


class FaultCollector:
    """Collects faults, each under its key, so that they are raised together."""

    def __init__(self) -> None:
        self._found: list[Fault] = []

    @contextmanager
    def under(self, key: str) -> Iterator[None]:
        """Record socketkit's own errors from the block as faults under `key`, then continue after the block."""
        try:
            yield
        except ConfigError as error:
            self._found += [Fault(_join(key, fault.key), fault.message) for fault in error.faults]
        except SocketkitError as error:
            self._found.append(Fault(key, str(error)))
        except RecursionError:
            self._found.append(Fault(key, "is nested too deeply"))

    def check(self) -> None:
        """Raise a ConfigError with all faults, if there are any."""
        if self._found:
            raise ConfigError(tuple(self._found))


def fields(recipe: type[Any]) -> dict[str, attrs.Attribute[Any]]:
    """Return the field of each option of a recipe, by the option's name."""
    return {field.alias or field.name: field for field in attrs.fields(recipe) if field.init}


def leading(recipe: type[Any]) -> str | None:
    """Return the option that a part's VALUE sets: the first positional one. None if the part takes no VALUE."""
    return next((name for name, field in fields(recipe).items() if not field.kw_only and name != "inner"), None)


def types_of(recipe: type[Any]) -> dict[str, Any]:
    """Return the types of a recipe's fields.

    Names from `socketkit.seams` resolve even if the recipe's module imports them only for type checkers.
    Raises: NameError for any other name that does not exist at run time.
    """
    try:
        return get_type_hints(recipe, include_extras=True)
    except NameError:
        module = vars(sys.modules[recipe.__module__]) if recipe.__module__ in sys.modules else {}
        known = {name: getattr(seams, name) for name in seams.__all__}
        return get_type_hints(recipe, localns={**known, **module}, include_extras=True)


def build(recipe: type[R], title: str, values: Mapping[str, object], resolvers: Mapping[str, Callable[[Any], object]] | None = None) -> R:
    """Return the recipe built from these option values.

    `title` names the recipe in messages. If `resolvers` has a function for an option, it converts the value instead of the field's
    type.
    Raises: ConfigError with every fault; its key is the option's name, or "" if the recipe refuses the values as a whole.
    """
    known, kinds, resolvers = fields(recipe), types_of(recipe), resolvers or {}
    values = {str(name): value for name, value in values.items()}
    faults, given = FaultCollector(), {}
    for name, value in values.items():
        with faults.under(name):
            if name not in known:
                near = did_you_mean(name, tuple(known)) or f", which has {', '.join(known) or 'none'}"
                raise ConfigError.of(f"is not an option of {title}{near}")
            resolve = resolvers.get(name) or partial(structure, kind=kinds.get(known[name].name, Any))
            given[name] = _checked(name, known[name], value, resolve)
    for name, field in known.items():
        if name not in values and field.default is attrs.NOTHING:
            with faults.under(name):
                raise ConfigError.of(f"is missing; {title} requires it")
    faults.check()
    return call(recipe, **given)


def call(recipe: Callable[..., R], *values: Any, **options: Any) -> R:
    """Call a recipe's class, or one of its class methods. Raises: ConfigError with its sentence, if it refuses the values."""
    try:
        return recipe(*values, **options)
    except SocketkitError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError.of(_sentence(error)) from error


def structure(value: object, kind: Any) -> Any:
    """Return `value` converted to the type `kind`.

    Raises: ValueError, which is an `_ExpectedError` if the expected type can be named; ConfigError.
    """
    own = (_EXACT.get(kind) if isinstance(kind, type) else None) or next((hook for applies, hook in _SHAPES.items() if applies(kind)), None)
    try:
        made = _converter().structure(value, kind) if own is None else own(value, kind)
    except (SocketkitError, ValueError):
        raise
    except Exception as error:
        if own is None and _is_lack_of_hook(error):
            raise ConfigError.of("can only be given in Python, with a recipe object") from None
        raise _ExpectedError(getattr(kind, "__name__", str(kind))) from error
    return str(made) if isinstance(made, Text) else made


def _is_lack_of_hook(error: Exception) -> bool:
    from cattrs.errors import StructureHandlerNotFoundError  # noqa: PLC0415 - as for the converter

    return isinstance(error, StructureHandlerNotFoundError)


def _checked(name: str, field: attrs.Attribute[Any], value: object, resolve: Callable[[Any], object]) -> object:
    """Return the value for one field. Validators run here, before the recipe is built, so that every field is checked."""
    try:
        made = resolve(value)
        if field.validator and not field.converter:
            with suppress(AttributeError):  # the validator needs other fields; it runs again when the recipe is built
                field.validator(None, field, made)
    except SocketkitError:
        raise
    except _ExpectedError as error:
        reason = f"must be {error}, not {reprlib.repr(value)}"
    except (TypeError, ValueError) as error:
        reason = _sentence(error).removeprefix(f"{name} ").removeprefix(f"{name!r} ")
    else:
        return made
    raise ConfigError.of(reason if field.repr else "is not valid; its value is not shown because it may be a secret")


def _sentence(error: Exception) -> str:
    return str(error.args[0]) if error.args else type(error).__name__


def _join(key: str, rest: str) -> str:
    return f"{key}.{rest}" if key and rest and not rest.startswith("[") else key + rest


# --- types -----------------------------------------------------------------------------------------------------------


class _ExpectedError(ValueError):
    """A value of the wrong type; the message names the expected type."""


@cache
def _converter() -> Converter:
    from cattrs import Converter  # noqa: PLC0415 - only types that are none of ours need cattrs

    converter = Converter(detailed_validation=False)
    for kind, hook in _EXACT.items():
        converter.register_structure_hook(kind, hook)
    for applies, hook in _SHAPES.items():
        converter.register_structure_hook_func(applies, hook)
    return converter


def _integer(value: object, _: Any) -> int:
    with suppress(ValueError):
        number = int(value, 0) if isinstance(value, Text) else value
        if isinstance(number, int) and not isinstance(number, bool):
            return number
    raise _ExpectedError("a whole number")


def _number(value: object, _: Any) -> float:
    with suppress(ValueError):
        number = float(value) if isinstance(value, Text) else value
        if isinstance(number, int | float) and not isinstance(number, bool) and not math.isnan(number):
            return float(number)
    raise _ExpectedError("a number")


def _seconds(value: object, _: Any) -> float:
    with suppress(ValueError):
        number = grammar.seconds(value) if isinstance(value, str) else _number(value, float)
        if 0 <= number < math.inf:
            return number
    raise _ExpectedError("seconds, such as 1.5, 500ms, 30s or 5m")


def _truth(value: object, _: Any) -> bool:
    if isinstance(value, Text):
        value = {"true": True, "false": False}.get(value)
    if isinstance(value, bool):
        return value
    raise _ExpectedError("true or false")


def _text(value: object, _: Any) -> str:
    if isinstance(value, str):
        return str(value)
    raise _ExpectedError("text")


def _bytes(value: object, _: Any) -> bytes:
    return value if isinstance(value, bytes) else _text(value, str).encode()


def _nothing(value: object, _: Any) -> None:
    if value is not None and value != "none":  # the word stands for null, which neither text nor TOML has
        raise _ExpectedError("none")


def _choice(value: object, kind: Any) -> object:
    choices = {str(choice) if isinstance(value, Text) else choice: choice for choice in get_args(kind)}
    with suppress(KeyError, TypeError):
        return choices[value]
    raise _ExpectedError(" or ".join(map(repr, choices)))


def _either(value: object, kind: Any) -> object:
    """Try the types of a union in order, but text last, because it accepts almost anything."""
    expected = []
    for each in sorted(get_args(kind), key=lambda each: each is str):
        try:
            return structure(value, each)
        except _ExpectedError as error:
            expected.append(str(error))
    raise _ExpectedError(", or ".join(expected))


def _several(value: object, kind: Any) -> tuple[object, ...]:
    items: Any = [Text(item) for item in value.split(",") if item] if isinstance(value, Text) else value
    if not isinstance(items, list | tuple):
        raise _ExpectedError("a list")
    try:
        return tuple(structure(item, get_args(kind)[0]) for item in items)
    except _ExpectedError as error:
        raise _ExpectedError(f"a list, each {error}") from None


def _group(value: object, kind: Any) -> object:
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise _ExpectedError("a table of options")
    return build(kind, kind.__name__, value)


_EXACT: dict[Any, Callable[[Any, Any], object]] = {
    int: _integer,
    float: _number,
    bool: _truth,
    str: _text,
    bytes: _bytes,
    types.NoneType: _nothing,
}
_SHAPES: dict[Callable[[Any], bool], Callable[[Any, Any], object]] = {
    attrs.has: _group,
    lambda kind: kind == seams.Seconds: _seconds,
    lambda kind: get_origin(kind) is Literal: _choice,
    lambda kind: get_origin(kind) in {Union, types.UnionType}: _either,
    lambda kind: get_origin(kind) is tuple and get_args(kind)[1:] == (...,): _several,
}
