"""Exceptions, the error codes clients see, and the WebSocket close codes.

Bottom layer: imports nothing from the package.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any, Final

# Ranges of close codes, first and last, after which a client should stay away: it would get the
# same answer again. They are ranges, as in Centrifugo, so that a client knows what to do with a
# code that a later server adds. 44xx means that the client is at fault, like HTTP's 4xx.
FINAL_CODES: Final = ((1000, 1000), (1002, 1003), (1007, 1009), (4000, 4007), (4400, 4499))


def is_final(code: int) -> bool:
    """Return whether a client that was closed with this code should stay away."""
    return any(first <= code <= last for first, last in FINAL_CODES)


class CloseCode(IntEnum):
    """WebSocket close codes the server sends (RFC 6455 §7.4.1; 4000-4999 are ours).

    `reconnect` is True for codes after which a client should come back.
    """

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    TRY_AGAIN_LATER = 1013
    DISCONNECTED = 4000
    SESSION_TAKEN = 4001
    SLOW_CLIENT = 4008
    TOKEN_EXPIRED = 4401
    REVOKED = 4403

    @property
    def reconnect(self) -> bool:
        """Return whether a client that was closed with this code should come back."""
        return not is_final(self)


# Codes for clients that are at fault: the server does not wait for them to close.
FAULTS: Final = frozenset(
    {
        CloseCode.PROTOCOL_ERROR,
        CloseCode.UNSUPPORTED_DATA,
        CloseCode.INVALID_DATA,
        CloseCode.POLICY_VIOLATION,
        CloseCode.MESSAGE_TOO_BIG,
    }
)

# code -> (fixed text, HTTP status where the door is HTTP)
ERRORS: Final[dict[str, tuple[str, int]]] = {
    "invalid_message": ("Invalid message format", 422),
    "invalid_request": ("Invalid request", 400),
    "host_not_allowed": ("Host not allowed", 400),
    "message_too_large": ("Message too large", 413),
    "rate_limited": ("Rate limit exceeded", 429),
    "too_many_connections": ("Too many connections", 429),
    "unauthorized": ("Unauthorized", 401),
    "forbidden": ("Not allowed", 403),
    "origin_not_allowed": ("Origin not allowed", 403),
    "refused": ("Refused", 403),
    "not_found": ("Not found", 404),
    "unknown_event": ("Unknown event", 404),
    "unknown_client": ("Unknown client", 404),
    "unknown_ack": ("Unknown acknowledgement", 404),
    "invalid_namespace": ("Invalid namespace", 404),
    "method_not_allowed": ("Method not allowed", 405),
    "too_many_rooms": ("Too many rooms", 403),
    "too_many_namespaces": ("Too many namespaces", 403),
    "unavailable": ("Temporarily unavailable", 503),
    "too_many_subscriptions": ("Too many subscriptions", 403),
    "handshake_timeout": ("Handshake timed out", 503),
    "request_timeout": ("Request timed out", 408),
    "shutting_down": ("Server shutting down", 503),
    "internal_error": ("Internal server error", 500),
}


class CrossbandError(Exception):
    """Base of every exception Crossband raises."""


class EncodeError(CrossbandError, ValueError):
    """An event name, room or payload cannot be put on the wire."""


class InvalidName(EncodeError):
    """A name of an event, room or namespace cannot be used.

    If a handler or a connect middleware lets it propagate, the client is blamed, because names
    mostly come from clients: it gets `invalid_message`, or `invalid_request` at connect.
    """


class ProtocolError(CrossbandError, ValueError):
    """Bytes from the other side break a protocol; the message names the clause.

    `close_code` is the WebSocket close code that ends such a connection.
    """

    def __init__(self, message: str, *, close_code: CloseCode = CloseCode.PROTOCOL_ERROR) -> None:
        super().__init__(message)
        self.close_code = close_code


class EventError(CrossbandError):
    """Answer a client's event with an error.

    Raise it in a handler or an event middleware. The client sees
    `{"code": code, "error": message, **details}` on every door: in its acknowledgement when
    it asked for one, else as an `error` event. Any other exception from a handler, except
    InvalidName, is logged and becomes `internal_error`, without details.
    """

    def __init__(self, message: str = "", *, code: str = "refused", **details: Any) -> None:
        text, status = ERRORS.get(code, ("Refused", 403))
        self.message: str = message or text
        self.code = code
        self.status: int = status
        self.details: dict[str, Any] = details
        super().__init__(self.message)

    def to_dict(self) -> dict[str, Any]:
        """Return what the client is told: code, error and the details."""
        return {"code": self.code, "error": self.message, **self.details}


class UnknownEvent(EventError):
    """An event without a handler."""

    def __init__(self) -> None:
        super().__init__(code="unknown_event")


class InvalidMessage(EventError):
    """A message that cannot be decoded, or not into the handler's type."""

    def __init__(self, reason: str, *, path: str = "$", **details: Any) -> None:
        super().__init__(code="invalid_message", path=path, reason=reason, **details)


