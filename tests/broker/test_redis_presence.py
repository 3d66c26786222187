"""Presence in Redis: what the contract does not say, such as what a store that lost data does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from crossband import Publication
from crossband.broker import Member, Presence
from crossband.broker.redis import RedisBroker
from crossband.broker.redis.keys import Keys
from crossband.broker.sessions import LEASE
from crossband.names import new_id
from tests.clients.base import WAIT
from tests.engines import shared


class Ear:
    def deliver(self, publication: Publication) -> None:
        pass

    def lost(self, namespace: str, sid: str | None = None) -> None:
        pass

    def taken(self, namespace: str, key: str, take: int) -> None:
        raise AssertionError(key)


class Site:
    """A node, its clock, and its keys."""

    def __init__(self) -> None:
        self.prefix = new_id()
        self.passed = 0.0
        self.broker = RedisBroker(
            f"{shared('redis').url}?prefix={self.prefix}",
            history_age=60.0,
            skew=lambda: self.passed,
        )
        self.node = self.broker.bus.node

    def save(
        self, sid: str, *rooms: str, namespace: str = "/", connected: bool = True, grace: float = 20
    ) -> None:
        shown = {room: Member(sid) for room in rooms}
        presence = Presence(namespace, sid, shown, self.node, grace=grace)
        self.broker.presence.save(presence, connected=connected)

    async def renew(self, namespace: str = "/") -> bool:
        return await self.broker.presence.renew(namespace, self.node)

    async def ids(self, namespace: str = "/") -> list[str]:
        found = await self.broker.presence.members(namespace, "room")
        return [member.id for member in found.members]

    async def ask(self, *args: Any) -> Any:
        return await self.broker._base.home.commands.ask(*args)

    async def keys(self, pattern: str = "*") -> list[str]:
        return sorted(key.decode() for key in await self.ask("KEYS", f"{self.prefix}:{pattern}"))


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    await site.broker.start(Ear())
    yield site
    await site.broker.stop()


async def test_node_saves_its_clients_again_in_a_store_that_was_emptied(site: Site) -> None:
    await site.renew()
    site.save("ada", "room")
    assert await site.ids() == ["ada"]
    assert await site.renew()
    await site.ask("DEL", *await site.keys("{/}:*"))
    assert not await site.renew()
    site.save("ada", "room")
    assert await site.ids() == ["ada"]
    assert await site.renew()


async def test_call_that_the_store_has_lost_is_missed(site: Site) -> None:
    await site.renew()
    site.save("ada", "room")
    site.save("bob", "room")
    assert await site.renew()
    # As a replica that is behind: it has neither of the next two calls.
    kept = [key for key in await site.keys("{/}:*") if ":here:" in key]
    for key in kept:
        await site.ask("COPY", key, f"{key}~")
    site.save("ada")
    site.save("eve", "room")
    assert await site.ids() == ["bob", "eve"]
    for key in kept:
        await site.ask("RENAME", f"{key}~", key)
    assert await site.ids() == ["ada", "bob"]
    # One more call does not hide it.
    site.save("cid", "room")
    assert not await site.renew()
    for sid in ("bob", "cid", "eve"):
        site.save(sid, "room")
    assert await site.renew()
    for _ in range(8):
        site.passed += LEASE / 2
        assert await site.renew()
    # Who had left then is gone, and nobody else.
    assert await site.ids() == ["bob", "cid", "eve"]


async def test_members_of_a_node_that_ends_at_once_leave(site: Site) -> None:
    await site.renew()
    site.save("ada", "room")
    site.save("ada")
    # Nobody is there: what is left will expire, and with it the lease.
    await site.renew()
    site.save("bob", "room")
    assert await site.ids() == ["bob"]
    kept = [await site.ask("PTTL", key) for key in await site.keys("{/}:here:*")]
    assert min(kept) > 60_000


async def test_nothing_is_left_of_namespaces_that_come_and_go(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Who has left is known for so long.
    monkeypatch.setattr("crossband.broker.redis.presence.LEASE", 0.1)
    base = Keys(site.prefix).base
    for number in range(30):
        namespace = f"/n{number}"
        attaching = site.broker.attach(namespace)
        assert attaching is not None
        await attaching
        await site.renew(namespace)
        site.save("ada", "room", namespace=namespace)
        site.save("bob", "room", namespace=namespace)
        # One leaves, and one is cut; then nobody is here, and no heartbeat is either.
        site.save("ada", namespace=namespace)
        site.save("bob", "room", namespace=namespace, connected=False, grace=0.01)
        site.broker.detach(namespace)
    async with asyncio.timeout(WAIT):
        for number in range(30):
            key = base(f"/n{number}")
            while await site.ask("EXISTS", f"{key}here:clients"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            # The logs go when nobody can come back to them, as after all others who leave.
            while await site.ask("PTTL", f"{key}meta") > 120_000:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            left = await site.ask("KEYS", f"{key}here:*")
            names = {name.decode().removeprefix(f"{key}here:") for name in left}
            assert names <= {"nodes", "calls"}
            for name in left:
                assert 0 < await site.ask("PTTL", name) <= 60_000


async def test_rooms_and_members_of_any_name_are_told_apart(site: Site) -> None:
    await site.renew()
    names = ["a", "a b", "a*", "{x}", "é", '"', "\\", "1 2", "a/b", "😀", "a:b"]
    for place, room in enumerate(names):
        shown = {room: Member(room, {"in": room})}
        site.broker.presence.save(Presence("/", f"sid{place}", shown, site.node))
    for room in names:
        found = await site.broker.presence.members("/", room)
        assert found.members == [Member(room, {"in": room})]
        assert found.count == 1
