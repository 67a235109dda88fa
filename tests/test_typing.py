"""What a user's type checker says about programs that use socketkit: the files of `typing/`, which are never run."""

import sys

import pytest

from helpers import snippets
from helpers.support import ROOT, TESTS
from socketkit.testing.programs import run

pytestmark = pytest.mark.timeout(180)  # the first run of mypy reads every library


def mypy(*arguments, code=0):
    return run(sys.executable, "-m", "mypy", "--strict", *arguments, cwd=ROOT, guard=150, code=code).stdout


def test_programs_that_are_right_pass_and_those_that_are_wrong_do_not():
    files = sorted(map(str, (TESTS / "typing").glob("*.py")))
    assert f"no issues found in {len(files)} source files" in mypy(*files)


def test_the_transport_of_the_guide_is_right(tmp_path):
    program = tmp_path / "program.py"
    listener, recipe, *_ = snippets.blocks(ROOT / "docs/how-to/write-a-transport.md", "python")
    program.write_text(f"{listener.text}\n{recipe.text}\nfrom socketkit.seams import Transport\n\ntransport: Transport = Adopted(3)\n")
    assert "no issues found" in mypy(str(program))


def test_a_wrong_type_is_found(tmp_path):
    program = tmp_path / "program.py"
    program.write_text('from socketkit import TCP\n\nTCP("127.0.0.1", "9999")\n')
    assert 'incompatible type "str"; expected "int"' in mypy(str(program), code=1)
