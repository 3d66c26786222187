"""Engine.IO's responses to HTTP requests: packets, or an error."""

from __future__ import annotations

from typing import Any, Final

from crossband.errors import CloseCode, EventError
from crossband.transports.http import HeaderList, Request

# The official client logs their message.
PROBLEMS: Final[dict[str, dict[str, Any]]] = {
    "transport": {"code": 0, "message": "Transport unknown"},
    "sid": {"code": 1, "message": "Session ID unknown"},
    "method": {"code": 2, "message": "Bad handshake method"},
    "request": {"code": 3, "message": "Bad request"},
    "forbidden": {"code": 4, "message": "Forbidden"},
    "version": {"code": 5, "message": "Unsupported protocol version"},
}


async def respond_problem(
    request: Request,
    problem: str,
    cors: HeaderList,
    *,
    status: int = 400,
    reason: str = "",
) -> None:
    """Answer an HTTP request with an error."""
    body = PROBLEMS[problem]
    await request.respond_json(status, body | {"reason": reason} if reason else body, cors)


async def respond_packets(request: Request, content: str, cors: HeaderList) -> None:
    """Answer an HTTP request with Engine.IO packets."""
    await request.respond(
        200,
        content.encode(),
        content_type="text/plain; charset=UTF-8",
        headers=[*cors, (b"cache-control", b"no-store")],
    )


async def deny_problem(request: Request, problem: str) -> None:
    """Refuse a WebSocket with an error."""
    body = PROBLEMS[problem]
    await request.deny(EventError(body["message"], code="invalid_request", engine=body["code"]))


async def refuse_upgrade(request: Request) -> None:
    """Close a WebSocket that asks for a session which another one carries, or asks for.

    As Node does (Engine.IO 4, "upgrade"): the session goes on without this one.
    """
    await request.accept()
    await request.send(
        {
            "type": "websocket.close",
            "code": CloseCode.PROTOCOL_ERROR,
            "reason": "upgraded already",
        }
    )
