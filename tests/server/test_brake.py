"""What dies is started again: at once, and ever later while it dies early."""

from __future__ import annotations

import pytest

from crossband.server.brake import Brake


def test_pauses_double_while_it_ends_early() -> None:
    brake = Brake()
    assert [brake.pause() for _ in range(6)] == [0, 0.5, 1, 2, 2, 2]


def test_pauses_grow_longer_while_it_cannot_start() -> None:
    brake = Brake()
    assert brake.pause() == 0
    assert [brake.pause(failed=True) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_one_that_ran_for_a_while_is_started_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    brake = Brake()
    assert [brake.pause() for _ in range(3)] == [0.0, 0.5, 1.0]
    brake.begin()
    now = 10.0
    assert brake.pause() == 0.0
    assert brake.pause(failed=True) == 0.5
