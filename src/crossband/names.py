"""Names of events, rooms and namespaces: which are usable, reserved, or a socket's own id."""

from __future__ import annotations

import re
import secrets
from typing import Final

from crossband.errors import InvalidName

# Reserved by Socket.IO: its client libraries never send them as events.
SOCKETIO_RESERVED: Final = frozenset(
    {
        "connect",
        "connect_error",
        "disconnect",
        "disconnecting",
        "newListener",
        "removeListener",
    }
)
# Names that applications can neither emit nor receive. The envelope's own words are not among
# them, as existing programs use them as event names (`protocol.envelope.CONTROL`).
RESERVED: Final = SOCKETIO_RESERVED | frozenset(
    {
        "ack:request",
        "event:named",
        "presence:join",
        "presence:leave",
        "presence:members",
        "presence:update",
        "server:shutdown",
        "token:expiring",
        "token:refresh",
    }
)
# Brings a client's new token; the hub itself handles it.
REFRESH: Final = "token:refresh"
# Asks for the members of a room; these are published when they change.
MEMBERS: Final = "presence:members"
JOIN: Final = "presence:join"
UPDATE: Final = "presence:update"
LEAVE: Final = "presence:leave"

# A name has 1 to 256 characters, none of them a control character.
NAME_LENGTH: Final = 256
NAME_PATTERN: Final = r"\A[^\x00-\x1f\x7f]*\Z"
_without_controls: Final = re.compile(NAME_PATTERN).match
# Socket ids have 20 characters: the sharded Redis adapter recognizes them by their length.
SID_LENGTH: Final = 20


def new_id() -> str:
    """Return a fresh public id of 20 characters, 76 bits of them random."""
    return "_" + secrets.token_hex(SID_LENGTH // 2)[1:]


def is_socket_id(room: str) -> bool:
    """Return whether this room name is a socket id, of a connected client or not.

    Clients must never join such a room by name: they would hear what is sent to that socket.
    """
    return len(room) == SID_LENGTH and room[0] == "_" and room[1:].isascii() and room[1:].isalnum()


def has_controls(text: str) -> bool:
    """Return whether there is a control character in a text."""
    return _without_controls(text) is None


def check_name(value: object, what: str) -> str:
    """Return a usable event, room or namespace name, as a plain `str`.

    A member of a string enum, or of another subclass, counts as its value. Raises InvalidName
    unless it has 1 to 256 characters, can be encoded and has no control characters.
    """
    if not isinstance(value, str):
        raise InvalidName(f"{what} must be a string, not {type(value).__name__}")
    if not 0 < len(value) <= NAME_LENGTH:
        raise InvalidName(f"{what} must have 1 to {NAME_LENGTH} characters, not {len(value)}")
    # isprintable() is a quick yes for almost every name.
    if not value.isprintable():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidName(f"{what} must be valid Unicode") from None
        if has_controls(value):
            raise InvalidName(f"{what} must not contain control characters: {value!r}")
    return value if type(value) is str else str.__str__(value)


def check_event(event: object) -> str:
    """Return an event name that may be emitted. Raises InvalidName."""
    name = check_name(event, "an event name")
    if name in RESERVED:
        raise InvalidName(f"{name!r} is a reserved event name")
    return name


def check_user(user: object) -> None:
    """Raise TypeError unless it is a string; a number from a claim is not."""
    if not isinstance(user, str):
        raise TypeError(
            f"a user is named by a string, not {type(user).__name__}: write {str(user)!r}"
        )
