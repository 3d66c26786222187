"""Publishers without a hub: on every kind of server, blocking and awaited."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from crossband import BrokerUnavailable, EncodeError, Hub, Identity, Session, Socket
from crossband.broker import Publication
from crossband.protocol import payload
from crossband.publisher import AsyncPublisher, Publisher
from tests.broker.test_redis import Ear, running
from tests.clients import NewClient
from tests.clients.base import WAIT
from tests.conftest import Serve
from tests.engines import CERTIFICATE, Cluster, Engine, Sentinels, free_port
from tests.waiting import until

KINDS: dict[str, Callable[[], Any]] = {
    "redis": Engine,
    "valkey": lambda: Engine("valkey"),
    "sentinel": Sentinels,
    "cluster": Cluster,
    "tls": lambda: Engine(tls=True, user="app", password="p@ss/word"),
}


@pytest.fixture(scope="module")
def redis() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


class Publishing:
    """A publisher of either kind, of which calls are awaited."""

    def __init__(self, kind: str, url: str, **options: Any) -> None:
        self.blocking = kind == "blocking"
        self.publisher: Any = (Publisher if self.blocking else AsyncPublisher)(url, **options)

    async def __call__(self, act: Callable[[Any], Any]) -> Any:
        if self.blocking:
            return await asyncio.to_thread(act, self.publisher)
        return await act(self.publisher)


@contextlib.asynccontextmanager
async def publishing(kind: str, url: str, **options: Any) -> AsyncIterator[Publishing]:
    publish = Publishing(kind, url, **options)
    yield publish
    await publish(lambda publisher: publisher.close())


either = pytest.mark.parametrize("kind", ["blocking", "awaited"])


@either
@pytest.mark.parametrize("server", KINDS)
async def test_what_is_published_is_in_the_hubs_order(
    server: str, kind: str, serve: Serve, new_client: NewClient
) -> None:
    with KINDS[server]() as engine:
        url = engine.url
        if server == "tls":
            url = f"{url.replace('p@ss/word', 'p%40ss%2Fword')}?ssl_ca_certs={CERTIFICATE}"
        hub = Hub(url)

        @hub.on("connect")
        async def connect(socket: Socket) -> None:
            await socket.join("all", socket.handshake.query["name"][0])

        served = await serve(hub)
        clients = {name: new_client("websocket") for name in ("ada", "bob")}
        for name, client in clients.items():
            await client.connect(served.url, auth={"name": name})
        ada, bob = clients["ada"], clients["bob"]
        async with publishing(kind, url) as publish:
            cursors = [
                await publish(lambda p: p.emit("news", {"number": 1}, b"\x00")),
                await hub.emit("news", 2),
                await publish(lambda p: p.to("ada").emit("news", 3)),
                await publish(lambda p: p.to(bob.sid).emit("news", 4)),
                await publish(lambda p: p.to("all").except_("ada").emit("news", 5)),
                await publish(lambda p: p.volatile.emit("news", 6)),
                await hub.emit("news", 7),
            ]
        heard = [await ada.next_event("news") for _ in range(5)]
        assert [event.data for event in heard] == [[{"number": 1}, "AA=="], 2, 3, 6, 7]
        assert [event.offset for event in heard] == [cursors[n] for n in (0, 1, 2, 5, 6)]
        heard = [await bob.next_event("news") for _ in range(6)]
        assert [event.data for event in heard[1:]] == [2, 4, 5, 6, 7]
        assert cursors[5] is None
        numbers = [int(cursor.rpartition("-")[2]) for cursor in cursors if cursor is not None]
        assert numbers == [1, 2, 3, 4, 5, 6]
        # Another's cursor is as good as the hub's: a client that was away resumes.
        await bob.cut()
        async with publishing(kind, url) as publish:
            await publish(lambda p: p.to(bob.sid).emit("news", 8))
        await bob.resume()
        assert bob.recovered
        assert (await bob.next_event("news")).data == 8


@either
@pytest.mark.parametrize("server", ["redis", "cluster"])
async def test_what_publishers_can_do_with_clients_and_servers(
    server: str, kind: str, serve: Serve, new_client: NewClient
) -> None:
    heard: asyncio.Queue[Any] = asyncio.Queue()
    with KINDS[server]() as engine:
        hub = Hub(engine.url, authenticate=lambda h: Identity(h.query["token"][0], issued=1.0))

        @hub.of("/admin").on_server("tick")
        def tick(count: int) -> None:
            heard.put_nowait(count)

        served = await serve(hub)
        ada, bob, cy = (new_client("websocket") for _ in range(3))
        for client, name in ((ada, "ada"), (bob, "bob"), (cy, "cy")):
            await client.connect(served.url, auth={"token": name})
        async with publishing(kind, engine.url) as publish:
            await publish(lambda p: p.to(ada.sid, bob.sid).sockets_join("room"))
            await until(lambda: hub.rooms.get("room") == {ada.sid, bob.sid})
            await publish(lambda p: p.to("room").except_(ada.sid).sockets_leave("room"))
            await until(lambda: hub.rooms.get("room") == {ada.sid})
            await publish(lambda p: p.of("admin").server_emit("tick", 7))
            async with asyncio.timeout(WAIT):
                assert await heard.get() == 7
            await publish(lambda p: p.to("room").disconnect_sockets())
            async with asyncio.timeout(WAIT):
                await ada.gone.wait()
            await publish(lambda p: p.revoke("bob"))
            async with asyncio.timeout(WAIT):
                await bob.gone.wait()
            assert "4403" in bob.farewell
            assert list(hub.sockets) == [cy.sid]
            # A node that starts later knows it, too.
            later = Hub(engine.url)
            await later.start()
            assert later._core.access.is_revoked("bob", 1.0)
            await later.stop()


@either
async def test_reply_that_is_lost_doubles_nothing(
    kind: str, redis: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ear = Ear()
    async with running(redis.url, ear) as broker, publishing(kind, redis.url) as publish:
        attaching = broker.attach("/")
        assert attaching is not None
        await attaching
        first = await publish(lambda p: p.emit("news", 1))
        client = publish.publisher._connect()
        execute, lost = client.execute_command, 0

        def lose(*args: Any) -> Any:
            nonlocal lost
            lost += 1
            if lost % 2:
                raise RedisConnectionError("the connection was lost")

        def blocking(*args: Any) -> Any:
            reply = execute(*args)
            lose()
            return reply

        async def awaited(*args: Any) -> Any:
            reply = await execute(*args)
            lose()
            return reply

        monkeypatch.setattr(client, "execute_command", blocking if publish.blocking else awaited)
        cursors = [first, *[await publish(lambda p: p.emit("news", 2)) for _ in range(3)]]
        # What may have reached the servers is not sent to them again.
        lost = 0
        with pytest.raises(BrokerUnavailable, match="the connection was lost"):
            await publish(lambda p: p.server_emit("tick"))
        await until(lambda: len(ear.events) == 4)
        assert [event.cursor for event in ear.events] == cursors
        assert len(set(cursors)) == 4


async def emit(publish: Publishing, *data: Any) -> None:
    assert await publish(lambda p: p.emit("news", *data)) is not None


@either
async def test_connections_that_are_cut_lose_and_double_nothing(kind: str) -> None:
    with Engine() as engine:
        ear = Ear()
        async with (
            running(engine.url, ear) as broker,
            publishing(kind, engine.url, timeout=60.0) as publish,
        ):
            attaching = broker.attach("/")
            assert attaching is not None
            await attaching

            done = cuts = 0

            async def work(who: int) -> None:
                nonlocal done
                for number in range(50):
                    await emit(publish, who, number)
                    done += 1

            def reached(goal: int) -> bool:
                return done >= goal or working.done()

            working = asyncio.gather(*(work(who) for who in range(4)))
            while not working.done():
                # While some are under way: the replies of those are lost.
                engine.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                cuts += 1
                goal = done + 5
                await until(functools.partial(reached, goal))
            await working
            assert cuts > 20
            await until(lambda: len(ear.events) >= 200)
        data = data_of(ear.events)
        for who in range(4):
            assert [number for each, number in data if each == who] == list(range(50))
        assert len(data) == 200


@either
async def test_call_is_remembered_for_longer_than_it_is_repeated(kind: str) -> None:
    with Engine() as engine:
        async with publishing(kind, engine.url, timeout=60.0) as publish:
            await emit(publish)
        (key,) = engine.command("KEYS", "*:sent:*")
        assert engine.command("PTTL", key) > 60_000


async def test_threads_share_a_publisher(redis: Engine) -> None:
    ear = Ear()
    async with running(redis.url, ear) as broker:
        attaching = broker.attach("/threads")
        assert attaching is not None
        await attaching
        with Publisher(redis.url) as publisher:
            news = publisher.of("/threads")
            cursors: list[str | None] = []

            def work(thread: int) -> None:
                cursors.extend(news.emit("news", thread, number) for number in range(50))

            with ThreadPoolExecutor(8) as threads:
                working = [threads.submit(work, thread) for thread in range(8)]
                await asyncio.gather(*map(asyncio.wrap_future, working))
        assert len(set(cursors)) == 400
        await until(lambda: len(ear.events) == 400)
        assert [event.cursor for event in ear.events] == sorted(
            (str(cursor) for cursor in cursors), key=lambda text: int(text.rpartition("-")[2])
        )
        # In order from each thread.
        for thread in range(8):
            mine = [data for data in data_of(ear.events) if data[0] == thread]
            assert [number for _, number in mine] == list(range(50))


def data_of(events: list[Publication]) -> list[list[Any]]:
    return [payload.decode(event.payload) for event in events]


async def test_forked_processes_are_publishers_of_their_own(redis: Engine) -> None:
    program = f"""
