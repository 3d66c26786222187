"""Who a client is and what it may do: identities, rights, and where clients show a token.

Knows handshakes and no clients. `jwt` verifies tokens, `keys` has
what they are verified with, `redaction` keeps them out of logs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from crossband.handshake import Handshake

# Names stand in log lines, and are keys elsewhere.
_CONTROL: Final = frozenset(map(chr, [*range(32), 127]))

Action = Literal["subscribe", "publish"]

# Characters of a token. Cookies end at 4 KiB, header lines at 8 KiB with most proxies.
MAX_TOKEN: Final = 8_192
# Characters of a user's name; as event and room names.
MAX_USER: Final = 256
# WebSocket subprotocols, for browsers, which can set no header: what is answered, and what
# the token follows. A token's characters are those of a subprotocol (RFC 6455 §4.1).
SUBPROTOCOL: Final = "crossband"
BEARER_PROTOCOL: Final = "bearer."


def bearer_token(handshake: Handshake, *, cookie: str | None = None) -> str | None:
    """Return the token a client shows, from the first place that has one; else None.

    In this order: Socket.IO's `auth.token` (also what `token:refresh` brings), the header
    `Authorization: Bearer`, the WebSocket subprotocol `bearer.<token>`, `?token=`, and the
    cookie of that name where one is given.
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
        # Several header lines were joined by commas, which no cookie has (RFC 6265 §4.1.1).
        for pair in re.split("[;,]", headers.get("cookie", "")):
            name, _, value = pair.strip().partition("=")
            if name == cookie and (value := value.strip('"')):
                return value
    return None


class Rights(msgspec.Struct, frozen=True):
    """Rooms a client may hear and publish to, as patterns.

    In a pattern `*` stands for any characters, none included; nothing else is special. To
    publish to a whole namespace takes the pattern `*`. Lists and sets are taken too; raises
    TypeError for one string, and for anything else.
    """

    subscribe: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("subscribe", "publish"):
            patterns = getattr(self, name)
            # A string is letters, and one of them may be `*`.
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

        A list of patterns is for both; `{"subscribe": […], "publish": […]}` sets them apart.
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
        """Tell whether an action on a room is allowed; None is the whole namespace."""
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
    """Return what JSON calls a value, for those who read of a claim."""
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
    """Tell whether a room matches a pattern. Linear in their lengths, as no regex would be."""
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
    """Who a client is, as `authenticate` found; on `socket.identity`.

    `expires` and `issued` are in seconds since 1970. At `expires` the client is disconnected,
    unless it shows a new token before; None is never. Raises ValueError for a user's name that
    is empty, over 256 characters, or has control characters, TypeError for `rights` or `claims`
    of another type.
    """

    user: str
    expires: float | None = None
    # When its token was made; `hub.revoke` refuses what is older. None when not known.
    issued: float | None = None
    rights: Rights = Rights()
    # The token's claims, or whatever else the application wants to know.
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
        if not _CONTROL.isdisjoint(self.user):
            raise ValueError("a user's name must not contain control characters")
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

    Without a token, or without the claim, nothing.
    """
    return identity is not None and identity.rights.allow(action, room)


__all__ = [
    "Action",
    "Identity",
    "Rights",
    "bearer_token",
    "rooms_claim",
]
