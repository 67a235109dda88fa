from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs
import pytest

from socketkit.composition.options import FaultCollector, Text, build, fields, leading, structure, types_of
from socketkit.errors import ConfigError, Fault, IncompatibleError
from socketkit.seams import Seconds

if TYPE_CHECKING:
    from socketkit.seams import Dispatcher, Kind


class Colour(enum.Enum):
    RED = "red"


@attrs.frozen
class Limits:
    connections: int = 10


@attrs.frozen
class Recipe:
    workers: int
    ratio: float = 0.5
    name: str = "x"
    verbose: bool = False
    idle: Seconds = 1.0
    drain: Seconds | None = None
    overflow: Literal["wait", "reject"] = "wait"
    level: Literal[1, 2] = 1
    reply: bytes = b""
    trust: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    width: int | str | None = None
    path: Path = Path()
    colour: Colour = Colour.RED
    limits: Limits | None = None
    anything: Any = None
    hook: object = attrs.field(default=None, kw_only=True)


def one(**option):
    """Return what a recipe makes of one option."""
    ((name, _),) = option.items()
    return getattr(build(Recipe, "a recipe", {"workers": 1, **option}), name)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ({"workers": 5}, 5),
        ({"workers": Text("5")}, 5),
        ({"workers": Text("0o17")}, 0o17),
        ({"ratio": 1}, 1.0),
        ({"ratio": Text("1e-3")}, 0.001),
        ({"name": Text("80")}, "80"),
        ({"verbose": Text("true")}, True),
        ({"verbose": False}, False),
        ({"idle": 2}, 2.0),
        ({"idle": "500ms"}, 0.5),
        ({"idle": Text("5m")}, 300.0),
        ({"drain": None}, None),
        ({"drain": "none"}, None),
        ({"drain": Text("none")}, None),
        ({"drain": "30s"}, 30.0),
        ({"overflow": Text("reject")}, "reject"),
        ({"level": Text("2")}, 2),
        ({"reply": "busy\n"}, b"busy\n"),
        ({"trust": ["a", "b"]}, ("a", "b")),
        ({"trust": Text("10.0.0.0/8,::1")}, ("10.0.0.0/8", "::1")),
        ({"ports": Text("1,2")}, (1, 2)),
        ({"width": Text("3")}, 3),
        ({"width": Text("wide")}, "wide"),
        ({"width": "3"}, "3"),
        ({"path": Text("/a")}, Path("/a")),
        ({"colour": Text("red")}, Colour.RED),
        ({"limits": {"connections": 5}}, Limits(5)),
        ({"limits": Limits(6)}, Limits(6)),
        ({"anything": Text("text")}, "text"),
    ],
)
def test_a_value_becomes_what_its_field_says(option, value):
    made = one(**option)
    assert made == value
    assert type(made) is type(value)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"workers": "80"}, "workers: must be a whole number, not '80'"),
        ({"workers": True}, "workers: must be a whole number, not True"),
        ({"workers": 1.0}, "workers: must be a whole number, not 1.0"),
        ({"workers": None}, "workers: must be a whole number, not None"),
        ({"workers": Text("08")}, "workers: must be a whole number, not '08'"),
        ({"workers": Text("9" * 5000)}, "workers: must be a whole number, not '999"),
        ({"ratio": float("nan")}, "ratio: must be a number, not nan"),
        ({"ratio": True}, "ratio: must be a number, not True"),
        ({"ratio": "0.5"}, "ratio: must be a number, not '0.5'"),
        ({"name": b"x"}, "name: must be text, not b'x'"),
        ({"name": 5}, "name: must be text, not 5"),
        ({"verbose": 1}, "verbose: must be true or false, not 1"),
        ({"verbose": "true"}, "verbose: must be true or false, not 'true'"),
        ({"verbose": Text("yes")}, "verbose: must be true or false, not 'yes'"),
        ({"idle": -1}, "idle: must be seconds, such as 1.5, 500ms, 30s or 5m, not -1"),
        ({"idle": float("inf")}, "idle: must be seconds, such as 1.5, 500ms, 30s or 5m, not inf"),
        ({"idle": True}, "idle: must be seconds, such as 1.5, 500ms, 30s or 5m, not True"),
        ({"drain": "soon"}, "drain: must be seconds, such as 1.5, 500ms, 30s or 5m, or none, not 'soon'"),
        ({"overflow": "wiat"}, "overflow: must be 'wait' or 'reject', not 'wiat'"),
        ({"overflow": []}, "overflow: must be 'wait' or 'reject', not []"),
        ({"reply": 5}, "reply: must be text, not 5"),
        ({"trust": "abc"}, "trust: must be a list, not 'abc'"),
        ({"ports": [1, "2"]}, "ports: must be a list, each a whole number, not [1, '2']"),
        ({"path": 5}, "path: must be Path, not 5"),
        ({"colour": "blue"}, "colour: 'blue' is not a valid Colour"),
        ({"limits": 5}, "limits: must be a table of options, or none, not 5"),
        ({"limits": {"connections": "5"}}, "limits.connections: must be a whole number, not '5'"),
        ({"limits": {"conections": 5}}, "limits.conections: is not an option of Limits, did you mean 'connections'?"),
        ({"hook": 5}, "hook: can only be given in Python, with a recipe object"),
    ],
)
def test_a_value_of_another_type_is_refused_with_what_was_expected(option, message):
    with pytest.raises(ConfigError) as caught:
        one(**option)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 150


