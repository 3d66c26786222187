"""Where a client may be that shows the official client's mistake for its offset."""

from __future__ import annotations

import math
from collections import deque
from time import monotonic
from typing import NamedTuple

import msgspec

from crossband.broker import Publication
from crossband.hub.catchup import concerns

# Unrecorded events whose place a namespace remembers, for `Places.of`.
TAILS = 1_000
# Bytes of their arguments; of longer ones nothing is remembered.
TAIL_SIZE = 512


class Place(NamedTuple):
    """Where in the order an unrecorded event was sent: after which cursor, and when."""

    cursor: str
    # Of the monotonic clock, in seconds.
    time: float


class Places:
    """The last unrecorded events of a namespace that end in a string, and the cursor before each.

    The official client takes any string at the end of an event for its offset, or the event's
    name where it has no argument.
    """

    __slots__ = ("_tails", "begun")

    def __init__(self) -> None:
        # Where this node began to hear the namespace: what other nodes sent before, it does not
        # know.
        self.begun = Place("", -math.inf)
        self._tails: deque[tuple[Publication, Place]] = deque(maxlen=TAILS)

    @staticmethod
    def has_one(publication: Publication) -> bool:
        """Tell whether an unrecorded event may be taken for an offset, and is to be noted."""
        json = publication.payload.json
        return len(json) <= TAIL_SIZE and json.endswith((b'"]', b"[]"))

    def note(self, publication: Publication, cursor: str) -> None:
        """Note that an event was sent after a cursor."""
        self._tails.append((publication, Place(cursor, monotonic())))

    def of(self, offset: str, rooms: frozenset[str]) -> list[Place]:
        """Return the places at which a client in these rooms may be that shows an offset.

        Oldest first.
        """
        places: dict[str, Place] = {}
        for publication, place in self._tails:
            args = msgspec.json.decode(publication.payload.json)
            last = args[-1] if args else publication.event
            if last == offset and concerns(publication, rooms):
                places.setdefault(place.cursor, place)
        return list(places.values())

    def begin(self, cursor: str) -> None:
        """Note that this node hears all that is sent from here on."""
        self.begun = Place(cursor, monotonic())

    @property
    def first(self) -> Place | None:
        """The oldest place that is remembered. None where none was forgotten yet."""
        return self._tails[0][1] if len(self._tails) == TAILS else None
