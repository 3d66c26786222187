"""The contract of a bus, as tests: in memory, and behind a hostile network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable

import msgspec
import pytest

from crossband.broker import Broker, Bus, Publication
from crossband.broker.bus import MAX_MESSAGE, Frame
from tests.broker.test_conformance import BROKERS, Clock
from tests.clients.base import WAIT


class Ear:
    """Hears publications, of which there are none here."""

    def deliver(self, publication: Publication) -> None:
        raise AssertionError

    def lost(self, namespace: str, sid: str | None = None) -> None:
        raise AssertionError

    def taken(self, namespace: str, key: str, take: int) -> None:
        raise AssertionError


class Member:
    """A node of the bus: it notes what it hears, and answers by what it was asked."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.heard: list[tuple[str, bytes]] = []
        self.came = asyncio.Condition()
        self.never: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

    @property
    def bus(self) -> Bus:
        return self.broker.bus

    @property
    def id(self) -> str:
        return self.broker.bus.node

    async def start(self) -> Member:
        await self.broker.start(Ear())
        await self.bus.start(self.hear)
        return self

    async def stop(self) -> None:
        await self.bus.stop()
        await self.broker.stop()

    def hear(self, sender: str, body: bytes) -> Awaitable[bytes | None] | bytes | None:
        if body == b"fail":
            raise RuntimeError("as it was told")
        if body == b"wait":
            return asyncio.ensure_future(self.later(sender))
        if body == b"never":
            return self.never
        if body == b"no answer":
            return None
        return asyncio.ensure_future(self.note(sender, body))

    async def note(self, sender: str, body: bytes) -> bytes:
        async with self.came:
            self.heard.append((sender, body))
            self.came.notify_all()
        return b"heard " + body

    async def later(self, sender: str) -> bytes:
        await asyncio.sleep(0.01)
        return b"late for " + sender.encode()

    async def hears(self, *bodies: bytes) -> None:
        async with asyncio.timeout(WAIT), self.came:
            await self.came.wait_for(lambda: len(self.heard) >= len(bodies))
        assert [body for _, body in self.heard] == list(bodies)


@pytest.fixture(params=BROKERS)
async def members(request: pytest.FixtureRequest) -> AsyncIterator[list[Member]]:
    make = BROKERS[request.param](10, 1_000, 60.0, Clock())
    members = [await Member(make()).start() for _ in range(3)]
    yield members
    for member in members:
        await member.stop()


async def test_each_knows_the_others(members: list[Member]) -> None:
    for member in members:
        assert member.bus.members == {other.id for other in members if other is not member}


async def test_message_to_all_reaches_all_others(members: list[Member]) -> None:
    one, two, three = members
    one.bus.tell(b"hello")
    await two.hears(b"hello")
    await three.hears(b"hello")
    assert two.heard == [(one.id, b"hello")]
    assert one.heard == []


async def test_message_to_one_reaches_that_one(members: list[Member]) -> None:
    one, two, three = members
    one.bus.tell(b"for two", two.id)
    one.bus.tell(b"for nobody", "nobody")
    one.bus.tell(b"for all")
    await two.hears(b"for two", b"for all")
    await three.hears(b"for all")


async def test_messages_of_one_node_come_in_order(members: list[Member]) -> None:
    one, two, _ = members
    bodies = [b"%d" % number for number in range(200)]
    for number, body in enumerate(bodies):
        one.bus.tell(body, two.id if number % 2 else None)
    await two.hears(*bodies)


async def test_question_to_all_is_answered_by_all(members: list[Member]) -> None:
    one, two, three = members
    answers = await one.bus.ask(b"well?", timeout=WAIT)
    assert answers.given == {two.id: b"heard well?", three.id: b"heard well?"}
    assert answers.missing == set()


async def test_answer_may_take_its_time(members: list[Member]) -> None:
    one, two, _ = members
    answers = await one.bus.ask(b"wait", [two.id], timeout=WAIT)
    assert answers.given == {two.id: b"late for " + one.id.encode()}


