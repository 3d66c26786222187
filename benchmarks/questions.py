"""What is asked: each question, who is asked it, and how one sample of it is taken."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from benchmarks import machine
from benchmarks.contenders import (
    BROKER,
    CONTENDERS,
    CROSSBAND,
    FLOOR,
    NODES,
    WORKERS,
    Contender,
)
from benchmarks.runs import Run, Sample

# Connections that ask, one request in flight each, as many users do; and on one connection.
IN_FLIGHT: Final = 32
PUBLISHERS: Final = 8
# Publications a second that are made whether the last one has arrived or not.
PACE: Final = 5000
# Clients above which less is asked.
LARGE: Final = 1000
# Milliseconds before the first sample: Node.js compiles what it finds hot.
WARM_UP: Final = 250
# Handshakes at a time.
CONCURRENCY: Final = 32

TITLES: Final = {"ws": "raw WebSocket", "sio": "Socket.IO", "sse": "SSE"}


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured."""

    seconds: float
    repetitions: int
    # Connections of one sample of `connects`, and of the one of `idle`.
    connects: int
    idle: int
    # Everything; a quick run leaves the largest out.
    thorough: bool


FULL: Final = Scale(seconds=0.4, repetitions=15, connects=1000, idle=5000, thorough=True)
QUICK: Final = Scale(seconds=0.2, repetitions=3, connects=400, idle=1500, thorough=False)


@dataclass(frozen=True)
class Question(ABC):
    """One figure that is asked of several contenders; those of a stage share their servers."""

    id: str
    title: str
    # What a cost is per.
    unit: str
    # Clients in group 0, which publications go to.
    door: str
    clients: int

    @property
    def stage(self) -> str:
        """Questions of one stage are asked of the same servers."""
        return f"fanout {self.door} {self.clients}"

    def rounds(self, scale: Scale) -> int:
        """Return how many samples are taken of each server; 0 leaves the question out."""
        return scale.repetitions

    def door_of(self, contender: Contender) -> str | None:
        """Return the door a contender is measured at, or None when it cannot be."""
        return self.door if self.door in contender.doors else None

    def clients_of(self, contender: Contender) -> int:
        """Return how many clients a contender's publications go to."""
        return self.clients

    def contenders(self) -> Iterator[Contender]:
        """Yield who is asked, in the order of the table."""
        for contender in CONTENDERS:
            if self.door_of(contender):
                yield contender

    @abstractmethod
    def prepare(self, run: Run, scale: Scale) -> None:
        """Warm up, before the first sample."""

    @abstractmethod
    def sample(self, run: Run, scale: Scale) -> Sample:
        """Take one sample."""


@dataclass(frozen=True)
class FanOut(Question):
    """Rounds of publications to everybody; the next when all have the last."""

    burst: int

    def rounds(self, scale: Scale) -> int:
        if self.clients <= LARGE:
            return scale.repetitions
        # The slowest peer takes 10 s for one round of 16.
        return min(scale.repetitions, 5) if scale.thorough else 0

    def prepare(self, run: Run, scale: Scale) -> None:
        run.order(f"fire {self.burst} {WARM_UP}")

    def sample(self, run: Run, scale: Scale) -> Sample:
        return run.measure(f"fire {self.burst} {scale.seconds * 1000:.0f}")


@dataclass(frozen=True)
class Growth(FanOut):
    """The same with few and with many clients, in turns: does a delivery cost more?"""

    many: int

    @property
    def stage(self) -> str:
        return f"growth {self.door}"

    def rounds(self, scale: Scale) -> int:
        return scale.repetitions if scale.thorough or self.burst == 1 else 0

    def clients_of(self, contender: Contender) -> int:
        return self.many if contender.name.endswith(f", {self.many}") else self.clients

    def contenders(self) -> Iterator[Contender]:
        for contender in (FLOOR, CROSSBAND):
            for clients in (self.clients, self.many):
                yield replace(contender, name=f"{contender.name}, {clients}")


@dataclass(frozen=True)
class BetweenNodes(FanOut):
    """The same on one node, and to the clients of one node by another.

    The CPU time is that of the node that has the clients.
    """

    @property
    def stage(self) -> str:
        return "nodes"

    def contenders(self) -> Iterator[Contender]:
        yield from NODES


@dataclass(frozen=True)
class OverWorkers(FanOut):
    """The same by one process, and by two workers with all that belongs to them."""

    @property
    def stage(self) -> str:
        return "workers"

    def contenders(self) -> Iterator[Contender]:
        yield from (FLOOR, CROSSBAND, WORKERS)


