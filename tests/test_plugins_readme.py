"""The five steps of plugins/README.md lead from an empty folder to a release: each file is saved and each command runs as it stands."""

import os
import re
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import attrs
import pytest
from packaging.requirements import Requirement

from helpers import snippets
from helpers.support import ROOT
from socketkit.testing.conformance import DispatcherConformance
from socketkit.testing.programs import run

PAGE = ROOT / "plugins/README.md"
GUIDE = ROOT / "docs/how-to/publish-a-plugin.md"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]

CHECK = "python -m socketkit.testing socketkit_paced:Paced"

pytestmark = pytest.mark.timeout(300)


@attrs.frozen
class Reader:
    """Somebody who follows the page in a folder, without a network: pip finds socketkit's wheel, and what this environment has."""

    folder: Path
    wheels: Path
    lent: Path

    def types(self, command, code=0):
        """Run a command as a shell would, and return what it prints."""
        environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTEST_ADDOPTS"}} | {
            "PATH": os.pathsep.join((str(self.folder / ".venv/bin"), str(Path(sys.executable).parent), os.environ["PATH"])),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this as the value of `build_isolation`
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        said = run("bash", "-e", "-c", command, cwd=self.folder, env=environment, guard=120, code=code).stdout
        if "-m venv" in command:
            self._lend()
        return said

    def _lend(self):
        """Let the reader's environment import what this one has, in place of an index: all but pip, socketkit and its plugins."""
        self.lent.mkdir()
        for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for path in Path(place).iterdir():
                if path.suffix != ".pth" and not re.match(r"pip\b|_*(editable_impl_)?socketkit", path.name):
                    (self.lent / path.name).symlink_to(path)
        [packages] = self.folder.glob(".venv/lib/python*/site-packages")
        (packages / "lent.pth").write_text(f"{self.lent}\n")


@pytest.fixture
def reader(tmp_path):
    """Return a reader whose index has the wheel of this checkout."""
    found = Reader(*(tmp_path / name for name in ("socketkit-paced", "wheels", "lent")))
    found.folder.mkdir()
    found.wheels.mkdir()
    run(sys.executable, "-c", "import hatchling.build, sys; hatchling.build.build_wheel(sys.argv[1])", str(found.wheels), cwd=ROOT)
    return found


def test_the_five_steps_lead_to_a_release(reader, tmp_path):
    said = follow(reader)
    assert is_offered(said["socketkit plugins paced"])
    assert re.search(r"^=+ \d+ passed, \d+ skipped", said["python -m pytest"], re.MULTILINE)
    assert "Success: no issues found" in said["python -m mypy --strict src"]
    kept, promised = re.search(r"^(\d+) of (\d+) promises kept\n\Z", said[CHECK], re.MULTILINE).groups()
    assert kept == promised
    assert said["python -m twine check --strict dist/*"].count("PASSED") == 2

    check_mutant(reader)
    check_archives(reader.folder / "dist")

    reader.types("python -m pip install --force-reinstall --no-deps dist/*.whl")  # in place of the folder
    assert is_offered(reader.types("socketkit plugins paced"))
    installed = Path(reader.types("python -c 'import socketkit; print(socketkit.__file__)'"))
    assert installed.is_relative_to(reader.folder / ".venv")
    python = str(reader.folder / ".venv/bin/python")
    assert snippets.run(reader.folder / "README.md", tmp_path, python=python) == [snippets.LINE.upper()]
    reader.types("python -m pip uninstall --yes socketkit-paced")
    assert "paced" not in reader.types("socketkit plugins")


def follow(reader):
    """Save each file and run each command, in the order of the page; return what each command has printed."""
    (reader.folder / "LICENSE").write_text("The text of the reader's licence.\n")
    said = {}
    for block in snippets.blocks(PAGE, "toml", "md", "python", "sh"):
        if block.file:
            (reader.folder / block.file).write_text(block.text)
        elif block.language == "sh":
            said |= {command: reader.types(command) for command in block.text.splitlines()}
    return said


def is_offered(details):
    return "dispatcher paced: Paced, from socketkit-paced 0.1.0" in details and "rate: int = 100" in details and "broken" not in details


def check_mutant(reader):
    """The kit finds a live part that does not wait for its requests, and names the promise."""
    source = reader.folder / "src/socketkit_paced/__init__.py"
    right = source.read_text("utf-8")
    wrong = right.replace("return self._threads.wait(timeout)", "return True")
    assert wrong != right
    source.write_text(wrong, "utf-8")
    report = reader.types(f"{CHECK} --only test_wait", code=1)
    source.write_text(right, "utf-8")
    assert f"BROKEN  {DispatcherConformance.test_wait.__doc__}" in report


def check_archives(folder):
    """The wheel has the package, its type hints, its licence and its entry point; the source archive has the tests too."""
    with zipfile.ZipFile(folder / "socketkit_paced-0.1.0-py3-none-any.whl") as wheel:
        about = "socketkit_paced-0.1.0.dist-info/"
        assert set(wheel.namelist()) == {
            "socketkit_paced/__init__.py",
            "socketkit_paced/py.typed",
            *(about + name for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")),
        }
        assert wheel.read(about + "entry_points.txt") == b"[socketkit]\npaced = socketkit_paced\n"
    with tarfile.open(folder / "socketkit_paced-0.1.0.tar.gz") as sources:
        names = {name.removeprefix("socketkit_paced-0.1.0/") for name in sources.getnames()}
    assert names == {
        *("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "PKG-INFO", "tests/test_paced.py"),
        *("src/socketkit_paced/__init__.py", "src/socketkit_paced/py.typed"),
    } | (names & {".gitignore"})


@pytest.mark.parametrize("page", [PAGE, GUIDE], ids=lambda page: page.name)
def test_a_page_admits_this_minor_version_and_not_the_next(page):
    [block] = [block for block in snippets.blocks(page, "toml") if "[build-system]" in block.text]
    requirements = map(Requirement, tomllib.loads(block.text)["project"]["dependencies"])
    [needed] = [each.specifier for each in requirements if each.name == "socketkit"]
    major, minor, _ = VERSION.split(".")
    assert needed.contains(VERSION)
    assert not needed.contains(f"{major}.{int(minor) + 1}.0")


def test_the_page_has_five_steps_and_uploads_nothing_when_it_is_followed():
    headings = re.findall(r"^### (\d)\. ", PAGE.read_text("utf-8"), re.MULTILINE)
    assert headings == list("12345")
    assert not [block for block in snippets.blocks(PAGE, "sh") if "upload" in block.text]
    [upload] = snippets.blocks(PAGE, "text")
    assert (upload.heading, upload.text) == ("5. Publish it", "python -m twine upload dist/*\n")


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", PAGE.read_text("utf-8")))
def test_every_link_of_the_page_leads_somewhere(link):
    assert (PAGE.parent / link).is_file()
