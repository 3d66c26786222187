"""What the clients heard, compared: whether there is one order, and who missed what untold.

Pure. A number is a source and its count, `source * SOURCE + count`: each process that publishes
is a source, whose numbers are in order. A story is what one client heard between two barriers,
numbers that are published while nothing else is.
"""

from __future__ import annotations

import graphlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

SOURCE: Final = 1_000_000

# Numbers, and the reasons of gaps.
Story: TypeAlias = Sequence[int | str]


@dataclass
class Verdict:
    """What is wrong with the stories, and what they have in all."""

    # Numbers that somebody heard or that were acknowledged to their publisher.
    numbers: int = 0
    # Numbers heard, by all clients together.
    heard: int = 0
    # Gaps by their reason and who was told of them.
    gaps: Counter[str] = field(default_factory=Counter)
    # Numbers that clients missed where they were told of a gap.
    told: int = 0
    # Numbers that clients missed in silence, and heard again.
    lost: int = 0
    doubled: int = 0
    # Stories that contradict the others.
    disordered: int = 0
    # Names of clients that did not get to the end.
    stuck: list[str] = field(default_factory=list)
    # In words, the first ones.
    problems: list[str] = field(default_factory=list)

    @property
    def flawless(self) -> bool:
        return not (self.lost or self.doubled or self.disordered or self.stuck)

    def complain(self, problem: str) -> None:
        if len(self.problems) < 20:
            self.problems.append(problem)


def judge(stories: Mapping[str, Story], acknowledged: Collection[int], end: int) -> Verdict:
    """Compare the stories of clients, by their names: each ends with the barrier `end` or a gap.

    Every number that somebody heard, or whose publisher was told that it is published, must be in
    each story; or there is a gap between the last that is before it and the first after it.
    """
    verdict = Verdict()
    for name, story in stories.items():
        seen: set[int] = set()
        for item in story:
            if isinstance(item, str):
                verdict.gaps[f"{item} ({name})"] += 1
            elif item in seen:
                verdict.doubled += 1
                verdict.complain(f"{name} heard {spell(item)} twice")
            else:
                seen.add(item)
        verdict.heard += len(seen)
        if not story or (isinstance(story[-1], int) and story[-1] != end):
            verdict.stuck.append(name)
            last = next((item for item in reversed(story) if isinstance(item, int)), None)
            verdict.complain(f"{name} heard nothing after {spell(last)}")
    universe = {item for story in stories.values() for item in story if isinstance(item, int)}
    universe = universe.union(acknowledged) - {end}
    verdict.numbers = len(universe)
    order = Order(stories.values(), universe)
    if order.circle is not None:
        verdict.disordered += 1
        verdict.complain(f"not one order: {' < '.join(map(spell, order.circle))}")
        return verdict
    for name, story in stories.items():
        missed = sorted(universe.difference(story))
        lost = [number for number in missed if not order.excused(number, story)]
        verdict.lost += len(lost)
        verdict.told += len(missed) - len(lost)
        if lost:
            which = ", ".join(map(spell, lost[:3])) + ("" if len(lost) < 4 else ", …")
            verdict.complain(f"{name} was not told that it missed {len(lost)}: {which}")
    return verdict


def spell(number: int | str | None) -> str:
    """Write a number as people read it."""
    if isinstance(number, int):
        source, count = divmod(number, SOURCE)
        return f"{source}:{count}"
    return str(number)


class Order:
    """What is known to be before what."""

    def __init__(self, stories: Iterable[Story], universe: Collection[int]) -> None:
        # By number, those that are next after it in some story, or of its source.
        self._next: defaultdict[int, set[int]] = defaultdict(set)
        for story in stories:
            self._chain([item for item in story if isinstance(item, int)])
        by_source: defaultdict[int, list[int]] = defaultdict(list)
        for number in sorted(universe):
            by_source[number // SOURCE].append(number)
        for numbers in by_source.values():
            self._chain(numbers)
        self._previous: defaultdict[int, set[int]] = defaultdict(set)
        for number, following in self._next.items():
            for each in following:
                self._previous[each].add(number)
        # Numbers that are each before the next, and the last before the first; None if all is well.
        self.circle: list[int] | None = None
        try:
            graphlib.TopologicalSorter(self._previous).prepare()
        except graphlib.CycleError as error:
            self.circle = error.args[1]
        # By number, what is before and after it, once asked for.
        self._before: dict[int, set[int]] = {}
        self._after: dict[int, set[int]] = {}

    def _chain(self, numbers: list[int]) -> None:
        for one, other in itertools.pairwise(numbers):
            # One that was doubled is told of by itself.
            if one != other:
                self._next[one].add(other)

    def excused(self, number: int, story: Story) -> bool:
        """Whether a story has a gap where a number that it misses could have been."""
        before = self._reach(number, self._previous, self._before)
        after = self._reach(number, self._next, self._after)
        start, stop = 0, len(story)
        for place, item in enumerate(story):
            if item in before:
                start = place
            elif item in after:
                stop = place
                break
        return any(isinstance(item, str) for item in story[start:stop])

    def _reach(
        self, number: int, edges: defaultdict[int, set[int]], known: dict[int, set[int]]
    ) -> set[int]:
        if number not in known:
            found: set[int] = set()
            waiting = [number]
            while waiting:
                more = edges.get(waiting.pop(), set()) - found
                found |= more
                waiting += more
            known[number] = found
        return known[number]
