"""How a client resumes its session, and which of several that ask for one session has it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from typing import Any, Final

from crossband.auth import Identity
from crossband.broker import Session
from crossband.broker.bus import HEARTBEAT
from crossband.codecs import Codec
from crossband.connection import Connection
from crossband.errors import BrokerUnavailable, Gap
from crossband.handshake import Handshake
from crossband.hub.access import Access
from crossband.hub.attempt import Admission, Endings, Resume, Taking
from crossband.hub.catchup import CatchUp
from crossband.hub.data import SocketData, merged
from crossband.hub.departures import DEPARTURE_TIME
from crossband.hub.locator import Locator
from crossband.hub.messages import Departing, Hand, Handed
from crossband.hub.namespace import Namespace, Socket
from crossband.hub.node import Node
from crossband.hub.others import ask, ask_one
from crossband.names import new_id


class Resumptions:
    """Finds the sessions that clients ask for, and gives each to one client at a time."""

    def __init__(self, node: Node, access: Access) -> None:
        self._node = node
        self._access = access
        self.locator: Final = Locator(node)
        # Admissions that have taken their session and are being answered, by namespace and key.
        self._opening: dict[tuple[str, str], Admission] = {}
        # What is being taken, whether or not its client still waits: the last of each session.
        self._takings: dict[tuple[str, str], Taking] = {}
        # What goes on although no client waits for it.
        self._unfinished: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """End what no client waits for."""
        for task in self._unfinished:
            task.cancel()

    def _go_on(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(coroutine)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return task

    async def resume(
        self,
        namespace: Namespace,
        connection: Connection,
        handshake: Handshake,
        codec: Codec,
        resume: Resume,
        identity: Identity | None,
        revocations: int,
        attempt: int,
        endings: Endings,
    ) -> Admission:
        user = None if identity is None else identity.user
        session: Session | None = None
        # True if the session is another user's.
        foreign = False
        gap: str | None = None
        catch_up: CatchUp | None = None
        cursor = resume.cursor
        if resume.key is not None:
            session = await self._node.sessions.find(namespace.name, resume.key)
            if session is not None and session.user != user:
                session, foreign = None, True
            if session is None and (cursor is not None or resume.returning):
                gap = "session"
            elif session is not None and cursor is None and (resume.returning or resume.unreceived):
                cursor = session.cursor
        rooms = frozenset[str]() if session is None else frozenset(session.rooms)
        if cursor is not None:
            buffer = namespace.replays.open_buffer(
                connection, codec, () if session is None else (session.sid, *rooms)
            )
            sid = None if session is None else session.sid
            try:
                try:
                    missed = await self.locator.missed(namespace.name, cursor, sid)
                except Gap as error:
                    if session is None or not resume.returning or error.reason != "unknown":
                        raise
                    cursor, missed = await self.locator.place_of(namespace, session, cursor)
                if gap is None:
                    catch_up = CatchUp(missed.publications, buffer, cursor, missed.position)
            except Gap as error:
                gap = error.reason
            finally:
                if catch_up is None:
                    namespace.replays.close_buffer(buffer)
        if session is not None and catch_up is not None:
            record = Session(
                session.namespace,
                session.key,
                session.sid,
                set(rooms),
                session.data if type(session.data) is SocketData else merged(session.data, {}, {}),
                session.cursor,
                user,
                session.asked,
                self._node.id,
                session.take,
            )
        else:
            # A new pid tells a Socket.IO client that it was not recovered; a key that the client
            # chose itself is kept, because the client will send it again in any case.
            key = None if resume.returning or foreign else resume.key
            record = self._new_session(namespace, key, user)
            if session is not None and gap is not None and resume.cursor is None:
                # Until the client sends the cursor of the gap, it may not have heard of it: if
                # the connection is cut before that, it is told again.
                record.cursor = session.cursor
        socket = Socket(
            namespace,
            connection,
            codec,
            handshake,
            record,
            recovered=session is not None and catch_up is not None,
            identity=identity,
            attempt=attempt,
        )
        if catch_up is not None:
            # From here on, middlewares know its id.
            catch_up.buffer.ids = socket.rooms
        return Admission(
            endings,
            socket,
            cursor,
            gap,
            catch_up,
            session,
            rooms,
            revocations,
            keeps_key=catch_up is not None or not resume.returning,
        )

    def _new_session(self, namespace: Namespace, key: str | None, user: str | None) -> Session:
        key = key if key is not None else secrets.token_urlsafe(24)
        head = self._node.broker.head(namespace.name)
        return Session(
            namespace.name, key, new_id(), set(), SocketData(), head, user, owner=self._node.id
        )

    async def take(self, admission: Admission) -> None:
        """Take the session that a client asks for; of several attempts, the last has it."""
        session = admission.session
        if session is None:
            return
        place = (session.namespace, session.key)
        live = admission.socket.namespace.clients.live(session.key)
        if live is not None and live.attempt > admission.socket.attempt:
            # Meanwhile the client has connected in another way, and no longer waits here.
            self._start_anew(admission)
            return
        before = self._taking(place)
        earlier = self._opening.get(place)
        if earlier is not None:
            # Its client is not answered yet; if it is still there, it starts afresh.
            self._start_anew(earlier)
        taking = admission.taking = self._begin_taking(session, before)
        self._opening[place] = admission
        taken = None
        try:
            taken = await asyncio.shield(taking.known)
        except BaseException:
            # The store may have given it to this node all the same.
            taking.known.add_done_callback(lambda _: self._put_back(admission, taking, place))
            raise
        finally:
            if taken is None and self._opening.get(place) is admission:
                del self._opening[place]
        if admission.session is None:
            # A later attempt came while this one waited.
            return
        if taken is None:
            # Ended or revoked during the checks, or started afresh by another client.
            self._start_anew(admission)
            return
        self.follow(admission, taken)
        record = admission.socket.record
        # Else the old session is dropped, and one under another key begun.
        record.take = taken.take if admission.keeps_key else 0
        admission.session, admission.taken = taken, True

    def _taking(self, place: tuple[str, str]) -> Taking | None:
        """Return how a session came to this node, until its client is answered."""
        taking = self._takings.get(place)
        if taking is None and (admission := self._opening.get(place)) is not None:
            taking = admission.taking
        return taking

    def _begin_taking(self, session: Session, before: Taking | None) -> Taking:
        """Take a session to the end, so that a client that leaves does not leave it taken."""
        place = (session.namespace, session.key)
        given = asyncio.ensure_future(self._node.sessions.take(session, self._node.id))
        taking = self._takings[place] = Taking(given)
        taking.known = asyncio.ensure_future(self._learn(taking, before))

        def done(_: asyncio.Future[Session | None]) -> None:
            if self._takings.get(place) is taking:
                del self._takings[place]

        taking.known.add_done_callback(done)
        return taking

    async def _learn(self, taking: Taking, before: Taking | None) -> Session | None:
        """Return a session that this node is given, as the client's last node knew it."""
        taken = await taking.given
        if taken is None:
            return None
        latest: Session | None = None
        previous, taken.owner = taken.owner, self._node.id
        if previous != self._node.id:
            if previous in self._node.bus.members:
                # End the client there first, so that only one node serves it at a time.
                hand = Hand(taken.namespace, taken.key, taken.take)
                handed = await ask_one(self._node.bus, hand, Handed, previous)
                if handed is not None:
                    latest = handed.session
                    if handed.leaving:
                        taking.leaving = previous
                else:
                    self._go_on(self._insist(hand, previous))
        elif before is not None:
            # An earlier attempt of the client on this node; it may still be asking.
            latest = await before.outcome()
            taking.leaving = before.leaving
        if latest is not None and latest.sid == taken.sid:
            taken.rooms, taken.data, taken.asked = latest.rooms, latest.data, latest.asked
        return taken

    async def _insist(self, hand: Hand, node: str) -> None:
        """Ask a node that did not hear until it does: it may still serve the client."""
        missing = {node}
        while missing and node in self._node.bus.members and not self._node.stopping:
            _, missing = await ask(self._node.bus, hand, Handed, to=[node])

    async def hand_over(self, namespace: str, key: str, take: int) -> Session | None:
        """Give up a session that another node took; return it as it is known here.

        A client that is not answered yet starts afresh. Nothing happens if this node took the
        session later than the other: an earlier taker never waits for a later one.
        """
        place = (namespace, key)
        taking = self._taking(place)
        if taking is None:
            return None
        number = await taking.number()
        if number is None or number >= take:
            return None
        admission = self._opening.get(place)
        if admission is not None and admission.taking is taking:
            del self._opening[place]
            self._start_anew(admission)
        return await taking.outcome()

    def departure(self, taking: Taking, session: Session | None) -> asyncio.Task[None] | None:
        """Return the client's departure from the node it came from; None if it is over."""
        if taking.leaving is None or session is None:
            return None
        return self._go_on(self._departed(session.namespace, session.key, taking.leaving))

    async def _departed(self, namespace: str, key: str, node: str) -> None:
        question = Departing(namespace, key)
        await ask(self._node.bus, question, bool, to=[node], timeout=DEPARTURE_TIME)

    def is_taking(self, namespace: str, key: str) -> bool:
        """Return whether a session is on its way to a client of this node."""
        return self._taking((namespace, key)) is not None

    def follow(self, admission: Admission, session: Session) -> None:
        """Take over changes to a session since it was last read."""
        socket = admission.socket
        record = socket.record
        if socket.recovered:
            seen, now = admission.rooms, session.rooms
            record.rooms.difference_update(seen - now)
            record.rooms.update(now - seen)
            record.asked |= session.asked & (now - seen)
            if session.data is not record.data and admission.session is not None:
                record.data = merged(session.data, admission.session.data, record.data)
        admission.rooms = frozenset(session.rooms)

    def _start_anew(self, admission: Admission) -> None:
        """Admit a client without the session it asked for, which is no longer its own."""
        socket = admission.socket
        namespace = socket.namespace
        if admission.catch_up is not None:
            namespace.replays.release(admission.catch_up)
        record = socket.record
        socket.record = self._new_session(namespace, None, record.user)
        if socket.recovered:
            # Keep the rooms it joined during the checks.
            socket.record.rooms = record.rooms - admission.rooms
            socket.record.asked = record.asked & socket.record.rooms
        else:
            socket.record.rooms = record.rooms
            socket.record.asked = record.asked
        socket.recovered = False
        admission.gap = "session"
        admission.catch_up = admission.session = admission.taking = None
        admission.taken = False

    def give_back(self, admission: Admission) -> None:
        """Put back the session of a client that is not admitted after all."""
        self._settle(admission)
        if admission.session is not None and admission.taken:
            self._return(admission, admission.session)

    def _put_back(self, admission: Admission, taking: Taking, place: tuple[str, str]) -> None:
        """Put back a session that no client waits for any more."""
        session = taking.result()
        if session is not None:
            self._return(admission, session)
        elif taking.unanswered:
            self._go_on(self._look_again(admission, *place))

    async def _look_again(self, admission: Admission, namespace: str, key: str) -> None:
        """Put back a session if it was taken although the store's reply was lost.

        Its client may never come back, and it is kept for as long as its owner lives.
        """
        while not self._node.stopping:
            try:
                found = await self._node.sessions.find(namespace, key)
            except BrokerUnavailable:
                await asyncio.sleep(HEARTBEAT)
                continue
            mine = found is not None and found.owner == self._node.id
            if found is not None and mine and not self.is_taking(namespace, key):
                self._return(admission, found)
            return

    def _return(self, admission: Admission, session: Session) -> None:
        live = admission.socket.namespace.clients.live(session.key)
        if live is None:
            if not self._access.revoked_since(session.user, admission.revocations):
                self._node.sessions.release(session)
        elif live.record.take < session.take:
            # Its old connection, or another client that has since taken the key.
            live.record.take = session.take
            self._node.sessions.save(live.record)

    def opened(self, admission: Admission) -> None:
        """Note that a client is answered: it has its session, or a new one."""
        self._settle(admission)
        session = admission.session
        if session is not None and admission.taken and not admission.keeps_key:
            self._node.sessions.drop(session)

    def _settle(self, admission: Admission) -> None:
        session = admission.session
        if session is not None:
            place = (session.namespace, session.key)
            if self._opening.get(place) is admission:
                del self._opening[place]