@dataclass(frozen=True)
class Pace(Question):
    """Publications at a fixed rate, to one client; late answers hold none of them up."""

    # Publications per second.
    pace: int

    @property
    def stage(self) -> str:
        return "pace"

    def contenders(self) -> Iterator[Contender]:
        yield from NODES

    def prepare(self, run: Run, scale: Scale) -> None:
        run.order(f"pace {self.pace} {WARM_UP}")

    def sample(self, run: Run, scale: Scale) -> Sample:
        return run.measure(f"pace {self.pace} {scale.seconds * 1000:.0f}")


@dataclass(frozen=True)
class BrokerPart(Question):
    """What a node's broker takes by itself: to publish, or to hear what others publish.

    The floor's unit is a delivery to one of its clients: it says what a microsecond is worth here.
    """

    # Publications at once, each in a namespace of its own, or all in one: then they are a batch.
    burst: int
    namespaces: int
    # Of the node that publishes, or of the other one.
    publishing: bool

    @property
    def stage(self) -> str:
        return "broker"

    def contenders(self) -> Iterator[Contender]:
        yield from (FLOOR, BROKER)

    def prepare(self, run: Run, scale: Scale) -> None:
        if run.contender == FLOOR:
            run.order(f"fire 1 {WARM_UP}")
            return
        run.ask(f"{self.burst} {self.namespaces} {WARM_UP}")

    def sample(self, run: Run, scale: Scale) -> Sample:
        if run.contender == FLOOR:
            return run.measure(f"fire 1 {scale.seconds * 1000:.0f}")
        pid = run.publisher if self.publishing else run.pid
        before = machine.cpu_time(pid)
        reply = run.ask(f"{self.burst} {self.namespaces} {scale.seconds * 1000:.0f}")
        return Sample.of(reply, machine.cpu_time(pid) - before)


@dataclass(frozen=True)
class RoundTrip(Question):
    """Requests and their answers: as many connections, `depth` in flight on each."""

    kind: str
    connections: int
    depth: int

    @property
    def stage(self) -> str:
        return f"{self.kind} {self.connections}"

    def _text(self, contender: Contender) -> str | None:
        return contender.ack if self.kind == "ack" else contender.echo

    def door_of(self, contender: Contender) -> str | None:
        if not self._text(contender):
            return None
        return next((door for door in (self.door, "plain") if door in contender.doors), None)

    def prepare(self, run: Run, scale: Scale) -> None:
        text, door = self._text(run.contender), self.door_of(run.contender)
        assert text is not None
        assert door is not None
        run.connect(1, door, self.connections)
        run.order(f"request 1 {text.encode().hex()}")
        run.order(f"pump 1 {self.depth} {WARM_UP}")

    def sample(self, run: Run, scale: Scale) -> Sample:
        return run.measure(f"pump 1 {self.depth} {scale.seconds * 1000:.0f}")


@dataclass(frozen=True)
class Publish(Question):
    """Publications over HTTP on connections that are kept, to one subscriber."""

    def door_of(self, contender: Contender) -> str | None:
        return next(iter(contender.doors)) if contender.publish else None

    @property
    def stage(self) -> str:
        return "publish"

    def prepare(self, run: Run, scale: Scale) -> None:
        request = run.contender.publish_request
        assert request is not None
        run.connect(1, "http", PUBLISHERS)
        run.order(f"request 1 {request.hex()}")
        run.order(f"pump 1 1 {WARM_UP}")

    def sample(self, run: Run, scale: Scale) -> Sample:
        return run.measure(f"pump 1 1 {scale.seconds * 1000:.0f}")


@dataclass(frozen=True)
class Connects(Question):
    """Handshakes up to the welcome; closing is not counted."""

    @property
    def stage(self) -> str:
        return f"connects {self.door}"

    def prepare(self, run: Run, scale: Scale) -> None:
        run.connect(1, self.door_of(run.contender) or "", 200)
        run.order("close 1")
        run.settle()

    def sample(self, run: Run, scale: Scale) -> Sample:
        door = self.door_of(run.contender)
        before = machine.cpu_time(run.pid)
        reply = run.connect(1, door or "", scale.connects, concurrency=CONCURRENCY)
        # Whatever a server does right after its welcome belongs to the connection too.
        run.settle()
        cpu = machine.cpu_time(run.pid) - before
        run.order("close 1")
        run.settle()
        return Sample.of(reply, cpu)


