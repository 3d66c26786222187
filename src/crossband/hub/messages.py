"""The messages between nodes over the bus: one tagged union, and the answers.

A node decodes what it hears against these types, and drops what does not fit.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import msgspec

from crossband.broker import Session
from crossband.protocol.payload import Payload

logger: Final = logging.getLogger("crossband")


class Choice(msgspec.Struct, frozen=True, array_like=True):
    """Some sockets of a namespace: in any of `rooms`, and in none of `except_`."""

    namespace: str
    # Empty means all sockets.
    rooms: tuple[str, ...] = ()
    except_: tuple[str, ...] = ()


class Count(msgspec.Struct, frozen=True, tag="count"):
    """Count these sockets. Answered with a number."""

    choice: Choice


class Fetch(msgspec.Struct, frozen=True, tag="fetch"):
    """Describe these sockets. Answered with a list of Profile."""

    choice: Choice


class Join(msgspec.Struct, frozen=True, tag="join"):
    """Make these sockets join rooms. Answered with Done."""

    choice: Choice
    names: tuple[str, ...]


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """Make these sockets leave rooms. Answered with Done."""

    choice: Choice
    names: tuple[str, ...]


class Disconnect(msgspec.Struct, frozen=True, tag="disconnect"):
    """Disconnect these sockets, or their whole connections. Answered with Done."""

    choice: Choice
    close: bool = False


class Gather(msgspec.Struct, frozen=True, tag="gather"):
    """Send these sockets an event and gather acknowledgements. Answered with Gathered."""

    choice: Choice
    event: str
    payload: Payload
    # Seconds.
    timeout: float


class ServerEvent(msgspec.Struct, frozen=True, tag="server event"):
    """An event for the servers of a namespace. Answered with Replied."""

    namespace: str
    event: str
    payload: Payload


class Hand(msgspec.Struct, frozen=True, tag="hand"):
    """Hand a client over that came back elsewhere. Answered with Handed."""

    namespace: str
    key: str
    # The take number: whatever this node has from before is over.
    take: int


class Departing(msgspec.Struct, frozen=True, tag="departing"):
    """Wait for a client's disconnect handlers. Answered with true once they have ended."""

    namespace: str
    key: str


class Locate(msgspec.Struct, frozen=True, tag="locate"):
    """Where is a client with this offset, which is not a cursor? Answered with Located."""

    namespace: str
    key: str
    offset: str


class Revoked(msgspec.Struct, frozen=True, tag="revoked"):
    """A user was revoked. Answered with the number of connections that this ended."""

    user: str
    # Seconds since 1970.
    time: float


class CountUser(msgspec.Struct, frozen=True, tag="count user"):
    """Count a user's connections, except one session's. Answered with a number."""

    user: str
    namespace: str
    # The session of the client that is connecting over there; empty for none.
    key: str = ""


class Report(msgspec.Struct, frozen=True, tag="report"):
    """Report what this node has. Answered with what `Status.here` returns."""


Message = (
    Count
    | Fetch
    | Join
    | Leave
    | Disconnect
    | Gather
    | ServerEvent
    | Hand
    | Departing
    | Locate
    | Revoked
    | CountUser
    | Report
)


class Profile(msgspec.Struct, frozen=True):
    """A client as other nodes may see it: nothing in it is secret."""

    id: str
    rooms: list[str]
    data: dict[str, Any]
    transport: str
    user: str | None
    address: str | None
    # When it connected, in seconds since 1970.
    time: float
    path: str
    secure: bool
    # Without cookies and tokens.
    headers: dict[str, str]


class Done(msgspec.Struct, frozen=True):
    """It was done, or failed for some socket: code, text and details of the error."""

    code: str | None = None
    error: str = ""
    details: dict[str, Any] = {}


class Gathered(msgspec.Struct, frozen=True):
    """Acknowledgements, and how many clients still owe theirs."""

    answers: list[Any]
    missing: int


class Replied(msgspec.Struct, frozen=True):
    """What the handler of a server event returned."""

    payload: Payload


class Located(msgspec.Struct, frozen=True):
    """The cursor after which the client continues; None if the node does not know it."""

    cursor: str | None


class Handed(msgspec.Struct, frozen=True):
    """The session as its client's last node knew it; None if it had no such client."""

    session: Session | None
    # Its disconnect handlers still run.
    leaving: bool = False


_decoder: Final = msgspec.msgpack.Decoder(Message)
encode: Final = msgspec.msgpack.Encoder().encode


def gathered(answers: list[Any], missing: int) -> bytes:
    """Return acknowledgements as bytes; any that cannot be encoded count as missing."""
    try:
        return encode(Gathered(answers, missing))
    except (TypeError, ValueError, OverflowError, RecursionError):
        fits = [answer for answer in answers if _has_form(answer)]
        logger.error(
            "%d acknowledgements have no form between nodes: numbers of more than 64 bits, or "
            "nested too deeply",
            len(answers) - len(fits),
        )
        return encode(Gathered(fits, missing + len(answers) - len(fits)))


def _has_form(answer: Any) -> bool:
    try:
        msgspec.msgpack.decode(encode(answer))
    except (TypeError, ValueError, OverflowError, RecursionError):
        return False
    return True


def decode(body: bytes) -> Message:
    """Return a message. Raises msgspec.DecodeError if it is not one."""
    message: Message = _decoder.decode(body)
    return message
