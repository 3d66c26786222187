"""A client of another node: what is known of it here, and what can be done with it."""

from __future__ import annotations

from typing import Any, Final

from crossband.errors import AckTimeout, Disconnected
from crossband.handshake import Handshake
from crossband.hub.emission import ACK_TIMEOUT, Emission
from crossband.hub.fanout import Fanout
from crossband.hub.messages import Choice, Disconnect, Gather, Gathered, Join, Leave, Profile
from crossband.hub.others import ANSWER_TIME, ask, carry_out, profiles
from crossband.names import check_event, check_name
from crossband.protocol import payload


class RemoteSocket:
    """A client of another node, as `fetch_sockets` found it, for what works from afar.

    `rooms` and `data` are copies from when it was fetched. A client that has since come back on
    another node is asked in vain; `emit`, and `hub.to(remote.id)`, reach it wherever it is.
    """

    __slots__ = ("_fanout", "data", "handshake", "id", "node", "rooms", "transport", "user")

    def __init__(self, fanout: Fanout[Any], node: str, profile: Profile) -> None:
        self._fanout = fanout
        # The node that serves it.
        self.node: Final = node
        self.id: Final = profile.id
        self.rooms: Final = frozenset(profile.rooms)
        self.data: Final = profile.data
        # "websocket", "polling" or "sse".
        self.transport: Final = profile.transport
        # The user; None for an anonymous client.
        self.user: Final = profile.user
        # Without anything that may be secret: no query, no auth, few headers.
        self.handshake: Final = Handshake(
            transport=profile.transport,
            headers=profile.headers,
            query={},
            address=profile.address,
            time=profile.time,
            path=profile.path,
            secure=profile.secure,
        )

    def __repr__(self) -> str:
        return f"<RemoteSocket {self.id} in {self._fanout.name!r} on node {self.node}>"

    @property
    def _choice(self) -> Choice:
        return Choice(self._fanout.name, (self.id,))

    async def join(self, *rooms: str) -> None:
        """Make it join rooms. Raises EventError past the limit, or EncodeError."""
        names = tuple(check_name(room, "a room name") for room in rooms)
        await carry_out(self._fanout.bus, Join(self._choice, names), [self.node])

    async def leave(self, *rooms: str) -> None:
        """Make it leave rooms; nothing happens for those it is not in."""
        await carry_out(self._fanout.bus, Leave(self._choice, rooms), [self.node])

    async def disconnect(self, close: bool = False) -> None:
        """Disconnect it for good; with `close`, its whole connection."""
        await carry_out(self._fanout.bus, Disconnect(self._choice, close), [self.node])

    def emit(self, event: str, *args: Any) -> Emission:
        """Send it an event. As `Socket.emit`: recorded, so it can be resumed."""
        return self._fanout.publish(event, args, (self.id,), (), False)

    async def emit_with_ack(self, event: str, *args: Any, timeout: float = ACK_TIMEOUT) -> Any:
        """Send it an event and return its acknowledgement.

        The event is not recorded. Raises AckTimeout after `timeout` seconds, and Disconnected if
        it has left.
        """
        question = Gather(self._choice, check_event(event), payload.encode(args), timeout)
        given, _ = await ask(
            self._fanout.bus, question, Gathered, to=[self.node], timeout=timeout + ANSWER_TIME
        )
        for _, gathered in given:
            if gathered.answers:
                return gathered.answers[0]
            if not gathered.missing:
                raise Disconnected("the client has left")
        raise AckTimeout(f"no acknowledgement of {event!r} within {timeout:g} s")


async def fetch(fanout: Fanout[Any], choice: Choice) -> list[RemoteSocket]:
    """Return the chosen sockets of other nodes."""
    return [RemoteSocket(fanout, node, each) for node, each in await profiles(fanout.bus, choice)]
