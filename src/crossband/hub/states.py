"""The states of a client from its first byte to its last, and what may happen in each.

`tests/test_states.py` tests every cell of the table on every door.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final


class State(Enum):
    """The states of a client, in order."""

    # `authenticate` and the connect middlewares are running.
    CONNECTING = "connecting"
    # Admitted; the transport is about to answer.
    ADMITTED = "admitted"
    # The welcome is sent, the connect handlers are running. Without a session the replay waits
    # for them, as they decide the client's rooms.
    WELCOMED = "welcomed"
    # The replay is being sent, and what comes meanwhile waits behind it.
    CATCHING_UP = "catching up"
    LIVE = "live"
    # Out of its namespace; its disconnect handlers run.
    LEAVING = "leaving"
    GONE = "gone"


class Event(Enum):
    """Something that the application, the client, the network or the operator does."""

    EMIT = "socket.emit"
    JOIN = "socket.join"
    LEAVE = "socket.leave"
    DISCONNECT = "socket.disconnect"
    REFRESH = "the client shows a new token"
    SECOND_CONNECT = "the session connects again"
    CUT = "the connection is cut"
    STOP = "the hub stops"


class Outcome(Enum):
    """The outcome of an event."""

    # emit: sent after the welcome.
    AFTER_WELCOME = "after the welcome"
    # emit: sent in order, after all that was published before.
    IN_ORDER = "in order"
    # emit, join, leave: kept with the session until the client comes back.
    KEPT = "kept"
    # join, leave: take effect now, or, before the welcome, with it.
    MEMBER = "member"
    # disconnect, stop: the client is not admitted, and is told why.
    REFUSED = "refused"
    # disconnect, stop: the client is told; its disconnect handlers run once.
    ENDED = "ended"
    # disconnect: its session is dropped; it starts afresh if it comes back.
    FORGOTTEN = "forgotten"
    # refresh: the token is accepted.
    TAKEN = "taken"
    # refresh: a client in this state cannot send one.
    IMPOSSIBLE = "impossible"
    # second connect: the second gets the session; the first starts afresh if it is admitted.
    SECOND_WINS = "second wins"
    # second connect: the same, and the first is told; its disconnect handlers run before the
    # connect handlers of the second.
    REPLACED = "replaced"
    # second connect: waits for the disconnect handlers of the first.
    QUEUED = "queued"
    # second connect: it resumes.
    RESUMES = "resumes"
    # cut: nothing is left of the client, and the session is as before.
    WITHDRAWN = "withdrawn"
    # cut: the disconnect handlers run once; the session is kept.
    DEPARTS = "departs"
    # Nothing happens.
    NOTHING = "nothing"


_STATES: Final = tuple(State)
_O = Outcome
# By event, in the order of the states.
_ROWS: Final[Mapping[Event, tuple[Outcome, ...]]] = {
    # CONNECTING, ADMITTED, WELCOMED, CATCHING_UP, LIVE, LEAVING, GONE
    Event.EMIT: (*[_O.AFTER_WELCOME] * 2, *[_O.IN_ORDER] * 3, *[_O.KEPT] * 2),
    Event.JOIN: (*[_O.MEMBER] * 5, *[_O.KEPT] * 2),
    Event.LEAVE: (*[_O.MEMBER] * 5, *[_O.KEPT] * 2),
    Event.DISCONNECT: (_O.REFUSED, *[_O.ENDED] * 4, *[_O.FORGOTTEN] * 2),
    Event.REFRESH: (*[_O.IMPOSSIBLE] * 2, *[_O.TAKEN] * 3, *[_O.IMPOSSIBLE] * 2),
    Event.SECOND_CONNECT: (
        *[_O.SECOND_WINS] * 2,
        *[_O.REPLACED] * 3,
        _O.QUEUED,
        _O.RESUMES,
    ),
    Event.CUT: (*[_O.WITHDRAWN] * 2, *[_O.DEPARTS] * 3, *[_O.NOTHING] * 2),
    Event.STOP: (_O.REFUSED, *[_O.ENDED] * 4, *[_O.NOTHING] * 2),
}
OUTCOMES: Final[Mapping[tuple[Event, State], Outcome]] = {
    (event, state): outcome
    for event, outcomes in _ROWS.items()
    for state, outcome in zip(_STATES, outcomes, strict=True)
}
