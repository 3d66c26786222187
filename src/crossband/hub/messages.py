"""What nodes say to each other over the bus: one tagged union, and the answers.

What one node hears is decoded against these types; what does not fit is dropped.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import msgspec

from crossband.broker import Session
from crossband.protocol.payload import Payload

logger = logging.getLogger("crossband")


class Choice(msgspec.Struct, frozen=True, array_like=True):
    """Some sockets of a namespace: those in any of the rooms, and in none of the others."""

    namespace: str
    # Empty: all.
    rooms: tuple[str, ...] = ()
    except_: tuple[str, ...] = ()


class Count(msgspec.Struct, frozen=True, tag="count"):
    """How many sockets are these? Answered with a number."""

    choice: Choice


class Fetch(msgspec.Struct, frozen=True, tag="fetch"):
    """Which sockets are these? Answered with a list of Profile."""

    choice: Choice


class Join(msgspec.Struct, frozen=True, tag="join"):
    """Let these sockets join rooms. Answered with Done."""

    choice: Choice
    names: tuple[str, ...]


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """Let these sockets leave rooms. Answered with Done."""

    choice: Choice
    names: tuple[str, ...]


class Disconnect(msgspec.Struct, frozen=True, tag="disconnect"):
    """Disconnect these sockets, or their whole connections. Answered with Done."""

    choice: Choice
    close: bool = False


class Gather(msgspec.Struct, frozen=True, tag="gather"):
    """Send these sockets an event, and gather their acknowledgements. Answered with Gathered."""

    choice: Choice
    event: str
    payload: Payload
    # Seconds.
    timeout: float


class Hand(msgspec.Struct, frozen=True, tag="hand"):
    """Hand a client over: it has come back, and this node had it. Answered with Handed."""

    namespace: str
    key: str
    # The number of the taking: what this node has from before is over.
    take: int


class Revoked(msgspec.Struct, frozen=True, tag="revoked"):
    """A user was revoked. Answered with how many connections that ended."""

    user: str
    # Seconds since 1970.
    time: float


class CountUser(msgspec.Struct, frozen=True, tag="count user"):
    """How many connections has a user, but for the one of a session? Answered with a number."""

    user: str
    namespace: str
    # The session with which the client comes in over there; empty for none.
    key: str = ""


Message = Count | Fetch | Join | Leave | Disconnect | Gather | Hand | Revoked | CountUser


class Profile(msgspec.Struct, frozen=True):
    """A client as other nodes may see it: nothing in it is secret."""

    id: str
    rooms: list[str]
    data: dict[str, Any]
    transport: str
    user: str | None
    address: str | None
    # Seconds since 1970: when it connected.
    time: float
    path: str
    secure: bool
    # Without cookies and tokens.
    headers: dict[str, str]


class Done(msgspec.Struct, frozen=True):
    """It was done, or for some socket it could not be: code, text and details of why."""

    code: str | None = None
    error: str = ""
    details: dict[str, Any] = {}


class Gathered(msgspec.Struct, frozen=True):
    """Acknowledgements; and how many clients owe theirs still."""

    answers: list[Any]
    missing: int


class Handed(msgspec.Struct, frozen=True):
    """The session as its client's last node knew it; None where that had no such client."""

    session: Session | None


_decoder: Final = msgspec.msgpack.Decoder(Message)
encode: Final = msgspec.msgpack.Encoder().encode


def gathered(answers: list[Any], missing: int) -> bytes:
    """Return acknowledgements as bytes; one that has no form between nodes counts as missing."""
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
    """Return a message. Raises msgspec.DecodeError for what is none."""
    message: Message = _decoder.decode(body)
    return message
