"""Traffic for the dashboard of a lone visitor: a namespace where all hear what each says.

The page that asks for traffic is its clients; here are the bounds.
"""

from __future__ import annotations

import time
from typing import Final

from crossband import ConnectionRefused, EventError, Hub, Namespace, Socket
from crossband.demo.chat import Allowance

# Clients of all pages together: four pages' worth.
CLIENTS: Final = 24
# Messages of all of them at once and per second: two pages' worth. Each goes to every client,
# which makes 960 deliveries a second at the most.
RATE: Final = 40.0


class Traffic:
    """Lets clients talk in the namespace `/traffic`, so many of them and so much.

    At most `clients`; all together may say `burst` messages at once, then `rate` per second.
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
        """Tell a number to everybody."""
        seconds = self._allowance.take(time.monotonic())
        if seconds:
            raise EventError(code="rate_limited", retryAfter=round(seconds, 3))
        # Volatile: nobody comes back for it, and no history has to hold it.
        self.namespace.volatile.emit("said", number)
