"""Waiting for what no event tells of: a condition, looked at in every tick."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.clients.base import WAIT


async def until(condition: Callable[[], object]) -> None:
    """Return as soon as a condition holds. Raises TimeoutError where it never does."""
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110 - a guard against hanging is around it
            await asyncio.sleep(0.001)