class MessageTooLarge(EventError):
    """A message over the size limit, `max_size` in bytes."""

    def __init__(self, max_size: int) -> None:
        super().__init__(code="message_too_large", maxSize=max_size)


class RateLimited(EventError):
    """A message over the rate limit: one is allowed again after `retryAfter` seconds."""

    def __init__(self, wait: float) -> None:
        # Rounded up to a millisecond: after too short a wait, the client would be refused again.
        self.retry_after: float = math.ceil(wait * 1_000) / 1_000
        super().__init__(code="rate_limited", retryAfter=self.retry_after)


class ConnectionRefused(EventError):
    """Refuse a client: raise it in a connect middleware.

    Socket.IO clients get `connect_error` with `message` and `data`, or the code where there is
    no data; raw WebSocket and SSE clients get the HTTP status `status` (400 to 599) with a JSON
    body, before any upgrade. Raises ValueError for any other status: it would not refuse.
    """

    def __init__(
        self,
        message: str = "",
        *,
        data: Any = None,
        status: int = 403,
        code: str = "refused",
    ) -> None:
        if isinstance(status, bool) or not isinstance(status, int):
            raise TypeError(f"status must be an HTTP status, such as 403, not {status!r}")
        if not 400 <= status <= 599:
            raise ValueError(f"status must be one that refuses, 400 to 599, not {status!r}")
        super().__init__(message, code=code)
        self.status: int = int(status)
        self.data = data
        if data is not None:
            self.details: dict[str, Any] = {"data": data}


class Unauthorized(ConnectionRefused):
    """Refuse a client's credentials: raise it in `authenticate`.

    `reason` is a word for programs, such as `expired`. Clients get HTTP 401 before any
    upgrade, or `connect_error`, with code `unauthorized`, the message and the reason.
    """

    def __init__(self, message: str = "", *, reason: str = "refused") -> None:
        super().__init__(message, status=401, code="unauthorized")
        self.reason = reason
        self.details: dict[str, Any] = {"reason": reason}
        self.data: Any = self.to_dict()


class BrokerUnavailable(EventError):
    """The broker cannot be reached, or refuses to do something; the text says why.

    Raised where an emission is awaited, after 5 s or at once. Unless the broker refused it, the
    event may have been published all the same, or may be a little later: expect it twice if you
    repeat it. If a handler lets the error propagate, the client is told `unavailable`; clients
    that come in are refused with it (503, 1013) and keep their cursor.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(message, code="unavailable")


class AckTimeout(CrossbandError, TimeoutError):
    """Not every client acknowledged in time; `responses` holds the answers that came."""

    def __init__(self, message: str, responses: list[Any] | None = None) -> None:
        super().__init__(message)
        self.responses: list[Any] = responses if responses is not None else []


class Disconnected(CrossbandError, ConnectionError):
    """The socket left before it acknowledged."""


class StartError(CrossbandError):
    """The server or its hub could not start; the message says why and what to do."""


class Gap(CrossbandError):
    """What came after a cursor can no longer be sent.

    `reason` is one of `unknown` (another epoch, or not a cursor of this namespace), `expired`
    (older than the history) and `session` (the session to resume is gone). Clients may also
    be told `timeout` (a connect handler took too long to say which rooms are theirs),
    `unencodable` (an event has no form on their door), and `lost` (the broker has proof that
    something recorded is gone).
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"cannot resume: {reason}")
        self.reason = reason
