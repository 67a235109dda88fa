"""What every recipe promises."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from socketkit.composition.capabilities import FEATURES
from socketkit.handlers.base import unwrapped
from socketkit.testing.conformance.promises import Conformance, applies_if, expect
from socketkit.testing.leaks import Account


def check_handlers(recipe: Any, handlers: Iterable[Any], *refusals: type[Exception]) -> None:
    """Call the recipe's `check`, if it has one, with each of these handlers. It may raise one of the refusals and nothing else."""
    applies_if(hasattr(recipe, "check"), "it has no check()")
    for handler in map(unwrapped, handlers):
        try:
            recipe.check(handler)
        except refusals:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it raises, it is the wrong one
            allowed = " or ".join(each.__name__ for each in refusals)
            expect(False, f"check() raised {type(error).__name__} ({error}) for {handler!r}; to refuse a handler, raise {allowed}")


class RecipeConformance(Conformance):
    """The promises that recipes of all kinds make."""

    def test_recipe(self) -> None:
        """A recipe is a frozen attrs class: two of the same options are equal, and one can be printed."""
        recipe, kind = self.make(), type(self.make()).__name__
        expect(attrs.has(type(recipe)), f"{kind} is no attrs class; decorate it with @attrs.frozen")
        expect(recipe == self.make(), f"two recipes of the same options differ: {recipe!r} and {self.make()!r}")
        expect(type(repr(recipe)) is str, f"repr() of {kind} returns no text")
        names = [field.name for field in attrs.fields(type(recipe))]
        try:
            for name in names[:1]:
                setattr(recipe, name, getattr(recipe, name))
        except attrs.exceptions.FrozenInstanceError:
            return
        expect(not names, f"{kind}.{names[0] if names else ''} can be changed; decorate the class with @attrs.frozen")

    def test_holds_nothing(self) -> None:
        """A recipe holds no descriptor, thread or process until it is used."""
        before = Account.take()
        recipe = self.make()
        left = before.left_since()
        expect(not left, f"{type(recipe).__name__} as such holds: {'; '.join(left)}")

    def test_requires(self) -> None:
        """`requires`, if there is one, names features that socketkit knows."""
        unknown = sorted(set(getattr(self.make(), "requires", ())) - FEATURES.keys())
        expect(not unknown, f"requires names {unknown}, and the features are {sorted(FEATURES)}")
