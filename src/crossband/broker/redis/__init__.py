"""The broker in Redis or Valkey: for hubs of many nodes.

`log`, `sessions` and the bus are three parts over the same connections; see README.md.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Final

from crossband.broker import HISTORY_PAGE, Broker, Page, Publication, Receiver
from crossband.broker.bus import Bus
from crossband.broker.presence import PresenceStore
from crossband.broker.redis.address import PREFIX, parse
from crossband.broker.redis.base import Base, Bounds
from crossband.broker.redis.bus import RedisBus
from crossband.broker.redis.commands import PATIENCE
from crossband.broker.redis.feed import PAGE, Feed
from crossband.broker.redis.frames import decode_entry
from crossband.broker.redis.keys import VERSION, Keys, check_version
from crossband.broker.redis.outgoing import Batch, Outbox
from crossband.broker.redis.presence import RedisPresence
from crossband.broker.redis.servers import ClusterServers, OneServer, Servers
from crossband.broker.redis.sessions import RedisSessions
from crossband.broker.sessions import SessionStore
from crossband.errors import BrokerUnavailable, Gap
from crossband.names import new_id

__all__ = ["PREFIX", "RedisBroker"]

logger: Final = logging.getLogger("crossband")

# Seconds to reach the server at the start; it may be starting itself.
START_TIME: Final = 10.0
# Seconds to carry out what was queued before the stop.
STOP_TIME: Final = 2.0
# Seconds between two comparisons of where the logs are with where this node is.
COMPARE: Final = 5.0

_cursor: Final = re.compile(r"([0-9a-z]+)\.(0|[1-9][0-9]{0,14})-(0|[1-9][0-9]{0,13})", re.ASCII)


class RedisBroker(Broker):
    """One node's end of a log, sessions and a bus in Redis 6.2 or later, or Valkey.

    `url` is that of a server (`redis://`, `rediss://`, `unix://`), of Sentinels
    (`redis+sentinel://host,host/name`) or of a cluster (`redis+cluster://host,host`). Raises
    ValueError if it cannot be read. The history is bounded as in MemoryBroker; all nodes of a
    hub should have the same bounds.
    """

    def __init__(
        self,
        url: str,
        *,
        history_size: int = 100_000,
        history_bytes: int = 67_108_864,
        history_age: float = 120.0,
        skew: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._address = parse(url)
        node = new_id()
        bounds = Bounds.of(history_size, history_bytes, history_age)
        self._base = Base(node, Keys(self._address.prefix), bounds, skew)
        self._sessions = RedisSessions(self._base)
        self._feeds: dict[str, Feed] = {}
        self._presence = RedisPresence(self._base, self._feeds)
        self.presence: PresenceStore = self._presence
        self.sessions: SessionStore = self._sessions
        self.bus: Bus = RedisBus(node, self._base)
        self._servers: Servers | None = None
        self._outbox: Outbox | None = None
        self._comparing: asyncio.TimerHandle | None = None

    # Life.

    async def start(self, receiver: Receiver) -> None:
        base = self._base
        kind = ClusterServers if self._address.kind == "cluster" else OneServer
        servers = kind(self._address, base.node, base.keys)
        await servers.start(START_TIME)
        base.use(servers)
        try:
            await self._check_version()
        except BaseException:
            base.use(None)
            await servers.stop()
            raise
        self._servers = servers
        base.receiver = receiver
        self._outbox = Outbox(base, self._appended)
        self._presence.start(self._outbox)
        self._comparing = asyncio.get_running_loop().call_later(COMPARE, self._compare)

    async def _check_version(self) -> None:
        """Raise BrokerUnavailable if the keys are another version's, or somebody else's."""
        commands, key = self._base.home.commands, self._base.keys.version
        await commands.ask("SET", key, VERSION, "NX")
        found = await commands.ask("GET", key)
        check_version(found, self._address.prefix)
        bounds = self._base.bounds
        text = f"{bounds.age_ms} {bounds.size} {bounds.limit} {bounds.own}"
        await commands.ask("SET", self._base.keys.bounds, text)

    async def stop(self) -> None:
        servers, self._servers = self._servers, None
        if servers is None:
            return
        if self._comparing is not None:
            self._comparing.cancel()
        outbox = self._outbox
        assert outbox is not None
        if servers.problem is None:
            try:
                async with asyncio.timeout(STOP_TIME):
                    await outbox.emptied()
                    # What was queued before it is done when it is.
                    await servers.home.commands.ask("EXISTS", self._base.keys.version)
            except (TimeoutError, BrokerUnavailable):
                pass
        for feed in list(self._feeds.values()):
            feed.close(forget=False)
        self._feeds.clear()
        self._presence.stop()
        self._base.receiver = None
        self._base.use(None)
        await servers.stop()
        self._sessions.clear()

    @property
    def problem(self) -> str | None:
        return "the broker is not started" if self._servers is None else self._servers.problem

    def _compare(self) -> None:
        """Compare where the logs are with where this node is: the last one may be missing."""
        self._comparing = asyncio.get_running_loop().call_later(COMPARE, self._compare)
        for feed in self._feeds.values():
            feed.look()

    # Namespaces.

    def attach(self, namespace: str) -> Awaitable[None] | None:
        feed = self._feeds.get(namespace)
        if feed is not None and feed.attached.done() and feed.attached.exception() is not None:
            feed.close(forget=False)
            feed = None
        if feed is None:
            if self._servers is None or self._outbox is None:
                raise BrokerUnavailable("the broker is not started")
            feed = Feed(self._base, namespace, self._outbox.batches, self._sessions.sids)
            self._feeds[namespace] = feed
            feed.open()
        return None if feed.attached.done() else self._attached(namespace, feed)

    async def _attached(self, namespace: str, feed: Feed) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.shield(feed.attached)
        except TimeoutError:
            problem = self.problem or "Redis does not answer"
            raise BrokerUnavailable(problem) from None

    def detach(self, namespace: str) -> None:
        feed = self._feeds.pop(namespace, None)
        if feed is not None:
            feed.close(forget=True)

    def _feed(self, namespace: str) -> Feed:
        feed = self._feeds.get(namespace)
        if feed is None or not feed.log:
            raise BrokerUnavailable(f"the namespace {namespace!r} is not attached")
        return feed

    # Publications.

    def publish(
        self, publication: Publication, *, record: bool = True
    ) -> asyncio.Future[str | None]:
        if self._servers is None or self._outbox is None:
            nothing: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
            nothing.set_result(None)
            return nothing
        return self._outbox.publish(publication, record=record)

    def _appended(self, batch: Batch) -> None:
        feed = self._feeds.get(batch.namespace)
        if feed is not None:
            feed.appended(batch)
        else:
            assert self._outbox is not None
            self._outbox.batches.pop(batch.number, None)
            batch.settle()

    def head(self, namespace: str) -> str:
        return self._feed(namespace).cursor()

    async def history(
        self, namespace: str, after: str, sid: str | None = None, *, limit: int = HISTORY_PAGE
    ) -> Page:
        feed = self._feed(namespace)
        match = _cursor.fullmatch(after)
        if match is None:
            raise Gap("unknown")
        log, generation, number = match[1], int(match[2]), int(match[3])
        if feed.covers(log, generation, number):
            recent = feed.recent(number, sid)
            if recent is not None:
                last = len(recent) <= limit
                del recent[limit:]
                end = feed.number if last else recent[-1][0]
                publications = [publication for _, publication in recent]
                return Page(publications, feed.position(end), feed.cursor(end), last)
        most = min(limit, PAGE)
        reply = await feed.ask(log, generation, number, most, () if sid is None else (sid,))
        if reply.verdict == "expired" or (reply.verdict == "ok" and reply.short):
            raise Gap("expired")
        if reply.verdict != "ok":
            raise Gap("unknown")
        end = reply.end
        if not await feed.reached(log, end, PATIENCE):
            raise Gap("unknown")
        merged = sorted(
            {**dict(reply.entries), **{n: d for run in reply.own for n, d in run}}.items()
        )
        # Two runs of entries may be more than was asked for.
        if len(merged) > limit:
            end = merged[limit - 1][0]
        publications = []
        for place, data in merged:
            if place > end:
                break
            cursor = f"{log}.{reply.generation_of(place, generation)}-{place}"
            publication = decode_entry(data).publication(namespace)
            publications.append(publication.at(cursor, feed.position(place)))
        cursor = f"{log}.{reply.generation_of(end, generation)}-{end}"
        return Page(publications, feed.position(end), cursor, end == reply.top)
