"""The contract of a presence store: who is in a room, over all nodes.

`tests/broker/test_presence.py` is the same contract as tests.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from crossband.protocol import payload
from crossband.protocol.payload import Payload

# Members in a page: at the bound of their info, half a megabyte.
MEMBERS_PAGE: Final = 500
# Bytes of a member's info as JSON, as in Pusher: every client in the room gets it.
MAX_INFO: Final = 1_024


class Member(msgspec.Struct, frozen=True):
    """Someone in a room: a user, over all tabs, doors and nodes, or an anonymous client."""

    # The user's name, or the client's socket id.
    id: str
    # What others may see of it: JSON values, at most 1,024 bytes of JSON.
    info: Any = None


class Presence(msgspec.Struct, frozen=True):
    """The rooms in which one client shows, and as whom."""

    namespace: str
    sid: str
    rooms: Mapping[str, Member]
    # The node that serves the client.
    owner: str
    # How many times its session was taken: calls of earlier owners no longer count.
    take: int = 0
    # The user it connected as. None for anonymous clients.
    user: str | None = None
    # Seconds for which it stays where it is after its connection was cut.
    grace: float = 0.0


class Members(msgspec.Struct, frozen=True):
    """Members of a room, in the order in which they joined."""

    members: list[Member]
    # How many members the room has.
    count: int
    # Where in the namespace's order this is true.
    cursor: str
    position: int
    # What to ask for the next page with. None if there are no more members.
    next: int | None = None


class PresenceStore(ABC):
    """Knows the members of rooms on all nodes, and publishes how they change.

    Each change of a room's members is one atomic step with the publication that tells of it:
    `presence:join` for the first client of a member, `presence:leave` after the last, and
    `presence:update` for new info. They are recorded and delivered as all publications are.

    A node must renew its lease every LEASE seconds, for each namespace. Clients of a node
    without a lease count as cut.

    Calls that return nothing are queued at once and in order, after what the node published
    before, even if the store is elsewhere. Calls that are awaited see what was queued before
    them, and may raise BrokerUnavailable.
    """

    @abstractmethod
    def save(self, presence: Presence, *, connected: bool = True) -> None:
        """Set the rooms of a client; without rooms it leaves at once.

        Ignored if another owner took it, also for a while after that one let it leave. Not
        `connected`, it has been cut: it leaves after `grace` seconds unless it is saved again. So
        nothing is published for a client that comes back in time, on whatever node.
        """

    @abstractmethod
    async def renew(self, namespace: str, node: str) -> bool:
        """Show that a node is alive, and let clients leave whose time is up, of any node.

        Returns False if the node had no lease, or the store may have missed a call of it: all
        its clients count as cut then, and the node must save those that are connected again.
        """

    @abstractmethod
    def expel(self, namespace: str, user: str) -> None:
        """Let the clients of a user leave that are cut: they may not come back."""

    @abstractmethod
    async def members(
        self, namespace: str, room: str, *, after: int = 0, limit: int = MEMBERS_PAGE
    ) -> Members:
        """Return members of a room: at most `limit` of them, after those of earlier pages.

        By the time it returns, this node has delivered all up to its position, if it is attached
        to the namespace. Events after the cursor of the first page, applied in order to all
        pages together, give the members at any later time: each event says all of its member.
        """


def change(room: str, member: Member, count: int) -> Payload:
    """Return the data of an event about a member; `count` is how many the room has now."""
    return payload.encode(({"room": room, "member": member, "count": count},))
