"""One client's attempt to come in: what it shows, and what it is let in with."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from crossband.broker import Session
from crossband.hub.catchup import CatchUp
from crossband.hub.namespace import Socket


@dataclass(frozen=True, slots=True)
class Resume:
    """What a client shows in order to be caught up."""

    # A session key; None when it has none to show.
    key: str | None = None
    # The last cursor it saw.
    cursor: str | None = None
    # The key was handed out by an earlier CONNECT (Socket.IO `pid`).
    returning: bool = False
    # A missing cursor means "nothing received yet", not "start anew": on Socket.IO the
    # welcome has none.
    unreceived: bool = False


class Endings(Protocol):
    """What becomes of admissions: `Welcomes`, which stand above them."""

    def welcome(self, admission: Admission) -> None:
        """Let the client receive, from here on and in order, all it should."""

    def undo(self, admission: Admission) -> None:
        """Leave everything as if the client had not come."""


@dataclass(frozen=True, slots=True, eq=False)
class Taking:
    """A session on its way to this node."""

    # As the store has it. None where it has ended.
    given: asyncio.Future[Session | None]
    # As it was known where its client was.
    known: asyncio.Future[Session | None]

    async def number(self) -> int | None:
        """Return the number of this taking, once it is known; None where nothing was taken."""
        await asyncio.wait([self.given])
        session = _result(self.given)
        return None if session is None else session.take

    async def outcome(self) -> Session | None:
        """Wait for the session; None where nothing was taken."""
        await asyncio.wait([self.known])
        return self.result()

    def result(self) -> Session | None:
        """Return the session, now that it is known; None where nothing was taken."""
        return _result(self.known)


def _result(future: asyncio.Future[Session | None]) -> Session | None:
    failed = future.cancelled() or future.exception() is not None
    return None if failed else future.result()


@dataclass(slots=True, eq=False)
class Admission:
    """A client that was let in and is not welcomed yet.

    It ends once, by `open` or by `withdraw`; as a context manager it is withdrawn at the end of
    the block unless it was opened. A second ending raises RuntimeError.
    """

    # None once it has ended.
    endings: Endings | None
    socket: Socket
    # Where it continues; None when it starts anew.
    cursor: str | None
    # Why it could not continue; None when it could, or did not ask to.
    gap: str | None
    catch_up: CatchUp | None
    # The session it shows. The broker has it until all have agreed: a client that gives up
    # while it is examined takes nothing from its next attempt.
    session: Session | None
    # The rooms of that session, as it was seen last.
    rooms: frozenset[str]
    # How many there had been when it was asked who it is.
    revocations: int
    # How the session comes to this node. None before, and when it has started anew.
    taking: Taking | None = None
    # The session was taken from the broker, to be put back if the client goes away.
    taken: bool = False

    def open(self) -> None:
        """Welcome the client, once its transport has answered it."""
        self._end().welcome(self)

    def withdraw(self) -> None:
        """Undo the admission: the client was refused, or left before its welcome."""
        self._end().undo(self)

    def _end(self) -> Endings:
        endings, self.endings = self.endings, None
        if endings is None:
            raise RuntimeError("the admission has ended already")
        return endings

    def __enter__(self) -> Admission:
        return self

    def __exit__(self, *_: object) -> None:
        if self.endings is not None:
            self.withdraw()
