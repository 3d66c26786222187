"""One address before several nodes, as a balancer is: each TCP connection goes to one of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Self
from urllib.parse import urlsplit

# Chooses a node by the first line of a connection's first request.
Choose = Callable[[str], int]


class Front(contextlib.AbstractAsyncContextManager["Front"]):
    """Forward connections to the nodes at these URLs, to the first one until told otherwise.

    Before a server that is no node, such as Redis, it is a link that can be cut or go dead.
    """

    def __init__(self, urls: Sequence[str], choose: Choose | None = None) -> None:
        self._addresses = [(parts.hostname, parts.port) for parts in map(urlsplit, urls)]
        self._choose = choose
        # The node that new connections go to, where nothing else chooses.
        self.target = 0
        self.url = ""
        self.port = 0
        self._connections: set[asyncio.Task[None]] = set()
        # Not set while nothing gets through, in either direction.
        self._alive = asyncio.Event()
        self._alive.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def cut(self) -> None:
        """End all connections; new ones are forwarded."""
        for task in self._connections:
            task.cancel()

    def die(self) -> None:
        """Let nothing through any more, and leave all connections as they are."""
        self._alive.clear()

    def revive(self) -> None:
        """Let through again what comes, and what has come meanwhile, as TCP sends it again."""
        self._alive.set()

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._forward(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            # With a reset, as the client or the node did it.
            writer.transport.abort()
            self._connections.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target, first = self.target, b""
        if self._choose is not None:
            first = await reader.readuntil(b"\r\n")
            target = self._choose(first.decode("latin-1"))
        host, port = self._addresses[target]
        back, forth = await asyncio.open_connection(host, port)
        try:
            forth.write(first)
            pumps = [
                asyncio.ensure_future(self._pump(reader, forth)),
                asyncio.ensure_future(self._pump(back, writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            forth.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self._alive.wait()
            writer.write(data)
            await writer.drain()
        # What was written is to arrive before the end does.
        await self._alive.wait()
        writer.write_eof()
        await writer.drain()
