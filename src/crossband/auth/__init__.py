"""Who a client is and what it may do: identities, rights, and where clients put a token.

Knows handshakes but no clients. `jwt` verifies tokens, `keys` loads the keys for that,
`redaction` keeps tokens out of logs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from crossband.handshake import Handshake
from crossband.names import has_controls

Action = Literal["subscribe", "publish"]

# Characters of a token. Cookies are limited to 4 KiB, header lines mostly to 8 KiB by proxies.
MAX_TOKEN: Final = 8_192
# Characters of a user's name, as for event and room names.
MAX_USER: Final = 256
# WebSocket subprotocols, for browsers, which cannot set headers: the one we answer with, and
# the prefix of the token. Subprotocols allow all characters of a token (RFC 6455 §4.1).
SUBPROTOCOL: Final = "crossband"
BEARER_PROTOCOL: Final = "bearer."


def bearer_token(handshake: Handshake, *, cookie: str | None = None) -> str | None:
    """Return a client's token from the first place that has one, else None.

    Looks, in this order, at Socket.IO's `auth.token` (also set by `token:refresh`), the header
    `Authorization: Bearer`, the WebSocket subprotocol `bearer.<token>`, `?token=`, and the
    cookie named `cookie`, if given.
    """
    token = handshake.auth.get("token")
    if isinstance(token, str) and token:
        return token
    headers = handshake.headers
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and (token := token.strip()):
        return token
    for protocol in headers.get("sec-websocket-protocol", "").split(","):
        protocol = protocol.strip()
        if protocol.startswith(BEARER_PROTOCOL) and len(protocol) > len(BEARER_PROTOCOL):
            return protocol[len(BEARER_PROTOCOL) :]
    for token in handshake.query.get("token", ()):
        if token:
            return token
    if cookie is not None:
        # Repeated headers were joined by commas, which cookies cannot have (RFC 6265 §4.1.1).
        for pair in re.split("[;,]", headers.get("cookie", "")):
            name, _, value = pair.strip().partition("=")
            if name == cookie and (value := value.strip('"')):
                return value
    return None


class Rights(msgspec.Struct, frozen=True):
    """Rooms that a client may subscribe and publish to, as patterns.

    In a pattern `*` matches any number of characters; nothing else is special. Publishing to a
    whole namespace requires the pattern `*`. Lists and sets are accepted too; anything else
    raises TypeError, a single string included.
    """

    subscribe: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("subscribe", "publish"):
            patterns = getattr(self, name)
            # A string would be read as a list of letters, and one of them could be `*`.
            if not isinstance(patterns, (tuple, list, set, frozenset)) or not all(
                isinstance(pattern, str) for pattern in patterns
            ):
                raise TypeError(
                    f"{name} takes room patterns, such as ['news', 'team-*'], not {patterns!r}"
                )
            msgspec.structs.force_setattr(self, name, tuple(patterns))

    @classmethod
    def from_claim(cls, claim: object) -> Rights:
        """Read a token's `rooms` claim; without one there are no rights.

        A list of patterns is for both actions; `{"subscribe": […], "publish": […]}` has a list
        for each.
        Raises ValueError for anything else.
        """
        if claim is None:
            return cls()
        if isinstance(claim, Mapping):
            if unknown := claim.keys() - {"subscribe", "publish"}:
                raise ValueError(f"expected subscribe and publish, not {sorted(map(str, unknown))}")
            return cls(_patterns(claim.get("subscribe")), _patterns(claim.get("publish")))
        patterns = _patterns(claim)
        return cls(patterns, patterns)

    def allow(self, action: Action, room: str | None) -> bool:
        """Return whether an action on a room, or None, the whole namespace, is allowed."""
        patterns = self.subscribe if action == "subscribe" else self.publish
        if room is None:
            return "*" in patterns
        return any(matches(pattern, room) for pattern in patterns)


def _patterns(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise ValueError(
            f'expected a list of room patterns, such as ["news"], not {kind_of(value)}'
        )
    for item in value:
        if not isinstance(item, str):
            raise ValueError(f"expected room patterns that are strings, not {kind_of(item)}")
    return tuple(value)


def kind_of(value: object) -> str:
    """Return the JSON type of a value in words, for errors about claims."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    for kinds, name in (
        (str, "a string"),
        (int, "a whole number"),
        (float, "a fraction"),
        (list, "a list"),
        (Mapping, "an object"),
    ):
        if isinstance(value, kinds):
            return name
    return type(value).__name__


def matches(pattern: str, room: str) -> bool:
    """Return whether a room matches a pattern. Linear time, unlike a regex."""
    first, *rest = pattern.split("*")
    if not rest:
        return room == pattern
    *middle, last = rest
    if len(room) < len(first) + len(last):
        return False
    if not room.startswith(first) or not room.endswith(last):
        return False
    at, end = len(first), len(room) - len(last)
    for part in middle:
        at = room.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


class Identity(msgspec.Struct, frozen=True):
    """Who a client is, as returned by `authenticate`; see `socket.identity`.

    `expires` and `issued` are in seconds since 1970. At `expires` the client is disconnected,
    unless it has sent a new token by then; None means never. Raises ValueError for a user name
    that is empty, over 256 characters, or has control characters, TypeError for `rights` or
    `claims` of another type.
    """

    user: str
    expires: float | None = None
    # When its token was issued; `hub.revoke` refuses older ones. None if unknown.
    issued: float | None = None
    rights: Rights = Rights()
    # The token's claims, or anything else that the application needs.
    claims: Mapping[str, Any] = {}

    def __post_init__(self) -> None:
        if not isinstance(self.user, str):
            raise ValueError(
                f"a user's name is a string of 1 to {MAX_USER} characters, not "
                f"{type(self.user).__name__}: Identity({str(self.user)[:MAX_USER]!r})"
            )
        if type(self.user) is not str:
            msgspec.structs.force_setattr(self, "user", str.__str__(self.user))
        if not 0 < len(self.user) <= MAX_USER:
            raise ValueError(
                f"a user's name is a string of 1 to {MAX_USER} characters, not {len(self.user)}"
            )
        # It stands in log lines, and is a key elsewhere.
        if has_controls(self.user):
            raise ValueError("a user's name must not contain control characters")
        try:
            self.user.encode()
        except UnicodeEncodeError:
            # No session, and no message to another node, could carry it.
            raise ValueError("a user's name must be valid Unicode") from None
        for name in ("expires", "issued"):
            value = getattr(self, name)
            if value is None:
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not -math.inf < value < math.inf:
                raise ValueError(f"{name} must be a number of seconds since 1970, not {value!r}")
        if not isinstance(self.rights, Rights):
            raise TypeError(f"rights must be Rights(…), not {self.rights!r}")
        if not isinstance(self.claims, Mapping):
            raise TypeError(f"claims must be a mapping, not {self.claims!r}")


def rooms_claim(identity: Identity | None, action: Action, room: str | None) -> bool:
    """Allow what the token's `rooms` claim grants: `Hub(authorize=rooms_claim)`.

    Without a token or the claim, nothing is allowed.
    """
    return identity is not None and identity.rights.allow(action, room)


__all__ = [
    "Action",
    "Identity",
    "Rights",
    "bearer_token",
    "rooms_claim",
]
