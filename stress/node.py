"""A node under stress: `crossband serve stress.node:hub`. It publishes numbers while it is told to.

It prints a line for each that was published, `published 123`, or was not, `failed 123 …`, and
`started 4`, `hushed 4` with its process id.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from pathlib import Path
from typing import Final

from crossband import Emission, Hub, Socket
from crossband.errors import BrokerUnavailable
from stress.ledger import SOURCE

# A file: while it is there, numbers are published.
SWITCH: Final = Path(os.environ["STRESS_SWITCH"])
# Numbers a second.
RATE: Final = float(os.environ["STRESS_RATE"])
# A process that is started again is another source.
ME: Final = os.getpid() * SOURCE

# Clients that were cut come back soon, and soon notice a node that says nothing.
hub = Hub(retry=0.3, ping_interval=3.0, ping_timeout=3.0)


@hub.on("connect")
async def connect(socket: Socket) -> None:
    # A recovered client is in its rooms already.
    if not socket.recovered:
        await socket.join("stress")


def say(line: str) -> None:
    # In one write, so that lines of several processes do not mix.
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def settle(number: int, emission: Emission) -> None:
    try:
        await emission
    except BrokerUnavailable as error:
        say(f"failed {number} {error}")
    else:
        say(f"published {number}")


async def publish() -> None:
    """Publish while the switch is on; say `hushed` when it is off and nothing is on its way."""
    numbers = itertools.count(ME)
    while True:
        async with asyncio.TaskGroup() as emissions:
            while SWITCH.exists():
                number = next(numbers)
                emission = (hub.to("stress") if number % 2 else hub).emit("number", number)
                emissions.create_task(settle(number, emission))
                await asyncio.sleep(1 / RATE)
        say(f"hushed {os.getpid()}")
        while not SWITCH.exists():  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.01)


@hub.on_start
async def start() -> None:
    say(f"started {os.getpid()}")
    hub.spawn(publish())
