"""The servers of a broker: one, or those of a cluster, which has keys in slots."""

from __future__ import annotations

import asyncio
import binascii
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from crossband.broker.redis.address import Address, Place
from crossband.broker.redis.commands import Call
from crossband.broker.redis.dialing import Unfit, connect
from crossband.broker.redis.keys import BUS, Keys
from crossband.broker.redis.replies import ServerError, advice
from crossband.broker.redis.server import Server
from crossband.broker.redis.subscription import Ear
from crossband.errors import BrokerUnavailable

logger: Final = logging.getLogger("crossband")

SLOTS: Final = 16_384
# Seconds between two looks at who has which slots: if all is well, and if not.
REFRESH, REFRESH_SOON = 10.0, 0.25
# Seconds between two of them at least.
REFRESH_PAUSE: Final = 0.1
# Seconds for a server that joined a cluster to answer.
JOIN_TIME: Final = 1.0


@lru_cache(maxsize=4_096)
def slot_of(tag: str) -> int:
    """Return the slot of keys with a tag (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/)."""
    return binascii.crc_hqx(tag.encode(), 0) % SLOTS


class Servers(ABC):
    """Finds the server of each key. Keys and channels are known by their tag."""

    def __init__(self, address: Address, node: str, keys: Keys) -> None:
        self._address = address
        self._node = node
        self._keys = keys

    @abstractmethod
    async def start(self, patience: float) -> None:
        """Connect. Raises BrokerUnavailable."""

    @abstractmethod
    async def stop(self) -> None:
        """Disconnect."""

    @abstractmethod
    def server(self, tag: str) -> Server:
        """Return the server of a tag. Raises BrokerUnavailable if there is none."""

    @property
    def verb(self) -> str:
        """The command that publishes."""
        return "SPUBLISH" if self._address.kind == "cluster" else "PUBLISH"

    @property
    def home(self) -> Server:
        """The server of what belongs to no namespace."""
        return self.server(BUS)

    @abstractmethod
    def add(self, channel: bytes, tag: str, ear: Ear) -> None:
        """Hear a channel from now on."""

    @abstractmethod
    def remove(self, channel: bytes, tag: str, ended: Callable[[], None] | None = None) -> None:
        """Hear a channel no longer; then call `ended`."""

    @property
    @abstractmethod
    def problem(self) -> str | None:
        """Why this node is out of touch, or None."""


class OneServer(Servers):
    """A server, alone or with replicas behind Sentinels."""

    def __init__(self, address: Address, node: str, keys: Keys) -> None:
        super().__init__(address, node, keys)
        self._server = Server(address, None, node, keys.beat(node))

    async def start(self, patience: float) -> None:
        await self._server.start(patience)

    async def stop(self) -> None:
        await self._server.stop()

    def server(self, tag: str) -> Server:
        return self._server

    def add(self, channel: bytes, tag: str, ear: Ear) -> None:
        self._server.subscription.add(channel, ear)

    def remove(self, channel: bytes, tag: str, ended: Callable[[], None] | None = None) -> None:
        self._server.subscription.remove(channel, ended)

    @property
    def problem(self) -> str | None:
        return self._server.problem


