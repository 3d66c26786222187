"""The contract of a session store: what is kept of clients, and which node has each.

`tests/broker/test_sessions.py` is the same contract as tests.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from typing import Any, Final

import msgspec

logger: Final = logging.getLogger("crossband")

# Seconds without a sign of life after which a node's sessions count as abandoned: three
# heartbeats, and one to spare.
LEASE: Final = 10.0
# Users whose older tokens are refused; beyond this the oldest revocation is forgotten.
MAX_REVOKED: Final = 10_000
# Levels of lists and dicts in a client's data.
MAX_DEPTH: Final = 64


class Session(msgspec.Struct):
    """What is kept of a client so that it can resume."""

    namespace: str
    # The client's secret: Socket.IO `pid`, `session` on the other doors.
    key: str
    sid: str
    # Rooms it joined, without the room of its own id.
    rooms: set[str]
    # Plain data, as `check_plain` defines it.
    data: dict[str, Any]
    # Where it started to listen, for a client that comes back before it received anything.
    cursor: str
    # Only this user may resume it. None for anonymous clients.
    user: str | None = None
    # The rooms among them that the client asked for (`subscribe`).
    asked: frozenset[str] = frozenset()
    # The node that serves the client, or last did.
    owner: str = ""
    # How many times the session was taken: calls of earlier owners no longer count.
    take: int = 0
    # Which attempt to come back found it: `find` numbers them. 0 if none did.
    attempt: int = 0


class Revocation(msgspec.Struct, frozen=True):
    """A user whose tokens from before a time are refused."""

    # Later ones are higher, also after a restart of the store with or without its data, such as
    # microseconds since 1970: nodes ask for what is above.
    number: int
    user: str
    # Seconds since 1970.
    time: float


class SessionStore(ABC):
    """Keeps the sessions of all nodes.

    A session has one owner at a time, and counts how many times it was taken. Calls of an
    earlier owner are ignored, so that a connection that dies slowly does not overwrite what its
    client does elsewhere. Sessions of connected clients are kept while their owner shows signs
    of life, others for as long as the history.

    Calls that return nothing are queued at once and in order, even if the store is elsewhere.
    Calls that are awaited see what was queued before them, and may raise BrokerUnavailable.
    """

    @abstractmethod
    def save(self, session: Session) -> None:
        """Keep a session whose client is connected.

        Ignored if another owner took it; then this node's `Receiver.taken` is called.
        """

    @abstractmethod
    def release(self, session: Session) -> None:
        """Keep a session whose client has left, for the history's age from now.

        Ignored if another owner took it.
        """

    @abstractmethod
    def drop(self, session: Session) -> None:
        """Drop a session. Ignored if another owner took it."""

    @abstractmethod
    async def find(self, namespace: str, key: str) -> Session | None:
        """Return a session without taking it; it must not be changed.

        Its `attempt` is the number of this call, among all that have found it.
        """

    @abstractmethod
    async def take(self, session: Session, owner: str) -> Session | None:
        """Make a node the owner of a session that was found; return its current state.

        It has the next take number then; the returned `owner` is the node that had it before.
        If several take it, the one that found it last gets it: a slow attempt that its client
        gave up does not end the connection the client has by now. So None if a later
        attempt took it, if it has ended, or if it is the session of another socket id by now.
        Where BrokerUnavailable is raised, it may have been taken all the same: whoever finds it
        next takes it on.
        """

    @abstractmethod
    def renew(self, owner: str) -> None:
        """Show that a node is alive: its sessions are kept for another LEASE seconds."""

    @abstractmethod
    async def revoke(self, user: str, time: float) -> Revocation:
        """Refuse a user's tokens issued up to a time, and drop the user's sessions."""

    @abstractmethod
    async def revocations(self, after: int = 0) -> list[Revocation]:
        """Return revocations after a number, oldest first; at most MAX_REVOKED."""


def _check_text(text: str, path: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{path} holds half of a surrogate pair") from None


def check_plain(value: object, path: str, depth: int = MAX_DEPTH) -> None:
    """Raise TypeError or ValueError for what a session cannot keep.

    It keeps None, booleans, numbers, text, bytes, and lists, tuples and dicts of these with text
    keys; a tuple comes back as a list. `path` says where the value is.
    """
    # By exact type: an instance of another class would not come back as one.
    if value is None or type(value) is bool or type(value) is bytes:
        return
    if type(value) is str:
        _check_text(value, path)
    elif type(value) is int:
        if not -(2**63) <= value < 2**64:
            raise ValueError(f"{path} is a number of more than 64 bits: keep it as text")
    elif type(value) is float:
        if not math.isfinite(value):
            raise ValueError(f"{path} is {value!r}: keep None, or a number")
    elif not depth:
        raise ValueError(f"{path} is nested too deeply, or contains itself")
    elif isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(
                    f"{path} has the key {key!r}: keys are text, as the session is kept outside "
                    "of this process"
                )
            _check_text(key, f"the key {key!r} of {path}")
            check_plain(item, f"{path}[{key!r}]", depth - 1)
    elif type(value) is list or type(value) is tuple:
        for place, item in enumerate(value):
            check_plain(item, f"{path}[{place}]", depth - 1)
    else:
        kind = type(value)
        raise TypeError(
            f"{path} cannot be kept: {kind.__module__}.{kind.__qualname__} is not plain data "
            "(None, bool, int, float, str, bytes, and lists and dicts of these). Keep such "
            "objects in a dict of your own, by socket.id"
        )


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Session)


def fit_data(data: dict[str, Any]) -> dict[str, Any]:
    """Return a client's data without values that became unfit after they were set."""
    fits = {}
    for key, value in data.items():
        try:
            check_plain({key: value}, "socket.data")
            fits[key] = value
        except (TypeError, ValueError) as error:
            logger.error("a session loses a value: %s", error)
    return fits


def fit(session: Session) -> Session:
    """Return a session whose data can be kept."""
    return msgspec.structs.replace(session, data=fit_data(session.data))


def pack(session: Session) -> bytes:
    """Return a session's bytes, without values that became unfit after they were set."""
    try:
        return _encoder.encode(session)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return _encoder.encode(fit(session))


def unpack(data: bytes) -> Session:
    """Return the session in these bytes. Raises msgspec.DecodeError."""
    return _decoder.decode(data)
