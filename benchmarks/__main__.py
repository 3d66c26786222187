"""The benchmark's command: asks the questions, prints tables, writes JSON and a chart."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import chart, machine
from benchmarks.contenders import Contender
from benchmarks.install import Missing, Toolbox, commit, versions
from benchmarks.questions import FULL, QUESTIONS, QUICK, Question, Scale
from benchmarks.results import Answer, Result, shortfalls
from benchmarks.runs import BenchmarkError, Run, raise_file_limit
from benchmarks.table import insert, print_answer, print_targets, to_markdown


class Bench:
    """Asks questions of contenders, stage by stage."""

    def __init__(self, scale: Scale, toolbox: Toolbox, progress: Progress) -> None:
        self._scale = scale
        self._toolbox = toolbox
        self._progress = progress
        self._task = progress.add_task("", total=None)
        # Contenders that cannot run here, told once.
        self._missing: set[str] = set()

    def ask(self, questions: Sequence[Question], servers: Sequence[str]) -> dict[str, Answer]:
        """Ask all questions; `servers` are patterns of contenders' names."""
        plan = {
            question: [
                contender
                for contender in question.contenders()
                if _matches(contender.name, servers)
            ]
            for question in questions
        }
        rounds = {question: question.rounds(self._scale) for question in questions}
        total = sum(rounds[each] * len(plan[each]) for each in questions)
        self._progress.update(self._task, total=total)
        answers: dict[str, Answer] = {}
        for _, stage in groupby(questions, key=lambda each: each.stage):
            for answer in self._stage(list(stage), plan, rounds):
                answers[answer.question.id] = answer
                print_answer(self._progress.console, answer)
        return answers

    def _stage(
        self,
        questions: Sequence[Question],
        plan: dict[Question, list[Contender]],
        rounds: dict[Question, int],
    ) -> list[Answer]:
        answers = []
        with ExitStack() as stack:
            runs: dict[str, Run] = {}
            failed: dict[str, str] = {}
            first = questions[0]
            self._tell(first, "starting the servers")
            for contender in plan[first]:
                try:
                    run = runs[contender.name] = Run(contender, self._toolbox)
                except Missing as missing:
                    self._leave_out(contender, str(missing))
                    self._progress.advance(self._task, sum(rounds[each] for each in questions))
                else:
                    stack.callback(run.stop)
                    run.launch()
            for name, run in list(runs.items()):
                self._tell(first, f"connecting to {name}")
                try:
                    run.ready()
                    door = first.door_of(run.contender)
                    if door is not None and (clients := first.clients_of(run.contender)):
                        run.connect(0, door, clients)
                except BenchmarkError as error:
                    failed[name] = str(error)
                    del runs[name]
            for question in questions:
                answer = Answer(question)
                for contender in plan[question]:
                    if contender.name in runs or contender.name in failed:
                        answer.results[contender.name] = Result(
                            contender.name, error=failed.get(contender.name)
                        )
                self._question(question, rounds[question], runs, answer)
                answers.append(answer)
        return answers

    def _question(
        self, question: Question, rounds: int, runs: dict[str, Run], answer: Answer
    ) -> None:
        going = {name: runs[name] for name, each in answer.results.items() if not each.error}
        for repetition in range(-1, rounds):
            # Every server once, then again: what else the machine does weighs on all alike.
            for name in list(going):
                self._tell(question, name)
                try:
                    if repetition < 0:
                        question.prepare(going[name], self._scale)
                    else:
                        sample = question.sample(going[name], self._scale)
                        answer.results[name].samples.append(sample)
                except BenchmarkError as error:
                    answer.results[name].error = str(error)
                    del going[name]
                if repetition >= 0:
                    self._progress.advance(self._task)

    def _leave_out(self, contender: Contender, why: str) -> None:
        if contender.name not in self._missing:
            self._missing.add(contender.name)
            self._progress.console.print(f"{contender.name} is left out: {why}")

    def _tell(self, question: Question, what: str) -> None:
        self._progress.update(self._task, description=f"{question.id} · {what}")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Tell whether a pattern matches, or is whole words of the name; no patterns match all."""
    return not patterns or any(
        fnmatchcase(name.lower(), pattern.lower())
        or re.search(rf"(?<!\w){re.escape(pattern)}(?!\w)", name, re.IGNORECASE)
        for pattern in patterns
    )


def main(
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", help="Ask only these, by whole words of the name or with *; may be repeated."
        ),
    ] = None,
    server: Annotated[
        list[str] | None,
        typer.Option("--server", help="Ask only these servers, likewise."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Under three minutes, rougher.")] = False,
    repetitions: Annotated[int | None, typer.Option(min=1, help="Samples per server.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.01, help="Length of a sample.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every sample to a file.")
    ] = None,
    svg_file: Annotated[Path | None, typer.Option("--svg", help="Write a chart.")] = None,
    markdown_file: Annotated[
        Path | None,
        typer.Option("--markdown", help="Write tables, or put them into a page with marks."),
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the questions.")] = False,
) -> None:
    """Measure what a message costs Crossband, a floor in C, and its peers."""
    console = Console()
    scale = QUICK if quick else FULL
    questions = [each for each in QUESTIONS if _matches(each.id, only or ()) and each.rounds(scale)]
    if not questions:
        raise typer.BadParameter(f"no question is called like {', '.join(only or ())}")
    if listing:
        for question in questions:
            console.print(f"{question.id:20} {question.title}", highlight=False)
        return
    scale = Scale(
        seconds=seconds or scale.seconds,
        repetitions=repetitions or scale.repetitions,
        connects=scale.connects,
        idle=scale.idle,
        thorough=scale.thorough,
    )
    raise_file_limit()
    about: dict[str, Any] = {"commit": commit(), **machine.describe()}
    console.print(", ".join(f"{key} {value}" for key, value in about.items()), highlight=False)
    began = time.monotonic()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as progress:
        bench = Bench(scale, Toolbox(progress.console.print), progress)
        answers = bench.ask(questions, server or ())
    print_targets(console, answers)
    console.print(f"{time.monotonic() - began:.0f} s", highlight=False)
    if json_file is not None:
        document = {
            **about,
            "versions": versions(),
            "seconds": scale.seconds,
            "repetitions": scale.repetitions,
            "questions": [answer.to_dict() for answer in answers.values()],
        }
        json_file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if svg_file is not None:
        svg_file.write_text(chart.draw(answers, about), encoding="utf-8")
    if markdown_file is not None:
        page = markdown_file.read_text(encoding="utf-8") if markdown_file.exists() else ""
        markdown_file.write_text(insert(page, to_markdown(answers, about)), encoding="utf-8")
    if reasons := shortfalls(answers):
        sys.exit("The benchmark fails:\n" + "\n".join(f"  {reason}" for reason in reasons))


if __name__ == "__main__":
    if sys.platform != "linux":
        sys.exit("The benchmark needs Linux: epoll, and /proc for the CPU time.")
    # Ends the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    typer.run(main)