async def test_who_has_no_answer_is_not_waited_for(members: list[Member]) -> None:
    one, two, three = members
    # No answer, a failure and a stranger, well before the time is over.
    async with asyncio.timeout(WAIT):
        for body in (b"no answer", b"fail"):
            answers = await one.bus.ask(body, [two.id, "stranger"], timeout=10 * WAIT)
            assert (answers.given, answers.missing) == ({}, {two.id, "stranger"})
        nobody = await one.bus.ask(b"well?", [], timeout=10 * WAIT)
        assert (nobody.given, nobody.missing) == ({}, set())
        itself = await one.bus.ask(b"well?", [one.id], timeout=10 * WAIT)
        assert (itself.given, itself.missing) == ({}, set())
    # A failure ends nothing.
    assert (await three.bus.ask(b"well?", [two.id], timeout=WAIT)).missing == set()


async def test_who_is_late_is_missing(members: list[Member]) -> None:
    one, two, three = members
    answers = await one.bus.ask(b"never", [two.id, three.id], timeout=0.05)
    assert (answers.given, answers.missing) == ({}, {two.id, three.id})
    # It comes after all, and nobody is confused by it.
    two.never.set_result(b"at last")
    assert (await one.bus.ask(b"well?", [two.id], timeout=WAIT)).given == {two.id: b"heard well?"}


async def test_who_leaves_is_not_waited_for(members: list[Member]) -> None:
    one, two, three = members
    asking = asyncio.ensure_future(one.bus.ask(b"never", timeout=10 * WAIT))
    assert (await one.bus.ask(b"well?", [two.id], timeout=WAIT)).missing == set()
    three.never.set_result(b"here")
    await two.bus.stop()
    async with asyncio.timeout(WAIT):
        answers = await asking
    assert (answers.given, answers.missing) == ({three.id: b"here"}, {two.id})
    assert one.bus.members == {three.id}


async def test_questions_end_with_the_bus(members: list[Member]) -> None:
    one, two, three = members
    asking = asyncio.ensure_future(one.bus.ask(b"never", timeout=10 * WAIT))
    assert (await one.bus.ask(b"well?", [two.id], timeout=WAIT)).missing == set()
    await one.bus.stop()
    async with asyncio.timeout(WAIT):
        answers = await asking
    assert answers.missing == {two.id, three.id}
    await one.bus.stop()


@pytest.mark.parametrize(
    "poison",
    [
        b"",
        b"\xc1",
        b"{}",
        msgspec.msgpack.encode({"kind": "tell"}),
        msgspec.msgpack.encode(["shout", "somebody", 0, b"x"]),
        msgspec.msgpack.encode(["tell", 7, 0, b"x"]),
        msgspec.msgpack.encode(["tell", "somebody", 0]),
        msgspec.msgpack.encode(["answer", "somebody", 99, b"x"]),
        b"\x91" * 100_000,
    ],
    ids=repr,
)
async def test_poison_ends_nothing(
    members: list[Member], poison: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    one, two, _ = members
    two.bus.received(poison)
    lines = [record for record in caplog.records if record.name == "crossband"]
    assert len(lines) == (0 if b"answer" in poison else 1)
    assert (await one.bus.ask(b"well?", [two.id], timeout=WAIT)).given == {two.id: b"heard well?"}


async def test_own_messages_are_not_heard(members: list[Member]) -> None:
    one = members[0]
    one.bus.received(msgspec.msgpack.encode(Frame("tell", one.id, 0, b"echo")))
    assert one.heard == []


async def test_messages_are_bounded(members: list[Member]) -> None:
    one, two, _ = members
    with pytest.raises(ValueError, match=f"at most {MAX_MESSAGE} bytes"):
        one.bus.tell(bytes(MAX_MESSAGE + 1))
    with pytest.raises(ValueError, match="at most"):
        await one.bus.ask(bytes(MAX_MESSAGE + 1), [two.id], timeout=WAIT)
    big = bytes(MAX_MESSAGE - 100)
    one.bus.tell(big, two.id)
    await two.hears(big)
