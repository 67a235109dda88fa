"""Each refusal has a kind that programs can rely on."""

from __future__ import annotations

import ast
import copy
import pickle
from pathlib import Path

import pytest

import socketkit
from socketkit.seams import REFUSALS, Refusal

REFUSES = {"refuse", "refuse_request", "evict", "_turn_away", "TurnedAwayError"}
"""Functions that take the reason of a refusal."""


def calls():
    """Yield each call in the sources, with the name of its function."""
    root = Path(socketkit.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield node, getattr(node.func, "attr", getattr(node.func, "id", ""))


def test_every_refusal_has_a_documented_kind_and_every_kind_a_refusal():
    kinds = {ast.literal_eval(node.args[1]) for node, name in calls() if name == "Refusal" and len(node.args) > 1}
    assert kinds == REFUSALS.keys() - {"other"}


def test_no_reason_is_a_sentence_without_a_kind():
    reasons = [argument for node, name in calls() if name in REFUSES for argument in node.args]
    assert len(reasons) > len(REFUSALS)
    plain = [
        each for each in reasons if isinstance(each, ast.JoinedStr) or (isinstance(each, ast.Constant) and isinstance(each.value, str))
    ]
    plain += [each for each in reasons if isinstance(each, ast.Call) and getattr(each.func, "id", "") == "str"]
    assert [ast.unparse(each) for each in plain] == []


def test_a_refusal_is_its_sentence():
    refusal = Refusal("max_connections is reached", "max_connections")
    assert refusal == "max_connections is reached" == str(refusal)
    assert refusal.kind == "max_connections"
    assert Refusal("a sentence").kind == "other"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_of_a_refusal_keeps_its_kind(copied):
    refusal = copied(Refusal("max_per_peer is reached", "max_per_peer"))
    assert (refusal, refusal.kind) == ("max_per_peer is reached", "max_per_peer")
