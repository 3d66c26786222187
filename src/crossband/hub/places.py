"""Finds the place of a client whose offset is wrong, by a mistake of the official client."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import NamedTuple

import msgspec

from crossband.broker import Publication
from crossband.hub.catchup import concerns

# Unrecorded events whose places a namespace remembers, for `Places.of`.
TAILS = 1_000
# Bytes of their arguments; events with longer ones are not remembered.
TAIL_SIZE = 512


class Place(NamedTuple):
    """A place in the order where an unrecorded event was sent."""

    cursor: str
    # When it was sent, in seconds of the monotonic clock.
    time: float


class Places:
    """A namespace's last unrecorded events that end in a string, with their places.

    The official client takes any string at the end of an event for its offset, or the event's
    name if it has no arguments.
    """

    __slots__ = ("_kept", "_tails")

    def __init__(self) -> None:
        self._tails: deque[tuple[Publication, Place]] = deque(maxlen=TAILS)
        # Cursors of clients from other nodes, by socket id and offset; oldest first.
        self._kept: dict[tuple[str, str], str] = {}

    @staticmethod
    def has_one(publication: Publication) -> bool:
        """Return whether an unrecorded event must be noted, as it may look like an offset."""
        json = publication.payload.json
        return len(json) <= TAIL_SIZE and json.endswith((b'"]', b"[]"))

    def note(self, publication: Publication, cursor: str) -> None:
        """Note that an event was sent after a cursor."""
        self._tails.append((publication, Place(cursor, monotonic())))

    def keep(self, sid: str, offset: str, cursor: str) -> None:
        """Note the place of a client from another node, and the offset that it sent."""
        if len(offset) <= TAIL_SIZE:
            self._kept[sid, offset] = cursor
            if len(self._kept) > TAILS:
                del self._kept[next(iter(self._kept))]

    def kept(self, sid: str, offset: str) -> str | None:
        """Return the cursor noted for this client and offset, or None."""
        return self._kept.get((sid, offset))

    def of(self, offset: str, rooms: frozenset[str]) -> list[Place]:
        """Return the possible places of a client in these rooms with this offset.

        Oldest first.
        """
        places: dict[str, Place] = {}
        for publication, place in self._tails:
            args = msgspec.json.decode(publication.payload.json)
            last = args[-1] if args else publication.event
            if last == offset and concerns(publication, rooms):
                places.setdefault(place.cursor, place)
        return list(places.values())

    @property
    def first(self) -> Place | None:
        """The oldest place still remembered. None if none has been forgotten yet."""
        return self._tails[0][1] if len(self._tails) == TAILS else None
