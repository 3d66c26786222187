"""The Socket.IO door, by python-socketio's AsyncClient.

It does no connection state recovery of its own: the cursor is the last argument it was given,
the session a key it chooses, and both go back in `auth`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Sequence
from typing import Any, ClassVar

import aiohttp
import socketio
from socketio.exceptions import ConnectionError as ConnectionFailed

from tests.clients.base import WAIT, Client, Refused, raise_failed
from tests.clients.eventstream import RESET


class PythonSocketIOClient(Client):
    # Seconds for the answer to CONNECT.
    patience: ClassVar[int] = int(WAIT)
    kind = "python-socketio"
    binary = True
    tells_recovered = False
    # None: the library's choice, polling first and then the upgrade.
    transports: ClassVar[Sequence[str] | None] = None

    def __init__(self) -> None:
        super().__init__()
        # None until connected; a new one for every connection.
        self._client: Any = None
        self._http: aiohttp.ClientSession | None = None
        self._sockets: list[socket.socket] = []
        # All that were connected: one that was cut in the midst of a request makes a session of
        # its own to try it again, and leaves it open.
        self._made: list[Any] = []

    def _socket(self, address: Any) -> socket.socket:
        family, kind, proto, _, _ = address
        connection = socket.socket(family, kind, proto)
        connection.setblocking(False)
        self._sockets.append(connection)
        return connection

    async def _open(self) -> None:
        self._client = None
        if self._http is not None:
            await self._http.close()
        self.session = self.session or secrets.token_urlsafe(24)
        auth = {**self.auth, "session": self.session}
        if self.offset is not None:
            auth["offset"] = self.offset
        self._sockets = []
        connector = aiohttp.TCPConnector(socket_factory=self._socket)
        self._http = aiohttp.ClientSession(connector=connector, trust_env=False)
        self._client = client = socketio.AsyncClient(
            reconnection=False, http_session=self._http, handle_sigint=False
        )
        self._made.append(client)
        refusal: list[Any] = []
        client.on("connect_error", refusal.append, namespace=self.namespace)

        # A client that was cut still works off what it had received, when the next one may
        # be connected: nobody listens any more.
        def on_disconnect(reason: str) -> None:
            if client is self._client:
                self._on_disconnect(reason)

        def on_event(name: str, *args: Any) -> Any:
            return self._on_event(name, *args) if client is self._client else None

        client.on("disconnect", on_disconnect, namespace=self.namespace)
        client.on("*", on_event, namespace=self.namespace)
        try:
            await client.connect(
                self.url,
                auth=auth,
                namespaces=[self.namespace],
                transports=list(self.transports) if self.transports else None,
                wait_timeout=self.patience,
            )
        except ConnectionFailed as error:
            await self._http.close()
            reason = refusal[0] if refusal else str(error)
            if isinstance(reason, dict):
                raise Refused(reason["message"], data=reason.get("data")) from None
            raise Refused(str(reason)) from None
        self.sid = client.get_sid(self.namespace)

    def _on_disconnect(self, reason: str) -> None:
        self.farewell = reason
        self.gone.set()

    def _on_event(self, name: str, *args: Any) -> Any:
        self._receive_args(name, args)
        if name in self._answers:
            return self._answers[name](args[0] if args else None)
        return None

    async def settled(self) -> None:
        # connect() returns after the upgrade.
        assert self._client.transport() == (self.transports or ("websocket",))[-1]

    async def emit(self, event: str, *data: Any) -> None:
        await self._client.emit(event, data, namespace=self.namespace)

    async def call(self, event: str, *data: Any) -> Any:
        return raise_failed(
            await self._client.call(event, data, namespace=self.namespace, timeout=WAIT)
        )

    async def cut(self) -> None:
        assert self._http is not None
        for connection in self._sockets:
            if connection.fileno() != -1:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                # Raised when the server was faster.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        # It notices when it has read what came before, which may take it seconds.
        self._client = None
        self.gone.set()
        await self._http.close()

    async def close(self) -> None:
        if self._client is not None and self._client.connected:
            async with asyncio.timeout(WAIT):
                # Over polling it forgets to say goodbye while something else waits to be sent, and
                # then waits for the next ping.
                await self._client.eio.queue.join()
                await self._client.disconnect()
        if self._http is not None:
            await self._http.close()
        for client in self._made:
            if client.eio.http is not None:
                await client.eio.http.close()


class PythonSocketIOPollingClient(PythonSocketIOClient):
    """The same, without an upgrade."""

    kind = "python-socketio polling"
    transports: ClassVar[Sequence[str] | None] = ("polling",)
