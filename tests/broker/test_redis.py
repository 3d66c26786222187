"""The broker in Redis: what is its own, beside the contracts that all brokers keep."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from crossband import Hub
from crossband.broker import Publication, Session
from crossband.broker.redis import RedisBroker
from crossband.broker.redis.address import _OPTIONS, Place, parse
from crossband.broker.redis.appends import MAX_PUBLICATION
from crossband.broker.redis.dialing import connect
from crossband.broker.redis.keys import Keys
from crossband.broker.redis.link import Link, pack
from crossband.broker.redis.replies import ServerError, remedy
from crossband.broker.redis.server import Server
from crossband.broker.redis.servers import ClusterServers
from crossband.errors import BrokerUnavailable, EncodeError, Gap, StartError
from crossband.names import new_id
from crossband.protocol import payload
from tests.clients.base import WAIT
from tests.engines import CERTIFICATE, Engine, free_port, shared, shared_cluster
from tests.waiting import until

ROOT = Path(__file__).parents[2]
HOW_TO = (ROOT / "docs/how-to/redis.md").read_text(encoding="utf-8")
# The least that Crossband's user may do.
(ACL,) = re.findall(r"^user crossband on >change-me (.+)$", HOW_TO, re.MULTILINE)


class Ear:
    """Takes what comes."""

    def __init__(self) -> None:
        self.events: list[Publication] = []
        self.losses = 0
        self.taken_keys: list[str] = []

    def deliver(self, publication: Publication) -> None:
        self.events.append(publication)

    def lost(self, namespace: str, sid: str | None = None) -> None:
        self.losses += 1

    def taken(self, namespace: str, key: str, take: int) -> None:
        self.taken_keys.append(key)


@contextlib.asynccontextmanager
async def running(url: str, ear: Ear | None = None, **options: Any) -> AsyncIterator[RedisBroker]:
    broker = RedisBroker(url, **options)
    await broker.start(ear or Ear())
    try:
        yield broker
    finally:
        await broker.stop()


async def attach(broker: RedisBroker, *namespaces: str) -> None:
    for attaching in [broker.attach(namespace) for namespace in namespaces]:
        if attaching is not None:
            await attaching


def event(namespace: str = "/", value: Any = 1, *rooms: str) -> Publication:
    return Publication(namespace, "number", payload.encode([value]), rooms)


class TestAddresses:
    @pytest.mark.parametrize(
        ("url", "places", "database"),
        [
            ("redis://", ["localhost:6379"], 0),
            ("redis://example.org", ["example.org:6379"], 0),
            ("redis://example.org:7000/3", ["example.org:7000"], 3),
            ("redis://example.org?db=4", ["example.org:6379"], 4),
            ("valkey://[::1]:7000", ["[::1]:7000"], 0),
            ("unix:///run/redis.sock?db=2", ["/run/redis.sock"], 2),
            ("redis+sentinel://a,b:7000/mymaster/5", ["a:26379", "b:7000"], 5),
            ("redis+cluster://a,b:7000", ["a:6379", "b:7000"], 0),
        ],
    )
    def test_url_says_where_servers_are(self, url: str, places: list[str], database: int) -> None:
        address = parse(url)
        assert [str(place) for place in address.places] == places
        assert address.login.database == database

    def test_url_says_who_one_is(self) -> None:
        address = parse("rediss://me:p%40ss%3A@host/?prefix=app")
        assert (address.login.username, address.login.password) == ("me", "p@ss:")
        assert address.tls is not None
        assert address.prefix == "app"
        assert "p@ss" not in repr(address)
        assert parse("redis://:secret@host").login.username is None

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("redis:/host", r"starts with one of redis, rediss, .* and '://'"),
            ("http://host", r"starts with one of"),
            ("redis://a,b", r"several hosts are 'redis\+sentinel"),
            ("redis://host:port", r"'host:port' is not a host and a port"),
            ("redis://host:99999", r"not a host and a port"),
            ("redis://host/first", r"the database is a number, not 'first'"),
            ("redis://host/1/2", r"nothing behind the database: '2'"),
            ("redis://host?pasword=x", r"no option 'pasword'; it has prefix, db,"),
            ("redis://host?prefix=a{b}", r"the prefix of keys has no braces"),
            ("redis://host?ssl_ca_certs=ca.pem", r"ssl_ca_certs is for TLS: the URL would start"),
            ("rediss://host?ssl_ca_certs=/nowhere.pem", r"certificates .* cannot be read"),
            ("rediss://host?ssl_cert_reqs=maybe", r"'required' or 'none', not 'maybe'"),
            ("redis://secret@host", r"a user without a password"),
            ("redis://:se#cret@host", r"write '#' in a password as '%23'"),
            ("redis+sentinel://a,b", r"ends in the primary's name"),
            ("redis+cluster://a/1", r"a cluster has the database 0 only"),
            ("unix://run/redis.sock", r"three slashes"),
        ],
    )
    def test_wrong_url_says_what_is_wrong(self, url: str, message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            RedisBroker(url)
        assert "secret" not in str(caught.value)

    def test_hub_checks_the_url_where_it_is_written(self) -> None:
        with pytest.raises(ValueError, match="no broker for 'amqp'"):
            Hub(broker="amqp://host")
        with pytest.raises(ValueError, match="the database is a number"):
            Hub(broker="redis://host/first")

    def test_every_option_is_documented(self) -> None:
        rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", HOW_TO, re.MULTILINE)
        documented = {name for row in rows for name in re.findall(r"\w+", row)}
        assert set(_OPTIONS) <= documented

    def test_places_compare_by_value(self) -> None:
        assert Place("a", 1) == Place("a", 1)


class TestStart:
    async def test_wrong_password_ends_the_start_at_once(self) -> None:
        with Engine(password="right") as engine:
            wrong = engine.url.replace("right", "wrong")
            with pytest.raises(BrokerUnavailable, match="the user or the password is wrong"):
                await RedisBroker(wrong).start(Ear())
            with pytest.raises(BrokerUnavailable, match="asks for a password: put it into the URL"):
                await RedisBroker(f"redis://{engine.address}").start(Ear())
            async with running(engine.url):
                pass

    async def test_hub_that_cannot_use_it_does_not_start(self) -> None:
        with Engine(password="right") as engine:
            hub = Hub(broker=engine.url.replace("right", "wrong"))
            with pytest.raises(StartError, match=r"^the broker: .*: the user or the password is"):
                await hub.start()
        assert not hub.started

    async def test_password_where_none_is_asked_for_is_told(self) -> None:
        address = shared().address
        with pytest.raises(BrokerUnavailable, match=r"no password, but the URL does"):
            await RedisBroker(f"redis://:secret@{address}").start(Ear())

    async def test_wrong_database_is_told(self) -> None:
        with pytest.raises(BrokerUnavailable, match="no such database"):
            await RedisBroker(f"{shared().url}/99").start(Ear())

    async def test_nobody_there_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("crossband.broker.redis.START_TIME", 0.2)
        port = free_port()
        with pytest.raises(BrokerUnavailable, match=f"no connection to Redis at 127.0.0.1:{port}"):
            await RedisBroker(f"redis://127.0.0.1:{port}").start(Ear())

    async def test_server_that_is_still_starting_is_waited_for(self) -> None:
        with Engine() as engine:
            engine.kill()
            starting = asyncio.ensure_future(RedisBroker(engine.url).start(Ear()))
            await asyncio.to_thread(engine.start)
            async with asyncio.timeout(WAIT):
                await starting

    async def test_server_that_is_not_redis_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("crossband.broker.redis.START_TIME", 0.2)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            with pytest.raises(BrokerUnavailable, match=f"{host}:{port}"):
                await RedisBroker(f"redis://{host}:{port}").start(Ear())

    async def test_replica_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("crossband.broker.redis.START_TIME", 0.2)
        with Engine() as engine:
            engine.command("REPLICAOF", "127.0.0.1", shared().port)
            with pytest.raises(BrokerUnavailable, match="read-only replica: give the primary's"):
                await RedisBroker(engine.url).start(Ear())

    async def test_server_without_cluster_is_told(self) -> None:
        url = f"redis+cluster://{shared().address}"
        with pytest.raises(BrokerUnavailable, match=r"not part of a cluster: its URL would start"):
            await RedisBroker(url).start(Ear())

    @pytest.mark.parametrize(("kind", "name"), [("one", "OLDEST"), ("cluster", "OLDEST_CLUSTER")])
    async def test_server_that_is_too_old_is_told(
        self,
        kind: str,
        name: str,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr("crossband.broker.redis.START_TIME", 0.1)
        monkeypatch.setattr(f"crossband.broker.redis.commands.{name}", (99, 0))
        url = shared().url if kind == "one" else shared_cluster().url
        with pytest.raises(BrokerUnavailable) as raised:
            await RedisBroker(url).start(Ear())
        # Of a cluster, each server is told of in the log.
        assert "is too old: Crossband needs Redis 99.0" in f"{raised.value} {caplog.text}"

    async def test_keys_of_another_version_are_told(self) -> None:
        prefix = new_id()
        key = Keys(prefix).version
        url = f"{shared().url}?prefix={prefix}"
        shared().command("SET", key, "crossband 99")
        with pytest.raises(BrokerUnavailable, match=r"another version's \('crossband 99'\)"):
            await RedisBroker(url).start(Ear())
        shared().command("SET", key, "mine")
        with pytest.raises(BrokerUnavailable, match=r"somebody else's .* another prefix"):
            await RedisBroker(url).start(Ear())
        shared().command("DEL", key)
        shared().command("LPUSH", key, "mine")
        with pytest.raises(BrokerUnavailable, match=r"somebody else's"):
            await RedisBroker(url).start(Ear())

    async def test_eviction_is_warned_of(self, caplog: pytest.LogCaptureFixture) -> None:
        settings = ["maxmemory 100mb", "maxmemory-policy allkeys-lru"]
        with Engine(settings=settings) as engine:
            async with running(engine.url):
                pass
        assert "throws keys away when it is full (maxmemory-policy allkeys-lru)" in caplog.text

    async def test_tls_and_users(self) -> None:
        with Engine(tls=True, user="app", password="secret", acl=ACL) as engine:
            url = f"{engine.url}?ssl_ca_certs={CERTIFICATE}"
            ear = Ear()
            async with running(url, ear) as broker:
                await attach(broker, "/")
                cursor = await broker.publish(event())
                assert ear.events[0].cursor == cursor
            with pytest.raises(BrokerUnavailable, match="certificate verify failed"):
                await RedisBroker(engine.url).start(Ear())

    async def test_documented_settings_are_those_of_a_server(self) -> None:
        (text,) = re.findall(r"^```text\n(# Never evict.*?)^```", HOW_TO, re.MULTILINE | re.DOTALL)
        lines = [line for line in text.splitlines() if not line.startswith("user default")]
        with Engine(settings=lines) as engine:
            url = f"redis://crossband:change-me@{engine.address}"
            async with running(url, ear := Ear()) as broker:
                await attach(broker, "/")
                await broker.publish(event())
                assert len(ear.events) == 1
                assert broker.problem is None

    async def test_user_who_may_not_publish_is_told(self) -> None:
        acl = ACL.replace("&crossband:*", "resetchannels")
        with Engine(user="app", password="secret", acl=acl) as engine:
            async with running(engine.url) as broker:
                with pytest.raises(BrokerUnavailable, match="does not permit its user"):
                    await attach(broker, "/")
                assert "does not permit" in str(broker.problem)


class TestReplies:
    @pytest.mark.parametrize(
        ("text", "code", "what"),
        [
            ("@user_script: 1: -READONLY You can't write against a replica", "READONLY", "move"),
            ("@user_script:12: WRONGTYPE Operation against a key", "WRONGTYPE", "tell"),
            ("user_script:12: attempt to call a nil value", "ERR", "tell"),
        ],
    )
    def test_error_within_a_script_of_redis_6_is_known(
        self, text: str, code: str, what: str
    ) -> None:
        error = ServerError(f"ERR Error running script (call to f_1a2b): @user_script:1: {text}")
        assert (error.code, remedy(error).value) == (code, what)


class TestLink:
    async def test_what_is_on_its_way_ends_with_the_connection(self) -> None:
        arrived: asyncio.Queue[asyncio.StreamReader] = asyncio.Queue()
        transports: list[asyncio.ReadTransport] = []

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            transports.append(cast(asyncio.ReadTransport, writer.transport))
            # Read by nobody at first, as behind a network that is down.
            transports[0].pause_reading()
            arrived.put_nowait(reader)

        async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            lost = asyncio.Event()
            _, link = await asyncio.get_running_loop().create_connection(
                lambda: Link(lambda _: None, lambda _: lost.set()), "127.0.0.1", port
            )
            reader = await arrived.get()
            link.call(pack("SET", "key", bytes(32_000_000)), lambda _: None)
            await asyncio.sleep(0)
            link.abort()
            await lost.wait()
            transports[0].resume_reading()
            with pytest.raises(ConnectionResetError):
                await reader.read()


class TestCluster:
    async def test_servers_that_are_well_are_asked_first(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Any] = []

        async def note(address: Any, place: Any, *rest: Any) -> Any:
            asked.append(place)
            return await connect(address, place, *rest)

        async with running(f"{shared_cluster().url}?prefix={new_id()}") as broker:
            servers = cast(ClusterServers, broker._servers)
            first, *others = servers._servers
            monkeypatch.setattr(Server, "problem", property(lambda server: server.commands.problem))
            monkeypatch.setattr(servers._servers[first].commands, "_trouble", "it is away")
            monkeypatch.setattr("crossband.broker.redis.servers.connect", note)
            await servers._ask()
            assert asked[0] == others[0]


class TestKeys:
    async def test_names_are_taken_as_they_are(self) -> None:
        # None of them is a pattern, a tag, or the end of one.
        names = ["/*", "/a", "/?", "/[ab]", "/{x}", "/}", "/{", "/a}:log", "/%7B", "/ünïcode 🐎"]
        ear = Ear()
        url = f"{shared().url}?prefix={new_id()}"
        async with running(url, ear) as broker:
            await attach(broker, *names)
            starts = {name: broker.head(name) for name in names}
            for name in names:
                await broker.publish(event(name, name, "{room}*?[]"))
            assert [each.namespace for each in ear.events] == names
            for name in names:
                page = await broker.history(name, starts[name])
                assert [payload.decode(each.payload) for each in page.publications] == [[name]]

    async def test_prefixes_are_apart(self) -> None:
        one, two = Ear(), Ear()
        async with (
            running(f"{shared().url}?prefix={new_id()}", one) as first,
            running(f"{shared().url}?prefix={new_id()}", two) as second,
        ):
            await attach(first, "/")
            await attach(second, "/")
            await first.publish(event())
            await second.publish(event())
            assert (len(one.events), len(two.events)) == (1, 1)

    async def test_somebody_elses_key_is_told(self) -> None:
        prefix = new_id()
        shared().command("SET", f"{Keys(prefix).base('/')}log", "mine")
        async with running(f"{shared().url}?prefix={prefix}") as broker:
            with pytest.raises(BrokerUnavailable, match=r"somebody else's: .*'\?prefix=…' in the"):
                await broker.publish(event())
            assert "somebody else's" in str(broker.problem)

    async def test_poison_on_the_channel_is_dropped(self, caplog: pytest.LogCaptureFixture) -> None:
        prefix, ear = new_id(), Ear()
        async with running(f"{shared().url}?prefix={prefix}", ear) as broker:
            await attach(broker, "/")
            keys = Keys(prefix)
            log, _, _ = broker.head("/").partition(".")
            frames = [
                msgspec.msgpack.encode([name, generation, before, 0, node, 1, [], []])
                for name in (log, "other")
                for generation in (0, 9)
                for before in (0, 99)
                for node in ("", "stranger", broker.bus.node)
            ]
            for poison in (b"", b"\xc1", b"{}", b"\x98", b"\x91" * 10_000, *frames):
                shared().command("PUBLISH", keys.base("/"), poison)
                shared().command("PUBLISH", keys.hall, poison)
                shared().command("PUBLISH", keys.node(broker.bus.node), poison)
            for number in range(1, 4):
                await broker.publish(event())
                assert len(ear.events) == number
        assert "that is not ours" in caplog.text

    async def test_namespaces_that_come_and_go_leave_nothing(self) -> None:
        with Engine() as engine:
            async with running(engine.url, history_age=0.2) as broker:
                # Of the hub's own: the version, and how much history it keeps.
                own = 2
                await until(lambda: engine.command("DBSIZE") == own)
                channels = len(engine.command("PUBSUB", "CHANNELS"))
                names = [f"/room-{number}" for number in range(300)]
                await attach(broker, *names)
                for name in names[::2]:
                    await broker.publish(event(name))
                assert len(engine.command("PUBSUB", "CHANNELS")) == channels + len(names)
                for name in names:
                    broker.detach(name)
                await until(lambda: len(engine.command("PUBSUB", "CHANNELS")) == channels)
                # What remembers batches outlives them by half a minute.
                left = f"crossband:*sent:{broker.bus.node}"
                await until(
                    lambda: engine.command("DBSIZE") - len(engine.command("KEYS", left)) == own
                )


class TestHistory:
    async def test_many_who_come_back_cost_no_reads(self) -> None:
        with Engine() as engine:
            async with running(engine.url) as broker:
                await attach(broker, "/")
                start = broker.head("/")
                for number in range(100):
                    broker.publish(event("/", number))
                await broker.publish(event("/", 100))
                engine.command("CONFIG", "RESETSTAT")
                pages = await asyncio.gather(
                    *(broker.history("/", start, new_id()) for _ in range(1_000))
                )
                assert all(len(page.publications) == 101 for page in pages)
                assert "cmdstat_evalsha" not in engine.info("commandstats")

    async def test_copy_is_no_older_than_the_history(self) -> None:
        ahead = 0.0
        url = f"{shared().url}?prefix={new_id()}"
        async with running(url, history_age=60.0, skew=lambda: ahead) as broker:
            await attach(broker, "/")
            await broker.publish(event())
            ahead = 61.0
            # Nobody comes back here.
            broker._feeds["/"].look()
            assert not broker._feeds["/"]._copy._entries

    async def test_history_from_before_this_node_is_read_in_pages(self) -> None:
        url = f"{shared().url}?prefix={new_id()}"
        async with running(url) as early:
            await attach(early, "/")
            start = early.head("/")
            for number in range(250):
                early.publish(event("/", number))
            await early.publish(event("/", 250))
            async with running(url) as late:
                await attach(late, "/")
                seen, cursor, last = [], start, False
                while not last:
                    page = await late.history("/", cursor)
                    seen += [payload.decode(each.payload)[0] for each in page.publications]
                    cursor, last = page.cursor, page.last
                assert seen == list(range(251))
                assert cursor == late.head("/")

    async def test_large_publications_are_read_one_by_one(self) -> None:
        url = f"{shared().url}?prefix={new_id()}"
        async with running(url) as early:
            await attach(early, "/")
            start = early.head("/")
            for _ in range(5):
                await early.publish(event("/", bytes(3_000_000)))
            async with running(url) as late:
                await attach(late, "/")
                page = await late.history("/", start)
                assert (len(page.publications), page.last) == (1, False)
                rest = await late.history("/", page.cursor)
                assert rest.publications[0].position == 2

    async def test_cursor_ahead_of_this_node_is_waited_for(self) -> None:
        url = f"{shared().url}?prefix={new_id()}"
        async with running(url) as one, running(url, ear := Ear()) as two:
            await attach(one, "/")
            await attach(two, "/")
            for number in range(20):
                cursor = await one.publish(event("/", number))
                assert cursor is not None
                page = await two.history("/", cursor)
                assert (page.publications, page.last) == ([], True)
                # All up to it was delivered here.
                assert ear.events[-1].position >= page.position

    async def test_private_events_outlive_a_cut_subscription(self) -> None:
        with Engine() as engine:
            ear = Ear()
            async with running(engine.url) as other, running(engine.url, ear) as broker:
                await attach(broker, "/")
                session = Session("/", "key", new_id(), set(), {}, "", owner=broker.bus.node)
                broker.sessions.save(session)
                assert await broker.sessions.find("/", "key") is not None
                for number in range(30):
                    engine.command("CLIENT", "KILL", "TYPE", "pubsub")
                    await other.publish(event("/", number, session.sid))
                    await other.publish(event("/", -1, new_id()))
                await until(lambda: len(values(ear, session.sid)) == 30)
                assert values(ear, session.sid) == list(range(30))
                assert ear.losses == 0

    async def test_private_events_of_others_are_not_missed_by_the_copy(self) -> None:
        with Engine() as engine:
            ear = Ear()
            async with running(engine.url) as other, running(engine.url, ear) as broker:
                await attach(other, "/")
                await attach(broker, "/")
                session = Session("/", "key", new_id(), set(), {}, "", owner=other.bus.node)
                other.sessions.save(session)
                start = other.head("/")
                for number in range(20):
                    # While this node is deaf, its client elsewhere is sent something.
                    engine.command("CLIENT", "KILL", "TYPE", "pubsub")
                    await other.publish(event("/", number, session.sid))
                await other.publish(event("/", -1))
                await until(lambda: len(ear.events) > 0)
                await until(lambda: payload.decode(ear.events[-1].payload) == [-1])
                page = await broker.history("/", start, session.sid)
                found = [payload.decode(each.payload)[0] for each in page.publications]
                assert found == [*range(20), -1]

    async def test_broker_that_is_started_again_goes_on(self) -> None:
        ear = Ear()
        broker = RedisBroker(f"{shared().url}?prefix={new_id()}")
        for first in (0, 3):
            await broker.start(ear)
            await attach(broker, "/")
            for number in range(first, first + 3):
                await broker.publish(event("/", number))
            await broker.stop()
        assert [payload.decode(each.payload) for each in ear.events] == [[n] for n in range(6)]

    async def test_publication_in_a_new_log_is_delivered_before_its_future_ends(self) -> None:
        with Engine() as engine:
            ear = Ear()
            async with running(engine.url, ear) as broker:
                await attach(broker, "/")
                for number in range(10):
                    await broker.publish(event("/", number))
                engine.command("FLUSHALL")
                cursor = await broker.publish(event("/", "new"))
                assert ear.events[-1].cursor == cursor


def values(ear: Ear, room: str) -> list[int]:
    return [payload.decode(each.payload)[0] for each in ear.events if room in each.rooms]


class TestBus:
    @pytest.mark.parametrize("to", ["it", None], ids=["asked", "asked with all"])
    async def test_node_that_was_killed_is_missed_as_soon_as_it_is_needed(
        self, monkeypatch: pytest.MonkeyPatch, to: str | None
    ) -> None:
        # Its heartbeats would be missed much later.
        monkeypatch.setattr("crossband.broker.redis.bus.SILENCE", 1_000.0)
        url = f"{shared().url}?prefix={new_id()}"
        async with running(url) as one, running(url) as two:
            await one.bus.start(lambda sender, body: body)
            await two.bus.start(lambda sender, body: body)
            there = two.bus.node
            assert (await one.bus.ask(b"well?", timeout=WAIT)).given == {there: b"well?"}
            # Its connections end, and it says nothing more.
            await two.stop()
            async with asyncio.timeout(WAIT):
                answers = await one.bus.ask(b"well?", to and [there], timeout=10 * WAIT)
            assert answers.missing == {there}
            assert one.bus.members == frozenset()
            await one.bus.stop()


class TestSessions:
    async def test_take_that_the_server_has_lost_is_made_good(self) -> None:
        with Engine() as engine:
            async with running(engine.url) as one, running(engine.url, ear := Ear()) as two:
                old = Session("/", "key", new_id(), {"old"}, {}, "", owner=one.bus.node)
                one.sessions.save(old)
                found = await one.sessions.find("/", "key")
                assert found is not None
                key = f"{Keys('crossband').base('/')}session:key"
                engine.command("COPY", key, "before")
                taken = await two.sessions.take(found, two.bus.node)
                assert taken is not None
                # As a failover to a replica that is behind.
                engine.command("COPY", "before", key, "REPLACE")
                taken.owner, taken.rooms = two.bus.node, {"new"}
                two.sessions.save(taken)
                kept = await one.sessions.find("/", "key")
                assert kept is not None
                assert (kept.owner, kept.take, kept.rooms) == (two.bus.node, 1, {"new"})
                assert ear.taken_keys == []

    async def test_session_that_the_server_has_lost_is_saved_again(self) -> None:
        with Engine() as engine:
            ahead = 0.0
            async with running(engine.url, skew=lambda: ahead) as broker:
                session = Session("/", "key", new_id(), set(), {}, "", owner=broker.bus.node)
                broker.sessions.save(session)
                assert await broker.sessions.find("/", "key") is not None
                engine.command("FLUSHALL")
                ahead = 6.0
                broker.sessions.renew(broker.bus.node)
                async with asyncio.timeout(WAIT):
                    while await broker.sessions.find("/", "key") is None:
                        pass

    async def test_visitor_of_a_room_is_known_after_its_socket_is_gone(self) -> None:
        with Engine() as engine:
            async with running(engine.url) as broker:
                await attach(broker, "/")
                host = Session("/", "host", new_id(), set(), {}, "", owner=broker.bus.node)
                guest = Session("/", "guest", new_id(), {host.sid}, {}, "", owner=broker.bus.node)
                broker.sessions.save(host)
                broker.sessions.save(guest)
                start = broker.head("/")
                broker.sessions.drop(host)
                # Nobody can come back as the host; the guest can.
                await broker.publish(event("/", 1, host.sid))
                assert len((await broker.history("/", start, guest.sid)).publications) == 1
                # That is known for as long as the guest's session is kept.
                key = f"{Keys('crossband').base('/')}sid:{host.sid}"
                engine.command("PEXPIRE", key, 5_000)
                broker.sessions.release(guest)
                assert await broker.sessions.find("/", "guest") is not None
                assert engine.command("PTTL", key) > 100_000

    async def test_order_is_kept_where_a_server_refuses_for_a_moment(self) -> None:
        with Engine() as engine:
            async with running(engine.url) as broker:
                session = Session("/", "key", new_id(), set(), {}, "", owner=broker.bus.node)
                assert await broker.sessions.find("/", "key") is None
                commands = broker._base.home.commands
                engine.command("REPLICAOF", "127.0.0.1", free_port())
                broker.sessions.save(session)
                await until(lambda: commands._later)
                engine.command("REPLICAOF", "NO", "ONE")
                broker.sessions.drop(session)
                await until(lambda: not commands._later)
                assert await broker.sessions.find("/", "key") is None


class TestBounds:
    async def test_publication_that_is_too_large_is_refused_where_it_is_made(self) -> None:
        async with running(f"{shared().url}?prefix={new_id()}") as broker:
            await attach(broker, "/")
            with pytest.raises(EncodeError, match=f"at most {MAX_PUBLICATION} are carried"):
                broker.publish(event("/", bytes(MAX_PUBLICATION)))
            assert await broker.publish(event("/", bytes(MAX_PUBLICATION - 1_000))) is not None
            assert broker.problem is None

    async def test_what_waits_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("crossband.broker.redis.outgoing.MAX_QUEUE", 10)
        async with running(f"{shared().url}?prefix={new_id()}") as broker:
            published = [broker.publish(event("/", number)) for number in range(11)]
            with pytest.raises(BrokerUnavailable, match="10 events already wait for Redis"):
                await published[10]
            assert await published[9] is not None

    async def test_server_that_is_away_is_waited_for_some_seconds(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("crossband.broker.redis.commands.PATIENCE", 0.5)
        with Engine() as engine:
            async with running(engine.url) as broker:
                await attach(broker, "/")
                start = broker.head("/")
                await broker.publish(event())
                engine.kill()
                with pytest.raises(BrokerUnavailable, match="Redis at"):
                    await broker.publish(event())
                with pytest.raises(BrokerUnavailable, match="Redis at"):
                    await broker.sessions.find("/", "key")
                # What was delivered here is here.
                assert len((await broker.history("/", start)).publications) == 1
                with pytest.raises(Gap):
                    await broker.history("/", "nonsense")
                await until(lambda: "Redis at" in str(broker.problem))
                await asyncio.to_thread(engine.start)
                await until(lambda: broker.problem is None)

    async def test_server_that_answers_nothing_counts_as_away(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("crossband.broker.redis.commands.PATIENCE", 0.5)
        monkeypatch.setattr("crossband.broker.redis.commands.REPLY_TIME", 0.3)
        with Engine() as engine:
            async with running(engine.url) as broker:
                engine.stop()
                try:
                    with pytest.raises(BrokerUnavailable):
                        await broker.publish(event())
                finally:
                    engine.resume()
                await until(lambda: broker.problem is None)
                assert await broker.publish(event()) is not None
