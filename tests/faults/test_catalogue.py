"""The catalogue itself: everything that it names exists, and the pages generated from it are up to date."""

import ast
import re

import pytest

from faults.catalogue import FAMILIES, ROWS
from faults.pages import PAGES, PROMISES
from faults.scenarios import SCENARIOS
from helpers.support import TESTS

PROMISED = {row for promise in PROMISES.values() for row in promise["rows"].split()}


def test_every_scenario_is_a_row_and_every_pair_a_pair_that_is_tried():
    assert SCENARIOS.keys() - ROWS.keys() == set()
    for row in ROWS.values():
        assert not row.unless or row.id in SCENARIOS, f"{row.id} excludes pairs of a scenario that does not exist"
        pairs = {"/".join(pair) for pair in row.pairs()}
        assert set(row.proof) <= pairs
        assert not row.proof or (row.id in SCENARIOS and row.shows and row.stdlib == "fails"), row.id


def test_every_row_says_how_it_stands():
    for row in ROWS.values():
        assert row.state(row.id in SCENARIOS) != "untested", f"{row.id} has no test, and no reason for that"
        assert row.stdlib, row.id
        assert row.expected or row.not_ours, row.id
        assert (row.stdlib != "fails") or row.stdlib_does, row.id


@pytest.mark.parametrize("row", [row for row in ROWS.values() if row.tests], ids=lambda row: row.id)
def test_the_tests_that_a_row_names_are_there(row):
    for test in row.tests:
        path, _, name = test.partition("::")
        tree = ast.parse((TESTS / path).read_text("utf-8"))
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in functions, test


def test_every_row_is_part_of_a_promise_and_every_promise_has_rows():
    assert PROMISED - ROWS.keys() == set()
    alone = {row.id for row in ROWS.values() if not row.not_ours} - PROMISED
    assert alone == {"CL12", "TL13", "TL16", "TL17", "DG4"}, "a fault that no promise mentions"
    assert list(PROMISES) == [f"P{number}" for number in range(1, 18)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_made_from_it_is_up_to_date(page):
    assert page.read_text("utf-8") == PAGES[page](), "run PYTHONPATH=.:tests python -m faults.pages"


def test_families_are_in_the_order_of_their_rows():
    families = list(dict.fromkeys(row.family for row in ROWS.values()))
    assert families == list(FAMILIES)
    assert all(re.fullmatch(r"[A-Z]{2}\d+[a-z]?", row) for row in ROWS)
