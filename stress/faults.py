"""The faults, as a list: what each does to a site, while numbers are published."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Literal

from stress.site import Site


@dataclass(frozen=True)
class Fault:
    """One kind of bad day."""

    id: str
    # What it is in a table.
    name: str
    strike: Callable[[Site, Random], Coroutine[Any, Any, None]]
    servers: Literal["engine", "sentinels", "cluster"] = "engine"
    # Seconds for which numbers are published and clients cut, at least; and seconds between two
    # cuts of one client, on average.
    seconds: float = 10.0
    pause: float = 10.0
    # Whether what was acknowledged may be lost, which is then told of as a gap.
    gaps: bool = False


async def cut_clients(site: Site, random: Random) -> None:
    """Nothing else than the cuts."""


async def deafen(site: Site, random: Random) -> None:
    """Close the subscriptions of all nodes again and again."""
    for _ in range(round(160 * site.pace)):
        site.engine.command("CLIENT", "KILL", "TYPE", "pubsub")
        await asyncio.sleep(0.05)


async def flush_scripts(site: Site, random: Random) -> None:
    """Make the server forget all scripts again and again."""
    for _ in range(round(50 * site.pace)):
        site.engine.command("SCRIPT", "FLUSH")
        await asyncio.sleep(0.1)


async def kill_node(site: Site, random: Random) -> None:
    """Kill a node with -9, and start it again."""
    node = random.choice(site.nodes)
    await site.pause(2)
    node.signal_all(signal.SIGKILL)
    await node.ended()
    await site.pause(3)
    await node.start()


async def stop_node(site: Site, random: Random) -> None:
    """Let a node do nothing for half a minute."""
    node = random.choice(site.nodes)
    await site.pause(1)
    node.signal_all(signal.SIGSTOP)
    await site.pause(30)
    node.signal_all(signal.SIGCONT)
    await site.pause(2)


async def renew_nodes(site: Site, random: Random) -> None:
    """Have a parent renew its workers, one after the other."""
    node = next(node for node in site.nodes if node.workers > 1)
    await site.pause(2)
    old = node.serving
    node.signal(signal.SIGHUP)
    await node.until(lambda: len(node.serving) == node.workers and not node.serving & old)
    await site.pause(2)


async def end_node(site: Site, random: Random) -> None:
    """Stop a node in order, and start it again."""
    node = random.choice(site.nodes)
    await site.pause(2)
    node.signal(signal.SIGTERM)
    await node.ended()
    await node.start()
    await site.pause(2)


async def restart_engine(site: Site, random: Random) -> None:
    """Kill the server, and start it again with its data."""
    await site.pause(2)
    site.engine.kill()
    await site.pause(3)
    site.engine.start()
    await site.pause(3)


async def empty_engine(site: Site, random: Random) -> None:
    """Kill the server, and start it again without any data."""
    await site.pause(2)
    site.engine.kill()
    await site.pause(1)
    site.engine.start(empty=True)
    await site.pause(3)


async def kill_link(site: Site, random: Random) -> None:
    """Let nothing through between one node and the server, for a while."""
    link = random.choice(site.links)
    await site.pause(2)
    link.die()
    await site.pause(15)
    link.revive()
    await site.pause(3)


async def fail_over(site: Site, random: Random) -> None:
    """Have the replica made the primary, in order."""
    await site.pause(2)
    await asyncio.to_thread(site.sentinels.fail_over)
    await site.pause(3)


async def fall_behind(site: Site, random: Random) -> None:
    """Kill the primary when its replica has not got the last second."""
    await site.pause(2)
    site.sentinels.lag()
    await site.pause(1)
    killed = await asyncio.to_thread(site.sentinels.lose_primary)
    await site.pause(2)
    killed.start()
    await site.pause(3)


async def isolate(site: Site, random: Random) -> None:
    """Let the primary live on after a failover, until the sentinels find it."""
    await site.pause(2)
    await asyncio.to_thread(site.sentinels.isolate_primary)
    await site.pause(5)


async def move_slots(site: Site, random: Random) -> None:
    """Move the slots from server to server, with all their keys."""
    for _ in range(5):
        await site.pause(2)
        slots = {site.cluster.slot(key): key for key in site.cluster.all_keys()}
        for key in slots.values():
            await asyncio.to_thread(site.cluster.move, key)


FAULTS: Final = (
    Fault("cuts", "clients cut at random", cut_clients, pause=1.0),
    Fault("deaf", "subscriptions closed every 50 ms", deafen),
    Fault("flush", "SCRIPT FLUSH every 100 ms", flush_scripts),
    Fault("kill", "a node killed with -9", kill_node),
    Fault("stop", "a node stopped for 30 s", stop_node),
    Fault("renew", "two nodes renewed by SIGHUP", renew_nodes),
    Fault("end", "a node ended by SIGTERM", end_node),
    Fault("restart", "the server killed, back with its data", restart_engine),
    Fault("empty", "the server killed, back empty", empty_engine, gaps=True),
    Fault("link", "a node's link goes dead for 15 s", kill_link),
    Fault("failover", "a failover", fail_over, "sentinels", gaps=True),
    Fault("behind", "a failover to a replica that is behind", fall_behind, "sentinels", gaps=True),
    Fault("isolated", "an old primary that lives on", isolate, "sentinels", gaps=True),
    Fault("slots", "slots moved from server to server", move_slots, "cluster"),
)