class ClusterServers(Servers):
    """The primaries of a cluster. They change, and so do their slots."""

    def __init__(self, address: Address, node: str, keys: Keys) -> None:
        super().__init__(address, node, keys)
        self._servers: dict[Place, Server] = {}
        # Of each slot; None where nobody has it.
        self._owners: list[Server | None] = [None] * SLOTS
        # All that is heard, by channel, and at which server.
        self._ears: dict[bytes, tuple[str, Ear, Server | None]] = {}
        self._refreshing: asyncio.Task[None] | None = None
        self._soon = asyncio.Event()
        self._problem: str | None = "not connected yet"

    async def start(self, patience: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while True:
            try:
                await self._refresh()
                self.server(BUS)
                break
            except Unfit as error:
                if error.final or loop.time() > deadline:
                    await self.stop()
                    raise BrokerUnavailable(str(error)) from None
            except BrokerUnavailable:
                if loop.time() > deadline:
                    await self.stop()
                    raise
            await asyncio.sleep(REFRESH_SOON)
        self._refreshing = loop.create_task(self._keep_fresh())

    async def stop(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])
            self._refreshing = None
        servers, self._servers = self._servers, {}
        self._owners = [None] * SLOTS
        self._ears.clear()
        for server in servers.values():
            await server.stop()

    @property
    def problem(self) -> str | None:
        if self._problem is not None:
            return self._problem
        problems = [server.problem for server in self._servers.values()]
        return next((problem for problem in problems if problem is not None), None)

    def server(self, tag: str) -> Server:
        owner = self._owners[slot_of(tag)]
        if owner is None:
            raise BrokerUnavailable(self._problem or f"no server of the cluster has {tag!r}")
        return owner

    def add(self, channel: bytes, tag: str, ear: Ear) -> None:
        owner = self._owners[slot_of(tag)]
        self._ears[channel] = (tag, ear, owner)
        if owner is not None:
            owner.subscription.add(channel, ear)

    def remove(self, channel: bytes, tag: str, ended: Callable[[], None] | None = None) -> None:
        _, _, owner = self._ears.pop(channel, (tag, None, None))
        if owner is not None:
            owner.subscription.remove(channel, ended)

    # Who has what.

    def refresh_soon(self) -> None:
        """Look at who has which slots: somebody has moved."""
        self._soon.set()

    async def _keep_fresh(self) -> None:
        while True:
            try:
                async with asyncio.timeout(REFRESH if self.problem is None else REFRESH_SOON):
                    await self._soon.wait()
            except TimeoutError:
                pass
            self._soon.clear()
            try:
                await self._refresh()
                # What moves is refused until all servers know of it.
                await asyncio.sleep(REFRESH_PAUSE)
            except Unfit as error:
                if str(error) != self._problem:
                    logger.warning("broker: %s", error)
                self._problem = str(error)
            except Exception:
                logger.exception("broker: looking for the servers of the cluster failed")

    async def _refresh(self) -> None:
        ranges = await self._ask()
        owners: list[Server | None] = [None] * SLOTS
        for first, last, place in ranges:
            server = self._servers.get(place)
            if server is None:
                server = await self._join(place, first)
                if server is None:
                    # Keep to whoever had it: it may be the new one that is not there yet.
                    owners[first : last + 1] = self._owners[first : last + 1]
                    continue
            owners[first : last + 1] = [server] * (last + 1 - first)
        missing = owners.count(None)
        self._problem = f"{missing} slots of the cluster have no server" if missing else None
        self._owners = owners
        self._move_ears()
        for server in self._servers.values():
            server.subscription.ask_again()
        for place, server in list(self._servers.items()):
            if server not in owners:
                del self._servers[place]
                await self._part(server)
            elif owners[slot_of(server.tag)] is not server:
                tag = self._tag_of(owners.index(server))
                server.listen_to(tag, self._keys.beat(self._node, tag))

    async def _ask(self) -> list[tuple[int, int, Place]]:
        """Ask any server, one after another, who has which slots. Raises Unfit."""
        last: Unfit | None = None
        # Those that are well first: the others may take long, or not know what has changed.
        known = sorted(self._servers, key=lambda place: self._servers[place].problem is not None)
        for place in dict.fromkeys([*known, *self._address.places]):
            try:
                link, _ = await connect(self._address, place, _ignore, _ignore, "crossband")
            except Unfit as error:
                last = error
                continue
            try:
                async with asyncio.timeout(JOIN_TIME):
                    found = await link.ask("CLUSTER", "SLOTS")
            except ServerError as error:
                raise Unfit(f"{place}: {_cluster_advice(error)}", final=True) from None
            except (TimeoutError, OSError) as error:
                last = Unfit(f"{place}: {str(error) or 'no answer'}")
                continue
            finally:
                link.abort()
            return [
                (first, end, Place((primary[0] or b"").decode() or place.host, primary[1]))
                for first, end, primary, *_ in found
            ]
        raise last or Unfit("the cluster has no servers")

    async def _join(self, place: Place, slot: int) -> Server | None:
        """Return a server that was not known before; None if it does not answer."""
        tag = self._tag_of(slot)
        server = Server(
            self._address, place, self._node, self._keys.beat(self._node, tag), self, tag
        )
        try:
            await server.start(JOIN_TIME)
        except BrokerUnavailable as error:
            logger.warning("broker: %s", error)
            return None
        self._servers[place] = server
        return server

    async def _part(self, server: Server) -> None:
        """Leave a server that has no slots any more; what waits goes to who has them now."""
        for call in server.commands.take_all():
            self.reroute(call)
        await server.stop()

    def _tag_of(self, slot: int) -> str:
        """Return a tag of a slot."""
        return _tags()[slot]

    def _move_ears(self) -> None:
        for channel, (tag, ear, before) in list(self._ears.items()):
            owner = self._owners[slot_of(tag)]
            if owner is not before:
                if before is not None:
                    before.subscription.remove(channel)
                self._ears[channel] = (tag, ear, owner)
                if owner is not None:
                    owner.subscription.add(channel, ear)

    # For servers, whose slots move.

    def moved(self, call: Call, error: ServerError) -> None:
        """Send a command to the server that has its slot by now, as an error says."""
        _, slot, text = str(error).split(" ", 2)
        host, _, port = text.rpartition(":")
        place = Place(host, int(port))
        server = self._servers.get(place)
        if server is not None:
            if error.code == "MOVED":
                self._owners[int(slot)] = server
                self._move_ears()
            server.commands.queue(call, asking=error.code == "ASK")
        else:
            asyncio.get_running_loop().call_later(REFRESH_SOON, self.reroute, call)
        self.refresh_soon()

    def reroute(self, call: Call) -> None:
        """Send a command to the server that has its slot by now."""
        key = call.key if isinstance(call.key, bytes) else str(call.key).encode()
        owner = self._owners[slot_of(key[key.find(b"{") + 1 : key.find(b"}")].decode())]
        if owner is None:
            call.end(BrokerUnavailable(self._problem or "the cluster has changed"))
        else:
            owner.commands.queue(call)


@lru_cache(maxsize=1)
def _tags() -> dict[int, str]:
    """Return a tag for each slot."""
    tags: dict[int, str] = {}
    number = 0
    while len(tags) < SLOTS:
        tags.setdefault(slot_of.__wrapped__(f"beat-{number}"), f"beat-{number}")
        number += 1
    return tags


def _cluster_advice(error: ServerError) -> str:
    if "cluster support disabled" in str(error):
        return "this server is not part of a cluster: its URL would start with 'redis://'"
    return advice(error)


def _ignore(_: Any) -> None:
    pass
