"""The pages of the docs, and the code blocks in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
DOCS: Final = ROOT / "docs"
PAGES: Final = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks/README.md",
    ROOT / "stress/README.md",
    ROOT / "clients/js/README.md",
    *sorted((ROOT / "examples").glob("README.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
    *sorted(DOCS.rglob("*.md")),
    *sorted((ROOT / "src/crossband").rglob("*.md")),
]


@dataclass(frozen=True, slots=True)
class Step:
    """A code block, or a comment that stands for itself."""

    # The comment's text; empty on a block that has none.
    directive: str
    language: str
    code: str
    line: int


def steps(text: str) -> Iterator[Step]:
    """Yield the code blocks and directives of a page, in order."""
    pattern = re.compile(
        r"^<!-- (?P<lone>cut"
        r"|(?:publish|post|say|visit|enter|click|count|offline|online|engine): .+?"
        r"|shows: \S+ \S+ [^\n]+?) -->$"
        r"|(?:^<!-- (?P<directive>(?:run|output|install|shows): .+?) -->\n+)?"
        r"^```(?P<language>\w*)\n(?P<code>.*?)^```$",
        re.MULTILINE | re.DOTALL,
    )
    for match in pattern.finditer(text):
        yield Step(
            match["lone"] or match["directive"] or "",
            match["language"] or "",
            match["code"] or "",
            text.count("\n", 0, match.start("code") if match["code"] else match.start()),
        )


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))
