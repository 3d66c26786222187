"""Responses to requests with a body or of HTTP/1.0: how they and the connection end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send


class Lingering(Protocol):
    """What Answer needs from the connection it is sent on."""

    def wants(self, cycle: RequestResponseCycle) -> bool: ...
    def linger_after_answer(self) -> None: ...


class Answer:
    """Answers a request that has a body or is HTTP/1.0.

    The connection ends after the response if too much of the body is still to come; the client
    is told, and has time to read the response. For HTTP/1.0, closing the connection ends a
    response of unknown length (RFC 9112 §6.1, §6.3).
    """

    __slots__ = ("_app", "_cycle", "_http", "_until_close")

    def __init__(self, http: Lingering, cycle: RequestResponseCycle, app: Any) -> None:
        self._http = http
        self._cycle = cycle
        self._app = app
        # Closing the connection ends the body.
        self._until_close = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        return await self._app(scope, receive, self._send)

    async def _send(self, message: Any) -> None:
        cycle = self._cycle
        if message["type"] == "http.response.start":
            if not self._http.wants(cycle):
                cycle.keep_alive = False
            if cycle.scope["http_version"] == "1.0":
                message = self._unchunked(message)
        elif message["type"] == "http.response.body":
            if self._until_close:
                cycle.expected_content_length = len(message.get("body", b""))
            last = not message.get("more_body", False)
            if last and cycle.more_body and not cycle.keep_alive:
                # Otherwise uvicorn would close at once.
                cycle.keep_alive = True
                self._http.linger_after_answer()
        await cycle.send(message)

    def _unchunked(self, message: Message) -> Message:
        headers = [
            (name, value)
            for name, value in message.get("headers", ())
            if name.lower() != b"transfer-encoding"
        ]
        if not any(name.lower() == b"content-length" for name, _ in headers):
            self._until_close = True
            self._cycle.chunked_encoding = False
        return {**message, "headers": headers}
