"""Holds the examples to what their readme promises: listed, tested, short, public API only."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import crossband

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py")) + sorted(EXAMPLES.glob("classic/*.py"))
CLASSIC = [path for path in PROGRAMS if path.parent.name == "classic"]
TESTS = "".join(
    path.read_text()
    for path in sorted((ROOT / "tests").rglob("test_*.py"))
    if path != Path(__file__)
)


def name_of(path: Path) -> str:
    return path.relative_to(EXAMPLES).as_posix()


@pytest.mark.parametrize("path", PROGRAMS, ids=name_of)
def test_example_is_in_the_table_and_has_a_test(path: Path) -> None:
    rows = re.findall(
        r"^\| \[.+?\]\((.+?)\) \|", (EXAMPLES / "README.md").read_text(), re.MULTILINE
    )
    assert rows.count(name_of(path)) == 1, (
        f"{name_of(path)} is not in the table of examples/README.md"
    )
    assert re.search(rf'["/]{path.stem}(\.py)?"', TESTS), f"no test runs {name_of(path)}"


def test_table_names_no_example_that_does_not_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+\.py)\)", (EXAMPLES / "README.md").read_text())
    assert sorted(links) == sorted(map(name_of, PROGRAMS))


@pytest.mark.parametrize("path", PROGRAMS, ids=name_of)
def test_example_imports_the_public_api_only(path: Path) -> None:
    public = {"crossband": crossband.__all__, "crossband.server": ["Server", "StartError"]}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("crossband"):
            assert {name.name for name in node.names} <= set(public[node.module or ""])
        elif isinstance(node, ast.Import):
            assert not [name.name for name in node.names if name.name.startswith("crossband.")]


@pytest.mark.parametrize("path", CLASSIC, ids=name_of)
def test_classic_program_is_short_and_says_how_to_use_it(path: Path) -> None:
    source = path.read_text()
    says = ast.get_docstring(ast.parse(source)) or ""
    assert re.match(r"Shows .+[.:]\n\nRun: .+\nTry: .+", says), "expected Shows, Run and Try"
    # What a minute is enough for.
    assert len(source.splitlines()) <= 90
