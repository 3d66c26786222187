"""Who is in a room: a namespace's side of presence, which the broker's store keeps."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Protocol

import msgspec

from crossband.auth import matches
from crossband.broker import Members, Presence, Session
from crossband.errors import EventError, InvalidMessage
from crossband.handlers.presence import PresenceRule
from crossband.hub.node import Node
from crossband.names import check_name, is_socket_id

logger: Final = logging.getLogger("crossband")

# What whoever asks for the members of another room is told.
NOT_SHOWN: Final = "The room does not show who is in it"
# Namespaces whose leases are renewed at once.
BATCH: Final = 100


class Visible(Protocol):
    """What presence needs from a client."""

    # Where it shows, as the store was last told. None for no room.
    presence: Presence | None

    @property
    def id(self) -> str: ...
    @property
    def record(self) -> Session: ...


class Presences:
    """Tells the broker's store in which rooms the clients of a namespace show."""

    __slots__ = ("_clients", "_name", "_node", "_rules")

    # For rooms that a setting declares.
    _default: Final = PresenceRule("*", None, None)

    def __init__(
        self,
        node: Node,
        name: str,
        rules: Sequence[PresenceRule],
        clients: Mapping[str, Visible],
    ) -> None:
        self._node = node
        self._name = name
        # As declared; the first that matches a room decides.
        self._rules = rules
        # The connected clients of this node.
        self._clients = clients

    def _rule(self, room: str) -> PresenceRule | None:
        if is_socket_id(room):
            return None
        for rule in self._rules:
            if rule.matches(room):
                return rule
        patterns = self._node.settings.presence
        return self._default if any(matches(each, room) for each in patterns) else None

    @property
    def active(self) -> bool:
        """Whether some rooms show who is in them: in most namespaces none does."""
        return bool(self._rules or self._node.settings.presence)

    def declared(self, room: str) -> bool:
        """Return whether a room shows who is in it."""
        return self._rule(room) is not None

    # Clients.

    def show(self, client: Visible) -> None:
        """Tell where a client shows now. Raises what the application's functions raise."""
        record = client.record
        rooms = {}
        grace = 0.0
        for room in record.rooms:
            rule = self._rule(room)
            if rule is None:
                continue
            member = rule.member_of(client, record.user or client.id)
            if member is None:
                continue
            rooms[room] = member
            wait = self._node.settings.presence_grace if rule.grace is None else rule.grace
            grace = max(grace, wait)
        if not rooms and client.presence is None:
            return
        # Nobody can come back after that.
        grace = min(grace, self._node.settings.history_age)
        presence = self._presence(client, rooms, grace)
        if presence != client.presence:
            client.presence = presence if rooms else None
            self._node.broker.presence.save(presence)

    def enter(self, client: Visible, *, returning: bool) -> None:
        """Show a client that is welcomed; it may have shown elsewhere before."""
        try:
            self.show(client)
        except Exception:
            logger.exception("%s does not show in its rooms", client)
        if returning and client.presence is None:
            # What it showed before it was cut is over.
            self._node.broker.presence.save(self._presence(client, {}, 0.0))

    def cut(self, client: Visible) -> None:
        """Note that a client's connection was cut: it may come back."""
        presence = client.presence
        if presence is not None:
            presence = msgspec.structs.replace(presence, take=client.record.take)
            self._node.broker.presence.save(presence, connected=False)

    def leave(self, client: Visible) -> None:
        """Note that a client has left for good."""
        if client.presence is not None:
            client.presence = None
            self._node.broker.presence.save(self._presence(client, {}, 0.0))

    def forget(self, sid: str, take: int) -> None:
        """Note that a client starts afresh, under another socket id."""
        self._node.broker.presence.save(Presence(self._name, sid, {}, self._node.id, take))

    def expel(self, user: str) -> None:
        """Let the clients of a user leave that are cut: they may not come back."""
        self._node.broker.presence.expel(self._name, user)

    def _presence(self, client: Visible, rooms: Mapping[str, Any], grace: float) -> Presence:
        record = client.record
        return Presence(
            self._name, client.id, rooms, self._node.id, record.take, record.user, grace
        )

    # The store.

    async def renew(self) -> None:
        """Renew this node's lease. Raises BrokerUnavailable."""
        store = self._node.broker.presence
        if not await store.renew(self._name, self._node.id):
            for client in list(self._clients.values()):
                if client.presence is not None:
                    store.save(msgspec.structs.replace(client.presence, take=client.record.take))

    async def page(self, room: str, after: int = 0) -> Members:
        """Return members of a room. Raises ValueError unless it was declared."""
        room = check_name(room, "a room name")
        if not self.declared(room):
            raise ValueError(
                f"the room {room!r} of namespace {self._name!r} does not show who is in it: "
                "declare it with presence()"
            )
        return await self._node.broker.presence.members(self._name, room, after=after)

    async def members(self, room: str) -> Members:
        """Return all members of a room; see `Namespace.members`."""
        first = page = await self.page(room)
        found = [first.members]
        while page.next is not None:
            page = await self.page(room, page.next)
            found.append(page.members)
        if len(found) == 1:
            return first
        # Who left and came back meanwhile is on two pages.
        members = {member.id: member for part in found for member in part}
        return msgspec.structs.replace(first, members=list(members.values()), next=None)


async def renew_all(presences: Iterable[Presences]) -> None:
    """Renew this node's leases in these namespaces. Raises BrokerUnavailable."""
    left = list(presences)
    while left:
        batch, left = left[:BATCH], left[BATCH:]
        await asyncio.gather(*(each.renew() for each in batch))


class _Request(msgspec.Struct):
    """What a client sends with `presence:members`."""

    room: str
    # The `next` of the page before. Numbers of JavaScript are exact up to 2^53.
    after: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0


class Asking(Protocol):
    """A client that asks for the members of its room."""

    @property
    def rooms(self) -> frozenset[str]: ...
    @property
    def namespace(self) -> _Showing: ...


class _Showing(Protocol):
    @property
    def presences(self) -> Presences: ...


async def tell_members(socket: Asking, args: list[Any]) -> dict[str, Any]:
    """Return a client the members of a room that it is in. Raises EventError."""
    asked = args[0] if args else None
    try:
        request = msgspec.convert({"room": asked} if isinstance(asked, str) else asked, _Request)
    except msgspec.ValidationError as error:
        raise InvalidMessage(f"Expected a room, or an object with one: {error}") from None
    room = request.room
    if room not in socket.rooms:
        raise EventError("Join the room first", code="forbidden", room=room)
    if not socket.namespace.presences.declared(room):
        raise EventError(NOT_SHOWN, code="not_found", room=room)
    return page_of(room, await socket.namespace.presences.page(room, request.after))


def page_of(room: str, page: Members) -> dict[str, Any]:
    """Return a page of members as clients get it."""
    return {
        "room": room,
        "members": page.members,
        "count": page.count,
        "offset": page.cursor,
        "next": page.next,
    }
