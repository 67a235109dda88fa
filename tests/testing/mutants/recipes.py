"""Recipes that are none. Each breaks one promise that recipes of all kinds make."""

import socket

import attrs

from socketkit.dispatchers.sync import Sync


@attrs.define
class Changeable:
    """Its options can be changed."""

    size: int = 1

    def start(self, work):
        return Sync().start(work)


@attrs.frozen
class Holding:
    """Opens a descriptor as soon as it is made."""

    pair: object = attrs.field(factory=socket.socketpair, eq=False, repr=False)

    def start(self, work):
        return Sync().start(work)


@attrs.frozen
class Demanding:
    """Needs what nobody has heard of."""

    requires = frozenset({"teleportation"})

    def start(self, work):
        return Sync().start(work)


MUTANTS = {"test_recipe": Changeable, "test_holds_nothing": Holding, "test_requires": Demanding}
