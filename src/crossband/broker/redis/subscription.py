"""The channels that this node hears from one server; the connection comes back by itself."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any, Final, Protocol

from crossband.broker.redis.address import Address, Place
from crossband.broker.redis.commands import FIRST_PAUSE, LONGEST_PAUSE
from crossband.broker.redis.dialing import Unfit, connect
from crossband.broker.redis.link import Link, pack
from crossband.broker.redis.replies import ServerError, advice

logger: Final = logging.getLogger("crossband")

# Seconds without a message after which the server is asked for a sign of life, and after which
# the connection counts as dead.
QUIET: Final = 2.0
DEAF: Final = 6.0
# Channels in one command, when all are subscribed to again.
CHANNELS: Final = 500


class Ear(Protocol):
    """Gets the messages of one channel."""

    def confirmed(self) -> None:
        """All messages from here on will come. Called again after each reconnection."""

    def heard(self, data: bytes) -> None:
        """Take a message."""

    def refused(self, reason: str) -> None:
        """Note that the server does not permit it."""


class Subscription:
    """This node's subscription at one server."""

    def __init__(
        self,
        address: Address,
        where: Callable[[], Place | None],
        name: str,
        moved: Callable[[], None] | None = None,
    ) -> None:
        self._address = address
        # Where the commands go: publications are heard at the same server.
        self._where = where
        self._name = name
        # Called when a slot has moved to another server of the cluster.
        self._moved = moved
        self._sharded = address.kind == "cluster"
        self._link: Link | None = None
        self._loop = asyncio.get_running_loop()
        self._ears: dict[bytes, Ear] = {}
        # Those of them that the server has not confirmed, or has dropped since.
        self._unheard: set[bytes] = set()
        # Called once the server has confirmed that a channel is no longer heard.
        self._ended: dict[bytes, Callable[[], None]] = {}
        self._keeping: asyncio.Task[None] | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._lost_link = asyncio.Event()
        self.problem: str | None = "not connected yet"
        # When it was lost, in the loop's time.
        self.since: float = 0.0

    async def start(self) -> None:
        """Connect, and from here on stay connected. Raises Unfit."""
        await self._connect()
        self._keeping = self._loop.create_task(self._keep())
        self._looking = self._loop.call_later(QUIET / 2, self._look)

    async def stop(self) -> None:
        """Disconnect; no ear hears anything any more."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
            self._keeping = None
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        link, self._link = self._link, None
        if link is not None:
            link.abort()
        self._ears.clear()
        self._unheard.clear()
        self._ended.clear()
        self.problem = "the broker is stopped"

    async def _keep(self) -> None:
        while True:
            await self._lost_link.wait()
            pause = FIRST_PAUSE
            while True:
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
                try:
                    await self._connect()
                    break
                except Unfit as error:
                    self.problem = str(error)
                except Exception:
                    logger.exception("broker: subscribing failed")
                pause = min(2 * pause, LONGEST_PAUSE)

    async def _connect(self) -> None:
        ended: list[str] = []

        def lost(reason: str) -> None:
            ended.append(reason)
            if link is not None and self._link is link:
                self._lost(reason)

        link: Link | None = None
        link, place = await connect(
            self._address, self._where(), self._hear, lost, f"{self._name}:ear"
        )
        if ended:
            raise Unfit(f"{place}: the connection was lost at once: {ended[0]}")
        self._lost_link.clear()
        self._link, self.problem = link, None
        self._unheard = set(self._ears)
        self.ask_again()

    def _lost(self, reason: str) -> None:
        self._link = None
        self.since = self._loop.time()
        self.problem = f"the subscription at Redis was lost: {reason}"
        ended, self._ended = self._ended, {}
        for end in ended.values():
            end()
        self._lost_link.set()

    def reconnect(self) -> None:
        """Connect anew, to where the commands go."""
        if self._link is not None:
            self._link.abort("the server is another one, or does not publish to it")

    def _look(self) -> None:
        """End a connection over which nothing comes."""
        self._looking = self._loop.call_later(QUIET / 2, self._look)
        if self._link is not None:
            silent = self._loop.time() - self._link.heard_at
            if silent > DEAF:
                self._link.abort(f"nothing was heard for {DEAF:g} s")
            elif silent > QUIET:
                self._link.send(pack("PING"))

    # Channels.

    def add(self, channel: bytes, ear: Ear) -> None:
        """Hear a channel from now on; `ear` is told when nothing can be missed."""
        self._ears[channel] = ear
        self._unheard.add(channel)
        self._ended.pop(channel, None)
        if self._link is not None:
            self._send("SUBSCRIBE", [channel])

    def remove(self, channel: bytes, ended: Callable[[], None] | None = None) -> None:
        """Hear a channel no longer; then call `ended`."""
        if self._ears.pop(channel, None) is None:
            return
        self._unheard.discard(channel)
        if self._link is None:
            if ended is not None:
                ended()
            return
        if ended is not None:
            self._ended[channel] = ended
        self._send("UNSUBSCRIBE", [channel])

    def ask_again(self) -> None:
        """Subscribe to what the server refused, or dropped without being asked."""
        for channels in _parts(list(self._unheard)):
            self._send("SUBSCRIBE", channels)

    def _send(self, verb: str, channels: list[bytes]) -> None:
        if self._link is None:
            return
        if self._sharded:
            # Those of one command must be in one slot.
            for channel in channels:
                self._link.send(pack(f"S{verb}", channel))
        else:
            self._link.send(pack(verb, *channels))

    def _hear(self, reply: Any) -> None:
        """Take what comes. Hot: once for each message."""
        if type(reply) is not list:
            if isinstance(reply, ServerError):
                self._refused(reply)
            return
        kind = reply[0]
        if kind == b"message" or kind == b"smessage":
            ear = self._ears.get(reply[1])
            if ear is not None:
                try:
                    ear.heard(reply[2])
                except Exception:
                    # One message must never end the subscription.
                    logger.exception("broker: a message could not be handled")
        elif kind == b"subscribe" or kind == b"ssubscribe":
            ear = self._ears.get(reply[1])
            if ear is not None:
                self._unheard.discard(reply[1])
                ear.confirmed()
        elif kind == b"unsubscribe" or kind == b"sunsubscribe":
            self._unsubscribed(reply[1])

    def _unsubscribed(self, channel: bytes) -> None:
        ended = self._ended.pop(channel, None)
        if ended is not None:
            ended()
        elif channel in self._ears and self._moved is not None:
            # Not asked for: its slot is another server's by now, or was given to this one anew.
            self._unheard.add(channel)
            self._moved()

    def _refused(self, error: ServerError) -> None:
        if error.code in ("MOVED", "CLUSTERDOWN", "TRYAGAIN") and self._moved is not None:
            self._moved()
            return
        self.problem = advice(error)
        logger.error("broker: subscribing: %s", self.problem)
        for ear in list(self._ears.values()):
            ear.refused(self.problem)


def _parts(channels: list[bytes]) -> list[list[bytes]]:
    return [channels[start : start + CHANNELS] for start in range(0, len(channels), CHANNELS)]
