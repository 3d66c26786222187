"""Sends returning clients of a namespace what they missed, in turns, until they are live."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from crossband.codecs import Codec, Wire
from crossband.connection import Connection
from crossband.hub.catchup import TURN, CatchUp, ReplayBuffer, concerns
from crossband.hub.fanout import Fanout, Recipient
from crossband.hub.node import Node

# Smallest replay buffer of a resuming client, in events, however short the history.
FEWEST_HELD = 16


class Replays:
    """Sends clients what they missed, and collects what is published meanwhile."""

    __slots__ = ("_fanout", "_node")

    def __init__(self, node: Node, fanout: Fanout[Any]) -> None:
        self._node = node
        self._fanout = fanout

    @property
    def count(self) -> int:
        """The number of clients that are catching up."""
        return len(self._fanout.buffers)

    def open_buffer(
        self, connection: Connection, codec: Codec, rooms: Iterable[str] = ()
    ) -> ReplayBuffer:
        """Collect all that is recorded here from now on, until released.

        Events for single clients are collected only if their room is one of these.
        """
        settings = self._node.settings
        buffer = ReplayBuffer(
            connection,
            codec,
            count=max(2 * settings.history_size, FEWEST_HELD),
            size=max(2 * settings.history_bytes, settings.limits.outbox),
        )
        buffer.ids = frozenset(rooms)
        self._fanout.buffers.append(buffer)
        return buffer

    def release(self, catch_up: CatchUp) -> None:
        self.close_buffer(catch_up.buffer)
        catch_up.end()

    def end(self, client: Recipient, catch_up: CatchUp) -> None:
        """Note that a client has caught up."""
        client.catching = None
        self.release(catch_up)

    def close_buffer(self, buffer: ReplayBuffer) -> None:
        # By identity: two empty deques are equal.
        fanout = self._fanout
        fanout.buffers = [other for other in fanout.buffers if other is not buffer]

    def advance(self, client: Recipient) -> None:
        """Send a returning client the next part of what it missed; at the end it is live.

        Half an outbox at a time, so that even a long history fits, and few enough publications
        not to hold up the loop; if there are fewer, all at once.
        """
        catch_up = client.catching
        if catch_up is None or catch_up.pausing or not client.connected:
            return
        connection = client.connection
        if connection.closed:
            return
        catch_up.begun = True
        rooms = client.rooms
        for _ in range(TURN):
            if not connection.roomy:
                catch_up.pausing = True
                self._node.run_to_end(self._advance_later(client, catch_up))
                return
            item = catch_up.next()
            if item is None:
                self.end(client, catch_up)
                return
            if isinstance(item, Wire):
                connection.push(item)
            elif concerns(item, rooms):
                wire = self._fanout.encode(client.codec, item)
                if wire is not None:
                    connection.push(wire)
        catch_up.pausing = True
        self._node.turns.add(lambda: self._go_on(client, catch_up))

    async def _advance_later(self, client: Recipient, catch_up: CatchUp) -> None:
        await client.connection.drained()
        self._go_on(client, catch_up)

    def _go_on(self, client: Recipient, catch_up: CatchUp) -> None:
        catch_up.pausing = False
        if client.catching is catch_up:
            self.advance(client)