import os
from crossband.publisher import Publisher
publisher = Publisher({redis.url!r})
forked = publisher.of("/forked")
forked.emit("news", "parent")
children = []
for child in range(3):
    pid = os.fork()
    if not pid:
        for number in range(5):
            forked.emit("news", child, number)
        os._exit(0)
    children.append(pid)
for number in range(5):
    forked.emit("news", "parent", number)
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
"""
    ear = Ear()
    async with running(redis.url, ear) as broker:
        attaching = broker.attach("/forked")
        assert attaching is not None
        await attaching
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", program], capture_output=True, timeout=WAIT * 4
        )
        assert done.returncode == 0, done.stderr.decode()
        await until(lambda: len(ear.events) == 21)
    data = data_of(ear.events)
    assert data[0] == ["parent"]
    for who in (0, 1, 2, "parent"):
        assert [each[1] for each in data[1:] if each[0] == who] == list(range(5))


def test_each_event_loop_has_its_own_connections(redis: Engine) -> None:
    publisher = AsyncPublisher(redis.url)

    async def publish() -> str | None:
        async with publisher:
            return await publisher.emit("news", 1)

    cursors = [asyncio.run(publish()) for _ in range(3)]
    assert len(set(cursors)) == 3


async def test_history_is_bounded_as_on_the_hub() -> None:
    with Engine() as engine:
        url = f"{engine.url}?prefix=app"
        async with running(url, history_size=5), publishing("blocking", url) as publish:
            for _ in range(20):
                await publish(lambda p: p.emit("news"))
        assert engine.command("XLEN", "app:{/}:log") == 5


async def test_what_is_for_one_client_is_kept_for_it_alone(redis: Engine) -> None:
    async with running(redis.url) as broker, publishing("blocking", redis.url) as publish:
        attaching = broker.attach("/own")
        assert attaching is not None
        await attaching
        sid = "_" + "a" * 19
        broker.sessions.save(
            Session("/own", "k" * 20, sid, set(), {}, broker.head("/own"), owner=broker.bus.node)
        )
        assert await broker.sessions.find("/own", "k" * 20) is not None
        before = broker.head("/own")
        cursor = await publish(lambda p: p.of("/own").to(sid).emit("news", 1))
        page = await broker.history("/own", before, sid)
        assert [each.cursor for each in page.publications] == [cursor]
        assert (await broker.history("/own", before)).publications == []


# Bad input and bad days.


@pytest.mark.parametrize("publisher", [Publisher, AsyncPublisher])
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://", "inside the hub's own process"),
        ("http://host", "starts with one of redis, rediss"),
        ("redis://host/first", "the database is a number"),
        ("redis://secret@host", "a user without a password"),
    ],
)
def test_wrong_urls_are_told_at_once(publisher: Any, url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as failure:
        publisher(url)
    assert "secret" not in str(failure.value)
    with pytest.raises(ValueError, match="more than 0 seconds"):
        publisher("redis://", timeout=0)
    with pytest.raises(TypeError, match="a number of seconds"):
        publisher("redis://", timeout="5")


@either
async def test_wrong_data_is_told_at_once(kind: str) -> None:
    # Nothing is connected for that.
    async with publishing(kind, f"redis://127.0.0.1:{free_port()}") as publish:
        with pytest.raises(EncodeError, match="cannot encode"):
            await publish(lambda p: p.emit("news", object()))
        with pytest.raises(EncodeError, match="reserved"):
            await publish(lambda p: p.emit("connect"))
        with pytest.raises(EncodeError, match="1 to 256"):
            await publish(lambda p: p.to("").emit("news"))
        with pytest.raises(ValueError, match="at least one room"):
            await publish(lambda p: p.to().emit("news"))
        with pytest.raises(ValueError, match="choose no rooms"):
            await publish(lambda p: p.to("a").server_emit("tick"))
        with pytest.raises(TypeError, match="a user is named by a string"):
            await publish(lambda p: p.revoke(5))
        with pytest.raises(TypeError, match="takes the name of a namespace"):
            publish.publisher.of(5)


@either
async def test_server_that_is_away_is_told_within_the_timeout(kind: str) -> None:
    port = free_port()
    url = f"redis://:secret@127.0.0.1:{port}"
    async with publishing(kind, url, timeout=0.2) as publish:
        with pytest.raises(BrokerUnavailable, match=rf"no connection to Redis at .*{port}") as lost:
            await publish(lambda p: p.emit("news"))
        assert "secret" not in str(lost.value)
        assert "secret" not in repr(publish.publisher)


@either
async def test_server_that_comes_back_within_the_timeout_is_waited_for(kind: str) -> None:
    with Engine() as engine:
        async with publishing(kind, engine.url, timeout=60.0) as publish:
            first = await publish(lambda p: p.emit("news", 1))
            engine.kill()
            emitting = asyncio.create_task(publish(lambda p: p.emit("news", 2)))
            await asyncio.to_thread(engine.start)
            second = await emitting
            assert first is not None
            assert second is not None
            assert first.partition(".")[0] != second.partition(".")[0]


@either
@pytest.mark.parametrize(
    ("settings", "url", "message"),
    [
        ({"password": "right"}, "redis://:wrong@{}", "the user or the password is wrong"),
        ({"password": "right"}, "redis://{}", "Redis asks for a password: put it into the URL"),
        ({}, "redis://{}/99", "DB index is out of range"),
        (
            {"user": "me", "password": "right", "acl": "~* &* +@connection"},
            "redis://me:right@{}",
            "does not permit its user",
        ),
        ({}, "redis+cluster://{}", r"[Cc]luster"),
    ],
)
async def test_refusals_are_told_at_once_and_what_to_do(
    settings: dict[str, Any], url: str, message: str, kind: str
) -> None:
    with Engine(**settings) as engine:
        async with publishing(kind, url.format(engine.address), timeout=600.0) as publish:
            with pytest.raises(BrokerUnavailable, match=message) as failure:
                await publish(lambda p: p.emit("news"))
            assert "wrong@" not in str(failure.value)


@either
async def test_full_server_and_foreign_keys_are_told(kind: str) -> None:
    with Engine() as engine:
        engine.command("SET", "crossband:{bus}:version", "crossband 99")
        async with publishing(kind, engine.url) as publish:
            with pytest.raises(BrokerUnavailable, match=r"another version's .*'crossband 99'"):
                await publish(lambda p: p.emit("news"))
            engine.command("SET", "crossband:{bus}:version", "crossband 1")
            await publish(lambda p: p.emit("news"))
            engine.command("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(BrokerUnavailable, match="Redis is full: give it more memory"):
                await publish(lambda p: p.emit("news"))


@either
async def test_failover_loses_no_publication_that_is_retried(kind: str) -> None:
    with Sentinels() as sentinels:
        ear = Ear()
        async with running(sentinels.url, ear) as broker:
            attaching = broker.attach("/")
            assert attaching is not None
            await attaching
            async with publishing(kind, sentinels.url, timeout=60.0) as publish:
                await publish(lambda p: p.emit("news", 1))
                sentinels.engines[0].command("WAIT", 1, 5_000)
                await asyncio.to_thread(sentinels.lose_primary)
                await publish(lambda p: p.emit("news", 2))
            await until(lambda: [data[0] for data in data_of(ear.events)] == [1, 2])
