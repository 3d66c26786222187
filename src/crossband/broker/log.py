"""The history of one namespace: events for many, and events for one session alone.

Time is an argument. Of sessions it knows only their socket ids.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from operator import itemgetter
from typing import Final

from crossband.broker import HISTORY_PAGE, Page, Publication
from crossband.errors import Gap

# (time recorded, number, publication).
Entry = tuple[float, int, Publication]

# Bytes that an event takes in addition to its data, and a session's log in addition to its
# events, on CPython 3.11. Private logs count them, as there may be many with few small events.
EVENT_COST: Final = 450
LOG_COST: Final = 800


def newer(entries: deque[Entry], position: int) -> list[Entry]:
    """Return the entries with a number above a position, oldest first.

    Searches from the newest: most returning clients missed little, and a deque is slow to index
    in the middle.
    """
    found = []
    for entry in reversed(entries):
        if entry[1] <= position:
            break
        found.append(entry)
    found.reverse()
    return found


class Private:
    """Events sent to one session alone."""

    __slots__ = ("cost", "entries")

    def __init__(self) -> None:
        # Oldest first.
        self.entries: deque[Entry] = deque()
        # Bytes: LOG_COST, plus the data and EVENT_COST of each entry.
        self.cost: int = LOG_COST


class Privates:
    """The private logs of a namespace.

    Each is bounded by count and age. Together they are bounded by bytes: beyond that, sessions
    with more than an equal share lose their oldest events, so that none pushes out another's.
    """

    __slots__ = ("_age", "_cost", "_limit", "_logs", "_lost", "_size")

    def __init__(self, *, size: int, limit: int, age: float) -> None:
        # Most entries of one session.
        self._size = size
        # Most bytes of all sessions, and their number now.
        self._limit = limit
        self._cost = 0
        self._age = age
        # By socket id, without empty ones. When room is short, the search starts at the front.
        self._logs: OrderedDict[str, Private] = OrderedDict()
        # The highest number that each session lost.
        self._lost: dict[str, int] = {}

    @property
    def empty(self) -> bool:
        return not self._logs

    def append(self, sid: str, entry: Entry) -> None:
        own = self._logs.get(sid)
        if own is None:
            own = self._logs[sid] = Private()
            self._cost += own.cost
        own.entries.append(entry)
        cost = entry[2].size + EVENT_COST
        own.cost += cost
        self._cost += cost
        self._evict(sid, own, entry[0])
        while self._cost > self._limit:
            share = self._limit / len(self._logs)
            if own.cost > share:
                self._drop_oldest(sid, own)
                continue
            # Otherwise another session has more than its share.
            first, other = next(iter(self._logs.items()))
            if other.cost > share:
                self._drop_oldest(first, other)
            else:
                self._logs.move_to_end(first)

    def after(self, sid: str, position: int, now: float) -> list[Entry]:
        """Return what was sent to one session after a position. Raises Gap."""
        own = self._logs.get(sid)
        if own is not None:
            self._evict(sid, own, now)
        if position < self._lost.get(sid, 0):
            raise Gap("expired")
        return [] if own is None else newer(own.entries, position)

    def evict(self, now: float) -> None:
        """Drop what is older than the age."""
        for sid, own in list(self._logs.items()):
            self._evict(sid, own, now)

    def forget(self, sid: str) -> None:
        """Drop all that was sent to one session: nobody will ask for it."""
        own = self._logs.pop(sid, None)
        if own is not None:
            self._cost -= own.cost
        self._lost.pop(sid, None)

    def _evict(self, sid: str, own: Private, now: float) -> None:
        entries = own.entries
        oldest = now - self._age
        while entries and (len(entries) > self._size or entries[0][0] < oldest):
            self._drop_oldest(sid, own)

    def _drop_oldest(self, sid: str, own: Private) -> None:
        _, number, publication = own.entries.popleft()
        cost = publication.size + EVENT_COST
        own.cost -= cost
        self._cost -= cost
        self._lost[sid] = number
        if not own.entries:
            del self._logs[sid]
            self._cost -= own.cost


class Log:
    """The order of one namespace, and its history, bounded by count, bytes and age.

    There is one sequence of numbers: to a client, it has holes where events were sent to others
    alone.
    """

    __slots__ = (
        "_age",
        "_bytes",
        "_entries",
        "_epoch",
        "_last",
        "_limit",
        "_lost",
        "_size",
        "private",
    )

    def __init__(self, *, size: int, limit: int, age: float, epoch: str) -> None:
        self._size = size
        # Most bytes, and their number now.
        self._limit = limit
        self._bytes = 0
        self._age = age
        self._epoch = epoch
        # Events that were not for certain sessions alone, oldest first.
        self._entries: deque[Entry] = deque()
        # The last number assigned, and the highest that was evicted from the entries.
        self._last = 0
        self._lost = 0
        self.private: Final = Privates(size=size, limit=limit, age=age)

    @property
    def empty(self) -> bool:
        return not self._entries and self.private.empty

    @property
    def head(self) -> str:
        return f"{self._epoch}-{self._last}"

    def number(self, publication: Publication) -> Publication:
        """Give a publication the next cursor, without keeping it."""
        self._last += 1
        return publication.at(f"{self._epoch}-{self._last}", self._last)

    def append(self, publication: Publication, now: float) -> Publication:
        """Record a publication with the next cursor. Hot: once per event."""
        recorded = self.number(publication)
        self._entries.append((now, self._last, recorded))
        self._bytes += recorded.size
        self._evict(now)
        return recorded

    def append_private(self, publication: Publication, sids: list[str], now: float) -> Publication:
        """Record a publication with the next cursor, for these sessions alone."""
        recorded = self.number(publication)
        entry = (now, self._last, recorded)
        for sid in sids:
            self.private.append(sid, entry)
        return recorded

    def evict(self, now: float) -> None:
        """Drop what is older than the age."""
        self._evict(now)
        self.private.evict(now)

    def after(self, cursor: str, sid: str | None, now: float, limit: int = HISTORY_PAGE) -> Page:
        """Return the publications after a cursor, with a session's own. Raises Gap."""
        position = self._position(cursor)
        self._evict(now)
        if position < self._lost:
            raise Gap("expired")
        missed = newer(self._entries, position)
        if sid is not None and (own := self.private.after(sid, position, now)):
            missed += own
            # Two sorted runs: linear.
            missed.sort(key=itemgetter(1))
        last = len(missed) <= limit
        if not last:
            del missed[limit:]
        end = self._last if last else missed[-1][1]
        publications = [publication for _, _, publication in missed]
        return Page(publications, end, f"{self._epoch}-{end}", last)

    def _position(self, cursor: str) -> int:
        epoch, _, number = cursor.rpartition("-")
        # Any count fits 19 digits; int() of more is slow, and fails past 4,300.
        if epoch != self._epoch or not number.isascii() or not number.isdigit() or len(number) > 19:
            raise Gap("unknown")
        position = int(number)
        # A cursor has one spelling: "01" was never handed out.
        if position > self._last or str(position) != number:
            raise Gap("unknown")
        return position

    def _evict(self, now: float) -> None:
        entries = self._entries
        oldest = now - self._age
        while entries and (
            len(entries) > self._size or self._bytes > self._limit or entries[0][0] < oldest
        ):
            _, self._lost, publication = entries.popleft()
            self._bytes -= publication.size
