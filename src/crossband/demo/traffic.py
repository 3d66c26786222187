"""Traffic for a lone visitor's dashboard: a namespace where everybody hears everybody.

The page that wants traffic provides the clients; the bounds are here.
"""

from __future__ import annotations

import time
from typing import Final

from crossband import ConnectionRefused, EventError, Hub, Namespace, Socket
from crossband.demo.chat import Allowance

# Clients of all pages together: four pages' worth.
CLIENTS: Final = 24
# Messages of all clients at once and per second: two pages' worth. Each goes to every client:
# at most 960 deliveries a second.
RATE: Final = 40.0


class Traffic:
    """Lets a bounded number of clients talk in the namespace `/traffic`.

    At most `clients` may join; together they may send `burst` messages at once, then `rate` per
    second.
    """

    def __init__(
        self, hub: Hub, *, clients: int = CLIENTS, burst: float = RATE, rate: float = RATE
    ) -> None:
        self.namespace: Namespace = hub.of("/traffic")
        self._clients = clients
        self._allowance = Allowance(burst, rate)
        self.namespace.use(self._admit)
        self.namespace.on("say", self._say)

    async def _admit(self, socket: Socket) -> None:
        if len(self.namespace.sockets) >= self._clients:
            raise ConnectionRefused("There is enough traffic; try again in ten seconds")

    async def _say(self, socket: Socket, number: int) -> None:
        """Send a number to everybody."""
        seconds = self._allowance.take(time.monotonic())
        if seconds:
            raise EventError(code="rate_limited", retryAfter=round(seconds, 3))
        # Volatile: nobody comes back for it, so no history needs to keep it.
        self.namespace.volatile.emit("said", number)
