"""What came out: samples, medians, ratios; and the targets they are held against."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final

from benchmarks.questions import Question
from benchmarks.runs import Sample

# By how much of itself a figure differs from one run to the next on one machine.
NOISE: Final = 0.2


@dataclass(slots=True)
class Result:
    """The samples of one contender for one question, one per repetition."""

    contender: str
    samples: list[Sample] = field(default_factory=list)
    # Why there is none.
    error: str | None = None

    def median(self, value: Callable[[Sample], float]) -> float:
        return median(value(sample) for sample in self.samples)

    @property
    def cost(self) -> float:
        """Microseconds of CPU time per unit."""
        return self.median(operator.attrgetter("cost"))

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.median(operator.attrgetter("rate"))

    @property
    def memory(self) -> float:
        """Bytes per connection."""
        return self.median(operator.attrgetter("memory"))


@dataclass(slots=True)
class Answer:
    """The results of one question, in the order of the table."""

    question: Question
    results: dict[str, Result] = field(default_factory=dict)

    @property
    def of_memory(self) -> bool:
        return any(sample.memory for each in self.results.values() for sample in each.samples)

    @property
    def references(self) -> list[str]:
        """Who the others are compared with in the table."""
        return [name for name in ("floor", "crossband", "crossband, 500") if name in self.results]

    def ratio(self, contender: str, other: str, value: str = "cost") -> float | None:
        """Return the median, over the repetitions, of one contender's figure by another's.

        Neighbours in time are compared, so that what else the machine did weighs on both.
        """
        ratios = self.ratios(contender, other, value)
        return median(ratios) if ratios else None

    def ratios(self, contender: str, other: str, value: str = "cost") -> list[float]:
        """Return one contender's figure by another's, for each repetition that has both."""
        one, two = self.results.get(contender), self.results.get(other)
        if one is None or two is None:
            return []
        get = operator.attrgetter(value)
        pairs = zip(one.samples, two.samples, strict=False)
        return [get(a) / get(b) for a, b in pairs if get(b)]

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for a file."""
        return {
            "id": self.question.id,
            "title": self.question.title,
            "unit": self.question.unit,
            "results": [
                {
                    "contender": result.contender,
                    "error": result.error,
                    "cpu_microseconds": result.cost if result.samples else None,
                    "per_second": result.rate if result.samples else None,
                    "times_floor": self.ratio(result.contender, "floor"),
                    "times_crossband": self.ratio(result.contender, "crossband"),
                    "samples": [asdict(sample) for sample in result.samples],
                }
                for result in self.results.values()
            ],
        }


# What a figure of a sample is divided by for its unit.
_UNITS: Final = {"memory": (1024, "KiB"), "p99": (0.001, "ms")}


@dataclass(frozen=True, slots=True)
class Target:
    """What Crossband promises: a figure of a question, at most or at least so much."""

    question: str
    # "cost" or "rate" against another contender; or against nobody, in a unit of `_UNITS`.
    value: str
    against: str | None
    limit: float
    at_least: bool = False
    contender: str = "crossband"

    def measured(self, answer: Answer) -> float | None:
        """Return the figure, or None when it was not measured."""
        figures = self._figures(answer)
        return median(figures) if figures else None

    def met(self, measured: float) -> bool:
        return measured >= self.limit if self.at_least else measured <= self.limit

    def missed(self, answer: Answer) -> bool:
        """Return whether it was missed by more than noise allows.

        That is, whether even the better quarter of the repetitions missed it by more than `NOISE`.
        """
        figures = sorted(self._figures(answer), reverse=self.at_least)
        if not figures:
            return False
        better = figures[len(figures) // 4]
        noise = 1 - NOISE if self.at_least else 1 + NOISE
        return not self.met(better / noise)

    def _figures(self, answer: Answer) -> list[float]:
        """Return the figure of each repetition."""
        if self.against is not None:
            return answer.ratios(self.contender, self.against, self.value)
        result = answer.results.get(self.contender)
        get, part = operator.attrgetter(self.value), _UNITS[self.value][0]
        return [] if result is None else [get(sample) / part for sample in result.samples]

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        what = f"× {self.against}" if self.against else _UNITS[self.value][1]
        return f"{sign} {self.limit:g} {what}"


MANY: Final = "crossband, 5000"
OVER_REDIS: Final = "crossband, Redis"
TWO_WORKERS: Final = "crossband, 2 workers"
BROKER: Final = "crossband, broker"
TARGETS: Final = (
    Target("fanout-ws-500-1", "cost", "floor", 1.3),
    Target("fanout-sio-500-1", "cost", "floor", 1.35),
    Target("fanout-sse-500-1", "cost", "floor", 1.4),
    *(Target(f"fanout-{door}-500-16", "cost", "floor", 0.25) for door in ("ws", "sio", "sse")),
    *(
        Target(f"growth-{door}-{burst}", "cost", "crossband, 500", 1.25, contender=MANY)
        for door in ("ws", "sio", "sse")
        for burst in (1, 16)
    ),
    Target("nodes-1", "cost", "crossband", 1.15, contender=OVER_REDIS),
    Target("nodes-16", "cost", "crossband", 1.15, contender=OVER_REDIS),
    Target("workers-1", "cost", "crossband", 1.15, contender=TWO_WORKERS),
    Target("workers-16", "cost", "crossband", 1.15, contender=TWO_WORKERS),
    Target("nodes-pace", "p99", None, 5, contender=OVER_REDIS),
    # 15 µs and 10 µs, where the floor takes 4.1.
    Target("broker-publish", "cost", "floor", 3.6, contender=BROKER),
    Target("broker-hear", "cost", "floor", 2.4, contender=BROKER),
    Target("ack-32x1", "cost", "Node socket.io", 0.7),
    Target("echo-32x1", "cost", "Node ws", 0.7),
    Target("idle-ws", "memory", None, 6),
    Target("idle-sio", "memory", None, 8),
    Target("idle-sse", "memory", None, 8),
    Target("connects-ws", "rate", "Node ws", 1.0, at_least=True),
    Target("connects-sio", "rate", "Node socket.io", 1.0, at_least=True),
    Target("connects-sse", "rate", "Node http", 1.0, at_least=True),
)


def shortfalls(answers: Mapping[str, Answer]) -> list[str]:
    """Return what makes a run a failure: targets clearly missed, and Crossband's own errors."""
    missed = [
        f"{target.question} is not {target}"
        for target in TARGETS
        if target.question in answers and target.missed(answers[target.question])
    ]
    errors = [
        f"{question}: {result.error}"
        for question, answer in answers.items()
        for result in answer.results.values()
        if result.error is not None and result.contender.startswith("crossband")
    ]
    return missed + errors
