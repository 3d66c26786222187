"""One address before several nodes, as a balancer is, or a link that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
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
            await self._pump_both(reader, writer, back, forth)
        finally:
            forth.transport.abort()

    async def _pump_both(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        back: asyncio.StreamReader,
        forth: asyncio.StreamWriter,
    ) -> None:
        """Pass bytes on both ways, until one side ends."""
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

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self._alive.wait()
            writer.write(data)
            await writer.drain()
        # What was written is to arrive before the end does.
        await self._alive.wait()
        writer.write_eof()
        await writer.drain()


class Spread(Front):
    """Send each request to the next node, also on a connection that is kept, as nginx does."""

    def __init__(self, urls: Sequence[str]) -> None:
        super().__init__(urls)
        # How many requests each node got.
        self.counts = [0] * len(urls)
        self._turns = itertools.cycle(range(len(urls)))

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for turn in itertools.islice(self._turns, len(self.counts)):
            try:
                connection = await asyncio.open_connection(*self._addresses[turn])
            except OSError:
                # It was killed.
                continue
            self.counts[turn] += 1
            return connection
        raise ConnectionRefusedError

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await self._forward_one(reader, writer):
            pass

    async def _forward_one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Forward a request and its answer; return whether another may follow."""
        head = await reader.readuntil(b"\r\n\r\n")
        back, forth = await self._connect()
        try:
            forth.write(head + await reader.readexactly(_length(head) or 0))
            answering = asyncio.ensure_future(back.readuntil(b"\r\n\r\n"))
            leaving = asyncio.ensure_future(reader.read(1))
            try:
                await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():
                    # The client has gone.
                    return False
            finally:
                leaving.cancel()
                answering.cancel()
                await asyncio.gather(answering, leaving, return_exceptions=True)
            answer = answering.result()
            writer.write(answer)
            length = _length(answer)
            if length is None and not answer.startswith(b"HTTP/1.1 204"):
                await self._pump_both(reader, writer, back, forth)
                return False
            writer.write(await back.readexactly(length or 0))
            await writer.drain()
            return b"connection: close" not in answer.lower()
        finally:
            forth.transport.abort()


def _length(head: bytes) -> int | None:
    found = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    return None if found is None else int(found[1])
