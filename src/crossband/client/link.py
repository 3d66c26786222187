"""A WebSocket connection, as the two doors on WebSocket use it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import websockets
from websockets.asyncio.client import ClientConnection

from crossband.client.errors import Lost, Refused, reason_of, status_error
from crossband.client.listener import CONNECT_TIMEOUT, MAX_MESSAGE, Listener
from crossband.errors import is_final


@contextlib.asynccontextmanager
async def connect(listener: Listener, url: str) -> AsyncIterator[ClientConnection]:
    """Connect for the length of the body. Raises Refused or Lost."""
    try:
        connection = await websockets.connect(
            url,
            ssl=listener.tls(),
            additional_headers=listener.headers,
            open_timeout=CONNECT_TIMEOUT,
            max_size=MAX_MESSAGE,
            ping_interval=30,
            ping_timeout=30,
            close_timeout=1,
            proxy=None,
        )
    except websockets.InvalidStatus as exc:
        response = exc.response
        raise status_error(response.status_code, response.body or b"", url) from exc
    except websockets.InvalidURI as exc:
        raise Refused(str(exc)) from exc
    except TimeoutError as exc:
        raise Lost("no answer in time") from exc
    except (OSError, websockets.WebSocketException) as exc:
        raise Lost(reason_of(exc)) from exc
    async with connection:
        yield connection


async def messages(connection: ClientConnection) -> AsyncIterator[str | bytes]:
    """Yield messages until the connection ends. Raises Refused or Lost."""
    try:
        while True:
            yield await connection.recv()
    except websockets.ConnectionClosed as exc:
        close = exc.rcvd
        if close is None:
            raise Lost("the connection broke") from exc
        text = f"closed with {close.code}" + (f" ({close.reason})" if close.reason else "")
        if is_final(close.code):
            raise Refused(text) from exc
        raise Lost(text) from exc
