"""The maintainers' index: every file and symbol that it names exists."""

import re

import pytest

from helpers.support import ROOT

PAGES = [ROOT / "docs/explanation/where-is.md", ROOT / "docs/explanation/architecture.md"]
NAMED = re.compile(r"`((?:socketkit|tests|plugins|docs)/[\w./-]+?\.\w+)(?::([\w.]+))?`")


def named(page):
    return NAMED.findall(page.read_text())


def defines(source, symbol):
    """Return whether each part of a dotted symbol is defined or assigned in the source."""
    return all(
        re.search(rf"^\s*(?:(?:async )?def|class) {part}\b|^\s*(?:self\.)?{part}\b[^=\n]*=", source, re.MULTILINE)
        for part in symbol.split(".")
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_named_file_and_symbol_exists(page):
    places = named(page)
    assert len(places) >= 20
    for path, symbol in places:
        assert (ROOT / path).is_file(), path
        if symbol:
            assert defines((ROOT / path).read_text(), symbol), f"{path} does not define {symbol}"


def test_there_are_at_least_twenty_questions():
    page = PAGES[0].read_text()
    assert len(re.findall(r"^\| .*\? \|", page, re.MULTILINE)) >= 20


def test_a_symbol_that_is_not_there_is_found():
    assert not defines("class Here:\n    def there(self): ...", "Here.elsewhere")


def test_the_map_names_every_folder_there_is():
    folders = {path.name for path in (ROOT / "socketkit").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders - set(re.findall(r"^\| `(\w+)/` \|", PAGES[1].read_text(), re.MULTILINE)) == set()
