"""A broker elsewhere, played in this process: the memory broker behind a hostile network.

Everything is late by chance, connections drop and come back, replies are lost after their
command was carried out, messages are missed while a subscription is down. What may not be
reordered is not: commands of one node, and what one node is sent. It keeps the contracts of
crossband.broker as a broker over a network has to, so what passes here may go on the wire.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from crossband.broker import HISTORY_PAGE, Broker, Bus, Page, Publication, Receiver
from crossband.broker.memory import MemoryBroker
from crossband.broker.memory_presence import MemoryPresence
from crossband.broker.presence import MEMBERS_PAGE, Members, Presence, PresenceStore
from crossband.broker.sessions import Revocation, Session, SessionStore, pack, unpack
from crossband.errors import BrokerUnavailable
from crossband.names import new_id

T = TypeVar("T")

# Publications that may wait to be sent.
MAX_QUEUE = 10_000


class Engine:
    """What stands elsewhere: the log, the sessions, and who listens."""

    def __init__(
        self,
        memory: MemoryBroker,
        *,
        seed: int = 0,
        delay: float = 0.002,
        patience: float = 2.0,
        forgets: float = 0.0,
    ) -> None:
        self._memory = memory
        self.chance = random.Random(seed)
        # Seconds; each step takes up to so long.
        self.delay = delay
        # Seconds after which who waits for a node without a connection is told so.
        self.patience = patience
        # How many of the requests are carried out, and their replies never come.
        self.forgets = forgets
        # All that was recorded, by namespace: position n is at n - 1.
        self.raw: dict[str, list[Publication]] = defaultdict(list)
        self.nodes: dict[str, FarBroker] = {}
        # By node and number: a command that is sent twice is carried out once.
        self._done: dict[tuple[str, int], Publication] = {}
        self.memory = memory._memory
        self.sessions = self.memory.sessions
        self.sessions._taken = self._tell_taken
        self.presence = MemoryPresence(
            clock=self.memory._clock,
            publish=self.record,
            head=lambda namespace: (
                self.cursor(namespace, self.top(namespace)),
                self.top(namespace),
            ),
        )

    def node(self) -> FarBroker:
        return FarBroker(self)

    async def late(self) -> None:
        """Let some time pass, or none."""
        if self.chance.random() < 0.5:
            await asyncio.sleep(self.chance.random() * self.delay)
        elif self.chance.random() < 0.5:
            await asyncio.sleep(0)

    def publish(
        self, node: str, number: int, publication: Publication, record: bool
    ) -> Publication:
        done = self._done.get((node, number))
        if done is not None:
            return done
        if record:
            publication = self.record(publication)
        else:
            self.carry(publication)
        self._done[node, number] = publication
        return publication

    def _tell_taken(self, session: Session) -> None:
        node = self.nodes.get(session.owner)
        if node is not None and node._receiver is not None:
            node._receiver.taken(session.namespace, session.key, session.take)

    def record(self, publication: Publication) -> Publication:
        """Record and carry a publication."""
        recorded = self.memory.record(publication)
        raw = self.raw[recorded.namespace]
        raw.append(recorded)
        assert len(raw) == recorded.position
        self.carry(recorded)
        return recorded

    def carry(self, publication: Publication) -> None:
        for node in self.nodes.values():
            node.hear(publication)

    def top(self, namespace: str) -> int:
        return len(self.raw[namespace]) if namespace in self.raw else 0

    def cursor(self, namespace: str, position: int) -> str:
        epoch = self.memory.head(namespace).rpartition("-")[0]
        return f"{epoch}-{position}"


class FarBroker(Broker):
    """One node's end of it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.id = new_id()
        self.sessions = FarSessions(self)
        self.presence = FarPresence(self)
        self.bus = self.far_bus = FarBus(self.id, self)
        self._receiver: Receiver | None = None
        self._stopped = False
        # Set while the connection is up.
        self._up = asyncio.Event()
        # The last position delivered here, of each namespace that is attached; and those that
        # are being attached.
        self._delivered: dict[str, int] = {}
        self._attaching: dict[str, asyncio.Future[None]] = {}
        self._progress = asyncio.Condition()
        # What came by subscription and is not delivered yet. None: read on from the log.
        self._incoming: asyncio.Queue[Publication | None] = asyncio.Queue()
        self._commands: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._numbers = 0
        self._tasks: list[asyncio.Task[None]] = []
        # Who waits for a reply, and who for a publication to be delivered here.
        self._waiting: set[asyncio.Future[Any]] = set()
        self._settling: set[asyncio.Task[None]] = set()
        # How often its connection was cut, and how many commands were sent twice.
        self.cuts = self.retries = 0

    # Connections.

    def cut(self, seconds: float = 0.0) -> None:
        """Drop the connection, for so long."""
        if not self._up.is_set() or self._stopped:
            return
        self.cuts += 1
        self._up.clear()
        while not self._incoming.empty():
            self._incoming.get_nowait()
        asyncio.get_running_loop().call_later(seconds, self._reconnect)

    def _reconnect(self) -> None:
        if not self._stopped:
            self._up.set()
            self._incoming.put_nowait(None)

    @property
    def problem(self) -> str | None:
        return None if self._up.is_set() else "the connection to the broker is down"

    async def start(self, receiver: Receiver) -> None:
        await self._engine.late()
        self._receiver = receiver
        self._stopped = False
        self._up.set()
        self._engine.nodes[self.id] = self
        self._tasks = [
            asyncio.create_task(self._read()),
            asyncio.create_task(self._write()),
        ]

    async def stop(self) -> None:
        if self._stopped:
            return
        # What was queued is carried out first.
        self._stopped = True
        self._up.set()
        await self._commands.join()
        await self._progressed()
        await asyncio.gather(*self._settling)
        await self._end()

    async def kill(self) -> None:
        """Be gone at once, as a process that is killed."""
        self._stopped = True
        for waiting in list(self._waiting):
            if not waiting.done():
                waiting.set_exception(BrokerUnavailable("the node was killed"))
        await self._end()
        for other in self._engine.nodes.values():
            other.bus.gone(self.id)

    async def _end(self) -> None:
        self._receiver = None
        self._engine.nodes.pop(self.id, None)
        tasks = [*self._tasks, *self._settling]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Nothing is attached when it starts again.
        self._delivered.clear()
        self._commands = asyncio.Queue()
        self._incoming = asyncio.Queue()

    # Commands, in order.

    async def _write(self) -> None:
        while True:
            command = await self._commands.get()
            await self._engine.late()
            await self._up.wait()
            await command()
            self._commands.task_done()

    def _wait(self) -> asyncio.Future[Any]:
        """Return a future that fails where the connection stays away for too long."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[Any] = loop.create_future()

        def give_up() -> None:
            if not waiting.done() and not self._up.is_set():
                waiting.set_exception(BrokerUnavailable("no connection to the broker"))

        timer = loop.call_later(self._engine.patience, give_up)
        self._waiting.add(waiting)

        def done(_: asyncio.Future[Any]) -> None:
            timer.cancel()
            self._waiting.discard(waiting)

        waiting.add_done_callback(done)
        return waiting

    def command(self, run: Callable[[], None]) -> None:
        """Queue a command that nobody waits for."""

        async def carry_out() -> None:
            run()

        self._commands.put_nowait(carry_out)

    async def request(self, run: Callable[[], Awaitable[T]]) -> T:
        """Queue a command, and return its reply, late."""
        if self._stopped:
            raise BrokerUnavailable("the broker is stopped")
        reply: asyncio.Future[T] = self._wait()

        async def carry_out() -> None:
            try:
                result = await run()
            except Exception as error:
                if not reply.done():
                    reply.set_exception(error)
                return
            if reply.done():
                return
            if self._engine.chance.random() < self._engine.forgets:
                reply.set_exception(BrokerUnavailable("the connection was lost"))
            else:
                reply.set_result(result)

        self._commands.put_nowait(carry_out)
        result = await reply
        await self._engine.late()
        return result

    def publish(
        self, publication: Publication, *, record: bool = True
    ) -> asyncio.Future[str | None]:
        loop = asyncio.get_running_loop()
        settled: asyncio.Future[str | None] = self._wait()
        if self._stopped:
            settled.set_result(None)
            return settled
        if self._commands.qsize() >= MAX_QUEUE:
            settled.set_exception(BrokerUnavailable("too much waits to be published"))
            return settled
        self._numbers += 1
        number = self._numbers

        async def carry_out() -> None:
            if settled.done():
                # Given up before it was sent.
                return
            engine = self._engine
            recorded = engine.publish(self.id, number, publication, record)
            if engine.chance.random() < 0.05:
                # Carried out, and the reply lost with the connection: sent again.
                self.cut(engine.chance.random() * engine.delay)
                await self._up.wait()
                self.retries += 1
                assert engine.publish(self.id, number, publication, record) is recorded
            # A volatile one is behind all that was recorded before it.
            position = recorded.position or engine.top(recorded.namespace)
            task = loop.create_task(self._settle(settled, recorded, position))
            self._settling.add(task)
            task.add_done_callback(self._settling.discard)

        self._commands.put_nowait(carry_out)
        return settled

    async def _settle(
        self, settled: asyncio.Future[str | None], recorded: Publication, position: int
    ) -> None:
        await self.reached(recorded.namespace, position)
        if not settled.done():
            settled.set_result(recorded.cursor)

    async def reached(self, namespace: str, position: int) -> None:
        """Wait until a position was delivered on this node, if it is attached."""
        async with self._progress:
            await self._progress.wait_for(
                lambda: self._stopped or self._delivered.get(namespace, position) >= position
            )

    # The subscription.

    def hear(self, publication: Publication) -> None:
        if self._up.is_set():
            self._incoming.put_nowait(publication)

    async def _read(self) -> None:
        while True:
            publication = await self._incoming.get()
            await self._engine.late()
            if publication is None:
                for namespace in list(self._delivered):
                    self._read_to(namespace, self._engine.top(namespace))
            else:
                namespace = publication.namespace
                delivered = self._delivered.get(namespace)
                if delivered is None:
                    continue
                if publication.cursor is None:
                    self._deliver(publication)
                else:
                    # What was missed is before it.
                    self._read_to(namespace, publication.position)
            await self._progressed()

    async def _progressed(self) -> None:
        async with self._progress:
            self._progress.notify_all()

    def _read_to(self, namespace: str, position: int) -> None:
        delivered = self._delivered[namespace]
        for publication in self._engine.raw[namespace][delivered:position]:
            self._delivered[namespace] = publication.position
            self._deliver(publication)

    def _deliver(self, publication: Publication) -> None:
        if self._receiver is not None:
            self._receiver.deliver(publication)

    def attach(self, namespace: str) -> Awaitable[None] | None:
        if namespace in self._delivered:
            return None
        under_way = self._attaching.get(namespace)
        if under_way is None:
            under_way = asyncio.ensure_future(self._attach(namespace))
            self._attaching[namespace] = under_way
        return asyncio.shield(under_way)

    async def _attach(self, namespace: str) -> None:
        me = asyncio.current_task()

        async def subscribe() -> None:
            # It may have been detached again before it was done.
            if self._attaching.get(namespace) is me:
                self._delivered[namespace] = self._engine.top(namespace)

        try:
            await self.request(subscribe)
        finally:
            if self._attaching.get(namespace) is me:
                del self._attaching[namespace]

    def detach(self, namespace: str) -> None:
        self._delivered.pop(namespace, None)
        self._attaching.pop(namespace, None)
        # Who waits for a position of it waits no more.
        self._incoming.put_nowait(None)

    def head(self, namespace: str) -> str:
        delivered = self._delivered[namespace]
        return self._engine.cursor(namespace, delivered)

    async def history(
        self, namespace: str, after: str, sid: str | None = None, *, limit: int = HISTORY_PAGE
    ) -> Page:
        most = min(limit, self._engine.chance.randint(1, 50))

        async def read() -> Page:
            return self._engine.memory.history(namespace, after, sid, most)

        page = await self.request(read)
        await self.reached(namespace, page.position)
        return page


class FarSessions(SessionStore):
    """The sessions, as bytes over the same connection."""

    def __init__(self, broker: FarBroker) -> None:
        self._broker = broker
        self._store = broker._engine.sessions

    def save(self, session: Session) -> None:
        data = pack(session)
        self._broker.command(lambda: self._store.save(unpack(data)))

    def release(self, session: Session) -> None:
        data = pack(session)
        self._broker.command(lambda: self._store.release(unpack(data)))

    def drop(self, session: Session) -> None:
        data = pack(session)
        self._broker.command(lambda: self._store.drop(unpack(data)))

    def renew(self, owner: str) -> None:
        self._broker.command(lambda: self._store.renew(owner))

    async def find(self, namespace: str, key: str) -> Session | None:
        found = await self._broker.request(lambda: self._store.find(namespace, key))
        return None if found is None else unpack(pack(found))

    async def take(self, session: Session, owner: str) -> Session | None:
        taken = await self._broker.request(lambda: self._store.take(session, owner))
        return None if taken is None else unpack(pack(taken))

    async def revoke(self, user: str, time: float) -> Revocation:
        return await self._broker.request(lambda: self._store.revoke(user, time))

    async def revocations(self, after: int = 0) -> list[Revocation]:
        return await self._broker.request(lambda: self._store.revocations(after))


class FarPresence(PresenceStore):
    """The presence, as bytes over the same connection."""

    def __init__(self, broker: FarBroker) -> None:
        self._broker = broker
        self._store = broker._engine.presence

    def save(self, presence: Presence, *, connected: bool = True) -> None:
        data = msgspec.msgpack.encode(presence)

        def save() -> None:
            self._store.save(msgspec.msgpack.decode(data, type=Presence), connected=connected)

        self._broker.command(save)

    async def renew(self, namespace: str, node: str) -> bool:
        return await self._broker.request(lambda: self._store.renew(namespace, node))

    def expel(self, namespace: str, user: str) -> None:
        self._broker.command(lambda: self._store.expel(namespace, user))

    async def members(
        self, namespace: str, room: str, *, after: int = 0, limit: int = MEMBERS_PAGE
    ) -> Members:
        page = await self._broker.request(
            lambda: self._store.members(namespace, room, after=after, limit=limit)
        )
        await self._broker.reached(namespace, page.position)
        return page


class FarBus(Bus):
    """A bus whose messages are late, and lost while the connection is down."""

    def __init__(self, node: str, broker: FarBroker) -> None:
        super().__init__(node)
        self._broker = broker
        self._joined = False
        # What comes, in order.
        self._arriving: asyncio.Queue[bytes] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def join(self) -> None:
        self._joined = True
        self._task = asyncio.create_task(self._read())

    async def part(self) -> None:
        self._joined = False
        for other in self._others:
            other.gone(self.node)
        if self._task is not None:
            self._task.cancel()

    async def _read(self) -> None:
        while True:
            data = await self._arriving.get()
            await self._broker._engine.late()
            self.received(data)

    @property
    def _others(self) -> list[FarBus]:
        nodes = self._broker._engine.nodes.values()
        buses = [other.far_bus for other in nodes]
        return [bus for bus in buses if bus is not self and bus._joined]

    @property
    def members(self) -> frozenset[str]:
        return frozenset(bus.node for bus in self._others)

    def send(self, frame: bytes, to: str | None) -> None:
        if self._broker.problem is not None:
            return
        for other in self._others:
            if to in (None, other.node) and other._broker.problem is None:
                other._arriving.put_nowait(frame)


def far(size: int, limit: int, age: float, clock: Callable[[], float], **options: Any) -> Engine:
    """Return an engine with these bounds."""
    memory = MemoryBroker(history_size=size, history_bytes=limit, history_age=age, clock=clock)
    return Engine(memory, **options)
