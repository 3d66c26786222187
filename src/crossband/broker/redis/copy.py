"""What this node has delivered of a namespace: so that a thousand clients cost no read."""

from __future__ import annotations

from collections import deque

from crossband.broker import Publication
from crossband.broker.redis.base import Base


class Copy:
    """The newest part of a log, without holes; bounded as the log is."""

    __slots__ = ("_base", "_bytes", "_entries", "floor", "whole_from")

    def __init__(self, base: Base, floor: int) -> None:
        self._base = base
        # When it was delivered, its number, whether it is for certain sockets alone; oldest first.
        self._entries: deque[tuple[float, int, bool, Publication]] = deque()
        self._bytes = 0
        # All that has a higher number is here.
        self.floor: int = floor
        # What has a higher number is here also if it was for sockets of other nodes alone.
        self.whole_from: int = floor

    def add(self, number: int, publication: Publication, *, private: bool) -> None:
        """Keep a publication. Hot: once per event."""
        self._entries.append((self._base.now(), number, private, publication))
        self._bytes += publication.size
        bounds = self._base.bounds
        while self._entries and (len(self._entries) > bounds.size or self._bytes > bounds.limit):
            self._drop()

    def after(self, number: int, sid: str | None) -> list[tuple[int, Publication]] | None:
        """Return what a client may get after a number; None if some is not here."""
        self.trim()
        if number < (self.floor if sid is None else max(self.floor, self.whole_from)):
            return None
        found = []
        # From the newest: most returning clients missed little.
        for _, place, private, publication in reversed(self._entries):
            if place <= number:
                break
            if not private or (sid is not None and sid in publication.rooms):
                found.append((place, publication))
        found.reverse()
        return found

    def trim(self) -> None:
        """Drop what is too old for anybody to come back to."""
        oldest = self._base.now() - self._base.bounds.age
        while self._entries and self._entries[0][0] < oldest:
            self._drop()

    def _drop(self) -> None:
        _, self.floor, _, publication = self._entries.popleft()
        self._bytes -= publication.size
