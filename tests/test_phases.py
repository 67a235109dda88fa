"""The phases of a server: one table, which its life follows and the figure of the states shows."""

import itertools
import re
from pathlib import Path

import pytest

from helpers import innards
from helpers.rooms import Rooms, held
from helpers.support import ROOT
from socketkit import TCP, Classic, Graceful, Server, Threads
from socketkit._engine.run import NEXT, Phase
from socketkit.seams import State

ANYWHERE = TCP("127.0.0.1", 0)
FIGURE = Path(ROOT, "docs/explanation/states.svg")


def test_every_phase_has_a_row_and_a_way_to_it():
    assert NEXT.keys() == set(Phase)
    assert set().union(*NEXT.values()) == set(Phase) - {Phase.NEW}


def test_a_life_with_a_lame_duck_goes_through_the_table_row_by_row():
    rooms, seen = Rooms(), []

    def note():
        phase = innards.phase(server)
        if not seen or seen[-1] is not phase:
            seen.append(phase)
        return phase

    server = Server(ANYWHERE, rooms, dispatcher=Threads(), lifecycle=Graceful(drain=10, lame_duck=0.05))
    note()
    with server.start(), held(server, rooms):
        note()
        server.stop(wait=False)
        while note() is not Phase.DRAINING:
            pass
        rooms.leave.set()
        server.stop()
        note()
    assert [seen[0], seen[1], seen[-2], seen[-1]] == [Phase.NEW, Phase.RUNNING, Phase.DRAINING, Phase.STOPPED]
    assert Phase.LAME in seen
    assert all(after in reachable(before) for before, after in itertools.pairwise(seen))


def reachable(phase):
    """Return the phases that may be seen after this one: a reader may miss those in which a server does not stay."""
    return NEXT[phase] | {later for soon in NEXT[phase] & {Phase.ENDING, Phase.LAME} for later in NEXT[soon]}


def test_a_stop_before_the_start_leads_straight_to_its_end():
    server = Server(ANYWHERE, print)
    server.stop()
    assert (innards.phase(server), server.state) == (Phase.NEW, State.NEW)
    server.start()
    assert (innards.phase(server), server.state) == (Phase.STOPPED, State.STOPPED)


def test_a_lifecycle_that_does_not_drain_ends_without_that_phase():
    server = Server(ANYWHERE, print, lifecycle=Classic())
    with server.start():
        server.stop()
        assert innards.phase(server) is Phase.STOPPED
        assert server.addresses, "its listeners are left to the next run"


def test_an_error_leads_to_failed_and_from_there_a_server_may_run_again():
    class Broken(Graceful):
        broken = True

        def serve(self, serving):
            if Broken.broken:
                raise ZeroDivisionError
            return super().serve(serving)

    server = Server(ANYWHERE, print, lifecycle=Broken())
    with pytest.raises(ZeroDivisionError):
        server.serve_forever()
    assert (innards.phase(server), server.state) == (Phase.FAILED, State.FAILED)
    Broken.broken = False
    with server.start():
        assert (innards.phase(server), server.state) == (Phase.RUNNING, State.RUNNING)


def test_the_figure_of_the_states_has_the_arrows_of_the_table():
    """Phases that users do not see are no arrows: RUNNING, LAME and ENDING are one state."""
    wanted = {(before.state.name, after.state.name) for before, afters in NEXT.items() for after in afters}
    assert drawn(FIGURE.read_text()) == {(before, after) for before, after in wanted if before != after}


def drawn(figure):
    """Return the arrows of the figure, each as the names of the boxes at its two ends."""
    box = r'<rect class="\w+" x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"[^>]*/><text class="name"[^>]*>(\w+)<'
    boxes = [(name, *map(int, place)) for *place, name in re.findall(box, figure)]
    return {tuple(at(boxes, *end) for end in ends(path)) for path in re.findall(r'<path class="line" d="([^"]*)"', figure)}


def ends(path):
    """Return where a path of absolute commands begins and where it ends."""
    x = y = begin = None
    for command, arguments in re.findall(r"([MHVLC])([^MHVLC]*)", path):
        numbers = [int(number) for number in arguments.split()]
        x = numbers[0] if command == "H" else x if command == "V" else numbers[-2]
        y = numbers[0] if command == "V" else y if command == "H" else numbers[-1]
        begin = begin or (x, y)
    return begin, (x, y)


def at(boxes, x, y):
    """Return the name of the box at whose border the point is."""
    (name,) = [name for name, left, top, width, height in boxes if left <= x <= left + width and top <= y <= top + height]
    return name
