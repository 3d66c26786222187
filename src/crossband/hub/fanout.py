"""The fan-out of a namespace: from a published event to its recipients' outboxes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar

from crossband.broker import Bus, Publication
from crossband.codecs import PLAIN, Codec, Wire, tag_of
from crossband.connection import Connection
from crossband.errors import AckTimeout, CrossbandError
from crossband.hub.catchup import CatchUp, ReplayBuffer
from crossband.hub.emission import Emission, Writable
from crossband.hub.messages import Choice, Gather, encode_fitting
from crossband.hub.node import Node
from crossband.hub.others import count, gather
from crossband.hub.places import Places
from crossband.hub.rooms import Member, Rooms
from crossband.names import check_event
from crossband.policies import Policy
from crossband.protocol import payload
from crossband.protocol.payload import Payload

logger: Final = logging.getLogger("crossband")


# Seconds a thread has to ask for the result of an emission that failed, before that is logged.
RESULT_TIME: Final = 1.0


class Recipient(Member, Writable, Protocol):
    """What fan-out needs from a client."""

    # None unless recorded events must still be sent before live ones.
    catching: CatchUp | None

    @property
    def connection(self) -> Connection: ...
    @property
    def codec(self) -> Codec: ...
    @property
    def connected(self) -> bool: ...
    @property
    def rooms(self) -> frozenset[str]:
        """The rooms it is in, including that of its own id."""
        ...

    def expect_ack(self, ack_id: int) -> asyncio.Future[Any]:
        """Return the future of an answer. Raises CrossbandError if there can be none."""
        ...

    def forget_ack(self, ack_id: int) -> None: ...
    def ask(self, wire: Wire) -> None:
        """Send a message that asks for an acknowledgement."""

    def send(self, wire: Wire) -> None:
        """Send an unpublished message, after all that was sent before."""


R = TypeVar("R", bound=Recipient)


class Fanout(Generic[R]):
    """Publishes the events of a namespace, and delivers them to their recipients."""

    __slots__ = ("_node", "_policies", "_traffic", "buffers", "clients", "name", "places")

    def __init__(
        self, node: Node, name: str, policies: Mapping[str, Policy], clients: Rooms[R]
    ) -> None:
        self._node = node
        self._traffic = node.traffic
        self.name: Final = name
        # By event.
        self._policies = policies
        self.clients: Final = clients
        # Everything recorded also goes into these while clients catch up.
        self.buffers: list[ReplayBuffer] = []
        self.places: Final = Places()

    @property
    def bus(self) -> Bus:
        """The way to the other nodes."""
        return self._node.bus

    def publish(
        self,
        event: str,
        args: Sequence[Any],
        rooms: tuple[str, ...],
        except_: tuple[str, ...],
        volatile: bool,
    ) -> Emission:
        """Encode an event and hand it to the broker, which calls `deliver`."""
        event = check_event(event)
        data = payload.encode(args)
        policy = self._policies.get(event)
        if policy is None or policy.dropping is None or volatile:
            record = not volatile
            publication = Publication(self.name, event, data, rooms, except_)
        else:
            record = False
            publication = Publication(
                self.name, event, data, rooms, except_, None, policy.dropping, policy.key(args)
            )
        self._traffic.published += 1
        outcome = self._node.post(publication, record=record)
        # With several recipients the slowest must not set the pace: it would hold up the others.
        only = self.clients.by_id.get(rooms[0]) if len(rooms) == 1 else None
        emission = Emission(outcome, self._node.pace if only is None else only)
        if outcome is not None and not isinstance(outcome, str):
            outcome.add_done_callback(functools.partial(self._settled, emission))
        return emission

    def _settled(
        self,
        emission: Emission,
        outcome: asyncio.Future[str | None] | concurrent.futures.Future[str | None],
    ) -> None:
        """Note an event that could not be published if nobody awaits it."""
        if outcome.cancelled() or (error := outcome.exception()) is None:
            return
        if isinstance(outcome, concurrent.futures.Future):
            # The thread that emitted it may be about to ask for the result.
            loop = asyncio.get_running_loop()
            loop.call_later(RESULT_TIME, self._note_failure, emission, error)
        else:
            self._note_failure(emission, error)

    def _note_failure(self, emission: Emission, error: BaseException) -> None:
        if not emission.awaited:
            self._traffic.not_published(self.name, error)

    def tell_lost(self, sid: str | None = None) -> None:
        """Tell all clients of a gap, or one of them: the broker has proof of a loss."""
        head = self._node.broker.head(self.name)
        # A client that is catching up is told in order, even before its welcome.
        for buffer in self.buffers:
            if sid is not None and sid not in buffer.ids:
                continue
            self._traffic.gap("lost")
            notice = buffer.codec.gap(self.name, reason="lost", offset=head)
            if notice is not None:
                buffer.keep(notice)
        for recipient in list(self.clients.by_id.values()):
            if recipient.catching is None and sid in (None, recipient.id):
                self._traffic.gap("lost")
                notice = recipient.codec.gap(self.name, reason="lost", offset=head)
                if notice is not None:
                    recipient.send(notice)

    def deliver(self, publication: Publication) -> None:
        """Deliver a publication to its recipients. Hot: the loop runs once per recipient.

        `Connection.push` is inlined: a call for each recipient was a quarter of the cost.
        """
        recorded = publication.cursor is not None
        # Otherwise it is volatile.
        lasting = recorded or publication.policy is not None
        if lasting:
            for buffer in self.buffers:
                buffer.take(publication)
        recipients = self.clients.match(publication.rooms, publication.except_)
        # Another node's recipient may come here next, and show it for its offset.
        if not recorded and (recipients or self.bus.members) and self.places.has_one(publication):
            self.places.note(publication, self._node.broker.head(self.name))
        if not recipients:
            return
        self._traffic.delivered += len(recipients)
        ticker = self._node.ticker
        wires: dict[Codec, Wire | None] = {}
        current: Codec | None = None
        wire: Wire | None = None
        size = 0
        for recipient in recipients:
            connection = recipient.connection
            # A client that catches up gets it from its replay buffer, in order.
            if recipient.catching is not None or connection.closed:
                continue
            if not lasting and connection.behind:
                continue
            codec = recipient.codec
            if codec is not current:
                if codec not in wires:
                    wires[codec] = self.encode(codec, publication)
                current, wire = codec, wires[codec]
                size = 0 if wire is None else wire.size
            # None means that this codec cannot carry it.
            if wire is None:
                continue
            connection.queue.append(wire)
            connection.queued += size
            if connection.queued > connection.limit:
                connection.overfull()
            if not connection.dirty:
                connection.dirty = True
                ticker.schedule().append(connection)

    async def count(self, rooms: tuple[str, ...], except_: tuple[str, ...]) -> int:
        """Return how many clients this choice has, on all nodes."""
        here = len(self.clients.match(rooms, except_))
        if self.bus.members:
            here += await count(self.bus, Choice(self.name, rooms, except_))
        return here

    def encode(self, codec: Codec, publication: Publication) -> Wire | None:
        """Return an event in a codec's form; None if it has none and needs no cursor."""
        try:
            wire = codec.event(publication)
            wire.tag = tag_of(publication)
            return wire
        except Exception as error:
            # If one door cannot carry it, the others still get it.
            logger.error(
                "%r of namespace %r has no form for %s: %s",
                publication.event,
                self.name,
                type(codec).__name__,
                error,
                exc_info=error if logger.isEnabledFor(logging.DEBUG) else None,
            )
        if publication.cursor is None:
            return None
        # Its clients go on after it, and must know that something is missing.
        self._traffic.gap("unencodable")
        return codec.gap(self.name, reason="unencodable", offset=publication.cursor)

    async def gather(
        self,
        event: str,
        args: Sequence[Any],
        rooms: tuple[str, ...],
        except_: tuple[str, ...],
        *,
        timeout: float,
    ) -> list[Any]:
        """Send an event to clients and return their answers; see `Emitter.emit_with_ack`."""
        event = check_event(event)
        data = payload.encode(args)
        if self.bus.members:
            elsewhere = Gather(Choice(self.name, rooms, except_), event, data, timeout)
            # Before anybody is asked, here or there.
            encode_fitting(elsewhere)
            own, others = await asyncio.gather(
                self.collect(event, data, rooms, except_, timeout), gather(self.bus, elsewhere)
            )
            responses, missing = own[0] + others[0], own[1] + others[1]
        else:
            responses, missing = await self.collect(event, data, rooms, except_, timeout)
        if missing:
            raise AckTimeout(
                f"{len(responses)} of {len(responses) + missing} clients acknowledged {event!r} "
                f"within {timeout:g} s",
                responses,
            )
        return responses

    async def collect(
        self,
        event: str,
        data: Payload,
        rooms: tuple[str, ...],
        except_: tuple[str, ...],
        timeout: float,
    ) -> tuple[list[Any], int]:
        """Send this node's clients an event; return answers and how many are missing."""
        publication = Publication(self.name, event, data, rooms, except_)
        # One id for all, so that the packet is encoded once.
        ack_id = self._node.next_ack_id()
        wires: dict[Codec, Wire] = {}
        answers: list[asyncio.Future[Any]] = []
        asked: list[tuple[R, Wire]] = []
        for recipient in self.clients.match(rooms, except_):
            codec = recipient.codec
            if codec is PLAIN:
                continue
            wire = wires.get(codec)
            if wire is None:
                wire = wires[codec] = codec.event(publication, ack_id=ack_id)
            try:
                answers.append(recipient.expect_ack(ack_id))
            except CrossbandError:
                lost: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                lost.cancel()
                answers.append(lost)
                continue
            asked.append((recipient, wire))
        for recipient, wire in asked:
            recipient.ask(wire)
        if not answers:
            return [], 0
        try:
            await asyncio.wait(answers, timeout=timeout)
        finally:
            for recipient, _ in asked:
                recipient.forget_ack(ack_id)
        responses = [
            answer.result()
            for answer in answers
            if answer.done() and not answer.cancelled() and answer.exception() is None
        ]
        return responses, len(answers) - len(responses)
