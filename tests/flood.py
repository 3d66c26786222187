"""A hundred hostile clients in a process of their own: `python -m tests.flood <url> <seed>`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys

from tests.clients.raw import TEXT, Tcp, frame, http, upgrade

EACH = 20


async def send_fast(tcp: Tcp, chance: random.Random) -> None:
    """Send small messages without a pause, until the server has enough of it."""
    tcp.send(upgrade(chance.choice(["/ws", "/socket.io/?EIO=4&transport=websocket"])))
    await tcp.answer()
    messages = frame(TEXT, b'{"type":"echo","data":1}') * 50
    while not tcp.reader.at_eof():
        tcp.send(messages)
        await tcp.writer.drain()
        # The others of this process have their turn.
        await asyncio.sleep(0)


async def read_slowly(tcp: Tcp, chance: random.Random) -> None:
    """Ask for everything and take next to nothing of it."""
    tcp.send(chance.choice([upgrade("/ws"), http("/events")]))
    tcp.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.sleep(chance.uniform(2, 6))


async def fall_silent(tcp: Tcp, chance: random.Random) -> None:
    """Open a session, and never say or take anything again."""
    tcp.send(upgrade("/socket.io/?EIO=4&transport=websocket"))
    await tcp.answer()
    await asyncio.sleep(chance.uniform(2, 6))


async def send_slowly(tcp: Tcp, chance: random.Random) -> None:
    """Send the head of a request letter by letter."""
    for letter in upgrade("/ws"):
        tcp.send(bytes([letter]))
        await asyncio.sleep(0.1)


async def come_and_go(tcp: Tcp, chance: random.Random) -> None:
    """Connect and leave, some before the answer."""
    tcp.send(chance.choice([upgrade("/ws"), http("/events"), http("/nope")]))
    if chance.random() < 0.5:
        await tcp.answer()
    await asyncio.sleep(0.05)


DEEDS = (send_fast, read_slowly, fall_silent, send_slowly, come_and_go)


async def live(url: str, number: int, seed: int, counts: list[int]) -> None:
    chance = random.Random(seed + number)
    deed = DEEDS[number % len(DEEDS)]
    while True:
        with contextlib.suppress(OSError, EOFError, ValueError, IndexError):
            tcp = await Tcp.open(url)
            counts[number % len(DEEDS)] += 1
            try:
                await deed(tcp, chance)
            finally:
                tcp.writer.transport.abort()
        await asyncio.sleep(0.01)


async def main(url: str, seed: int, seconds: float) -> None:
    counts = [0] * len(DEEDS)
    lives = [asyncio.create_task(live(url, n, seed, counts)) for n in range(EACH * len(DEEDS))]
    print("begun", flush=True)  # noqa: T201
    await asyncio.wait(lives, timeout=seconds)
    for task in lives:
        task.cancel()
    await asyncio.gather(*lives, return_exceptions=True)
    print({deed.__name__: n for deed, n in zip(DEEDS, counts, strict=True)}, flush=True)  # noqa: T201


if __name__ == "__main__":
    # It would starve the honest clients of the machine, which is no fault of the server's.
    os.nice(10)
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
