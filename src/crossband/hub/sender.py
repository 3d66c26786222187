"""What handling events needs from a client and its namespace.

Protocols, so that dispatch, the inbox and the answers are below `Socket`, which uses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from crossband.codecs import Codec, Wire
from crossband.handlers.events import Handler
from crossband.handlers.registry import Registry
from crossband.hub.catchup import CatchUp
from crossband.hub.node import Node
from crossband.hub.traffic import Counted, Traffic


class Channel(Protocol):
    """A sender's namespace: its handlers, and the node that serves it."""

    @property
    def name(self) -> str: ...
    @property
    def node(self) -> Node: ...
    @property
    def traffic(self) -> Traffic: ...
    @property
    def registry(self) -> Registry: ...
    @property
    def publishes_at_once(self) -> bool:
        """Whether what a handler emits is published when the handler ends."""
        ...

    @property
    def reserved(self) -> Mapping[str, Handler]:
        """The hub's own handlers, by reserved event: `handler(socket, args)`, all async."""
        ...


class Sender(Counted, Protocol):
    """A client whose events are handled."""

    @property
    def namespace(self) -> Channel: ...
    @property
    def codec(self) -> Codec: ...
    @property
    def connected(self) -> bool: ...
    @property
    def catching(self) -> CatchUp | None:
        """What it must still catch up with. None once it is live."""

    @property
    def owed(self) -> int:
        """The number of acknowledgements it owes the server."""
        ...

    def send(self, wire: Wire) -> None:
        """Send an unpublished message, after all that was sent before."""