def test_all_faults_are_told_at_once_each_under_its_option():
    with pytest.raises(ConfigError) as caught:
        build(Recipe, "a recipe", {"ratio": "x", "verbos": True, "limits": {"connections": "5"}, 7: 8})
    assert caught.value.faults == (
        Fault("ratio", "must be a number, not 'x'"),
        Fault("verbos", "is not an option of a recipe, did you mean 'verbose'?"),
        Fault("limits.connections", "must be a whole number, not '5'"),
        Fault("7", f"is not an option of a recipe, which has {', '.join(fields(Recipe))}"),
        Fault("workers", "is missing; a recipe requires it"),
    )


def positive(recipe, field, value):
    if value <= 0:
        raise ValueError(f"{field.name} must be more than nothing, not {value!r}")


@attrs.frozen
class Checked:
    least: int = attrs.field(default=1, validator=positive)
    most: int = attrs.field(default=2, validator=[positive, attrs.validators.le(9)])
    password: str = attrs.field(default="", repr=False, validator=attrs.validators.max_len(3))
    _hidden: int = 5
    derived: int = attrs.field(init=False, default=0)
    shout: str = attrs.field(default="", converter=str.upper)

    @most.validator
    def _ordered(self, _field, most):
        if most < self.least:
            raise ValueError("most must not be below least")

    def __attrs_post_init__(self):
        if self.least == 7:
            raise IncompatibleError("seven", "is no good", "take eight")


def test_every_validator_speaks_and_the_key_is_not_said_twice():
    with pytest.raises(ConfigError) as caught:
        build(Checked, "a part", {"least": 0, "most": 10})
    assert caught.value.faults == (
        Fault("least", "must be more than nothing, not 0"),
        Fault("most", "must be <= 9: 10"),
    )


def test_a_validator_that_needs_the_other_fields_is_asked_when_they_are_there():
    with pytest.raises(ConfigError) as caught:
        build(Checked, "a part", {"least": 5, "most": 3})
    assert caught.value.faults == (Fault("", "most must not be below least"),)


def test_what_a_recipe_raises_of_ours_stays_as_it_is():
    with pytest.raises(IncompatibleError):
        build(Checked, "a part", {"least": 7, "most": 8})


@pytest.mark.parametrize("value", [5, "hunter2"])
def test_a_value_kept_out_of_the_repr_is_kept_out_of_messages(value):
    with pytest.raises(ConfigError) as caught:
        build(Checked, "a part", {"password": value})
    assert str(caught.value) == "password: is not valid; its value is not shown because it may be a secret"


def test_private_derived_and_converted_fields():
    assert tuple(fields(Checked)) == ("least", "most", "password", "hidden", "shout")
    made = build(Checked, "a part", {"hidden": 6, "shout": Text("hey")})
    assert (made._hidden, made.shout) == (6, "HEY")


def test_the_leading_option_is_the_first_positional_one():
    @attrs.frozen
    class Wrapping:
        key: int = attrs.field(kw_only=True)
        inner: object
        workers: int = 4

    @attrs.frozen(kw_only=True)
    class Plain:
        workers: int = 4

    assert leading(Wrapping) == "workers"
    assert leading(Plain) is None


def test_names_of_the_seams_need_no_import_at_run_time():
    @attrs.frozen
    class Wrapping:
        inner: Dispatcher
        kind: Kind = "stream"

    assert types_of(Wrapping)["kind"] == Literal["stream", "datagram"]
    assert build(Wrapping, "a part", {"inner": 5, "kind": "datagram"}, {"inner": lambda value: value + 1}) == Wrapping(6, "datagram")


def test_faults_are_named_below_where_they_were_found():
    faults = FaultCollector()
    with faults.under("servers.a.listen"):
        raise ConfigError((Fault("[0].port", "one"), Fault("", "two")))
    with faults.under(""):
        raise IncompatibleError("it", "is wrong", "right it")
    with pytest.raises(ConfigError) as caught:
        faults.check()
    assert str(caught.value) == "servers.a.listen[0].port: one\nservers.a.listen: two\nit is wrong; right it"


def test_a_mistake_that_is_not_the_users_comes_through():
    faults = FaultCollector()
    with pytest.raises(ZeroDivisionError), faults.under("x"):
        raise ZeroDivisionError
    faults.check()


def test_structure_can_be_used_alone():
    assert structure(Text("5"), int) == 5
