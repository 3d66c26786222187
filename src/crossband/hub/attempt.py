"""One client's attempt to connect: what it shows, and its admission."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from crossband.broker import Session
from crossband.hub.catchup import CatchUp
from crossband.hub.namespace import Socket


@dataclass(frozen=True, slots=True)
class Resume:
    """What a client shows in order to resume."""

    # A session key; None if it has none.
    key: str | None = None
    # The last cursor it saw.
    cursor: str | None = None
    # The key came from an earlier CONNECT (Socket.IO `pid`).
    returning: bool = False
    # A missing cursor means "nothing received yet", not "start afresh": Socket.IO's welcome
    # has no cursor.
    unreceived: bool = False


class Endings(Protocol):
    """Ends admissions: `Welcomes`, which is above this module."""

    def welcome(self, admission: Admission) -> None:
        """Let the client receive everything it should, in order, from here on."""

    def undo(self, admission: Admission) -> None:
        """Restore everything as if the client had never connected."""


@dataclass(slots=True, eq=False)
class Taking:
    """A session on its way to this node."""

    # The session as the store has it. None if it has ended.
    given: asyncio.Future[Session | None]
    # The session as the client's last node knew it.
    known: asyncio.Future[Session | None] = field(init=False)
    # The node whose disconnect handlers still run for the client; None if there is none.
    leaving: str | None = None

    async def number(self) -> int | None:
        """Return the take number once it is known; None if nothing was taken."""
        await asyncio.wait([self.given])
        session = _result(self.given)
        return None if session is None else session.take

    async def outcome(self) -> Session | None:
        """Wait for the session; None if nothing was taken."""
        await asyncio.wait([self.known])
        return self.result()

    @property
    def unanswered(self) -> bool:
        """Whether the store failed: it may have given the session to this node or not."""
        given = self.given
        return given.done() and not given.cancelled() and given.exception() is not None

    def result(self) -> Session | None:
        """Return the session, now that it is known; None if nothing was taken."""
        return _result(self.known)


def _result(future: asyncio.Future[Session | None]) -> Session | None:
    failed = future.cancelled() or future.exception() is not None
    return None if failed else future.result()


@dataclass(slots=True, eq=False)
class Admission:
    """A client that was admitted but not welcomed yet.

    It ends once, by `open` or `withdraw`; as a context manager it is withdrawn at the end of the
    block unless it was opened. Ending it a second time raises RuntimeError.
    """

    # None once it has ended.
    endings: Endings | None
    socket: Socket
    # Where it resumes; None if it starts afresh.
    cursor: str | None
    # Why it could not resume; None if it could, or did not ask to.
    gap: str | None
    catch_up: CatchUp | None
    # The session it shows. The broker keeps it until every check has passed: a client that
    # gives up during them takes nothing from its next attempt.
    session: Session | None
    # The rooms of that session when last read.
    rooms: frozenset[str]
    # The number of revocations before it was authenticated.
    revocations: int
    # Brings the session to this node. None before that, and if the client starts afresh.
    taking: Taking | None = None
    # The session was taken from the broker, and must be put back if the client goes away.
    taken: bool = False
    # It keeps the key of the session it asked for, resumed or started afresh.
    keeps_key: bool = True

    def open(self) -> None:
        """Welcome the client, once its transport has answered it."""
        self._end().welcome(self)

    def withdraw(self) -> None:
        """Undo the admission: the client was refused, or left before its welcome."""
        self._end().undo(self)

    def _end(self) -> Endings:
        endings, self.endings = self.endings, None
        if endings is None:
            raise RuntimeError("the admission has already ended")
        return endings

    def __enter__(self) -> Admission:
        return self

    def __exit__(self, *_: object) -> None:
        if self.endings is not None:
            self.withdraw()
