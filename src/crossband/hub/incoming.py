"""An event as a door passes it to the hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from crossband.errors import EventError
from crossband.protocol import payload
from crossband.protocol.payload import Payload


class Incoming:
    """An event a client sent, undecoded.

    Its answer goes to `reply` if there is one (the SSE back-channel), else to the socket's
    connection, with `ack_id`.
    """

    __slots__ = ("ack_id", "attachments", "event", "raws", "reply", "single")

    def __init__(
        self,
        event: str,
        raws: Sequence[msgspec.Raw],
        attachments: Sequence[bytes] = (),
        ack_id: int | None = None,
        reply: Callable[[Payload | EventError], None] | None = None,
        single: bool = False,
    ) -> None:
        self.event: Final = event
        self.raws: Final = raws
        self.attachments: Final = attachments
        self.ack_id: Final = ack_id
        self.reply: Final = reply
        # The door carries one value: an array may mean several arguments.
        self.single: Final = single

    @property
    def size(self) -> int:
        """Bytes of the arguments that the client sent."""
        return sum(map(len, self.raws)) + sum(map(len, self.attachments))

    def decode(self) -> list[Any]:
        """Return the arguments as builtins, for listeners without a schema."""
        args = [msgspec.json.decode(raw) for raw in self.raws]
        if self.attachments:
            args = payload.reconstruct(args, self.attachments)
        return args