@dataclass(frozen=True)
class Idle(Question):
    """Memory that connections take while nothing is sent."""

    @property
    def stage(self) -> str:
        return f"idle {self.door}"

    def rounds(self, scale: Scale) -> int:
        # A server is new only once.
        return 1

    def door_of(self, contender: Contender) -> str | None:
        # The floor keeps a file descriptor and nothing else.
        return None if contender.runtime == "native" else super().door_of(contender)

    def prepare(self, run: Run, scale: Scale) -> None:
        door = self.door_of(run.contender)
        # What a server allocates once.
        run.connect(1, door or "", 100, concurrency=CONCURRENCY)
        run.settle()

    def sample(self, run: Run, scale: Scale) -> Sample:
        door = self.door_of(run.contender)
        before = machine.resident(run.pid)
        reply = run.connect(2, door or "", scale.idle, concurrency=CONCURRENCY)
        run.settle()
        grown = machine.resident(run.pid) - before
        return Sample.of(reply, 0, memory=max(grown, 0) / scale.idle)


def _questions() -> Iterator[Question]:
    for clients in (500, 5000):
        for door, title in TITLES.items():
            for burst, how in ((1, "one in flight"), (16, "16 in flight")):
                yield FanOut(
                    id=f"fanout-{door}-{clients}-{burst}",
                    title=f"{title}: fan-out to {clients:,} clients, {how}",
                    unit="delivery",
                    door=door,
                    clients=clients,
                    burst=burst,
                )
    for door, title in TITLES.items():
        for burst, how in ((1, "one in flight"), (16, "16 in flight")):
            yield Growth(
                id=f"growth-{door}-{burst}",
                title=f"{title}: fan-out to 500 and 5,000, {how}",
                unit="delivery",
                door=door,
                clients=500,
                many=5000,
                burst=burst,
            )
    for burst, how in ((1, "one in flight"), (16, "16 in flight")):
        yield BetweenNodes(
            id=f"nodes-{burst}",
            title=f"Socket.IO: fan-out by one node to 500 clients of another, {how}",
            unit="delivery",
            door="sio",
            clients=500,
            burst=burst,
        )
    for burst, how in ((1, "one in flight"), (16, "16 in flight")):
        yield OverWorkers(
            id=f"workers-{burst}",
            title=f"raw WebSocket: fan-out by two workers to 500 clients, {how}",
            unit="delivery",
            door="ws",
            clients=500,
            burst=burst,
        )
    yield Pace(
        id="nodes-pace",
        title=f"Socket.IO: {PACE:,} publications a second by one node, one client of another",
        unit="delivery",
        door="sio",
        clients=1,
        pace=PACE,
    )
    for part, title, burst, namespaces, unit in (
        ("publish", "100 publications at once", 100, 1, "publication"),
        ("publish-one", "one publication at a time", 1, 1, "publication"),
        ("hear", "100 frames at once of another node", 100, 100, "frame"),
        ("hear-one", "one frame at a time of another node", 1, 1, "frame"),
        ("hear-batch", "frames with 100 publications of another node", 100, 1, "publication"),
    ):
        yield BrokerPart(
            id=f"broker-{part}",
            title=f"The Redis broker alone: {title}",
            unit=unit,
            door="ws",
            clients=500,
            burst=burst,
            namespaces=namespaces,
            publishing=part.startswith("publish"),
        )
    for kind, door, title in (
        ("ack", "sio", "Socket.IO: acknowledgements"),
        ("echo", "ws", "raw WebSocket: echo"),
    ):
        for connections, depth, how in (
            (IN_FLIGHT, 1, f"one in flight on each of {IN_FLIGHT} clients"),
            (1, IN_FLIGHT, f"{IN_FLIGHT} in flight on one client"),
        ):
            yield RoundTrip(
                id=f"{kind}-{connections}x{depth}",
                title=f"{title}, {how}",
                unit="round trip",
                door=door,
                clients=0,
                kind=kind,
                connections=connections,
                depth=depth,
            )
    yield Publish(
        id="publish",
        title=f"HTTP: publications by {PUBLISHERS} clients, one subscriber",
        unit="publication",
        door="",
        clients=1,
    )
    for door, title in TITLES.items():
        yield Connects(
            id=f"connects-{door}",
            title=f"{title}: connects, handshake to welcome, {CONCURRENCY} at a time",
            unit="connect",
            door=door,
            clients=0,
        )
    for door, title in TITLES.items():
        yield Idle(
            id=f"idle-{door}",
            title=f"{title}: memory of an idle connection",
            unit="connection",
            door=door,
            clients=0,
        )


# In the order they are asked.
QUESTIONS: Final = tuple(_questions())
