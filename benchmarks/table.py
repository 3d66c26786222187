"""The answers as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.results import TARGETS, Answer, Result

# The load generator's share of a core from which its figures are marked.
BUSY = 0.9


def print_answer(console: Console, answer: Answer) -> None:
    """Print one question: who answered it, at what cost."""
    title = f"{answer.question.title} (per {answer.question.unit})"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", min_width=16, no_wrap=True)
    figures = ("KiB",) if answer.of_memory else ("CPU µs", "per s", "p50 ms", "p99 ms")
    for header in (*figures, *(f"×\n{other}" for other in answer.references)):
        table.add_column(header, justify="right", no_wrap=True)
    for result in answer.results.values():
        style = "bold" if result.contender.startswith("crossband") else None
        if not result.samples:
            table.add_row(result.contender, "[red]failed")
            continue
        value = "memory" if answer.of_memory else "cost"
        table.add_row(
            result.contender,
            *_figures(answer, result),
            *(_ratio(answer.ratio(result.contender, other, value)) for other in answer.references),
            style=style,
        )
    console.print(table)
    for result in answer.results.values():
        if result.error is not None:
            console.print(f"[red]{escape(result.error)}")


def _figures(answer: Answer, result: Result) -> Sequence[str]:
    if answer.of_memory:
        return (f"{result.memory / 1024:.1f}",)
    busy = result.median(lambda sample: sample.client_busy) > BUSY
    return (
        _short(result.cost),
        f"{result.rate:,.0f}{'*' if busy else ''}",
        _short(result.median(lambda sample: sample.p50) * 1000),
        _short(result.median(lambda sample: sample.p99) * 1000),
    )


def _short(value: float) -> str:
    """Return three digits, or all before the point."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"


def to_markdown(answers: Mapping[str, Answer], about: Mapping[str, Any]) -> str:
    """Return the answers as tables for the documentation: costs, and ratios to the floor."""
    lines = [f"Measured on: {', '.join(f'{key} {value}' for key, value in about.items())}."]
    for answer in answers.values():
        lines += ["", f"**{answer.question.title}**, per {answer.question.unit}", ""]
        if answer.of_memory:
            lines += ["| | KiB |", "|---|--:|"]
            rows = [
                f"| {result.contender} | {result.memory / 1024:.1f} |"
                for result in answer.results.values()
                if result.samples
            ]
        else:
            lines += ["| | CPU µs | × floor | per second | p50 ms | p99 ms |", "|---|" + "--:|" * 5]
            rows = []
            for name, result in answer.results.items():
                if result.samples:
                    cost, *rest = _figures(answer, result)
                    cells = (name, cost, _ratio(answer.ratio(name, "floor")), *rest)
                    rows.append(f"| {' | '.join(cells)} |")
        lines += rows
    return "\n".join(lines) + "\n"


def insert(page: str, results: str) -> str:
    """Put results into a page, between its marks; the marks stay. A page without is replaced."""
    before, start, rest = page.partition("<!-- results -->\n")
    _, end, after = rest.partition("<!-- end of results -->\n")
    return f"{before}{start}\n{results}\n{end}{after}" if start and end else results


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def print_targets(console: Console, answers: Mapping[str, Answer]) -> None:
    """Print the targets whose questions were asked."""
    table = Table(title="Targets", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for header in ("target", "measured", ""):
        table.add_column(header, justify="right")
    for target in TARGETS:
        answer = answers.get(target.question)
        measured = None if answer is None else target.measured(answer)
        if answer is not None and measured is not None:
            if target.met(measured):
                verdict = "[green]met"
            else:
                verdict = "[red]missed" if target.missed(answer) else "[yellow]missed, within noise"
            table.add_row(target.question, str(target), f"{measured:.2f}", verdict)
    if table.row_count:
        console.print(table)
