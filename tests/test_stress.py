"""The checks of the stress run, and a short form of it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence

import pytest
from rich.console import Console

from stress.__main__ import run
from stress.faults import FAULTS
from stress.ledger import SOURCE, Story, judge

A, B = 1 * SOURCE, 2 * SOURCE
END = 9 * SOURCE


def named(stories: Sequence[Story]) -> dict[str, Story]:
    return {f"client {number}": story for number, story in enumerate(stories)}


def test_equal_stories_are_flawless() -> None:
    story = [A, B, A + 1, END]
    verdict = judge(named([story, story]), [A, B, A + 1], END)
    assert verdict.flawless
    assert (verdict.numbers, verdict.heard, verdict.told) == (3, 8, 0)


@pytest.mark.parametrize(
    ("stories", "acknowledged", "flaw"),
    [
        ([[A, B, END], [A, END]], [], "client 1 was not told that it missed 1: 2:0"),
        ([[A, A + 1, END], [A, A + 1, A + 1, END]], [], "client 1 heard 1:1 twice"),
        ([[A, B, END], [B, A, END]], [], "not one order: "),
        ([[A + 1, A, END]], [], "not one order: "),
        ([[A, B, END], [A]], [], "client 1 heard nothing after 1:0"),
        ([[A, B, END], []], [], "client 1 heard nothing after None"),
        # Acknowledged, and nobody heard it.
        ([[A, A + 2, END]], [A, A + 1, A + 2], "client 0 was not told that it missed 1: 1:1"),
        # Told, but in another place.
        ([[A, B, A + 1, END], [A, A + 1, "gap", END]], [], "client 1 was not told"),
        ([[A, A + 2, "gap", END]], [A + 1], "client 0 was not told that it missed 1: 1:1"),
        ([["gap", A, A + 2, END]], [A + 1], "client 0 was not told that it missed 1: 1:1"),
        # Two halves that contradict each other over a gap.
        ([[A, "gap", B, END], [B, "gap", A, END]], [], "not one order: "),
    ],
)
def test_what_is_wrong_is_told(stories: list[Story], acknowledged: list[int], flaw: str) -> None:
    verdict = judge(named(stories), acknowledged, END)
    assert not verdict.flawless
    assert verdict.problems[0].startswith(flaw)


@pytest.mark.parametrize(
    ("stories", "acknowledged", "told"),
    [
        ([[A, B, END], [A, "gap", END]], [], 1),
        ([[A, A + 2, END], [A, "gap", A + 2, END]], [], 0),
        ([[A, "gap", A + 2, END]], [A + 1], 1),
        ([[A, "gap"], [A, B, END]], [], 1),
        # What one node delivered before it was lost, the others never had.
        ([[A, A + 1, "gap", B, END], [A, "gap", B, END]], [], 1),
        # Nobody can say on which side of B it was.
        ([[A, "gap", B, END]], [3 * SOURCE], 1),
    ],
)
def test_what_is_missing_in_a_gap_is_told(
    stories: list[Story], acknowledged: list[int], told: int
) -> None:
    verdict = judge(named(stories), acknowledged, END)
    assert verdict.flawless, verdict.problems
    assert verdict.told == told


# Each in the short form takes some seconds, and ends with gaps where something was lost.
SHORT = ("deaf", "restart", "empty")
FEW = {
    "websocket": 4,
    "sse": 4,
    "python-socketio": 2,
    "socket.io-client polling": 3,
    "socket.io-client websocket": 3,
    "socket.io-client upgrading": 3,
    "EventSource": 3,
}


@pytest.mark.node
async def test_nothing_is_lost_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("CROSSBAND_SEED") or secrets.randbelow(10**9))
    faults = [fault for fault in FAULTS if fault.id in SHORT]
    console = Console(width=100)
    with capsys.disabled():
        console.print(f"\nstress: CROSSBAND_SEED={seed}")
        outcomes = await run(
            faults, console, program="redis", nodes=2, rate=20.0, crowd=FEW, seed=seed, pace=0.25
        )
    assert [outcome.fault.id for outcome in outcomes] == list(SHORT)
    assert not any(outcome.problems for outcome in outcomes)
    # All is lost with the server's data: clients were told.
    assert outcomes[-1].verdict.gaps
