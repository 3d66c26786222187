"""What `presence()` declares: the rooms that show who is in them, and as whom clients show."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from crossband.broker import Member
from crossband.broker.presence import MAX_INFO
from crossband.errors import EncodeError
from crossband.handlers.callables import check_callable
from crossband.names import check_name
from crossband.protocol import payload

# A room's name, a pattern that matches whole names, or a function that takes a name.
RoomNames = str | re.Pattern[str] | Callable[[str], bool]
# Takes the socket, whose annotation is the application's to choose; None: it does not show.
MemberFunction = Callable[[Any], Member | None]


class PresenceRule:
    """One call of `presence()`."""

    __slots__ = ("_member", "grace", "matches")

    def __init__(
        self, rooms: RoomNames, member: MemberFunction | None, grace: float | None
    ) -> None:
        """Raise TypeError or ValueError for what cannot be used."""
        if isinstance(rooms, str):
            self.matches: Callable[[str], object] = check_name(rooms, "a room name").__eq__
        elif isinstance(rooms, re.Pattern):
            self.matches = rooms.fullmatch
        elif callable(rooms):
            check_callable(rooms, "presence()", "room", plain=True)
            self.matches = rooms
        else:
            raise TypeError(
                f"presence() takes a room, a compiled pattern or a function, not {rooms!r}"
            )
        if member is not None:
            check_callable(member, "presence(member=…)", "socket", plain=True)
        if grace is not None:
            if isinstance(grace, bool) or not isinstance(grace, (int, float)):
                raise TypeError(f"grace is a number of seconds, not {grace!r}")
            if not 0 <= grace < math.inf:
                raise ValueError(f"grace is 0 or more seconds, not {grace!r}")
        self._member = member
        # Seconds; None: as long as the session is kept.
        self.grace: Final[float | None] = grace

    def member_of(self, socket: Any, id: str) -> Member | None:
        """Return as whom a client shows; `id` unless the application says otherwise.

        Raises TypeError or EncodeError for a member that cannot be told to others.
        """
        if self._member is None:
            return Member(id)
        member = self._member(socket)
        if member is None:
            return None
        if not isinstance(member, Member):
            raise TypeError(
                f"presence(member=…) returns a Member or None, not {type(member).__name__}"
            )
        name = check_name(member.id, "a member's id")
        if member.info is None:
            return Member(name)
        # As others get it, so that equal information is equal.
        text = payload.to_json(member.info)
        if len(text) > MAX_INFO:
            raise EncodeError(
                f"a member's info has at most {MAX_INFO} bytes as JSON, not {len(text)}: every "
                "client in the room gets it"
            )
        return Member(name, msgspec.json.decode(text))
