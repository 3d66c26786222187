"""One connection to a server: commands in a pipeline, messages of channels.

It speaks RESP2 (https://redis.io/docs/latest/develop/reference/protocol-spec/). redis-py's own
subscriptions take 32 µs of CPU for each message, and subscribe again in silence; this takes 2 µs.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

import hiredis

from crossband.broker.redis.address import Login, Place
from crossband.broker.redis.replies import ServerError

# Seconds to connect and log in.
CONNECT_TIME: Final = 5.0

Arg = str | bytes | int

# Takes a reply: bytes, a number, a list, None, or a ServerError.
Take = Callable[[Any], None]

_NOTHING: Final = object()

# The system's `struct linger`: what was not received is forgotten when the connection is closed.
_AT_ONCE: Final = struct.pack("ii", 1, 0)


def pack(*args: Arg) -> bytes:
    """Return a command's bytes."""
    packed: bytes = hiredis.pack_command(cast(Any, args))
    return packed


class Link(asyncio.Protocol):
    """A connection that is up until `lost` is called, once."""

    def __init__(self, hear: Callable[[Any], None], lost: Callable[[str], None]) -> None:
        # Gets what comes without being asked for.
        self._hear = hear
        self._lost = lost
        # Why this side ended it.
        self._end = ""
        self._reader = hiredis.Reader(replyError=ServerError, notEnoughData=_NOTHING)
        # Of the commands that were sent, in order.
        self._waiting: deque[Take] = deque()
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        # Who waits in `ask`.
        self._asked: set[asyncio.Future[Any]] = set()
        # What goes out at the end of this tick.
        self._leaving: list[bytes] = []
        # When something last came, in the loop's time.
        self.heard_at: float = self._loop.time()

    @property
    def waiting(self) -> int:
        """How many replies are still to come."""
        return len(self._waiting)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        reason = self._end or str(exc or "the server closed the connection")
        for reply in list(self._asked):
            if not reply.done():
                reply.set_exception(ConnectionResetError(reason))
        self._lost(reason)

    def data_received(self, data: bytes) -> None:
        """Handle replies and messages. Hot: once per read, and the loop per message."""
        self.heard_at = self._loop.time()
        reader = self._reader
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _NOTHING:
                if self._waiting:
                    self._waiting.popleft()(reply)
                else:
                    self._hear(reply)
        except hiredis.HiredisError:
            self.abort("what answers is not Redis")

    def call(self, command: bytes, take: Take) -> None:
        """Send a command; its reply goes to `take`, or to nobody if the link is lost before."""
        self._waiting.append(take)
        self.send(command)

    def send(self, command: bytes) -> None:
        """Send a command that is not replied to in order, such as SUBSCRIBE."""
        if not self._leaving:
            self._loop.call_soon(self._flush)
        self._leaving.append(command)

    def _flush(self) -> None:
        if self._transport is not None:
            self._transport.write(b"".join(self._leaving))
        self._leaving.clear()

    async def ask(self, *args: Arg) -> Any:
        """Send a command and return its reply. Raises ServerError, or OSError if it is lost."""
        reply: asyncio.Future[Any] = self._loop.create_future()
        if self._transport is None:
            raise ConnectionResetError("the server closed the connection")

        def take(value: Any) -> None:
            if not reply.done():
                reply.set_result(value)

        self.call(pack(*args), take)
        self._asked.add(reply)
        try:
            value = await reply
        finally:
            self._asked.discard(reply)
        if isinstance(value, ServerError):
            raise value
        return value

    def abort(self, reason: str = "ended by this side") -> None:
        """End the connection at once; what is on its way is not sent any more.

        Otherwise, where a network is back, that might come after what the next connection brings.
        """
        if self._transport is not None:
            self._end = reason
            with contextlib.suppress(OSError):
                self._transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE
                )
            self._transport.abort()


async def dial(
    place: Place,
    login: Login,
    tls: Any,
    hear: Callable[[Any], None],
    lost: Callable[[str], None],
    *,
    name: str = "crossband",
) -> Link:
    """Connect to a server and log in. Raises OSError or ServerError."""
    loop = asyncio.get_running_loop()
    link: Link | None = None
    try:
        async with asyncio.timeout(CONNECT_TIME):
            if place.path is not None:
                _, link = await loop.create_unix_connection(lambda: Link(hear, lost), place.path)
            else:
                _, link = await loop.create_connection(
                    lambda: Link(hear, lost), place.host, place.port, ssl=tls
                )
            if login.password is not None:
                user = () if login.username is None else (login.username,)
                await link.ask("AUTH", *user, login.password)
            if login.database:
                await link.ask("SELECT", login.database)
            try:
                await link.ask("CLIENT", "SETNAME", name)
            except ServerError:
                # Only for those who look at CLIENT LIST; a user may not be allowed to.
                pass
            return link
    except TimeoutError:
        if link is not None:
            link.abort()
        raise ConnectionError(f"no answer within {CONNECT_TIME:g} s") from None
    except BaseException:
        if link is not None:
            link.abort()
        raise
