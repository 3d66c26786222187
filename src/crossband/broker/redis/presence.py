"""The presence store in Redis: each operation one script, in order with what the node publishes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from crossband.broker.presence import (
    MEMBERS_PAGE,
    Member,
    Members,
    Presence,
    PresenceStore,
)
from crossband.broker.redis.appends import new_log_id
from crossband.broker.redis.base import Base
from crossband.broker.redis.commands import PATIENCE
from crossband.broker.redis.feed import Feed, forget
from crossband.broker.redis.link import Arg
from crossband.broker.redis.outgoing import Outbox
from crossband.broker.redis.scripts import EXPEL, MEMBERS, RENEW, SHOW, Script
from crossband.broker.sessions import LEASE
from crossband.errors import BrokerUnavailable
from crossband.protocol import payload

logger: Final = logging.getLogger("crossband")

# The keys of a namespace, behind its base: those of its log, and of its presence.
KEYS: Final = (
    *("meta", "log", "here:clients", "here:members", "here:order"),
    *("here:cut", "here:at", "here:nodes", "here:calls"),
)
# Namespaces whose calls are counted. One that is forgotten is saved anew at its next renewal.
MAX_COUNTED: Final = 10_000

_decode_member: Final = msgspec.json.Decoder(Member).decode


class RedisPresence(PresenceStore):
    """One node's end of the presence of all nodes."""

    def __init__(self, base: Base, feeds: Mapping[str, Feed]) -> None:
        self._base = base
        # Namespaces that are attached.
        self._feeds = feeds
        # None until started.
        self._outbox: Outbox | None = None
        # How many calls this node made in each namespace: the store knows how many it had.
        self._calls: dict[str, int] = {}
        # Lets those leave that were cut here, even if this node has no more clients there: when
        # the last of them is due.
        self._reaping: dict[str, asyncio.TimerHandle] = {}

    def start(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def stop(self) -> None:
        self._outbox = None
        self._calls.clear()
        for timer in self._reaping.values():
            timer.cancel()
        self._reaping.clear()

    # The contract.

    def save(self, presence: Presence, *, connected: bool = True) -> None:
        namespace = presence.namespace
        number = self._calls[namespace] = self._calls.pop(namespace, 0) + 1
        if len(self._calls) > MAX_COUNTED:
            del self._calls[next(iter(self._calls))]
        args: list[Arg] = [
            number,
            int(connected),
            presence.sid,
            presence.owner,
            presence.take,
            presence.user or "",
            int(presence.grace * 1_000),
            int(LEASE * 1_000),
        ]
        for room, member in presence.rooms.items():
            args += [room, member.id, payload.to_json(member)]
        self._run(namespace, SHOW, args)
        if not presence.rooms:
            self._reap_later(namespace, LEASE)
        elif not connected:
            self._reap_later(namespace, presence.grace)

    async def renew(self, namespace: str, node: str) -> bool:
        known, more = await self._renew(namespace, node)
        while more:
            _, more = await self._renew(namespace, "")
        return bool(known)

    def expel(self, namespace: str, user: str) -> None:
        self._run(namespace, EXPEL, [user])

    async def members(
        self, namespace: str, room: str, *, after: int = 0, limit: int = MEMBERS_PAGE
    ) -> Members:
        reply = await self._result(namespace, MEMBERS, [room, after, limit])
        log, generation, number, count, last, more, found = reply
        feed = self._feeds.get(namespace)
        position = number
        if feed is not None and feed.log:
            await feed.reached(log.decode(), number, PATIENCE)
            position = feed.position(number)
        return Members(
            [_decode_member(text) for text in found],
            count,
            f"{log.decode()}.{generation}-{number}",
            position,
            last if more else None,
        )

    # Scripts.

    async def _renew(self, namespace: str, node: str) -> list[int]:
        number = self._calls.get(namespace, 0)
        reply: list[int] = await self._result(namespace, RENEW, [node, number, int(LEASE * 1_000)])
        return reply

    async def _result(self, namespace: str, script: Script, args: list[Arg]) -> Any:
        """Run a script behind what was queued before, and return its reply.

        Raises BrokerUnavailable.
        """
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(reply: Any) -> None:
            if outcome.done():
                return
            if isinstance(reply, Exception):
                outcome.set_exception(reply)
            else:
                outcome.set_result(reply)

        self._run(namespace, script, args, done)
        return await outcome

    def _run(
        self,
        namespace: str,
        script: Script,
        args: list[Arg],
        done: Callable[[Any], None] | None = None,
    ) -> None:
        outbox = self._outbox
        if outbox is None:
            if done is not None:
                done(BrokerUnavailable("the broker is not started"))
            return
        base, key = self._base, self._base.keys.base(namespace)

        def run() -> None:
            try:
                server = base.server(namespace)
            except BrokerUnavailable as error:
                if done is not None:
                    done(error)
                return
            bounds = base.bounds
            first: list[Arg] = [
                key,
                base.skew,
                new_log_id(),
                bounds.age_ms,
                bounds.size,
                bounds.limit,
                bounds.own,
                server.verb,
                key,
                base.node,
                outbox.is_new(namespace, server.commands),
            ]
            keys = [key + name for name in KEYS]
            server.commands.run(script, keys, [*first, *args], done)

        outbox.behind(namespace, run)

    def _reap_later(self, namespace: str, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        # A little later than the server's clock may be.
        when = loop.time() + seconds + 0.05
        timer = self._reaping.get(namespace)
        if timer is not None:
            if timer.when() >= when:
                return
            timer.cancel()
        self._reaping[namespace] = loop.call_at(when, self._reap, namespace)

    def _reap(self, namespace: str) -> None:
        del self._reaping[namespace]

        def done(reply: Any) -> None:
            if isinstance(reply, list) and reply[1]:
                self._reap_later(namespace, 0.0)
            elif namespace not in self._feeds and self._outbox is not None:
                # What was appended has begun another day for its log.
                forget(self._base, namespace)

        self._run(namespace, RENEW, ["", 0, 0], done)
