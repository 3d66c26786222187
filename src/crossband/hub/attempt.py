"""One client's attempt to come in: what it shows, and what it is let in with."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(slots=True, eq=False)
class Admission:
    """A client that was let in and is not welcomed yet: exactly one of `open`, `withdraw`."""

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
    # The session was taken from the broker, to be put back if the client goes away.
    taken: bool = False
