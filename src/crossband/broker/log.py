"""The history of one namespace: what was for many, and what was for one session alone.

Time is an argument. Knows no sessions beyond their socket ids.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from operator import itemgetter
from typing import Final

from crossband.broker import HISTORY_PAGE, Page, Publication
from crossband.errors import Gap

# (time recorded, number, publication).
Entry = tuple[float, int, Publication]

# Bytes that an event takes beside its data, and a session's log beside its events, on CPython
# 3.11. Private logs count with it: there may be any number of them with a few small events each.
EVENT_COST: Final = 450
LOG_COST: Final = 800


def newer(entries: deque[Entry], position: int) -> list[Entry]:
    """Return the entries with a number above a position, oldest first.

    Looked for from the newest: most clients that come back missed little, and a deque is slow
    to index in its middle.
    """
    found = []
    for entry in reversed(entries):
        if entry[1] <= position:
            break
        found.append(entry)
    found.reverse()
    return found


class Private:
    """What was sent to one session alone."""

    __slots__ = ("cost", "entries")

    def __init__(self) -> None:
        # Oldest first.
        self.entries: deque[Entry] = deque()
        # Bytes: LOG_COST, and of each entry its data and EVENT_COST.
        self.cost: int = LOG_COST


class Privates:
    """The private logs of a namespace.

    Each is bounded by count and age. Together they are bounded by bytes: past it the sessions
    that have more than their equal share lose their oldest, so none pushes out another's.
    """

    __slots__ = ("_age", "_cost", "_limit", "_logs", "_lost", "_size")

    def __init__(self, *, size: int, limit: int, age: float) -> None:
        # Entries of one session.
        self._size = size
        # Bytes of all sessions, and how many there are.
        self._limit = limit
        self._cost = 0
        self._age = age
        # By socket id, without empty ones. Those at the front are the next to be looked at
        # when room is short.
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
            # Then another one has more than its share.
            first, other = next(iter(self._logs.items()))
            if other.cost > share:
                self._drop_oldest(first, other)
            else:
                self._logs.move_to_end(first)

    def after(self, sid: str, position: int, now: float) -> list[Entry]:
        """Return what one session was sent after a position. Raises Gap."""
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
        """Drop all that one session was sent: nobody will ask for it."""
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

    One sequence of numbers for all: to each client the log has holes where events were sent to
    others alone.
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
        # Of the bytes, and how many there are.
        self._limit = limit
        self._bytes = 0
        self._age = age
        self._epoch = epoch
        # What was not for one session alone, oldest first.
        self._entries: deque[Entry] = deque()
        # The last number given, and the highest that was evicted from the entries.
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
        """Give a publication the next cursor, and keep nothing of it."""
        self._last += 1
        return publication.at(f"{self._epoch}-{self._last}", self._last)

    def append(self, publication: Publication, now: float) -> Publication:
        """Record a publication under the next cursor. Hot: once per event."""
        recorded = self.number(publication)
        self._entries.append((now, self._last, recorded))
        self._bytes += recorded.size
        self._evict(now)
        return recorded

    def append_private(self, publication: Publication, sids: list[str], now: float) -> Publication:
        """Record a publication under the next cursor, for these sessions alone."""
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
        # 19 digits hold any count; int() of more is slow, and refused past 4,300.
        if epoch != self._epoch or not number.isascii() or not number.isdigit() or len(number) > 19:
            raise Gap("unknown")
        position = int(number)
        # One cursor, one spelling: "01" was never handed out.
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
