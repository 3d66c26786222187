"""The fan-out's cost as a chart: one bar per server, as a multiple of the floor. Writes SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final
from xml.sax.saxutils import escape

from benchmarks.questions import FanOut
from benchmarks.results import Answer

# Pixels.
WIDTH: Final = 760
MARGIN: Final = 24
LABEL: Final = 170
ROW: Final = 24
BAR: Final = 15
GAP: Final = 30
TITLE: Final = 28
# Room for the figure behind the longest bar.
FIGURE: Final = 74
# Multiples of the floor; longer bars end here, with a cut through them.
LONGEST: Final = 4.0

# Readable on light and on dark pages.
_STYLE: Final = """\
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600 }
.small { font-size: 12px; fill: #57606a }
.ours { font-weight: 600 }
rect { fill: #afb8c1 }
rect.ours { fill: #0a7c6e }
rect.floor { fill: #6e7781 }
.mark { stroke: #6e7781; stroke-dasharray: 3 3 }
.cut { stroke: #ffffff; stroke-width: 3 }
.page { fill: #ffffff }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .small { fill: #9198a1 }
  rect { fill: #57606a }
  rect.ours { fill: #2dba9f }
  rect.floor { fill: #8b949e }
  .cut { stroke: #0d1117 }
  .page { fill: #0d1117 }
}"""


def draw(answers: Mapping[str, Answer], about: Mapping[str, Any]) -> str:
    """Return an SVG of every fan-out question that has a floor to be held against."""
    parts: list[str] = []
    top = MARGIN
    for answer in answers.values():
        if isinstance(answer.question, FanOut) and answer.ratio("floor", "floor"):
            parts += _panel(answer, top)
            top += TITLE + ROW * len(_rows(answer)) + GAP
    machine = ", ".join(f"{key} {value}" for key, value in about.items())
    parts.append(_text(MARGIN, top, machine, "small"))
    height = top + MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img">\n'
        "<title>Server CPU time per delivered message, as a multiple of one write in C</title>\n"
        f"<style>\n{_STYLE}\n</style>\n"
        f'<rect class="page" width="{WIDTH}" height="{height}"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _rows(answer: Answer) -> list[tuple[str, float]]:
    return [
        (name, ratio)
        for name in answer.results
        if (ratio := answer.ratio(name, "floor")) is not None
    ]


def _panel(answer: Answer, top: int) -> Iterator[str]:
    rows = _rows(answer)
    scale = (WIDTH - 2 * MARGIN - LABEL - FIGURE) / LONGEST
    left = MARGIN + LABEL
    yield _text(MARGIN, top + 4, answer.question.title, "title")
    first = top + TITLE - ROW / 2
    for index, (name, ratio) in enumerate(rows):
        kind = "ours" if name == "crossband" else "floor" if name == "floor" else ""
        y = first + ROW * index
        width = min(ratio, LONGEST) * scale
        yield _text(MARGIN, y + BAR - 3, name, kind)
        yield f'<rect class="{kind}" x="{left}" y="{y:.0f}" width="{width:.1f}" height="{BAR}"/>'
        if ratio > LONGEST:
            x = left + width - 18
            yield (
                f'<line class="cut" x1="{x:.1f}" y1="{y + BAR + 2:.0f}" '
                f'x2="{x + 6:.1f}" y2="{y - 2:.0f}"/>'
            )
        figure = f"{ratio:.2f} ×" if ratio < 10 else f"{ratio:.1f} ×"
        yield _text(left + width + 6, y + BAR - 3, figure, kind or "small")
    x = left + scale
    yield (
        f'<line class="mark" x1="{x:.1f}" y1="{first - 5:.0f}" '
        f'x2="{x:.1f}" y2="{first + ROW * len(rows) - 4:.0f}"/>'
    )


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.0f}" y="{y:.0f}">{escape(text)}</text>'
