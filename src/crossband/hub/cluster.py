"""Answers other nodes: what they may do here, and what they may know of this node's clients."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any, Final, Protocol

import msgspec

from crossband.broker.bus import HEARTBEAT, SILENCE
from crossband.broker.sessions import fit, fit_data
from crossband.errors import BrokerUnavailable, EventError
from crossband.hub import messages, serverside
from crossband.hub.departures import Departures
from crossband.hub.directory import Directory
from crossband.hub.messages import Choice, Done, Gathered, Handed, Located, Profile
from crossband.hub.namespace import Socket
from crossband.hub.node import Node
from crossband.hub.presence import renew_all
from crossband.hub.quotas import Quotas
from crossband.hub.resumption import Resumptions
from crossband.hub.revocations import Revocations
from crossband.hub.status import Status

logger: Final = logging.getLogger("crossband")

# Headers of a client that other nodes may see: none that can contain a secret.
_SHOWN = ("accept-language", "host", "origin", "user-agent")


class Exchanges(Protocol):
    """What the doors of this node do for the clients of others, and have them do."""

    def hear(
        self, sender: str, message: messages.Exchange
    ) -> Awaitable[bytes | None] | bytes | None:
        """Handle another node's message, and return the answer."""

    def left(self, node: str) -> None:
        """End what is under way with a node that has gone."""


