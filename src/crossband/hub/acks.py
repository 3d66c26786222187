"""The acknowledgements that one client owes the server."""

from __future__ import annotations

import asyncio
from typing import Any

from crossband.errors import CrossbandError, Disconnected


class Acks:
    """Acknowledgements that one socket owes the server."""

    __slots__ = ("_limit", "_waiting")

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    @property
    def owed(self) -> int:
        """The number of expected answers."""
        return len(self._waiting)

    def __contains__(self, ack_id: int) -> bool:
        return ack_id in self._waiting

    def expect(self, ack_id: int) -> asyncio.Future[Any]:
        """Return the future that the answer with this id will resolve.

        Raises CrossbandError if the socket already owes too many.
        """
        if len(self._waiting) >= self._limit:
            raise CrossbandError(f"the client owes {self._limit} acknowledgements already")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[ack_id] = future
        return future

    def forget(self, ack_id: int) -> None:
        self._waiting.pop(ack_id, None)

    def resolve(self, ack_id: int, answer: Any) -> bool:
        """Settle an expected answer; return False if none with this id is expected."""
        future = self._waiting.pop(ack_id, None)
        if future is None:
            return False
        if not future.done():
            future.set_result(answer)
        return True

    def fail(self) -> None:
        """Fail all expected answers: the client left."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(Disconnected("the client left before it acknowledged"))
                # Mark it retrieved: a broadcast that has timed out does not read it.
                future.exception()