class Cluster:
    """This node among the others."""

    def __init__(
        self,
        node: Node,
        directory: Directory,
        revocations: Revocations,
        quotas: Quotas,
        resumptions: Resumptions,
        departures: Departures,
        status: Status,
    ) -> None:
        self._node = node
        self._directory = directory
        self._revocations = revocations
        self._quotas = quotas
        self._resumptions = resumptions
        self._departures = departures
        self._status = status
        # Of the doors. None until they open.
        self.exchanges: Exchanges | None = None
        # None until started.
        self._beating: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Catch up on earlier revocations, and send heartbeats from now on."""
        await self._revocations.start()
        # A bus inside this process needs no heartbeats: it lives as long as the process.
        if not self._node.publishes_at_once:
            self._beating = asyncio.ensure_future(self._beat())

    async def stop(self) -> None:
        """Stop the heartbeats."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating])
            self._beating = None
        self._resumptions.stop()

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        heard = loop.time()
        while True:
            self._node.sessions.renew(self._node.id)
            await asyncio.sleep(HEARTBEAT)
            try:
                self._quotas.tell_used()
                await self._revocations.catch_up()
                away, heard = loop.time() - heard, loop.time()
                if away > SILENCE:
                    self._look_after()
                await renew_all(
                    namespace.presences
                    for namespace in self._directory.namespaces.values()
                    if namespace.presences.active and namespace.sockets
                )
            except BrokerUnavailable:
                # It will be back; then what was missed is asked for again.
                continue
            except Exception:
                logger.exception("a heartbeat of this node failed")

    def _look_after(self) -> None:
        """Keep the sessions of this node's clients.

        Called when this node was out of reach for so long that it counted as gone: its sessions
        count as abandoned. Whatever another node took is not saved, and its client is ended
        (`Receiver.taken`): what that node had to say was lost.
        """
        for namespace in self._directory.namespaces.values():
            for socket in namespace.sockets.values():
                self._node.sessions.save(socket.record)

    # What others ask.

    def left(self, node: str) -> None:
        """Note that a node has gone."""
        if self.exchanges is not None:
            self.exchanges.left(node)

    def hear(self, sender: str, body: bytes) -> Awaitable[bytes | None] | bytes | None:
        """Handle another node's message, and return the answer."""
        try:
            message = messages.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            logger.error("dropped a message of node %s that does not fit: %s", sender, error)
            return None
        if isinstance(message, messages.Exchange):
            return None if self.exchanges is None else self.exchanges.hear(sender, message)
        if isinstance(message, messages.Gather):
            return asyncio.ensure_future(self._gather(message))
        if isinstance(message, messages.Locate):
            return asyncio.ensure_future(self._locate(message))
        if isinstance(message, (messages.Join, messages.Leave, messages.Disconnect)):
            return asyncio.ensure_future(self._do(message))
        if isinstance(message, messages.Fetch):
            return self._fetch(message)
        if isinstance(message, messages.Used):
            self._quotas.charge(message.users)
            return None
        if isinstance(message, messages.ServerEvent):
            return self._handle(message)
        if isinstance(message, messages.Departing):
            return asyncio.ensure_future(self._departed(message))
        if isinstance(message, messages.Hand):
            if self._resumptions.is_taking(message.namespace, message.key):
                return asyncio.ensure_future(self._hand_later(message))
            return messages.encode(self._hand(message))
        return messages.encode(self._answer(message))

    def _answer(
        self,
        message: (messages.Count | messages.Revoked | messages.CountUser | messages.Report),
    ) -> Any:
        if isinstance(message, messages.Count):
            return len(self._chosen(message.choice))
        if isinstance(message, messages.Report):
            return self._status.here()
        if isinstance(message, messages.Revoked):
            return self._revocations.heard(message)
        return self._quotas.count_of(message.user) - self._replaced(message)

    def _chosen(self, choice: Choice) -> list[Socket]:
        namespace = self._directory.namespaces.get(choice.namespace)
        return [] if namespace is None else namespace.clients.match(choice.rooms, choice.except_)

    def _fetch(self, message: messages.Fetch) -> bytes:
        chosen = [each for each in self._chosen(message.choice) if each.id > message.after]
        # A page goes on after its last id, whoever came or left meanwhile.
        chosen.sort(key=lambda socket: socket.id)
        return messages.fetched(map(profile_of, chosen))

    def _replaced(self, message: messages.CountUser) -> int:
        """Return 1 if the client that is connecting there is still connected here."""
        namespace = self._directory.namespaces.get(message.namespace)
        live = None if namespace is None or not message.key else namespace.clients.live(message.key)
        return int(
            live is not None and live.identity is not None and live.identity.user == message.user
        )

    def _hand(self, message: messages.Hand) -> Handed:
        """End a client that came back at another node, and return what is known of it."""
        namespace = self._directory.namespaces.get(message.namespace)
        live = None if namespace is None else namespace.clients.live(message.key)
        if live is not None and live.record.take >= message.take:
            return Handed(None)
        session = None
        if live is not None:
            self._departures.replace(live)
            session = fit(live.record)
        leaving = self._departures.of(message.namespace, message.key) is not None
        return Handed(session, leaving)

    def _handle(self, message: messages.ServerEvent) -> Awaitable[bytes | None] | None:
        """Run the handler of a server event; None if this node has none."""
        namespace = self._directory.find(message.namespace)
        schema = None if namespace is None else namespace.registry.server.get(message.event)
        if schema is None:
            logger.debug("no handler for the server event %r", message.event)
            return None
        return self._node.run_to_end(serverside.handle(schema, message))

    async def _departed(self, message: messages.Departing) -> bytes:
        departure = self._departures.of(message.namespace, message.key)
        if departure is not None:
            await asyncio.wait([departure])
        return messages.encode(True)

    async def _hand_later(self, message: messages.Hand) -> bytes:
        """Hand over a session that is itself still being taken, or whose client waits."""
        session = await self._resumptions.hand_over(message.namespace, message.key, message.take)
        handed = self._hand(message)
        if handed.session is None and session is not None:
            handed = Handed(fit(session), handed.leaving)
        return messages.encode(handed)

    async def _do(self, message: messages.Join | messages.Leave | messages.Disconnect) -> bytes:
        done = Done()
        for socket in self._chosen(message.choice):
            try:
                if isinstance(message, messages.Join):
                    await socket.join(*message.names)
                elif isinstance(message, messages.Leave):
                    await socket.leave(*message.names)
                else:
                    await socket.disconnect(message.close)
            except EventError as error:
                done = Done(error.code, error.message, error.details)
        return messages.encode(done)

    async def _locate(self, message: messages.Locate) -> bytes:
        namespace = self._directory.namespaces.get(message.namespace)
        if namespace is None:
            return messages.encode(Located(None))
        return messages.encode(
            await self._resumptions.locator.locate(namespace, message.key, message.offset)
        )

    async def _gather(self, message: messages.Gather) -> bytes:
        choice = message.choice
        namespace = self._directory.namespaces.get(choice.namespace)
        if namespace is None:
            return messages.encode(Gathered([], 0))
        answers, missing = await namespace.fanout.collect(
            message.event, message.payload, choice.rooms, choice.except_, message.timeout
        )
        return messages.gathered(answers, missing)


def profile_of(socket: Socket) -> Profile:
    """Return what other nodes may know about a client."""
    handshake = socket.handshake
    return Profile(
        socket.id,
        sorted(socket.rooms),
        fit_data(socket.data),
        socket.transport,
        None if socket.identity is None else socket.identity.user,
        handshake.address,
        handshake.time,
        handshake.path,
        handshake.secure,
        {name: handshake.headers[name] for name in _SHOWN if name in handshake.headers},
    )
